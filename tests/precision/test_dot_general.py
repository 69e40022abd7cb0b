"""The quantized dot-general against AQT's own integers, a numpy reference and the straight-through estimator."""

import dataclasses

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from aqt.jax.v2 import config as aqt_config

from precisionlm.errors import UserError
from precisionlm.precision.binding import bind
from precisionlm.precision.dot_general import dot_general
from precisionlm.precision.formats import parse_format
from precisionlm.precision.quantize import block_hadamard, fake_quantize, quantize
from precisionlm.precision.recipe import parse_recipe
from precisionlm.precision.scaling import Scaling

DN = (((1,), (0,)), ((), ()))
X = np.asarray(jax.random.normal(jax.random.key(0), (64, 256)))
W = np.asarray(jax.random.normal(jax.random.key(1), (256, 32)))


def product_of(recipe: str, backward: str = "quantized", site: str = "qkv"):
    """(function of x, w, grids; this layer's grids)."""
    structure, grids = bind(parse_recipe(recipe), 1, {}, backward)
    layer = jax.tree.map(lambda leaf: leaf[0], grids[site])
    return (lambda x, w, g, key=None: dot_general(structure, site, g, key)(x, w, DN)), layer, structure


@pytest.mark.parametrize("clipping", ["edge", "absmax"])
@pytest.mark.parametrize("bits", [2, 3, 4, 6, 8, 10, 12])
def test_equals_aqts_static_integers_bitwise(bits, clipping):
    suffix = "/edge" if clipping == "edge" else ""
    product, grids, _ = product_of(f"W=int{bits}{suffix},A=int{bits}{suffix}")
    static = aqt_config.config_v4(fwd_bits=bits, dlhs_bits=None, drhs_bits=None)
    aqt_config.set_fwd_dequant_mode(
        static,
        lhs_dequant_mode=aqt_config.DequantMode.THIS_INPUT,
        rhs_dequant_mode=aqt_config.DequantMode.THIS_INPUT,
    )
    static.fwd.dg_accumulator_dtype = None
    for quantizer in (static.fwd.dg_quantizer.lhs, static.fwd.dg_quantizer.rhs):
        quantizer.numerics.preserve_max_val = clipping == "absmax"
    ours = jax.jit(product)(X, W, grids)
    theirs = jax.jit(lambda x, w: static(x, w, DN))(X, W)
    np.testing.assert_array_equal(np.asarray(ours), np.asarray(theirs))


def test_all_widths_share_one_executable():
    product, _, _ = product_of("W4A4")
    fn = jax.jit(product)
    for recipe in ("W2A2", "W4A8", "W12A3", "W=e4m3,A=e2m1", "A=int4,W=levels5"):
        fn(X, W, product_of(recipe)[1])
    assert fn._cache_size() == 1


def numpy_quantized(x, axis, fmt, group=None, kind="f32"):
    """Independent reference: scale in float32, nearest value by search."""
    values = parse_format(fmt).values()
    largest = np.float32(values[-1])
    x = np.asarray(x, np.float32)
    moved = np.moveaxis(x, axis, -1)
    groups = moved.reshape(*moved.shape[:-1], -1, group or moved.shape[-1])
    amax = np.abs(groups).max(-1, keepdims=True)
    if kind == "e8m0":
        scale = np.float32(2.0) ** (np.floor(np.log2(amax)) - np.floor(np.log2(largest)))
    elif kind == "e4m3":
        tensor = np.float32(amax.max() / (np.float32(448.0) * largest))
        blocks = np.clip(amax / largest / tensor, 2.0**-9, 448)
        scale = blocks.astype(ml_dtypes.float8_e4m3fn).astype(np.float32) * tensor
    else:
        scale = amax / largest
    scaled = groups * (np.float32(1.0) / scale.astype(np.float32))
    index = np.abs(np.minimum(np.abs(scaled), largest)[..., None] - values[values >= 0]).argmin(-1)
    q = np.sign(scaled) * values[values >= 0][index].astype(np.float32)
    return np.moveaxis((q * scale).astype(np.float32).reshape(moved.shape), -1, axis)


