"""Models that come in: as the verbs take them, what is refused and why, damaged files."""

import json
import shutil

import numpy as np
import pytest
import yaml

from precisionlm.cli.main import main
from precisionlm.config import ModelConfig, RopeScaling
from precisionlm.errors import UserError
from precisionlm.hub import tensors
from precisionlm.hub.architectures import architecture_of, config_of, model_of
from precisionlm.hub.export import Asked, export
from precisionlm.hub.import_ import Stated, import_model, plan_import

from ..conftest import tiny_tree
from .conftest import finished_run

SIZES = {"layers": 1, "width": 64, "heads": 4, "mlp_width": 96, "vocab_size": 97}


@pytest.fixture(scope="module")
def run(tokens_folder, tmp_path_factory):
    return finished_run(tokens_folder, tmp_path_factory.mktemp("runs"), "W4A8", layers=1)


@pytest.fixture(scope="module")
def exported(run, tmp_path_factory):
    out = tmp_path_factory.mktemp("hub") / "model"
    export(run, out, Asked("W4-g32", at="bf16", license="mit"))
    return out


@pytest.fixture
def model(exported, tmp_path):
    return shutil.copytree(exported, tmp_path / "model")


def ok(capsys, *words):
    code = main([*map(str, words), "--json"])
    captured = capsys.readouterr()
    assert code == 0, captured.err
    return json.loads(captured.out)


def test_the_verbs_from_run_to_run(run, tokens_folder, tmp_path, capsys):
    out, runs = tmp_path / "model", tmp_path / "runs"
    assert ok(capsys, "export", run, "--out", out, "--weights", "W4", "--dry-run")["class"] == "LlamaForCausalLM"
    assert not out.exists()
    words = ["export", run, "--out", out, "--weights", "bf16"]
    assert main([*map(str, words)]) == 2 and "leaves the weights unquantized" in capsys.readouterr().err
    written = ok(capsys, "export", run, "--out", out, "--license", "apache-2.0")
    assert written["format"] == "pack-quantized" and not written["notes"][0].startswith("Activations")
    assert main(["export", str(run), "--out", str(out)]) == 2 and "not empty" in capsys.readouterr().err
    card = (out / "README.md").read_text()
    front = yaml.safe_load(card.split("---\n")[1])
    assert front["license"] == "apache-2.0" and front["precisionlm"]["recipe"] == "W4A8"
    assert "sha256 of the training tokens" in card
    words = ["import", out, "--data", tokens_folder, "--out", runs, "--learning-rate", "1e-3"]
    words += ["--ignore", "input_activations", "--training.dtype", "float32", "--training.eval_tokens", "1000"]
    planned = ok(capsys, *words, "--dry-run")
    assert not runs.exists()
    row = ok(capsys, *words)
    assert planned == row and row["learning_rate"] == 1e-3 and row["D_tokens"] == 12 * 8 * 32
    assert ok(capsys, *words) == row  # a second time nothing is done
    folder = row["run_dir"]
    (evaluated,) = ok(capsys, "evaluate", folder)
    (quantized,) = ok(capsys, "ptq", folder, "--weights", "W2")
    assert quantized["val_loss"] != evaluated["val_loss"] and evaluated["val_tokens"] == 1000
    config = tmp_path / "run.yaml"
    tree = tiny_tree(tokens_folder)
    tree["model"] |= {"width": 64, "mlp_width": 96, "layers": 1}
    tree["training"] |= {"steps": 1, "eval_tokens": 1000}
    config.write_text(yaml.safe_dump(tree))
    trained = ok(capsys, "train", config, "--out", runs, "--weights-only", folder)["result"]
    assert trained["row"]["weights_from"] == row["run_id"]
    assert abs(trained["evaluations"][0]["val_loss"] - evaluated["val_loss"]) < 0.2
    assert main(["train", f"{folder}/config.yaml", "--out", str(tmp_path / "other")]) == 2
    assert "training.imported: these weights came from elsewhere" in capsys.readouterr().err
    said = ok(capsys, "generate", folder, "--prompt", "āă", "--tokens", "5", "--temperature", "0")
    assert len(said["tokens"]) <= 5 and said == ok(
        capsys, "generate", folder, "--prompt", "āă", "--tokens", "5", "--temperature", "0"
    )
    counts = ok(capsys, "table", runs, "-o", tmp_path / "runs.parquet")
    assert counts["rows"] == 3 and not counts["unfinished"]
    import pandas as pd

    table = pd.read_parquet(tmp_path / "runs.parquet").set_index(["run_id", "evaluation"])
    assert table.loc[(row["run_id"], "ptq"), "delta"] > 0
    said = table.loc[(row["run_id"], "trained"), "stated_by_others"]
    assert {"D_tokens", "schedule", "learning_rate", "flops"} <= set(said.split()) and "N_params" not in said


