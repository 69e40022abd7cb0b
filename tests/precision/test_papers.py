"""Quantizers as the papers define them, computed here in float64 from their own formulas."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from precisionlm.config import ModelConfig
from precisionlm.errors import UserError
from precisionlm.model.transformer import projections
from precisionlm.precision.binding import bind
from precisionlm.precision.dot_general import dot_general
from precisionlm.precision.formats import parse_format
from precisionlm.precision.learned import kept_extent, learned_quantize
from precisionlm.precision.quantize import quantize
from precisionlm.precision.recipe import parse_recipe
from precisionlm.precision.scaling import Scaling

DN = (((1,), (0,)), ((), ()))
MODEL = ModelConfig(layers=1, width=64, heads=8, kv_heads=2, mlp_width=96)


def normal(seed, *shape):
    return np.asarray(jax.random.normal(jax.random.key(seed), shape), np.float32)


def bound(recipe, site="qkv", **options):
    structure, grids = bind(parse_recipe(recipe), 1, {}, **options)
    return structure, jax.tree.map(lambda leaf: leaf[0], grids[site])


def gradients(recipe, x, w, dy, site="qkv", **options):
    """(dx, dw) of one product for a given output gradient."""
    structure, layer = bound(recipe, site, **options)
    dimensions = (((x.ndim - 1,), (0,)), ((), ()))
    product = dot_general(structure, site, layer, originals={"w": w})
    return jax.jit(lambda x, w: jax.vjp(lambda x, w: product(x, w, dimensions), x, w)[1](dy))(x, w)


def chen(x, group, bits=4):
    """Chen et al. 2025, §3: X_int = clamp(round(X / s), -2^(b-1), 2^(b-1) - 1), s = max|X| / 2^(b-1)."""
    groups = np.asarray(x, np.float64).reshape(x.shape[0], -1, group)
    s = np.abs(groups).max(-1, keepdims=True) / 2 ** (bits - 1)
    return (np.clip(np.rint(groups / s), -(2 ** (bits - 1)), 2 ** (bits - 1) - 1) * s).reshape(x.shape)


@pytest.mark.parametrize("group", [32, 128, 1536])
def test_chens_int4_has_sixteen_codes(group):
    x = normal(0, 64, 1536)
    scaling = Scaling("group", group)
    ours = quantize(jnp.asarray(x), 1, scaling, parse_format("int4full").grid())
    np.testing.assert_allclose(ours, chen(x, group), rtol=1e-6, atol=1e-7)
    fifteen = quantize(jnp.asarray(x), 1, scaling, parse_format("int4").grid())
    errors = [np.mean((np.asarray(q) - x) ** 2) for q in (fifteen, ours)]
    # 15 codes err by 1.08 (groups of 32) to 1.30 (whole rows) of what 16 do.
    assert errors[0] / errors[1] == pytest.approx({32: 1.08, 128: 1.21, 1536: 1.30}[group], abs=0.04)


def test_formats_of_all_codes():
    assert parse_format("int4full").values().tolist() == list(range(-8, 8))
    assert parse_format("uint4").values().tolist() == list(range(16))
    assert float(parse_format("int4full").grid().bound) == 8 and float(parse_format("int4").grid().bound) == 7
    assert parse_format("e5m2").values()[-1] == 57344 and parse_format("e5m2f").values()[-1] == 114688
    ends = quantize(jnp.asarray([[-3.0, 3.0]]), 1, Scaling(), parse_format("int4full").grid())
    np.testing.assert_allclose(ends, [[-3.0, 3.0 * 7 / 8]], rtol=1e-6)
    shares = quantize(jnp.asarray([[0.0, 0.25, 1.0]]), 1, Scaling(), parse_format("uint2").grid())
    np.testing.assert_allclose(shares, [[0.0, 1 / 3, 1.0]], rtol=1e-6)


def sun(x, values, axis):
    """Sun et al. 2025, Eq. 7: S = FP_max / max|X| over the values along an axis, nearest value of the format."""
    s = np.abs(x).max(axis, keepdims=True) / values.max()
    nearest = np.abs((x / s)[..., None] - values).argmin(-1)
    return values[nearest] * s


@pytest.mark.parametrize("uneven", [False, True])
def test_suns_p6_shares_a_scale_along_the_channels_of_a_token(uneven):
    x, w, dy = normal(0, 256, 64), normal(1, 64, 32), normal(2, 256, 32)
    x = x * np.exp(2.0 * normal(3, 256, 1)) if uneven else x
    values = parse_format("e1m1").values()
    by_token, by_channel = (gradients(f"P6=e1m1{words}", x, w, dy)[1] for words in ("/token", ""))
    np.testing.assert_allclose(by_token, sun(x, values, 1).T @ dy, rtol=1e-4, atol=1e-2)
    np.testing.assert_allclose(by_channel, sun(x, values, 0).T @ dy, rtol=1e-4, atol=1e-2)
    square = lambda y: np.mean(y**2, axis=1)  # noqa: E731
    errors = [np.mean(square(sun(x, values, axis) - x) / square(x)) for axis in (1, 0)]
    assert errors[1] > (5 if uneven else 1.3) * errors[0] and errors[0] < 0.15


def test_each_projection_has_scales_of_its_own():
    """Output gradients of k and v are far smaller than q's... or larger: one scale for all sends the small to zero."""
    parts, sizes = projections(MODEL)["qkv"], (2, 6, 8)
    x, w = normal(0, 32, 64), normal(1, 64, 2 * 6 * 8)
    size = np.array([0.02, 0.02, 0.02, 0.02, 1.0, 0.1])[:, None]  # four query heads, a key, a value
    dy = (normal(2, 32, *sizes) * size).astype(np.float32)
    flat = dy.reshape(32, -1)
    separate, _ = gradients("W16,P3=int4", x, w, flat, parts={"qkv": parts})
    fused, _ = gradients("W16,P3=int4", x, w, flat)

    def rounded(part):
        s = np.abs(part).max((1, 2, 3), keepdims=True) / 7
        return np.rint(part / s) * s

    alone = np.concatenate([rounded(part) for part in np.split(dy, [4, 5], axis=2)], axis=2).reshape(32, -1)
    np.testing.assert_allclose(separate, alone @ w.T, rtol=1e-4, atol=1e-4)
    together = rounded(dy).reshape(32, *sizes)
    lost = [np.mean(values[:, :, :4] == 0) for values in (together, alone.reshape(32, *sizes))]
    assert lost[0] > 0.9 and lost[1] < 0.3
    np.testing.assert_allclose(fused, together.reshape(32, -1) @ w.T, rtol=1e-4, atol=1e-4)


