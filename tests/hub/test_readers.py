"""What we export as transformers and compressed-tensors read it, and what transformers writes as we read it.

Needs `pip install -e .[hf]` (torch for CPUs will do); skipped without.
"""

import json
import warnings

import jax
import numpy as np
import pytest

from precisionlm.errors import UserError
from precisionlm.hub.export import Asked, export
from precisionlm.hub.import_ import Stated, import_model, plan_import
from precisionlm.ptq.evaluate import bound_to
from precisionlm.ptq.method import weight_quantization
from precisionlm.ptq.rtn import round_to_nearest
from precisionlm.storage.checkpoint import restore_params
from precisionlm.training.finished import evaluate_finished, request
from precisionlm.training.generation import Sampling, generate
from precisionlm.training.step import abstract_state

from .conftest import MODELS
from .test_round_trips import AS_THE_RUN

WHY = "needs the readers: pip install -e .[hf]"
torch = pytest.importorskip("torch", reason=WHY, exc_type=ImportError)
transformers = pytest.importorskip("transformers", reason=WHY, exc_type=ImportError)
pytest.importorskip("compressed_tensors", reason=WHY, exc_type=ImportError)
pytestmark = pytest.mark.filterwarnings("default")  # theirs are theirs

TOKENS = np.asarray(jax.random.randint(jax.random.key(1), (8, 24), 1, 97))
STATED = Stated(D_tokens=10**9, schedule="cosine")


def restored(folder):
    run = request(folder, []).run
    return run, restore_params(folder / "checkpoints", abstract_state(run.program)["params"])[1]


def logits_of(folder):
    run, params = restored(folder)
    return np.asarray(run.program.transformer().apply({"params": params}, TOKENS, run.grids))


def read_by_transformers(folder, dtype="float32", **options):
    transformers.logging.set_verbosity_error()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model, info = transformers.AutoModelForCausalLM.from_pretrained(
            folder, dtype=getattr(torch, dtype), output_loading_info=True, **options
        )
    assert not any(info.values()), info
    return model


def theirs(model):
    with torch.no_grad():
        return model(torch.tensor(TOKENS).long()).logits.float().numpy()


@pytest.mark.parametrize("kind", MODELS)
def test_logits_are_ours(make_run, tmp_path, kind, record_property):
    folder = make_run(**MODELS[kind])
    export(folder, tmp_path / "out", Asked())
    model, ours = read_by_transformers(tmp_path / "out"), logits_of(folder)
    error = float(np.abs(theirs(model) - ours).max())
    print(f"{kind}: {type(model).__name__} max |Δlogit| {error:.1e} (logits' std {ours.std():.2f})")
    assert ours.std() > 0.3 and error < 1e-5


def test_llama3_rope_scaling_is_theirs(make_run, tmp_path):
    folder = make_run(rope_scaling={"factor": 8.0, "original_length": 16}, rope_base=5e5)
    export(folder, tmp_path / "out", Asked())
    ours = logits_of(folder)
    assert np.abs(theirs(read_by_transformers(tmp_path / "out")) - ours).max() < 1e-5
    assert np.abs(logits_of(make_run(rope_base=5e5)) - ours).max() > 1e-3


FORMATS = ["W2", "W3", "W4", "W5", "W6", "W7", "W8", "W4-g32", "W3-g32", "int4/g32/sbf16", "e4m3fn", "mxfp4", "mxfp8"]


@pytest.mark.parametrize("weights", FORMATS)
def test_weights_are_ours_bit_for_bit(make_run, tmp_path, weights):
    folder = make_run(layers=1)
    export(folder, tmp_path / "out", Asked(weights))
    config = transformers.CompressedTensorsConfig(dequantize=True)
    read = read_by_transformers(tmp_path / "out", quantization_config=config)
    run, params = restored(folder)
    params = round_to_nearest(params, *bound_to(run.experiment, weight_quantization(weights)))
    (layer,) = read.model.layers
    right = {"down": layer.mlp.down_proj, "out": layer.self_attn.o_proj}
    for site, theirs_of in right.items():
        ours = params["blocks"]["mlp" if site == "down" else "attention"][site]["w"][0]
        np.testing.assert_array_equal(theirs_of.weight.detach().float().numpy().T, ours)
    gate = params["blocks"]["mlp"]["gate_up"]["w"][0]
    np.testing.assert_array_equal(layer.mlp.gate_proj.weight.detach().float().numpy().T, gate[:, 0])
    whole = np.asarray(run.program.transformer().apply({"params": params}, TOKENS, run.grids))
    assert np.abs(theirs(read) - whole).max() < 1e-5


def test_nvfp4_is_read(make_run, tmp_path):
    """The reader computes in bfloat16, so values are within its rounding; its codes and scales are ours."""
    folder = make_run(layers=1)
    export(folder, tmp_path / "out", Asked("nvfp4"))
    read = read_by_transformers(
        tmp_path / "out", quantization_config=transformers.CompressedTensorsConfig(dequantize=True)
    )
    run, params = restored(folder)
    params = round_to_nearest(params, *bound_to(run.experiment, weight_quantization("nvfp4")))
    found = read.model.layers[0].mlp.down_proj.weight.detach().float().numpy().T
    right = np.asarray(params["blocks"]["mlp"]["down"]["w"][0])
    np.testing.assert_allclose(found, right, rtol=2**-7, atol=1e-6)
    from compressed_tensors.compressors.nvfp4.helpers import unpack_fp4_from_uint8
    from safetensors.torch import load_file

    stored, name = load_file(tmp_path / "out" / "model.safetensors"), "model.layers.0.mlp.down_proj"
    codes = unpack_fp4_from_uint8(stored[f"{name}.weight_packed"], 64, 96, torch.float32).numpy()
    scales = stored[f"{name}.weight_scale"].float().numpy() / stored[f"{name}.weight_global_scale"].numpy()
    np.testing.assert_allclose((codes * np.repeat(scales, 16, axis=1)).T, right, rtol=3e-7)


