"""Values and scales against other libraries, bit for bit; where they differ, the assertion is the reason.

Qwix: integers, FP8, FP4 and NVFP4. gfloat: the OCP MX formats, whose scale rule Qwix does not follow, and small floats.
One difference is everywhere and taken out first: zeros are positive here, floats of other libraries keep their sign.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from precisionlm.precision.formats import parse_format
from precisionlm.precision.grid import round_to_grid
from precisionlm.precision.quantize import quantize
from precisionlm.precision.recipe import parse_recipe
from precisionlm.precision.scales import scale_of
from precisionlm.precision.scaling import Scaling

from ..compiled_fast import OLDER_EMITTERS

qwix = pytest.importorskip("qwix", reason="parity with Qwix needs qwix, of the dev extra")
gfloat = pytest.importorskip("gfloat", reason="parity with OCP MX needs gfloat, of the dev extra")
ocp = pytest.importorskip("gfloat.formats", reason="parity with OCP MX needs gfloat, of the dev extra")

SHARINGS = {"tensor": 0, "channel": 0, "group": 32}
INTEGERS = {f"int{bits}": jnp.dtype(f"int{bits}") if bits in (4, 8) else f"int{bits}" for bits in range(2, 9)}
FLOATS = {"e4m3fn": jnp.float8_e4m3fn, "e5m2": jnp.float8_e5m2, "e2m1": jnp.float4_e2m1fn}
MX = {
    "mxfp4": ocp.format_info_ocp_e2m1,
    "mxfp6_e3m2": ocp.format_info_ocp_e3m2,
    "mxfp6_e2m3": ocp.format_info_ocp_e2m3,
    "mxfp8": ocp.format_info_ocp_e4m3,
    "mxfp8_e5m2": ocp.format_info_ocp_e5m2,
    "mxint8": ocp.format_info_ocp_int8,
}


def samples() -> dict[str, np.ndarray]:
    """float32 [64, 256] of many kinds; scales run along the last axis."""
    rng = np.random.default_rng(0)
    normal = rng.standard_normal((64, 256))
    kinds = {
        "normal": normal,
        "outliers": np.where(rng.random(normal.shape) < 0.01, 100 * normal, normal),
        "zeros": normal * (np.arange(64) % 4 > 0)[:, None] * (np.arange(256) % 3 > 0),
        "powers of two": np.sign(normal) * 2.0 ** rng.integers(-12, 13, normal.shape),
        "thirty binades": normal * 2.0 ** -rng.integers(0, 30, normal.shape),  # most are subnormals of every format
        "ties": rng.integers(-255, 256, normal.shape) / 128,
    }
    return {kind: x.astype(np.float32) for kind, x in kinds.items()}


SAMPLES = samples()


@pytest.fixture(scope="module", autouse=OLDER_EMITTERS)
def converted_once():
    """Qwix's conversions by the emitters that commands use. The older ones, by which all tests compile, round to FP4
    twice, by way of float16; nothing else is rounded so, and the package has no FP4 arrays."""
    from qwix._src.core import numerics

    once = jax.jit(numerics.convert_to, static_argnums=(1, 2), compiler_options={"xla_cpu_use_fusion_emitters": True})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(numerics, "convert_to", once)
        yield


def assert_bitwise(ours, theirs):
    theirs = np.asarray(theirs, np.float32) + np.float32(0)  # -0 + 0 = +0
    np.testing.assert_array_equal(np.asarray(ours, np.float32).view(np.int32), theirs.view(np.int32))


def by_qwix(x, qtype, sharing, group, calibration="absmax"):
    """(codes, scales, values) of Qwix, all float32 of x's shape."""
    how = {"tensor": {}, "channel": {"channelwise_axes": (0,)}}
    how["group"] = how["channel"] | {"tiled_axes": {1: group}}
    array = qwix.quantize(jnp.asarray(x), qtype, calibration_method=calibration, **how[sharing])
    scale = np.repeat(np.asarray(array.scale, np.float32), x.shape[1] // array.scale.shape[1], axis=1)
    codes = np.asarray(array.qvalue).astype(np.float32)
    return codes, np.broadcast_to(scale, x.shape), np.asarray(qwix.dequantize(array), np.float32)


def by_us(x, scaling, grid):
    """(scales, values) of x's shape, operation by operation: what a compiler makes of it has its own test."""
    scale = scale_of(jnp.asarray(x, jnp.float32), 1, scaling, grid)
    return np.broadcast_to(np.asarray(scale), x.shape), np.asarray(quantize(jnp.asarray(x), 1, scaling, grid))


def group_maxima(x, sharing, group):
    """max|x| of each value's sharers, in x's shape."""
    groups = np.abs(x).reshape({"tensor": (1, -1), "channel": x.shape, "group": (-1, group or 1)}[sharing])
    return np.broadcast_to(groups.max(1, keepdims=True), groups.shape).reshape(x.shape)


def preset(name):
    """(scaling, grid) of a recipe's one-word format."""
    quantization = parse_recipe(name).commonest("w")
    return quantization.scaling, quantization.format.grid()


@pytest.mark.parametrize("sharing", SHARINGS)
@pytest.mark.parametrize("name", INTEGERS)
def test_integers_are_qwixs_but_for_its_extra_negative_code(name, sharing):
    # Both map max|x| to qmax + 1/2 with clip "edge". Negative maxima are then a tie up to rounding: Qwix gives some of
    # them the code -qmax - 1, our grids are symmetric.
    grid, scaling = parse_format(name).grid(edge=True), Scaling(sharing, SHARINGS[sharing], clip="edge")
    extra = 0
    for x in SAMPLES.values():
        codes, their_scale, _ = by_qwix(x, INTEGERS[name], sharing, scaling.group)
        scale, values = by_us(x, scaling, grid)
        live = group_maxima(x, sharing, scaling.group) > 0  # groups of zeros: Qwix's scale is 1
        assert_bitwise(scale[live], their_scale[live])
        assert_bitwise(values, np.maximum(codes, -grid.qmax) * their_scale)
        extra += (codes < -grid.qmax).sum()
    assert extra > 0


@pytest.mark.parametrize("name", INTEGERS)
def test_default_integers_are_qwixs_with_the_range_of_their_outer_edge(name):
    # The default maps max|x| to qmax. Qwix can be told so where its scale then comes out exact: at max|x| = qmax / 32.
    grid = parse_format(name).grid()
    for x in SAMPLES.values():
        x = np.clip(x, -grid.qmax / 32, grid.qmax / 32)
        x[0, 0] = grid.qmax / 32
        _, their_scale, theirs = by_qwix(x, INTEGERS[name], "tensor", 0, f"fixed,{(grid.qmax + 0.5) / 32}")
        scale, values = by_us(x, Scaling("tensor"), grid)
        assert_bitwise(scale, their_scale)
        assert_bitwise(values, theirs)


@pytest.mark.parametrize("clip", ["absmax", "mse"])
@pytest.mark.parametrize("sharing", SHARINGS)
@pytest.mark.parametrize("name", FLOATS)
def test_floats_are_qwixs(name, sharing, clip):
    grid, scaling = parse_format(name).grid(), Scaling(sharing, SHARINGS[sharing], clip=clip)
    calibration = "absmax" if clip == "absmax" else f"rms,{float(grid.reach)!r}"
    for x in SAMPLES.values():
        _, their_scale, theirs = by_qwix(x, FLOATS[name], sharing, scaling.group, calibration)
        scale, values = by_us(x, scaling, grid)
        live = group_maxima(x, sharing, scaling.group) > 0
        assert_bitwise(scale[live], their_scale[live])
        assert_bitwise(values, theirs)


@pytest.mark.parametrize("name", ["int4", "int8", *FLOATS])
def test_bf16_values_are_qwixs_in_float32(name):
    # Qwix computes in the dtype of its input, so scales and quotients of bf16 are rounded to bf16; ours stay float32.
    fmt = parse_format(name)
    grid, scaling = fmt.grid(edge=fmt.kind == "int"), Scaling(clip="edge" if fmt.kind == "int" else "absmax")
    x = jnp.asarray(SAMPLES["normal"], jnp.bfloat16)
    codes, scale, _ = by_qwix(x.astype(jnp.float32), (INTEGERS | FLOATS)[name], "channel", 0)
    values = np.asarray(quantize(x, 1, scaling, grid))
    assert_bitwise(values, (np.maximum(codes, -grid.qmax) * scale).astype(jnp.bfloat16))
    codes_in_bf16, scale_in_bf16, _ = by_qwix(x, (INTEGERS | FLOATS)[name], "channel", 0)
    assert_bitwise(scale_in_bf16, scale.astype(jnp.bfloat16))
    assert (codes_in_bf16 != codes).any()


def test_nvfp4_is_qwixs_under_our_tensor_scale():
    # Qwix has E4M3 block scales alone; ours stand under max|x| / (448 * 6), which is 1 for the largest value 2688.
    scaling, grid = preset("nvfp4")
    for x in SAMPLES.values():
        x = x * np.float32(2000 / np.abs(x).max())
        x[0, 0] = 2688
        _, their_scale, theirs = by_qwix(x, "nvfp4", "group", 16)
        scale, values = by_us(x, scaling, grid)
        live = group_maxima(x, "group", 16) > 0
        # Blocks too small for the least E4M3 scale: Qwix turns them to zeros, ours keep that least scale.
        assert (scale[live & (their_scale == 0)] == 2.0**-9).all()
        live &= their_scale > 0
        assert_bitwise(scale[live], their_scale[live])
        assert_bitwise(values[live], theirs[live])


@pytest.mark.parametrize("kind", SAMPLES)
def test_nvfp4_of_any_size_has_qwixs_codes_and_block_scales(kind):
    scaling, grid = preset("nvfp4")
    x = SAMPLES[kind]
    tensor_scale = np.abs(x).max() / np.float32(448 * 6)
    codes, block_scale, _ = by_qwix(x / tensor_scale, "nvfp4", "group", 16)
    _, values = by_us(x, scaling, grid)
    live = block_scale > 0
    assert_bitwise(values[live], (codes * (block_scale * tensor_scale))[live])


@pytest.mark.parametrize("name", MX)
def test_mx_is_ocps_by_gfloat(name):
    scaling, grid = preset(name)
    element = MX[name]
    block = gfloat.BlockFormatInfo(name, element, 32, ocp.format_info_ocp_e8m0)
    # OCP's INT8 has two's-complement codes k / 64, and leaves it open whether the most negative one is used.
    lowest = -127 / 64 if name == "mxint8" else -element.max
    extra = 0
    for x in SAMPLES.values():
        x = x[:8]
        blocks = x.reshape(-1, 32).astype(np.float64)
        their_scale = np.array([gfloat.compute_scale_amax(element.emax, values) for values in blocks])[:, None]
        theirs = np.stack([gfloat.quantize_block(block, values, gfloat.compute_scale_amax) for values in blocks])
        extra += (theirs < lowest * their_scale).sum()
        scale, values = by_us(x, scaling, grid)
        live = np.abs(blocks).max(1) > 0  # a block of zeros has the least scale there, 2^-127
        unit = 64 if name == "mxint8" else 1
        assert_bitwise(scale.reshape(blocks.shape)[live] * unit, np.repeat(their_scale[live], 32, axis=1))
        assert_bitwise(values.reshape(blocks.shape), np.maximum(theirs, lowest * their_scale))
    assert (extra > 0) == (name == "mxint8")


@pytest.mark.parametrize("name", ["mxfp4", "mxfp8"])
def test_qwixs_mx_scale_is_twice_ours_where_ocps_rule_saturates(name):
    # OCP: 2^(floor(log2 max|x|) - emax). Qwix: the least power of two under which nothing saturates.
    scaling, grid = preset(name)
    for kind, x in SAMPLES.items():
        _, their_scale, theirs = by_qwix(x, name, "group", 32)
        scale, values = by_us(x, scaling, grid)
        maxima = group_maxima(x, "group", 32)
        saturates = maxima > grid.qmax * scale
        assert saturates.any() == (kind != "powers of two")
        assert_bitwise(their_scale[maxima > 0], (np.where(saturates, 2, 1) * scale)[maxima > 0])
        doubled = np.asarray(round_to_grid(jnp.asarray(x / (2 * scale)), grid)) * (2 * scale)
        assert_bitwise(np.where(saturates, doubled, values), theirs)


@pytest.mark.parametrize("mantissa", [0, 1, 2, 3, 5, 8])
@pytest.mark.parametrize("exponent", [1, 2, 3, 4, 6])
def test_floats_without_special_codes_are_gfloats(exponent, mantissa):
    theirs = gfloat.FormatInfo(
        name="finite",
        k=1 + exponent + mantissa,
        precision=1 + mantissa,
        bias=2 ** (exponent - 1) - 1,
        has_nz=True,
        domain=gfloat.Domain.Finite,
        num_high_nans=0,
        has_subnormals=True,
        is_signed=True,
        is_twos_complement=False,
    )
    x = np.concatenate([*(x.ravel() for x in SAMPLES.values()), np.arange(-512, 513, dtype=np.float32) / 64])
    ours = np.asarray(round_to_grid(jnp.asarray(x), parse_format(f"e{exponent}m{mantissa}").grid()))
    reference = gfloat.round_ndarray(theirs, x.astype(np.float64), sat=True)
    if mantissa == 0:  # powers of two: ties go up here, to the even code there
        tie = (ours != reference) & (np.abs(x) == 0.75 * np.abs(ours)) & (reference == ours / 2)
        reference = np.where(tie, ours, reference)
    assert_bitwise(ours, reference)


@pytest.mark.parametrize(
    "scaling", [*(Scaling(s, n) for s, n in SHARINGS.items()), *(preset(n)[0] for n in ("mxfp4", "nvfp4"))]
)
@pytest.mark.parametrize("name", ["int4", "int8", *FLOATS])
def test_compiling_moves_nothing(name, scaling):
    # Left alone, XLA turns 1 / (max|x| / bound) to bound / max|x|: an ulp that decides ties.
    compiled, grid = jax.jit(quantize, static_argnums=(1, 2)), parse_format(name).grid()
    for x in SAMPLES.values():
        assert_bitwise(np.asarray(compiled(x, 1, scaling, grid)), by_us(x, scaling, grid)[1])


@pytest.mark.parametrize("scale_type", ["f32", "bf16", "e4m3", "e8m0"])
@pytest.mark.parametrize("name", ["int8", *FLOATS])
def test_groups_too_small_for_a_scale_become_zeros(name, scale_type):
    scaling, grid = Scaling("group", 2, scale_type), parse_format(name).grid()
    x = jnp.asarray([[1e-36, 0.0, 1e-30, -1e-31, 3e-38, 2e-38, 0.0, 0.0]], jnp.float32)
    for values in (x, x.astype(jnp.bfloat16), jnp.concatenate([x, jnp.full((1, 2), 4.0)], axis=1)):
        found = np.asarray(quantize(values, 1, scaling, grid), np.float32)[:, :8]
        assert np.isfinite(found).all() and np.abs(found).max() <= 2e-30