@pytest.mark.parametrize(
    ("recipe", "fmt", "group", "kind"),
    [
        ("int4", "int4", None, "f32"),
        ("int4-g32", "int4", 32, "f32"),
        ("int8-g128", "int8", 128, "f32"),
        ("e4m3", "e4m3", None, "f32"),
        ("e2m1-g16", "e2m1", 16, "f32"),
        ("mxfp4", "e2m1", 32, "e8m0"),
        ("mxfp6_e3m2", "e3m2", 32, "e8m0"),
        ("mxfp6_e2m3", "e2m3", 32, "e8m0"),
        ("mxfp8", "e4m3fn", 32, "e8m0"),
        ("mxint8", "int8", 32, "e8m0"),
        ("nvfp4", "e2m1", 16, "e4m3"),
    ],
)
def test_scale_sharing_and_scale_types_equal_numpy(recipe, fmt, group, kind):
    _, grids, structure = product_of(recipe)
    scaling = structure.site("qkv")["w"]
    ours = np.asarray(jax.jit(lambda w, g: quantize(w, 0, scaling, g))(W, grids["w"]))
    reference = numpy_quantized(W, 0, fmt, group, kind)
    # numpy and XLA may differ by an ulp of the scale in a division; values on the grid must be the same.
    np.testing.assert_allclose(ours, reference, rtol=3e-7, atol=0)


def test_per_tensor_uses_one_scale():
    _, grids, structure = product_of("W=int4/tensor")
    q = np.asarray(quantize(jnp.asarray(W), 0, structure.site("qkv")["w"], grids["w"]))
    step = np.abs(W).max() / 7
    np.testing.assert_allclose(q / step, np.rint(q / step), atol=1e-4)