def test_gate_and_up_have_scales_of_their_own():
    x, w = normal(0, 32, 64), normal(1, 64, 2, 48)
    dy = normal(2, 32, 2, 48) * np.array([0.01, 1.0], np.float32)[:, None]
    for recipe, axes in (("P3=int4", (2,)), ("P3=int4/tensor", (0, 2))):
        dx, _ = gradients(recipe, x, w, dy, "gate_up", parts={"gate_up": projections(MODEL)["gate_up"]})
        s = np.abs(dy).max(axes, keepdims=True) / 7
        reference = np.einsum("tpf,dpf->td", np.rint(dy / s) * s, w)
        np.testing.assert_allclose(dx, reference, rtol=1e-4, atol=1e-4)


def test_gradient_operands_are_quantized_once_under_learned_scales():
    """P4 and P6 with formats of their own take the values before lsq and lac, not those after."""
    from precisionlm.model.linear import Linear

    recipe = parse_recipe("W=int4/lsq,A=int4/lac,P4=int8,P6=int8")
    structure, grids = bind(recipe, 1, {})
    layer = {site: jax.tree.map(lambda leaf: leaf[0], operands) for site, operands in grids.items()}
    linear = Linear("out", (32,), structure, jax.nn.initializers.normal(1.0))
    x, dy = normal(0, 128, 64), normal(1, 128, 32)
    params = linear.init(jax.random.key(0), x, layer)["params"]
    w = np.asarray(params["w"])
    dx, dw = jax.vjp(
        lambda x, w: linear.apply({"params": params | {"w": w}}, x, layer), jnp.asarray(x), jnp.asarray(w)
    )[1](dy)

    def int8(value, axis):
        s = np.abs(value).max(axis, keepdims=True) / 127
        return np.rint(value / s) * s

    inside_w = np.abs(w) <= np.exp(np.asarray(params["w_clip"]))
    np.testing.assert_allclose(dw, int8(x, 0).T @ dy * inside_w, rtol=1e-3, atol=1e-3)
    np.testing.assert_allclose(dx, dy @ int8(w, 1).T, rtol=1e-3, atol=1e-3)


