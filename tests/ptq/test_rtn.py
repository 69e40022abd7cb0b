"""Round to nearest after training: the same numbers as a model whose recipe quantizes the weights."""

import shutil

import jax
import numpy as np
import pytest

from precisionlm.errors import UserError
from precisionlm.precision.recipe import parse_recipe
from precisionlm.ptq.evaluate import bound_to, quantize_run
from precisionlm.ptq.method import weight_quantization
from precisionlm.ptq.rtn import round_to_nearest
from precisionlm.storage.checkpoint import folder_of, restore_params
from precisionlm.storage.result import finished_runs
from precisionlm.storage.run_directory import RunDirectory
from precisionlm.sweep.collect import collect
from precisionlm.training.evaluate import evaluate
from precisionlm.training.execute import train
from precisionlm.training.run import prepare_run
from precisionlm.training.step import abstract_state, initial_state

ONE = jax.devices()[:1]


def with_recipe(experiment, recipe):
    return experiment.model_copy(
        update={"precision": experiment.precision.model_copy(update={"recipe": str(parse_recipe(recipe))})}
    )


@pytest.mark.parametrize("weights", ["4", "int3/g16", "e2m1/tensor"])
def test_equals_quantizing_the_weights_by_recipe(experiment, weights):
    plain = prepare_run(with_recipe(experiment, "bf16"), ONE)
    word = f"int{weights}" if weights.isdigit() else weights
    quantized = prepare_run(with_recipe(experiment, f"W={word}"), ONE)
    params = initial_state(plain.program, 0, {})["params"]
    rounded = round_to_nearest(params, *bound_to(plain.experiment, weight_quantization(weights)))
    batches = plain.validation_batches()
    by_ptq = evaluate(plain.program, rounded, batches, plain.grids)
    by_recipe = evaluate(quantized.program, params, batches, quantized.grids)
    assert by_ptq.loss == pytest.approx(by_recipe.loss, abs=1e-5)
    assert by_ptq.loss != evaluate(plain.program, params, batches, plain.grids).loss
    np.testing.assert_array_equal(rounded["embedding"], params["embedding"])


def test_rows_are_recorded_once_beside_the_run(experiment, tmp_path):
    outcome = train(with_recipe(experiment, "bf16"), tmp_path)
    (folder,) = finished_runs(tmp_path)
    assert folder == outcome.path
    said = []
    rows = quantize_run(folder, "rtn", [weight_quantization("3"), weight_quantization("6")], said.append)
    assert [row["ptq_bits"] for row in rows] == [3.0, 6.0] and len(said) == 2
    assert rows == quantize_run(folder, "rtn", [weight_quantization("3"), weight_quantization("6")], said.append)
    assert len(said) == 2
    trained = outcome.result.evaluations[0]["val_loss"]
    assert abs(rows[1]["val_loss"] - trained) < abs(rows[0]["val_loss"] - trained) + 1e-4


def test_nothing_to_quantize_is_an_error(tmp_path):
    with pytest.raises(UserError, match="holds no finished run"):
        finished_runs(tmp_path)
    with pytest.raises(UserError, match="leaves the weights unquantized"):
        weight_quantization("bf16")


@pytest.mark.parametrize("recipe", ["W2A8", "W=int2/lsq,A8"])
def test_weights_that_were_trained_quantized_are_rounded_once(experiment, tmp_path, recipe):
    """Rounding to int8 a model that rounds its weights to int2 anyway changed nothing: the loss was int2's."""
    outcome = train(with_recipe(experiment, recipe), tmp_path, devices=ONE)
    rows = quantize_run(outcome.path, "rtn", [weight_quantization(b) for b in ("8", "4", "2")], lambda text: None)
    run = prepare_run(with_recipe(experiment, "A8"), ONE)
    folder = folder_of(RunDirectory.at(outcome.path), run.experiment.checkpoint)
    _, params = restore_params(folder, abstract_state(run.program)["params"])
    for row, bits in zip(rows, ("8", "4", "2"), strict=True):
        rounded = round_to_nearest(params, *bound_to(run.experiment, weight_quantization(bits)))
        right = evaluate(run.program, rounded, run.validation_batches(), run.grids).loss
        assert row["val_loss"] == pytest.approx(right, abs=1e-6)
    losses = [row["val_loss"] for row in rows]
    assert len(set(losses)) == 3
    if recipe == "W2A8":  # two bits are what it was trained at
        assert losses[2] == pytest.approx(outcome.result.evaluations[0]["val_loss"], abs=1e-6)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("int4/rhad16", "leave away rhad16$"),
        ("int4/had16/sr/mse", "leave away sr$"),
        ("int4/trust", "leave away trust$"),
        ("int4/sr", "leave away sr"),
        ("int4/lsq", "leave away lsq"),
        ("int4@down:A8", "'@' is for recipes"),
        ("int4-g32", "'-' is for recipes"),
        ("int4/g32/g64", "both say the sharing"),
    ],
)
def test_what_is_no_format_of_weights_is_refused(text, message):
    with pytest.raises(UserError, match=message):
        weight_quantization(text)


def test_what_does_not_fit_is_refused_before_anything_is_loaded(experiment, tmp_path):
    outcome = train(with_recipe(experiment, "bf16"), tmp_path, devices=ONE)
    shutil.rmtree(outcome.path / "checkpoints")
    with pytest.raises(UserError, match="group size 128 does not divide the 32 values of w"):
        quantize_run(outcome.path, "rtn", [weight_quantization("int4/g128")], lambda text: None)


def test_rows_tell_formats_apart(experiment, tmp_path):
    outcome = train(with_recipe(experiment, "bf16"), tmp_path, devices=ONE)
    words = ("int4/g32", "e2m1/g32", "mxfp4", "int4")
    quantize_run(outcome.path, "rtn", [weight_quantization(word) for word in words], lambda text: None)
    table, _ = collect(tmp_path)
    rows = table[table["evaluation"] == "ptq"].set_index("ptq_format")
    assert set(rows.index) == {"int4", "e2m1", "mxfp4"}
    assert list(rows.loc["mxfp4", ["ptq_bits", "ptq_group", "ptq_scale_type"]]) == [4.0, 32.0, "e8m0"]
    assert set(rows.loc["int4", "ptq_group"]) == {32.0, np.inf}
    trained = table[table["evaluation"] == "trained"].iloc[0]
    assert np.isnan(trained["ptq_bits"]) and trained["ptq_method"] == "none"


def test_a_damaged_result_is_named_and_the_others_go_on(experiment, tmp_path, capsys):
    outcome = train(with_recipe(experiment, "bf16"), tmp_path, devices=ONE)
    damaged = tmp_path / "0123456789ab"
    shutil.copytree(outcome.path, damaged)
    (damaged / "result.json").write_text("")
    assert finished_runs(tmp_path) == [outcome.path]
    said = capsys.readouterr().err
    assert "0123456789ab/result.json: no JSON" in said and said.count("\n") == 1
    table, left_out = collect(tmp_path)
    assert len(table) == 1 and len(left_out) == 1 and "result.json: no JSON" in left_out[0]
    text = (outcome.path / "result.json").read_text() + (outcome.path / "audit.json").read_text()
    assert "Infinity" not in text and "NaN" not in text