@pytest.mark.parametrize("recipe", ["W4A4", "W4A4-g32", "nvfp4", "W=e4m3,A=e4m3"])
def test_gradients_use_the_quantized_operands(recipe):
    product, grids, structure = product_of(recipe)
    operands = structure.site("qkv")
    xq = quantize(jnp.asarray(X), 1, operands["a"], grids["a"])
    wq = quantize(jnp.asarray(W), 0, operands["w"], grids["w"])
    dy = jax.random.normal(jax.random.key(2), (64, 32))
    dx, dw = jax.jit(lambda x, w: jax.vjp(lambda x, w: product(x, w, grids), x, w)[1](dy))(X, W)
    np.testing.assert_allclose(dx, dy @ wq.T, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(dw, xq.T @ dy, rtol=1e-5, atol=1e-4)


def test_gradients_use_the_unquantized_operands_by_choice():
    product, grids, _ = product_of("W4A4", backward="unquantized")
    dy = jax.random.normal(jax.random.key(2), (64, 32))
    dx, dw = jax.jit(lambda x, w: jax.vjp(lambda x, w: product(x, w, grids), x, w)[1](dy))(X, W)
    np.testing.assert_allclose(dx, dy @ W.T, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(dw, X.T @ dy, rtol=1e-5, atol=1e-4)


def test_each_gradient_operand_can_have_its_own_format():
    product, grids, structure = product_of("W=int8,P3=int4,P4=e2m1,P5=int6,P6=int3")
    operands = structure.site("qkv")
    dy = jax.random.normal(jax.random.key(2), (64, 32))
    dx, dw = jax.jit(lambda x, w: jax.vjp(lambda x, w: product(x, w, grids), x, w)[1](dy))(X, W)
    q = lambda v, axis, name: quantize(jnp.asarray(v), axis, operands[name], grids[name])  # noqa: E731
    np.testing.assert_allclose(dx, q(dy, 1, "dgrad_dy") @ q(W, 1, "dgrad_w").T, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(dw, q(X, 0, "wgrad_x").T @ q(dy, 0, "wgrad_dy"), rtol=1e-5, atol=1e-4)


def test_stochastic_rounding_is_unbiased_and_needs_its_key():
    grid, scaling = parse_format("int4").grid(), Scaling(stochastic=True)
    x = jax.random.normal(jax.random.key(3), (8, 64))
    draws = 4000
    many = jax.jit(jax.vmap(lambda key: quantize(x, 1, scaling, grid, key)))(jax.random.split(jax.random.key(4), draws))
    step = np.abs(x).max(1, keepdims=True) / 7
    error = (np.asarray(many).mean(0) - x) / step
    # A draw's standard deviation is at most half a step; 512 values stay within five standard errors of zero.
    assert np.abs(error).max() < 5 * 0.5 / np.sqrt(draws)
    assert (np.asarray(many[0]) != np.asarray(many[1])).any()


def test_straight_through_passes_gradients_unchanged():
    grid = parse_format("int3").grid()
    dx = jax.grad(lambda x: (fake_quantize(x, 1, Scaling(), grid, "t") * W.T).sum())(jnp.asarray(W.T))
    np.testing.assert_array_equal(dx, W.T)


def test_finite_differences_of_the_continuous_part():
    # With the roundings frozen at one point, the loss is an ordinary function of what the gradients claim to be
    # the derivative of: the quantized operands.
    product, grids, structure = product_of("W4A4")
    operands = structure.site("qkv")
    xq = np.asarray(quantize(jnp.asarray(X), 1, operands["a"], grids["a"]), np.float64)
    wq = np.asarray(quantize(jnp.asarray(W), 0, operands["w"], grids["w"]), np.float64)
    loss = lambda x, w: np.sum(np.tanh(x @ w / 16))  # noqa: E731
    dx, dw = jax.grad(lambda x, w: jnp.sum(jnp.tanh(product(x, w, grids) / 16)), (0, 1))(jnp.asarray(X), jnp.asarray(W))
    rng = np.random.default_rng(0)
    for _ in range(5):
        vx, vw = rng.standard_normal(X.shape), rng.standard_normal(W.shape)
        h = 1e-5
        numeric = (loss(xq + h * vx, wq + h * vw) - loss(xq - h * vx, wq - h * vw)) / (2 * h)
        analytic = np.sum(np.asarray(dx) * vx) + np.sum(np.asarray(dw) * vw)
        assert analytic == pytest.approx(numeric, rel=2e-4)


def test_scales_are_invariant_to_powers_of_two():
    for recipe in ("int4", "e4m3-g32", "mxfp4", "nvfp4"):
        _, grids, structure = product_of(recipe)
        q = lambda w: quantize(jnp.asarray(w), 0, structure.site("qkv")["w"], grids["w"])  # noqa: B023, E731
        np.testing.assert_array_equal(np.asarray(q(W * 64)), np.asarray(q(W)) * 64)


def test_unquantized_sites_are_plain_dots():
    structure, _ = bind(parse_recipe("W4A4@down:bf16"), 1, {})
    product = dot_general(structure, "down", {})
    assert (
        "dot_general" in (text := str(jax.make_jaxpr(lambda x, w: product(x, w, DN))(X, W)))
        and "custom_vjp" not in text
    )
    np.testing.assert_array_equal(jax.jit(lambda x, w: product(x, w, DN))(X, W), jax.jit(jnp.dot)(X, W))


@pytest.mark.parametrize("fmt", ["int2", "int4", "e2m1", "e3m0"])
def test_mse_clipping_is_the_best_for_normal_values(fmt):
    grid = parse_format(fmt).grid()
    x = jax.random.normal(jax.random.key(5), (4, 20_000)) * 3

    def error(reach):
        q = quantize(x, 1, Scaling(clip="mse"), dataclasses.replace(grid, reach=np.float32(reach)))
        return float(jnp.mean((q - x) ** 2))

    best = error(grid.reach)
    # Coarse floats have several optima nearly as good, and the sample is finite: hence the 1 %.
    assert all(best < 1.01 * error(grid.reach * factor) for factor in (0.85, 0.93, 1.08, 1.18))
    assert best < float(jnp.mean((quantize(x, 1, Scaling(), grid) - x) ** 2))


def test_hadamard_blocks_are_orthonormal_and_leave_products_alone():
    rotated_x, rotated_w = block_hadamard(jnp.asarray(X), 1, 64), block_hadamard(jnp.asarray(W), 0, 64)
    np.testing.assert_allclose(rotated_x @ rotated_w, X @ W, atol=2e-4)
    np.testing.assert_allclose(block_hadamard(rotated_w, 0, 64), W, atol=1e-5)
    from scipy.linalg import hadamard

    np.testing.assert_allclose(rotated_x[:, :64], X[:, :64] @ hadamard(64) / 8, atol=1e-5)
    spike = jnp.zeros((1, 64)).at[0, 3].set(8.0)
    np.testing.assert_allclose(np.abs(block_hadamard(spike, 1, 64)), 1.0, atol=1e-6)


def test_weight_blocks_share_a_scale_both_ways():
    """DeepSeek-V3's square blocks: the forward product and the input gradient's see the same quantized weights."""
    product, grids, structure = product_of("W=int4/b16,P4=int4/b16")
    scaling = structure.site("qkv")["w"]
    q = np.asarray(quantize(jnp.asarray(W), 0, scaling, grids["w"]))
    blocks = W.reshape(16, 16, 2, 16).swapaxes(1, 2)
    scale = np.abs(blocks).max((2, 3), keepdims=True) / np.float32(7)
    reference = (np.rint(blocks * (1 / scale)) * scale).swapaxes(1, 2).reshape(W.shape)
    np.testing.assert_allclose(q, reference, rtol=3e-7, atol=0)
    np.testing.assert_array_equal(q, quantize(jnp.asarray(W), 1, structure.site("qkv")["dgrad_w"], grids["dgrad_w"]))
    dx = jax.jit(lambda x: jax.vjp(lambda x: product(x, W, grids), x)[1](jnp.ones((64, 32)))[0])(X)
    np.testing.assert_allclose(dx, np.ones((64, 32)) @ q.T, rtol=1e-5, atol=1e-5)
    three_axes = jnp.asarray(W).reshape(256, 2, 16)  # as gate and up: a block stays within one of them
    np.testing.assert_array_equal(quantize(three_axes, 0, scaling, grids["w"]).reshape(W.shape), q)


def test_gradient_products_rotate_both_operands():
    recipe = "P34=int4/had32,P56=int4/had16"
    product, grids, structure = product_of(recipe)
    operands = structure.site("qkv")
    dy = jax.random.normal(jax.random.key(2), (64, 32))
    dx, dw = jax.jit(lambda x, w: jax.vjp(lambda x, w: product(x, w, grids), x, w)[1](dy))(X, W)

    def q(value, axis, name, size):
        return quantize(block_hadamard(jnp.asarray(value), axis, size), axis, operands[name], grids[name])

    np.testing.assert_allclose(dx, q(dy, 1, "dgrad_dy", 32) @ q(W, 1, "dgrad_w", 32).T, rtol=1e-5, atol=1e-4)
    np.testing.assert_allclose(dw, q(X, 0, "wgrad_x", 16).T @ q(dy, 0, "wgrad_dy", 16), rtol=1e-5, atol=1e-4)
    # An outlier spread over its block costs less than one that sets the scale of all.
    spiky = np.array(dy)
    spiky[:, 3] *= 50
    errors = []
    for text in (recipe, "P34=int4,P56=int4"):
        f, g, _ = product_of(text)
        found = jax.jit(lambda x, w, f=f, g=g: jax.vjp(lambda x, w: f(x, w, g), x, w)[1](spiky)[0])(X, W)
        errors.append(np.abs(np.asarray(found) - spiky @ W.T).mean())
    assert errors[0] < errors[1]


@pytest.mark.parametrize(
    ("recipe", "sizes", "message"),
    [
        ("G=int4/had32", {}, "needs the same on dgrad_w"),
        ("P34=int4/had32,P56=int4/had64", {"qkv": {"wgrad_dy": 96, "wgrad_x": 96}}, "had64 does not fit wgrad"),
        ("W4@head:W=int4/had32", {}, "does not fit w at 'head'"),
        ("W4@embed:W=int4/b16", {}, "blocks of two dimensions are for weights of products"),
        ("W=int4/b64", {"qkv": {"w": 128, "dgrad_w": 96}}, "block size 64 does not divide the 96 rows"),
    ],
)
def test_what_does_not_fit_is_an_error(recipe, sizes, message):
    with pytest.raises(UserError, match=message):
        bind(parse_recipe(recipe), 2, sizes)


@pytest.mark.parametrize("recipe", ["W4A4", "W4,A=int4/tensor", "W4,A=int4/g32", "W4,A=int4/mse"])
def test_a_known_magnitude_changes_nothing(recipe):
    structure, grids = bind(parse_recipe(recipe), 1, {})
    layer = jax.tree.map(lambda leaf: leaf[0], grids["qkv"])
    known = np.abs(X).max(axis=-1, keepdims=True)
    plain, given = (jax.jit(lambda x, w, m=m: dot_general(structure, "qkv", layer, extent=m)(x, w, DN))(X, W)
                    for m in (None, known))  # fmt: skip
    np.testing.assert_array_equal(plain, given)