def test_power_of_two_scales_that_round_up():
    x = normal(0, 64, 256)
    for name in ("mxfp8/e8m0up", "mxfp4/e8m0up"):
        quantization = parse_recipe(f"W={name}").commonest("w")
        grid = quantization.format.grid()
        ours = quantize(jnp.asarray(x), 1, quantization.scaling, grid)
        groups = x.reshape(64, -1, 32).astype(np.float64)
        s = 2.0 ** np.ceil(np.log2(np.abs(groups).max(-1, keepdims=True) / float(grid.qmax)))
        values = quantization.format.values()
        scaled = groups / s
        assert np.abs(scaled).max() <= values.max()
        distance = np.abs(scaled - (np.asarray(ours).reshape(groups.shape) / s))
        nearest = np.abs(scaled[..., None] - values).min(-1)
        np.testing.assert_allclose(distance, nearest, atol=1e-6)


@pytest.mark.parametrize("recipe", ["mxfp4/sr", "mxfp8/sr", "mxint8/sr"])
def test_stochastic_rounding_under_powers_of_two_is_unbiased(recipe):
    quantization = parse_recipe(f"G={recipe}").commonest("dgrad_dy")
    x = jnp.asarray(normal(0, 4, 64))
    keys = jax.random.split(jax.random.key(1), 4000)
    grid = quantization.format.grid()
    mean = jax.jit(jax.vmap(lambda key: quantize(x, 1, quantization.scaling, grid, key)))(keys).mean(0)
    largest = np.abs(np.asarray(x).reshape(4, 2, 32)).max(-1, keepdims=True)
    relative = np.asarray(mean - x).reshape(4, 2, 32) / largest
    assert np.abs(relative).max() < 5 * 0.25 / np.sqrt(len(keys))
    at_maximum = relative[np.abs(np.asarray(x).reshape(4, 2, 32)) == largest]
    assert np.abs(at_maximum).max() < 0.01  # without room for the largest values it was -4.2 %


def test_operands_of_a_product_rotate_alike():
    with pytest.raises(UserError, match="needs the same on"):
        bind(parse_recipe("W=int4/had32,A=int4/had64"), 1, {})
    with pytest.raises(UserError, match="needs the same on"):
        bind(parse_recipe("W=int4/had32,A4"), 1, {})
    bind(parse_recipe("W=int4/had32"), 1, {})  # activations that stay as they are rotate along


def test_lac_extents_are_shares_of_the_largest():
    x = jnp.asarray(normal(0, 8, 64))
    extent = kept_extent(x, -1, Scaling(clip="lac"), parse_format("int4").grid(), jnp.log(0.5))
    q = learned_quantize(x, extent, -1, Scaling(clip="lac"), "out.a", parse_format("int4").grid())
    np.testing.assert_allclose(np.abs(q).max(1), np.abs(np.asarray(x)).max(1) / 2, rtol=1e-6)