def test_recipes_of_sites_are_read(make_run, tmp_path):
    recipe = "W4@down:W3-g32@out:W=e4m3fn@last:bf16"
    folder = make_run(recipe)
    export(folder, tmp_path / "out", Asked())
    read = read_by_transformers(tmp_path / "out")  # dequantize=True of transformers 5.24 takes the first group for all
    assert np.abs(theirs(read) - logits_of(folder)).max() < 1e-5


@pytest.mark.parametrize("recipe", ["W8A8", "W=e4m3fn,A=e4m3fn"])
def test_eight_bit_activations_are_quantized_by_the_reader(make_run, tmp_path, recipe):
    folder = make_run(recipe)
    export(folder, tmp_path / "out", Asked())
    found, ours = theirs(read_by_transformers(tmp_path / "out")), logits_of(folder)
    weights_only = make_run(recipe.replace("A8", "").replace(",A=e4m3fn", ""))
    away, near = (np.abs(x - ours).mean() for x in (logits_of(weights_only), found))
    assert away > 0 and near < 1.5 * away  # their int8 has 256 codes under absmax / 127.5, ours 255 under absmax / 127
    assert np.abs(found - logits_of(weights_only)).mean() > 0.3 * away


def test_generation_and_tokenizer(make_run, tmp_path):
    folder = make_run()
    export(folder, tmp_path / "out", Asked("W4-g32"))
    read = read_by_transformers(tmp_path / "out")
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "out")
    assert tokenizer.eos_token_id == 0 and len(tokenizer) == 97
    prompt = torch.tensor(TOKENS[:1, :5]).long()
    said = read.generate(prompt, max_new_tokens=6, do_sample=False)
    assert said.shape[1] in range(6, 12) and tokenizer.decode(said[0])
    ours = make_run("W4-g32")  # at which the same weights are what was exported
    run, params = restored(ours)
    assert generate(run, params, TOKENS[0, :5].tolist(), Sampling(6, temperature=0.0)) == said[0, 5:].tolist()


def test_a_bfloat16_model_is_read(make_run, tmp_path):
    folder = make_run(layers=1)
    export(folder, tmp_path / "out", Asked("int4/g32/sbf16", dtype="bfloat16"))
    read = read_by_transformers(tmp_path / "out", "bfloat16")
    run, params = restored(folder)
    params = round_to_nearest(params, *bound_to(run.experiment, weight_quantization("int4/g32/sbf16")))
    ours = run.program.transformer().clone(dtype="bfloat16").apply({"params": params}, TOKENS, run.grids)
    assert np.abs(theirs(read) - np.asarray(ours)).max() < 0.1 * float(ours.std())


def saved_by_transformers(kind, folder, tokens_folder, **keys):
    sizes = {"vocab_size": 97, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2}
    sizes |= {"num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 64}
    sizes |= {"rms_norm_eps": 1e-5, "initializer_range": 0.1}
    cls = {"llama": transformers.LlamaConfig, "qwen3": transformers.Qwen3Config}[kind]
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(cls(**sizes | keys)).float()
    with torch.no_grad():
        for name, p in model.named_parameters():
            p.copy_(torch.randn_like(p) * 0.3 + 1.0) if "norm" in name else None
    model.save_pretrained(folder, max_shard_size="60KB")
    (folder / "tokenizer.json").write_bytes((tokens_folder / "tokenizer.json").read_bytes())
    return model


ROPE3 = {"rope_type": "llama3", "rope_theta": 5e5, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
ROPE3 |= {"original_max_position_embeddings": 16}
CHECKPOINTS = [
    ("llama", {"rope_parameters": ROPE3, "tie_word_embeddings": True}),
    ("llama", {"head_dim": 32}),
    ("qwen3", {"head_dim": 32, "rope_parameters": {"rope_type": "default", "rope_theta": 1e6}}),
]


@pytest.mark.parametrize(("kind", "keys"), CHECKPOINTS, ids=str)
def test_checkpoints_of_transformers_come_in(tokens_folder, tmp_path, kind, keys):
    model = saved_by_transformers(kind, tmp_path / "theirs", tokens_folder, **keys)
    assert (tmp_path / "theirs" / "model.safetensors.index.json").exists()
    found = plan_import(tmp_path / "theirs", tokens_folder, STATED, overrides=AS_THE_RUN)
    directory = import_model(found, tmp_path / "runs")
    ours = logits_of(directory.path)
    error = float(np.abs(theirs(model) - ours).max())
    print(f"{kind}: max |Δlogit| {error:.1e} (logits' std {ours.std():.2f})")
    assert ours.std() > 0.3 and error < 1e-5
    assert evaluate_finished(request(directory.path, []))["val_loss"] > 0
    export(directory.path, tmp_path / "out", Asked())
    assert np.abs(theirs(read_by_transformers(tmp_path / "out")) - theirs(model)).max() < 1e-5


def test_keys_that_change_logits_are_refused(tokens_folder, tmp_path):
    saved_by_transformers("llama", tmp_path / "theirs", tokens_folder)
    path = tmp_path / "theirs" / "config.json"
    config = json.loads(path.read_text())
    path.write_text(json.dumps(config | {"attention_bias": True}))
    with pytest.raises(UserError, match="attention_bias is True, which would change the logits"):
        plan_import(tmp_path / "theirs", tokens_folder, STATED)
