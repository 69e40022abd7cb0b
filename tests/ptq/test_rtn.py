"""Round to nearest after training: the same numbers as a model whose recipe quantizes the weights."""

import jax
import numpy as np
import pytest

from precisionlm.errors import UserError
from precisionlm.precision.recipe import parse_recipe
from precisionlm.ptq.evaluate import quantize_run, weight_quantization
from precisionlm.ptq.rtn import round_to_nearest
from precisionlm.storage.result import finished_runs
from precisionlm.training.evaluate import evaluate
from precisionlm.training.execute import train
from precisionlm.training.run import prepare_run
from precisionlm.training.step import initial_state

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
    rounded = round_to_nearest(params, weight_quantization(weights))
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