def test_shares_are_trained_for_every_group():
    """Chen et al. 2025: LAC has a share a group index, LWC one a weight group."""
    from precisionlm.model.linear import Linear

    structure, grids = bind(parse_recipe("W=int4full/lwc/g32,A=int4full/lac/g32"), 1, {})
    layer = {site: jax.tree.map(lambda leaf: leaf[0], operands) for site, operands in grids.items()}
    linear = Linear("out", (8,), structure, jax.nn.initializers.normal(1.0))
    x, dy = jnp.asarray(normal(0, 16, 64)), normal(1, 16, 8)
    params = linear.init(jax.random.key(0), x, layer)["params"]
    assert params["a_clip"].shape == (2, 1) and params["w_clip"].shape == (2, 1, 8)
    half = params | {"a_clip": params["a_clip"].at[0].set(jnp.log(0.5))}
    y, pull_back = jax.vjp(lambda p: linear.apply({"params": p}, x, layer), half)
    wq = chen(np.asarray(params["w"]).T, 32).T
    s = np.abs(np.asarray(x).reshape(16, 2, 32)).max(-1, keepdims=True) / 8 * np.array([0.5, 1.0])[:, None]
    xq = (np.clip(np.rint(np.asarray(x).reshape(16, 2, 32) / s), -8, 7) * s).reshape(16, 64)
    np.testing.assert_allclose(y, xq @ wq, rtol=1e-4, atol=1e-4)
    gradients = pull_back(jnp.asarray(dy))[0]
    assert all(np.abs(gradients[name]).min() > 0 for name in ("a_clip", "w_clip"))


@pytest.mark.parametrize("fmt", ["int4", "e2m1"])
def test_no_gradient_passes_where_a_value_was_clipped(fmt):
    """QuEST: M = 1[|x - Q(x)| <= T], T half the step at the top."""
    from precisionlm.precision.quantize import trusted

    scaling = parse_recipe(f"W={fmt}/mse/trust").commonest("w").scaling
    assert scaling.trust
    grid = parse_format(fmt).grid()
    x = jnp.asarray(normal(0, 4, 512))
    dx = jax.grad(lambda x: jnp.sum(trusted(x, 1, scaling, grid)))(x)
    scale = np.sqrt(np.mean(np.asarray(x) ** 2, 1, keepdims=True)) * float(grid.reach) / float(grid.qmax)
    half = {"int4": 0.5, "e2m1": 1.0}[fmt]
    error = np.abs(quantize(x, 1, scaling, grid) - x) / scale
    np.testing.assert_array_equal(np.asarray(dx), np.abs(np.asarray(x)) / scale <= float(grid.qmax) + half)
    clipped = np.abs(np.asarray(x)) / scale > float(grid.qmax) + half
    assert clipped.any() and (error[clipped] > half - 1e-3).all() and (error[~clipped] < half + 1e-3).all()


def test_random_signs_leave_the_product():
    from precisionlm.precision.quantize import block_hadamard

    x, w = normal(0, 8, 64), normal(1, 64, 4)
    turned = block_hadamard(jnp.asarray(x), 1, 16, signs=True), block_hadamard(jnp.asarray(w), 0, 16, signs=True)
    np.testing.assert_allclose(turned[0] @ turned[1], x @ w, rtol=1e-4, atol=1e-4)
    assert not np.allclose(turned[0], block_hadamard(jnp.asarray(x), 1, 16))
    dx, dw = gradients("P34=int8/rhad16,P56=int8/rhad16", normal(2, 32, 64), normal(3, 64, 32), normal(4, 32, 32))
    assert np.isfinite(dx).all() and np.isfinite(dw).all()
    with pytest.raises(UserError, match="needs the same on"):
        bind(parse_recipe("W=int4/had32,A=int4/rhad32"), 1, {})


def test_both_kernels_have_the_same_gradients_where_the_backward_pass_is_unquantized():
    """The fused kernel's gradients are of the quantized operands: it is not used where the others are asked for."""
    from precisionlm.model.fused import Kernel, fitting

    for recipe, backward, kernel in (
        ("KV4", "quantized", "cudnn"),
        ("KV4", "unquantized", "xla"),
        ("W4", "unquantized", "cudnn"),
    ):
        structure, _ = bind(parse_recipe(recipe), 1, {}, backward)
        assert fitting(Kernel("cudnn"), MODEL, structure, 32, 1).name == kernel
