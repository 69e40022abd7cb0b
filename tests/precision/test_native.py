"""Native execution: products of codes agree with simulation, and what has none says so."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from precisionlm.errors import UserError
from precisionlm.precision.binding import bind
from precisionlm.precision.dot_general import dot_general
from precisionlm.precision.recipe import parse_recipe

DN = (((1,), (0,)), ((), ()))
X = np.asarray(jax.random.normal(jax.random.key(0), (64, 256)))
W = np.asarray(jax.random.normal(jax.random.key(1), (256, 32)))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize(
    "recipe",
    [
        "W8A8",
        "W4A8",
        "W2A3",
        "W8,A=int8/tensor",
        "W=e4m3fn,A=e4m3fn",
        "W=e4m3fn,A=e5m2/tensor",
        "W8A8G8-tensor",
        "W8A8G8,P46=int8",
        "W8A8,P34=int8/had16",
        "W=e4m3fn/tensor,A=e4m3fn/tensor,G=e5m2/tensor",
        "W=e4m3fn,A=e4m3fn,P46=e4m3fn,G=e5m2",
    ],
)
def test_native_agrees_with_simulated_to_output_rounding(recipe, dtype):
    simulated, grids = bind(parse_recipe(recipe), 1, {})
    native, _ = bind(parse_recipe(recipe), 1, {}, execution="native")
    layer = jax.tree.map(lambda leaf: leaf[0], grids["qkv"])
    x, w = jnp.asarray(X, dtype), jnp.asarray(W, dtype)
    outputs = []
    other_layout = replace(native, contracted_last=False)  # a TPU's
    for structure in (simulated, native, other_layout):
        fn = lambda x, w, s=structure: dot_general(s, "qkv", layer)(x, w, DN)  # noqa: E731
        y, pull_back = jax.jit(lambda x, w, fn=fn: (fn(x, w), jax.vjp(fn, x, w)[1](jnp.ones((64, 32), dtype))))(x, w)
        outputs.append((y, *pull_back))
    # float32: the order of additions. bfloat16: operands (simulated) or accumulator and scales (native) are rounded to
    # 8 digits, over 256 terms of random sign.
    bound = 1e-5 if dtype == "float32" else 4 * 2.0**-8
    for a, b, c in zip(*outputs, strict=True):
        a, b, c = (np.asarray(x, np.float64) for x in (a, b, c))
        assert np.abs(a - b).max() <= bound * np.abs(a).max()
        assert np.abs(c - b).max() <= bound * np.abs(a).max()


@pytest.mark.parametrize(
    ("recipe", "platform", "lhs", "rhs", "result"),
    [
        ("W4A8", "tpu", "i8", "256x32xi8", "i32"),
        ("W4A4", "tpu", "i4", "256x32xi4", "i32"),
        ("W4A4", "gpu", "i8", "32x256xi8", "i32"),
        ("W=e4m3fn,A=e5m2", "gpu", "f8E5M2", "32x256xf8E4M3FN", "f32"),
    ],
)
def test_native_products_multiply_codes(recipe, platform, lhs, rhs, result):
    native, grids = bind(parse_recipe(recipe), 1, {}, execution="native", platform=platform)
    layer = jax.tree.map(lambda leaf: leaf[0], grids["qkv"])
    text = jax.jit(lambda x, w: dot_general(native, "qkv", layer)(x, w, DN)).lower(X, W).as_text()
    assert f"(tensor<64x256x{lhs}>, tensor<{rhs}>) -> tensor<64x32x{result}>" in text


@pytest.mark.parametrize(
    ("recipe", "dy", "other", "result"),
    [
        ("W8A8G8,P46=int8", "i8", "i8", "i32"),
        ("W8A8G8-tensor", "i8", "i8", "i32"),
        ("W=e4m3fn,A=e4m3fn,P46=e4m3fn,G=e5m2", "f8E5M2", "f8E4M3FN", "f32"),
    ],
)
def test_native_gradient_products_multiply_codes_too(recipe, dy, other, result):
    native, grids = bind(parse_recipe(recipe), 1, {}, execution="native", platform="gpu")
    layer = jax.tree.map(lambda leaf: leaf[0], grids["qkv"])
    x_BTK = X.reshape(4, 16, 256)
    dimensions = (((2,), (0,)), ((), ()))

    def gradients(x, w):
        y, pull_back = jax.vjp(lambda x, w: dot_general(native, "qkv", layer)(x, w, dimensions), x, w)
        return pull_back(y)

    text = jax.jit(gradients).lower(x_BTK, W).as_text()
    assert f"(tensor<4x16x32x{dy}>, tensor<256x32x{other}>) -> tensor<4x16x256x{result}>" in text
    assert f"(tensor<32x4x16x{dy}>, tensor<256x4x16x{other}>) -> tensor<32x256x{result}>" in text


def test_tpus_without_float8_say_so():
    with pytest.raises(UserError, match="no float8 products"):
        bind(parse_recipe("W=e4m3fn,A=e4m3fn"), 1, {}, execution="native", platform="tpu")


@pytest.mark.parametrize(
    ("recipe", "message"),
    [
        ("W=e4m3,A=e4m3", "native products take int2 to int8"),
        ("W8A8-g32", "native products take int2 to int8"),
        ("W12A8", "native products take int2 to int8"),
        ("W8", "must both be quantized"),
        ("W8A8@first:bf16", "some layers are bf16"),
        ("W=e4m3fn,A8", "mix integers and floats"),
        ("W8A8G8", r"dgrad_dy meets w, whose scales run along another axis than this product; .*\(P4=…\)"),
        ("W8,A=int8/tensor,P46=int8", "dgrad_w is quantized but dgrad_dy is not"),
        ("W=e4m3fn,A=e4m3fn,P35=e5m2,P46=e5m2", "dgrad_dy and dgrad_w are both e5m2"),
        ("W=e5m2,A=e5m2", "a and w are both e5m2"),
        ("W=int8/lsq,A8", "native products take int2 to int8"),
    ],
)
def test_what_has_no_native_product_is_an_error(recipe, message):
    with pytest.raises(UserError, match=message):
        bind(parse_recipe(recipe), 2, {}, execution="native")
