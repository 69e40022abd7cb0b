"""The audit measures what leaves the quantizers of the step that trains: what only looks quantized is an error."""

from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from precisionlm.config import build
from precisionlm.errors import UserError
from precisionlm.precision import dot_general as products
from precisionlm.precision import marks, quantize
from precisionlm.precision.binding import bind
from precisionlm.precision.recipe import parse_recipe
from precisionlm.training.auditing import audit_run
from precisionlm.training.run import prepare_run
from precisionlm.training.step import initial_state

from ..conftest import tiny_tree

ONE = jax.devices()[:1]


def audited(tokens_folder, recipe, width, **training):
    """The audit of an untrained run; a width of its own keeps its programs from those of other tests."""
    tree = tiny_tree(tokens_folder)
    tree["model"] |= {"width": width}
    tree["precision"] = {"recipe": recipe}
    tree["training"] |= training
    run = prepare_run(build(tree, "test"), ONE)
    return run, lambda run: audit_run(run, initial_state(run.program, 0, run.grids))


def test_a_quantizer_that_marks_without_rounding_is_found(tokens_folder, monkeypatch):
    run, audit = audited(tokens_folder, "W4A8", 24)
    monkeypatch.setattr(quantize, "round_to_grid", lambda x, grid, noise=None: x)
    with pytest.raises(UserError, match="is no value of the format asked for"):
        audit(run)


def test_a_mark_without_its_values_proves_nothing(tokens_folder, monkeypatch):
    run, audit = audited(tokens_folder, "W4A8", 40)
    monkeypatch.setattr(products, "quantize", lambda x, *_: quantize.named(x.astype(_[-1]), quantize.TAG, _[-2]))
    with pytest.raises(UserError, match="is marked as quantized, but"):
        audit(run)


@pytest.mark.parametrize("recipe", ["W4A8", "W=e2m1,A=e4m3", "W=e2m3,A=e2m1"])
def test_swapped_grids_are_found(tokens_folder, recipe):
    run, audit = audited(tokens_folder, recipe, 32)
    assert audit(run)["recipe"] == str(run.recipe)
    swapped = {site: {"a": grids["w"], "w": grids["a"]} for site, grids in run.grids.items()}
    with pytest.raises(UserError, match=r"is no value of the format|the largest code is"):
        audit(replace(run, grids=swapped))


@pytest.mark.parametrize("training", [{"accumulate": 2}, {"loss_chunks": 4}, {"remat": "dots"}, {"unroll": 2}])
def test_memory_settings_change_no_statistic(tokens_folder, training):
    # Scales of output gradients run over the tokens of a part of the batch.
    recipe = ("W4A4KV8" if "accumulate" in training else "W4A4KV8G8") + "@head:W8A8"
    plain, other = (audited(tokens_folder, recipe, 32, **t) for t in ({}, training))
    ours, theirs = (audit(run)["operands"] for run, audit in (plain, other))
    for a, b in zip(ours, theirs, strict=True):
        assert (a["site"], a["operand"]) == (b["site"], b["operand"])
        for statistic in ("zeros", "relative_mse", "clipped"):
            assert b[statistic] == pytest.approx(a[statistic], rel=0.02, abs=1e-4)


def test_statistics_equal_numpys():
    x = np.asarray(jax.random.normal(jax.random.key(0), (6, 64)), np.float32)
    w = np.asarray(jax.random.normal(jax.random.key(1), (64, 8)), np.float32)
    structure, grids = bind(parse_recipe("W3A4,P5=int3"), 1, {})
    layer = jax.tree.map(lambda leaf: leaf[0], grids["qkv"])
    dy = np.asarray(jax.random.normal(jax.random.key(2), (6, 8)), np.float32)

    def loss(x, w):
        return jnp.sum(products.dot_general(structure, "qkv", layer)(x, w, (((1,), (0,)), ((), ()))) * dy)

    jaxpr = jax.make_jaxpr(jax.grad(loss, argnums=(0, 1)))(x, w)
    expected = {f"qkv.{operand}": grid for operand, grid in layer.items()}
    measure = jax.jit(partial(marks.statistics, jaxpr, expected, frozenset(expected)))
    found = jax.device_get(measure([x, w]))
    for operand, value, axis, largest in (("a", x, 1, 7), ("w", w, 0, 3), ("wgrad_dy", dy, 0, 3)):
        scale = np.abs(value).max(axis, keepdims=True) / largest
        rounded = np.rint(value / scale) * scale
        statistics = {name: v[0] for name, v in found[f"qkv.{operand}"].items()}
        assert statistics["mse"] == pytest.approx(np.mean((rounded - value) ** 2), rel=1e-4)
        assert statistics["power"] == pytest.approx(np.mean(value**2), rel=1e-4)
        assert statistics["zeros"] == pytest.approx(np.mean((rounded == 0) & (value != 0)), abs=1e-6)
        assert statistics["clipped"] == statistics["off_grid"] == 0
        assert statistics["largest"] == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize(
    "recipe",
    [
        "W8A8",
        pytest.param("W8A8G8-tensor@head:W8A8", marks=pytest.mark.long),
        "W=e4m3fn/tensor,A=e4m3fn/tensor,G=e5m2/tensor",
    ],
)
def test_native_codes_are_followed_to_their_products_and_measured(tokens_folder, recipe):
    tree = tiny_tree(tokens_folder)
    tree["precision"] = {"recipe": recipe, "execution": "native"}
    run = prepare_run(build(tree, "test"), ONE)
    report = audit_run(run, initial_state(run.program, 0, run.grids))
    simulated, audit = audited(tokens_folder, recipe, 32)
    for native, other in zip(report["operands"], audit(simulated)["operands"], strict=True):
        assert (native["site"], native["operand"]) == (other["site"], other["operand"]) and native["products"] > 0
        # Native products share one scale over fused projections, simulated ones have one for each.
        tolerance = 0.05 if native["operand"] == "a" else 3.0
        assert native["relative_mse"] == pytest.approx(other["relative_mse"], rel=tolerance)
