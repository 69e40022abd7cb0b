"""Out and in again, bit for bit, with nothing but numpy: names, layouts, records."""

import json

import jax
import numpy as np
import pytest

from precisionlm.hub import tensors
from precisionlm.hub.export import Asked, export
from precisionlm.hub.import_ import Stated, import_model, plan_import
from precisionlm.ptq.calibration import Calibration
from precisionlm.ptq.evaluate import Options, quantize_run
from precisionlm.ptq.method import weight_quantization
from precisionlm.storage.checkpoint import restore_params
from precisionlm.training.finished import evaluate_finished, request
from precisionlm.training.step import abstract_state

from .conftest import MODELS

AS_THE_RUN = ("--training.dtype", "float32", "--training.eval_tokens", "2000")


def weights(folder):
    run = request(folder, []).run
    found = restore_params(folder / "checkpoints", abstract_state(run.program)["params"])[1]
    return run, jax.tree.map(np.asarray, found)


def brought_in(folder, data, out, ignored=()):
    return import_model(plan_import(folder, data, Stated(), ignored=ignored, overrides=AS_THE_RUN), out).path


def there_and_back(folder, tmp_path, tokens_folder, asked):
    """(exported, imported run directory, exported again)."""
    export(folder, tmp_path / "out", asked)
    imported = brought_in(tmp_path / "out", tokens_folder, tmp_path / "imported", ["input_activations"])
    export(imported, tmp_path / "again", Asked(dtype=asked.dtype, license=asked.license))
    return tmp_path / "out", imported, tmp_path / "again"


def assert_same_files(one, other):
    assert sorted(p.name for p in one.iterdir()) == sorted(p.name for p in other.iterdir())
    for path in one.iterdir():
        if path.name != "README.md":  # says which run it came from
            assert path.read_bytes() == (other / path.name).read_bytes(), path.name


def loss_of(folder, *overrides):
    return evaluate_finished(request(folder, overrides))["val_loss"]


@pytest.mark.parametrize(
    "kind",
    [pytest.param(kind, marks=[pytest.mark.long] if kind in ("plain", "grouped_tied") else []) for kind in MODELS],
)
def test_what_goes_out_comes_in(make_run, tmp_path, tokens_folder, kind):
    folder = make_run(layers=1, **MODELS[kind])
    out, imported, again = there_and_back(folder, tmp_path, tokens_folder, Asked(license="mit"))
    (run, ours), (theirs_run, theirs) = weights(folder), weights(imported)
    jax.tree.map(np.testing.assert_array_equal, ours, theirs)
    assert theirs_run.experiment.model == run.experiment.model
    assert_same_files(out, again)
    row = json.loads((imported / "result.json").read_text())["row"]
    assert row["D_tokens"] == 12 * 8 * 32 and row["stated_by_others"].startswith("D_tokens schedule learning_rate")
    assert row["learning_rate"] == pytest.approx(3e-3) and "dataset" not in row and "steps" not in row


@pytest.mark.long
def test_recipes_of_sites_and_layers(make_run, tmp_path, tokens_folder):
    weights_only = "W4@down:W3@out:W=e4m3fn@last:bf16@embed:W8@head:W4"
    folder = make_run(weights_only.replace("W4@down", "W4A8KV8@down"), layers=3)
    out, imported, again = there_and_back(folder, tmp_path, tokens_folder, Asked())
    assert_same_files(out, again)
    config = json.loads((out / "config.json").read_text())["quantization_config"]
    groups = list(config["config_groups"].values())
    assert [(g["weights"]["num_bits"], g["format"]) for g in groups] == [
        (4, "pack-quantized"),
        (8, "float-quantized"),
        (3, "pack-quantized"),
    ]
    assert config["format"] == "mixed-precision" and all(g["input_activations"]["num_bits"] == 8 for g in groups)
    assert r"re:.*layers\.(2)\.mlp\.down_proj$" in config["ignore"]
    named = tensors.read_model(out)
    assert "model.layers.1.mlp.down_proj.weight_packed" in named and "model.layers.2.mlp.down_proj.weight" in named
    text = (out / "README.md").read_text()
    for said in ("Attention is evaluated here with k: int8, v: int8", "Embedding and head", "the reader's own rule"):
        assert said in text
    # What the forward pass of the run makes of its weights, with nothing else quantized.
    assert loss_of(imported) == loss_of(folder, "--precision.recipe", weights_only)


@pytest.mark.long
@pytest.mark.parametrize("recipe", ["W=int4/lsq", "W=int4/g32/lwc", "W4-mse", "W=int4/edge", "nvfp4", "W=int4/b32"])
def test_scales_of_every_kind(make_run, tmp_path, tokens_folder, recipe):
    folder = make_run(recipe if recipe != "nvfp4" else "W=nvfp4", layers=1)
    _, imported, _ = there_and_back(folder, tmp_path, tokens_folder, Asked())
    # Scales that are products have a last bit that depends on what else is compiled with them.
    assert loss_of(folder) == pytest.approx(loss_of(imported), abs=1e-6 if recipe in ("nvfp4", "W4-mse") else 0)


@pytest.mark.parametrize("method", ["gptq", *(pytest.param(m, marks=pytest.mark.long) for m in ("awq+qep", "rtn+mse"))])
def test_what_is_exported_is_what_was_evaluated(make_run, tmp_path, tokens_folder, method):
    folder, calibration = make_run(layers=1), Calibration(8)
    wanted = weight_quantization("W3-g32")
    (row,) = quantize_run(folder, method, [wanted], lambda said: None, options=Options(calibration=calibration))
    asked = Asked("W3-g32", method, calibration=calibration)
    out, imported, again = there_and_back(folder, tmp_path, tokens_folder, asked)
    assert f"{row['val_loss']}" in (out / "README.md").read_text()
    assert loss_of(imported) == row["val_loss"] != loss_of(folder)
    assert_same_files(out, again)


def test_bfloat16_and_shards(make_run, tmp_path, tokens_folder, monkeypatch):
    monkeypatch.setattr(tensors.write_model, "__defaults__", (16_000,))
    out, _, again = there_and_back(make_run(layers=1), tmp_path, tokens_folder, Asked("nvfp4", dtype="bfloat16"))
    index = json.loads((out / "model.safetensors.index.json").read_text())
    assert len(set(index["weight_map"].values())) > 2 and not (out / "model.safetensors").exists()
    assert index["metadata"]["total_size"] == sum(t.nbytes for t in tensors.read_model(out).values())
    assert_same_files(out, again)
    assert tensors.read_model(out)["model.norm.weight"].dtype == tensors.BF16
