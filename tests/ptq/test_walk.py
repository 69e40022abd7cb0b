"""Whole models quantized block by block: AWQ's search and folds, what layers see, failures that rows tell of."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from precisionlm.config import build
from precisionlm.precision.binding import Structure
from precisionlm.precision.grid import round_to_grid
from precisionlm.precision.quantize import quantize
from precisionlm.precision.recipe import BLOCK_LINEAR
from precisionlm.precision.scales import scale_of
from precisionlm.ptq import awq, blocks
from precisionlm.ptq.calibration import Calibration
from precisionlm.ptq.evaluate import bound_to
from precisionlm.ptq.method import parse_method, weight_quantization
from precisionlm.ptq.rtn import round_to_nearest, rounded
from precisionlm.ptq.walk import quantize_blocks
from precisionlm.training.run import prepare_run
from precisionlm.training.step import initial_state

from ..conftest import tiny_tree

ONE = jax.devices()[:1]


def prepared(tokens_folder, **model):
    """A run at bf16 with weights whose inputs differ in size, on one device."""
    tree = tiny_tree(tokens_folder)
    tree["precision"] = {"recipe": "bf16"}
    tree["model"] |= model
    run = prepare_run(build(tree, "test"), ONE)
    params = initial_state(run.program, 0, {})["params"]
    keys = iter(jax.random.split(jax.random.key(1), 100))

    def stirred(path, leaf):
        if path[-1].key == "scale":
            return leaf * jnp.exp(jax.random.normal(next(keys), leaf.shape))
        return leaf * (5 if path[-1].key == "w" else 20)

    return run, jax.tree_util.tree_map_with_path(stirred, params)


@pytest.fixture(scope="module", params=[False, True], ids=["plain", "projection_norm"])
def model(request, tokens_folder):
    return prepared(tokens_folder, projection_norm=request.param)


def layer_of(params, number):
    return jax.tree.map(lambda p: p[number], params["blocks"])


def first_inputs(run, params):
    (tokens,) = Calibration(8).batches(run)
    return tokens, blocks.embedding(run.program)(params, tokens, {}), blocks.of_layer({}, 2, 0)


@pytest.mark.parametrize("site", BLOCK_LINEAR)
def test_folding_scales_changes_nothing(model, site):
    run, params = model
    _, x, own = first_inputs(run, params)
    layer, advance = layer_of(params, 0), blocks.advance(run.program)
    s = jnp.exp(jax.random.normal(jax.random.key(2), (len(blocks.weight(layer, site)),)))
    s = awq.shared_magnitude(run.program.model, site, s)
    folded = awq.folded(run.program.model, layer, site, s)
    changed = np.asarray(blocks.weight(folded, site)) / np.asarray(blocks.weight(layer, site))
    np.testing.assert_allclose(
        changed.reshape(len(s), -1), np.broadcast_to(s[:, None], changed.reshape(len(s), -1).shape), rtol=1e-4
    )
    right = np.asarray(advance(layer, x, own))
    np.testing.assert_allclose(advance(folded, x, own), right, atol=1e-4 * np.abs(right).max())
    assert (
        np.abs(np.asarray(advance(blocks.with_weight(layer, site, blocks.weight(folded, site)), x, own)) - right).max()
        > 0.01
    )


@pytest.mark.parametrize("site", ["out", "gate_up"])
def test_the_search_is_a_brute_force_over_ratios(model, site):
    run, params = model
    structure, grids = bound_to(run.experiment, weight_quantization("W3"))
    scaling, grid = structure.site(site)["w"], jax.tree.map(lambda g: g[0], grids[site]["w"])
    _, x, own = first_inputs(run, params)
    layer = layer_of(params, 0)
    _, inputs = blocks.forward(run.program, layer, x, own)
    a = np.abs(np.asarray(inputs[site], np.float64)).mean(axis=(0, 1))
    if site == "out" and not run.program.model.projection_norm:  # two query heads of 8 share each of two value heads
        a = np.repeat(a.reshape(2, 2, 8).mean(axis=1, keepdims=True), 2, axis=1).reshape(-1)
    score = awq.errors(run.program, site, scaling, False)
    name = blocks.PART[site]
    entering = inputs[blocks.ENTERS[name]]
    found = np.asarray(score(layer, entering, jnp.asarray(a, jnp.float32), own, grid))
    w = blocks.weight(layer, site)
    right = np.asarray(blocks.part(run.program, name, layer, entering, own))
    brute = []
    for ratio in np.arange(21) / 20:
        s = np.maximum(a**ratio, 1e-4)
        s = (s / np.sqrt(s.max() * s.min())).reshape(-1, *[1] * (w.ndim - 1)).astype(np.float32)
        scale = scale_of(w * s, 0, scaling, grid)
        q = round_to_grid(w * s / scale, grid) * scale / s
        brute.append(
            np.sum(
                (np.asarray(blocks.part(run.program, name, blocks.with_weight(layer, site, q), entering, own)) - right)
                ** 2
            )
        )
    assert awq.RATIOS[0] == 0 and awq.RATIOS[-1] == 1
    np.testing.assert_allclose(found, brute, rtol=0.05)  # a tie that falls the other way moves a code
    assert found[awq.best(found)] <= found[0] and brute[awq.best(found)] <= min(brute) * 1.05
    identity = np.asarray(
        blocks.part(run.program, name, blocks.with_weight(layer, site, quantize(w, 0, scaling, grid)), entering, own)
    )
    assert found[0] == pytest.approx(np.sum((identity - right) ** 2), rel=1e-3)


def test_a_search_without_a_finite_error_keeps_the_identity():
    assert awq.best(np.array([2.0, np.nan, 1.0, 3.0])) == 2
    assert awq.best(np.array([1.0, 1.0, np.nan])) == 0
    assert awq.best(np.full(21, np.nan)) == 0


def outputs(run, params):
    (tokens,) = Calibration(8).batches(run)
    return np.asarray(run.program.transformer().apply({"params": params}, tokens, {}, method="hidden"))


@pytest.mark.long
def test_every_method_comes_nearer_than_rounding_and_qep_and_order_help(tokens_folder):
    run, params = prepared(tokens_folder)
    bound_here = bound_to(run.experiment, weight_quantization("W3"))
    right, text = outputs(run, params), Calibration(64).batches(run)
    error = {"rtn": np.square(outputs(run, round_to_nearest(params, *bound_here)) - right).mean()}
    for method in ("rtn+qep+seq", "gptq", "gptq+mse+qep+seq", "awq"):
        found = quantize_blocks(run.program, params, text, {}, *bound_here, parse_method(method))
        error[method] = np.square(outputs(run, found.params) - right).mean()
        assert not found.fallbacks and (np.isnan(found.damping) if method == "awq" else found.damping < 0.011)
        assert jax.tree.map(jnp.shape, found.params) == jax.tree.map(jnp.shape, params)
    assert all(error[method] < error["rtn"] for method in error if method != "rtn"), error
    assert error["gptq+mse+qep+seq"] < error["gptq"], error


def test_layers_see_what_quantized_ones_before_them_give(tokens_folder):
    """The second block's weights depend on the first block's format; those of the first on its own alone."""
    run, params = prepared(tokens_folder)
    text, method = Calibration(8).batches(run), parse_method("gptq")
    structure, coarse = bound_to(run.experiment, weight_quantization("W2"))
    _, fine = bound_to(run.experiment, weight_quantization("W6"))
    mixed = jax.tree.map(lambda a, b: np.stack([a[0], b[1]]), coarse, fine)

    def second(grids):
        return np.asarray(
            quantize_blocks(run.program, params, text, {}, structure, grids, method).params["blocks"]["mlp"]["down"][
                "w"
            ]
        )

    behind_fine, behind_coarse = second(fine), second(mixed)
    assert not np.array_equal(behind_fine[1], behind_coarse[1])
    np.testing.assert_array_equal(behind_coarse[0], second(coarse)[0])


def test_weights_without_a_usable_hessian_are_named_and_rounded(tokens_folder):
    run, params = prepared(tokens_folder)
    gain = params["blocks"]["mlp_norm"]["scale"]
    params = params | {"blocks": params["blocks"] | {"mlp_norm": {"scale": gain.at[1, 3].set(1e30)}}}
    structure, grids = bound_to(run.experiment, weight_quantization("W4"))
    found = quantize_blocks(
        run.program, params, Calibration(8).batches(run), {}, structure, grids, parse_method("gptq")
    )
    assert found.fallbacks == ("1.gate_up", "1.down") and found.damping == pytest.approx(0.01)
    nearest = round_to_nearest(params, structure, grids)["blocks"]
    ours = found.params["blocks"]
    np.testing.assert_array_equal(ours["mlp"]["gate_up"]["w"][1], nearest["mlp"]["gate_up"]["w"][1])
    assert not np.array_equal(ours["mlp"]["gate_up"]["w"][0], nearest["mlp"]["gate_up"]["w"][0])


def test_activations_are_quantized_as_they_are_evaluated(tokens_folder):
    run, params = prepared(tokens_folder)
    bound_here, text = bound_to(run.experiment, weight_quantization("W4")), Calibration(8).batches(run)
    experiment = run.experiment.model_copy(
        update={"precision": run.experiment.precision.model_copy(update={"recipe": "A3KV3"})}
    )
    coarse = prepare_run(experiment, ONE)
    plain = replace(run.program, structure=Structure())
    ours, theirs = (
        quantize_blocks(program, params, text, grids, *bound_here, parse_method("gptq")).params["blocks"]["attention"]
        for program, grids in ((coarse.program, coarse.grids), (plain, {}))
    )
    assert not np.array_equal(ours["out"]["w"][0], theirs["out"]["w"][0])  # behind coarse keys and values


@pytest.mark.parametrize(
    "text", ["int2", "int3/g16", "int8/tensor", "e3m2/g8/sbf16", "mxfp4", "nvfp4", "int4/mse", "int4/b16"]
)
def test_rounding_to_nearest_is_that_of_a_recipe_bit_for_bit(tokens_folder, text):
    run, params = prepared(tokens_folder)
    structure, grids = bound_to(run.experiment, weight_quantization(text))
    for site in BLOCK_LINEAR:
        scaling, grid = structure.site(site)["w"], jax.tree.map(lambda g: g[1], grids[site]["w"])
        w = blocks.weight(layer_of(params, 1), site)
        right = jax.jit(lambda w, grid, scaling=scaling: quantize(w, 0, scaling, grid))(w, grid)
        np.testing.assert_array_equal(rounded(w, scaling, grid), right)