def refused(folder, data, why, **options):
    with pytest.raises(UserError, match=why) as caught:
        plan_import(folder, data, options.pop("stated", Stated()), **options)
    assert "\n" not in str(caught.value)


def with_config(folder, **changes):
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"attention_bias": True}, "attention_bias is True, which would change the logits"),
        ({"logits_scaling": 8.0}, "logits_scaling is 8.0"),
        ({"a_new_idea": "on"}, "a_new_idea is 'on', which would change the logits, or is not known here"),
        ({"sliding_window": 4}, "sliding_window is 4"),
        ({"layer_types": ["sliding_attention"]}, "layer_types"),
        ({"hidden_act": "relu2"}, "hidden_act is 'relu2'"),
        ({"model_type": "gpt2"}, "model_type is 'gpt2'; known: llama, qwen3, bitnet"),
        ({"architectures": ["LlamaForSequenceClassification"]}, "only LlamaForCausalLM"),
        ({"rope_parameters": {"rope_type": "yarn", "rope_theta": 1e4}}, "rope_type is 'yarn'"),
        ({"rope_parameters": {"rope_type": "llama3", "rope_theta": 1e4}}, "without all of its keys"),
        ({"num_attention_heads": 3}, "heads 3 is not divisible by kv_heads 2"),
        ({"num_hidden_layers": "two"}, "layers = two"),
        ({"num_hidden_layers": 2}, "tensor 'model.layers.1.input_layernorm.weight' is missing"),
        ({"quantization_config": {"quant_method": "gptq"}}, "only weights quantized by compressed-tensors"),
        ({"quantization_config": None}, "weight' is missing"),
    ],
)
def test_configs_that_are_not_computed_here(model, tokens_folder, changes, why):
    with_config(model, **changes)
    refused(model, tokens_folder, why)


def test_keys_can_be_passed_over(model, tokens_folder):
    with_config(model, a_new_idea="on", off=False, none=None)
    assert plan_import(model, tokens_folder, Stated(), ignored=["a_new_idea"]).non_embedding > 0


