"""Work is divided, not repeated: what each device of a mesh multiplies, read from the compiled step."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from precisionlm.compiling.hlo import parse
from precisionlm.compiling.hlo_costs import products
from precisionlm.config import Experiment, MeshConfig
from precisionlm.model.linear import linear
from precisionlm.precision.binding import bind
from precisionlm.precision.recipe import parse_recipe
from precisionlm.training.optimizer import hyperparameters
from precisionlm.training.run import prepare_run
from precisionlm.training.sharding import make_mesh
from precisionlm.training.step import abstract_state, program_of, train_step


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


@pytest.mark.parametrize("recipe", ["bf16", "W8A8", "W8A8G8-tensor"])
def test_gradients_of_weights_leave_their_product_in_the_dtype_they_are_summed_in(recipe):
    structure, grids = bind(parse_recipe(recipe), 1, {})
    layer = {site: jax.tree.map(lambda leaf: leaf[0], grid) for site, grid in grids.items() if site == "qkv"}
    x, dy = (jax.random.normal(jax.random.key(i), (256, n), jnp.bfloat16) for i, n in ((0, 64), (1, 32)))
    w = jax.random.normal(jax.random.key(2), (64, 32))

    def value_and_gradients(wide_sums):
        product = lambda x, w: linear(structure, "qkv", x, w, layer, None, {"w": w}, None, wide_sums)  # noqa: E731
        y, pull_back = jax.vjp(product, x, w)
        return y, *pull_back(dy)

    narrow, wide = (
        jax.jit(value_and_gradients, static_argnums=0)(False),
        jax.jit(value_and_gradients, static_argnums=0)(True),
    )
    for a, b in zip(narrow, wide, strict=True):
        assert a.dtype == b.dtype
        np.testing.assert_allclose(a.astype(jnp.float32), b.astype(jnp.float32), rtol=2**-7, atol=0.1)
    digits = [bool((found[2] == found[2].astype(jnp.bfloat16)).all()) for found in (narrow, wide)]
    assert digits == [True, False]


def test_the_dtype_of_sums_is_part_of_the_program_on_accelerators(experiment):
    training = experiment.training.model_copy(update={"reduce_dtype": "float32"})
    structure, _ = bind(parse_recipe("bf16"), 2, {})
    mesh = make_mesh(MeshConfig())
    asked = experiment.model_copy(update={"training": training})
    assert not program_of(asked, structure, mesh).wide_sums  # CPUs have no other sums
    on_tpus = replace(program_of(asked, structure, mesh), wide_sums=True)
    assert on_tpus.transformer().placed.wide_sums and not program_of(experiment, structure, mesh).wide_sums


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
