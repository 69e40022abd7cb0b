"""Work is divided, not repeated: what each device of a mesh multiplies, read from the compiled step."""

import jax
import jax.numpy as jnp
import pytest

from precisionlm.compiling.hlo import parse
from precisionlm.compiling.hlo_costs import products
from precisionlm.config import Experiment, MeshConfig
from precisionlm.training.optimizer import hyperparameters
from precisionlm.training.run import prepare_run
from precisionlm.training.step import abstract_state, train_step


def flops_per_device(experiment: Experiment, devices: int, **mesh: int) -> float:
    # A vocabulary that the tensor axis divides; an odd one would be multiplied whole on each of its devices.
    model = experiment.model.model_copy(update={"vocab_size": 128})
    e = experiment.model_copy(update={"model": model, "mesh": MeshConfig(**mesh)})
    run = prepare_run(e, jax.devices()[:devices])
    tokens = jax.ShapeDtypeStruct((e.training.batch_size, e.data.sequence_length + 1), jnp.int32)
    arguments = (abstract_state(run.program), tokens, run.grids, hyperparameters(e), 0)
    return sum(p.flops for p in products(parse(train_step(run.program).lower(*arguments).compile().as_text())))


@pytest.mark.parametrize("mesh", [{"fsdp": 8}, {"replica": 2, "fsdp": 2, "tensor": 2}])
def test_eight_devices_share_the_products_of_one(experiment, mesh):
    assert flops_per_device(experiment, 8, **mesh) * 8 == pytest.approx(flops_per_device(experiment, 1), rel=0.02)


def test_between_products_time_steps_are_spread_over_the_tensor_axis(experiment):
    tree = {"mesh": MeshConfig(fsdp=2, tensor=4), "training": experiment.training.model_copy(update={"remat": "dots"})}
    e = experiment.model_copy(update=tree)
    layers, batch, time, width = e.model.layers, e.training.batch_size // 2, e.data.sequence_length, e.model.width
    run = prepare_run(e)
    tokens = jax.ShapeDtypeStruct((e.training.batch_size, time + 1), jnp.int32)
    arguments = (abstract_state(run.program), tokens, run.grids, hyperparameters(e), 0)
    text = train_step(run.program).lower(*arguments).compile().as_text()
    assert f"f32[{layers},{batch},{time // 4},{width}]" in text  # saved for the backward pass, every layer's
    assert f"f32[{layers},{batch},{time},{width}]" not in text
    assert f"f32[{layers},{batch},{time},2,{e.model.mlp_width // 4}]" in text  # features inside the MLP