def test_damaged_files(model, tokens_folder, tmp_path):
    path = model / "model.safetensors"
    content = path.read_bytes()
    for damaged, why in (
        (content[:-7], "cut short or damaged"),
        (content[:5], "its header would have|no safetensors"),
        (b"\xff" * 8 + content[8:], "its header would have"),
        (content + b"more", "cut short or damaged"),
        (content[:8] + b"{" * 20 + content[28:], "no safetensors file"),
        (content.replace(b'"F32"', b'"F99"', 1), "of dtype F99"),
        (content.replace(b'"shape":[97,64]', b'"shape":[97,65]', 1), "does not fill its bytes"),
    ):
        path.write_bytes(damaged)
        refused(model, tokens_folder, why)
    path.rename(model / "pytorch_model.bin")
    refused(model, tokens_folder, "pytorch_model.bin is a pickle, which can run code and is not read")
    (model / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": "../secret.safetensors"}}))
    refused(model, tokens_folder, r"'../secret.safetensors' is no file of this folder")
    (model / "model.safetensors.index.json").write_text("[]")
    refused(model, tokens_folder, "no readable 'weight_map'")


def test_other_tensors_than_the_models(model, tokens_folder, tmp_path):
    path = model / "model.safetensors"
    found = {name: np.array(tensor) for name, tensor in tensors.read(path).items()}  # the file changes below
    bias = found | {"model.layers.0.self_attn.q_proj.bias": np.zeros(64, np.float32)}
    for changed, why in (
        ({k: v for k, v in found.items() if k != "model.norm.weight"}, "'model.norm.weight' is missing"),
        (bias, "q_proj.bias' is no part of this model|'bias' is not read"),
        (found | {"model.extra.weight": np.zeros(3, np.float32)}, "'model.extra.weight' is no part of this model"),
    ):
        tensors.write(path, changed)
        with pytest.raises(UserError, match=why):
            import_model(plan_import(model, tokens_folder, Stated()), tmp_path / "runs")
    tensors.write(path, found)
    with_config(model, intermediate_size=128)
    with pytest.raises(UserError, match=r"mlp.gate_proj: 'weight_packed' is int32 \(96, 8\), not int32 \(128, 8\)"):
        import_model(plan_import(model, tokens_folder, Stated()), tmp_path / "runs")
    with_config(model, intermediate_size=96)
    tensors.write(path, found | {"model.norm.weight": np.full(64, np.nan, np.float32)})
    with pytest.raises(UserError, match="not finite"):
        import_model(plan_import(model, tokens_folder, Stated()), tmp_path / "runs")
    assert not (tmp_path / "runs").exists()


def test_what_nobody_states_is_asked_for(model, tokens_folder):
    assert plan_import(model, tokens_folder, Stated(D_tokens=5)).stated["D_tokens"] == 5
    many = Stated(D_tokens=15 * 10**12)
    refused(
        model, tokens_folder, "at most 2,147,483,647 steps: say a larger batch, --training.batch_size 440", stated=many
    )
    larger = plan_import(model, tokens_folder, many, overrides=["--training.batch_size", "440"])
    assert larger.stated["D_tokens"] == 15 * 10**12 and larger.run.experiment.training.steps < 2**31
    card = model / "README.md"
    text = card.read_text()
    card.write_text(text.replace("schedule: cosine", "schedule: 3"))
    refused(model, tokens_folder, "schedule is 3: not what the table's column")
    card.write_text("---\n[\n---\n")
    refused(model, tokens_folder, "front matter is no YAML")
    card.write_text("# A model\n")
    refused(model, tokens_folder, "neither --tokens nor the card says")
    (model / "tokenizer.json").write_text("{}")
    refused(model, tokens_folder, "was not prepared with the tokenizer of this model", stated=Stated(D_tokens=5))


def test_configs_say_the_same_in_both_directions():
    scaling = RopeScaling(factor=8.0, low_frequency_factor=1.0, high_frequency_factor=4.0, original_length=16)
    for keys in (
        {},
        {"kv_heads": 2, "tie_embeddings": True, "rope_scaling": scaling, "rope_base": 5e5},
        {"qk_norm": True, "head_size": 32},
        {"projection_norm": True, "norm_epsilon": 1e-5},
    ):
        ours = ModelConfig(**SIZES | keys)
        config = config_of(ours, 32, 0, "float32")
        assert model_of(config, "there") == ours
        older = {k: v for k, v in config.items() if k != "rope_parameters"}  # as transformers 4 writes it
        assert model_of(older, "there") == ours
    defaults = {"head_dim": None, "num_key_value_heads": 2}
    assert model_of(config_of(ModelConfig(**SIZES), 32, 0, "float32") | defaults, "there").kv_heads == 2
    needed = config_of(ModelConfig(**SIZES, qk_norm=True), 32, 0, "float32")
    del needed["num_key_value_heads"]
    with pytest.raises(UserError, match="key 'num_key_value_heads' is missing"):
        model_of(needed, "there")


def test_models_without_a_class_are_one_line():
    with pytest.raises(UserError, match="no Hugging Face class has both norms"):
        architecture_of(ModelConfig(**SIZES, qk_norm=True, projection_norm=True))
    with pytest.raises(UserError, match="needs heads x head_size = width, but 128 is not 64"):
        architecture_of(ModelConfig(**SIZES, head_size=32, projection_norm=True))


def test_exports_that_are_refused(make_run, run, tmp_path):
    for asked, why in (
        (Asked(method="gptq"), "give --weights"),
        (Asked("e3m2"), "no layout of compressed-tensors"),
        (Asked("W4", step=3), "no checkpoint of step 3; kept: 12"),
        (Asked("W4", at="W2A8"), "quantizes weights too"),
        (Asked("W4-g48"), "group size 48 does not divide"),
    ):
        with pytest.raises(UserError, match=why):
            export(run, tmp_path / "out", asked)
    tied = make_run("W4@embed:W8", tie_embeddings=True, layers=1)
    with pytest.raises(UserError, match="one matrix"):
        export(tied, tmp_path / "out", Asked())
    with pytest.raises(UserError, match="is not the directory of a finished run"):
        export(tmp_path, tmp_path / "out", Asked())
    assert not list(tmp_path.glob(".out*")) and not (tmp_path / "out").exists()
