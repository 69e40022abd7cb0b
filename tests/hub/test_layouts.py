"""Layouts of compressed-tensors against hand-made bytes and against the numbers of `ptq`."""

import jax
import numpy as np
import pytest

from precisionlm.errors import UserError
from precisionlm.hub.layouts import Layout, layout_of, pack, pack_again, tensor_scale, unpack
from precisionlm.hub.tensors import BF16, FP8
from precisionlm.precision.recipe import parse_recipe
from precisionlm.ptq.method import weight_quantization
from precisionlm.ptq.rtn import rounded
from precisionlm.ptq.scales import weight_scales

FORMATS = {
    "W2": ("pack-quantized", 2, 0),
    "W3": ("pack-quantized", 3, 0),
    "W4-g32": ("pack-quantized", 4, 32),
    "W5": ("pack-quantized", 5, 0),
    "W6": ("pack-quantized", 6, 0),
    "W7-g16": ("pack-quantized", 7, 16),
    "W8": ("pack-quantized", 8, 0),
    "int4full/g32": ("pack-quantized", 4, 32),
    "int4/g32/sbf16": ("pack-quantized", 4, 32),
    "int1.58": ("pack-quantized", 2, 0),
    "levels5/tensor": ("pack-quantized", 3, 0),
    "mxint8": ("pack-quantized", 8, 32),
    "e4m3fn": ("float-quantized", 8, 0),
    "e4m3fn/g32": ("float-quantized", 8, 32),
    "mxfp4": ("mxfp4-pack-quantized", 4, 32),
    "e2m1/g32/e8m0up": ("mxfp4-pack-quantized", 4, 32),
    "mxfp8": ("mxfp8-quantized", 8, 32),
    "nvfp4": ("nvfp4-pack-quantized", 4, 16),
}


@pytest.fixture(scope="module")
def w():
    return 0.1 * np.asarray(jax.random.t(jax.random.key(0), 3, (96, 40)), np.float32)  # [in, out]


@pytest.mark.parametrize("text", FORMATS)
def test_formats_are_held_bit_for_bit(w, text):
    quantization = weight_quantization(text)
    grid, layout = quantization.format.grid(), layout_of(quantization)
    assert (layout.format, layout.bits, layout.group) == FORMATS[text]
    values = np.asarray(rounded(w, quantization.scaling, grid)).T
    scales = np.asarray(weight_scales(w, quantization.scaling, grid)).T
    upper = tensor_scale(scales) if text == "nvfp4" else None
    found = pack(layout, values, scales, upper)
    back, again = unpack(layout, found, values.shape)
    same = np.testing.assert_array_equal if text != "nvfp4" else lambda a, b: np.testing.assert_allclose(a, b, 3e-7)
    same(back, values)
    same(np.repeat(again, layout.group or 96, axis=1), scales)
    came_with = {name: found[name] for name in ("weight_scale", "weight_global_scale") if name in found}
    repeated = pack_again(layout, back, came_with)
    assert {k: v.tobytes() for k, v in repeated.items()} == {k: v.tobytes() for k, v in found.items()}
    scheme = Layout.read(layout.format, layout.scheme)
    assert (scheme.format, scheme.bits, scheme.group) == FORMATS[text]
    assert (found["weight_scale"].dtype == BF16) == (text == "int4/g32/sbf16")


def test_integers_are_a_dense_stream_of_bits():
    codes = np.array([[-4, -3, -2, -1, 0, 1, 2, 3, 3, 3, -4, 1]], np.float32)
    found = pack(Layout("pack-quantized", 3), 0.5 * codes, np.full_like(codes, 0.5))
    bits = "".join(f"{int(c) + 4:03b}"[::-1] for c in codes[0]).ljust(64, "0")
    words = [int(bits[i : i + 32][::-1], 2) for i in (0, 32)]
    assert found["weight_packed"].view(np.uint32).tolist() == [words]
    assert found["weight_scale"].tolist() == [[0.5]] and found["weight_shape"].tolist() == [1, 12]


def test_four_bit_floats_are_nibbles_the_first_one_low():
    values = np.zeros((1, 32), np.float32)
    values[0, :6] = 4.0 * np.array([0.5, -6, 3, 0, -0.5, 1.5])
    found = pack(Layout("mxfp4-pack-quantized", 4, 32), values, np.full_like(values, 4.0))
    assert found["weight_packed"][0, :3].tolist() == [0x1 | 0xF << 4, 0x5, 0x9 | 0x3 << 4]
    assert found["weight_scale"].tolist() == [[129]]


def test_nvfp4_has_scales_of_scales():
    scales = np.repeat(np.array([[448.0, 1.5]], np.float32), 16, axis=1) * np.float32(0.01)
    values = scales * np.tile(np.array([6, -0.5, 0, 1], np.float32), 8)
    found = pack(Layout("nvfp4-pack-quantized", 4, 16), values, scales, tensor_scale(scales))
    assert found["weight_scale"].dtype == FP8 and found["weight_scale"].astype(np.float32).tolist() == [[448.0, 1.5]]
    assert found["weight_global_scale"] == pytest.approx(100, rel=1e-6)
    assert tensor_scale(np.full((2, 2), 2.0**-9 / (448 * 6), np.float32)) > 0  # of weights that are all zero


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("e4m3", "use e4m3fn"),
        ("e3m2", r"no layout .*mxfp8"),
        ("int9", "at most 8 bits"),
        ("int4/had32", "leave had away"),
        ("e2m1", "no layout"),
        ("uint4", "unsigned"),
    ],
)
def test_what_has_no_layout_is_one_line(text, why):
    with pytest.raises(UserError, match=why):
        layout_of(weight_quantization(text))


def test_int8_with_int8_activations_is_not_packed():
    quantization = parse_recipe("W8").commonest("w")
    assert layout_of(quantization, with_int8=True) == Layout("int-quantized", 8)
    codes = np.array([[-127, 5, 127]], np.float32)
    found = pack(Layout("int-quantized", 8), codes * 2, np.full_like(codes, 2))
    assert found["weight"].dtype == np.int8 and found["weight"].tolist() == codes.tolist()


def test_other_tensors_than_the_layouts_are_one_line():
    layout, codes = Layout("pack-quantized", 4), np.ones((4, 16), np.float32)
    right = pack(layout, codes, codes)
    wrong = [
        (
            right | {"weight_packed": right["weight_packed"][:, :1]},
            r"'weight_packed' is int32 \(4, 1\), not int32 \(4, 2\)",
        ),
        (right | {"weight_g_idx": codes}, "'weight_g_idx' is not read"),
        ({k: v for k, v in right.items() if k != "weight_scale"}, "'weight_scale' is missing"),
        (right | {"weight_scale": codes[:, :1].astype(np.int32)}, "'weight_scale' is int32"),
    ]
    for tensors, why in wrong:
        with pytest.raises(UserError, match=why):
            unpack(layout, tensors, (4, 16))
    with pytest.raises(UserError, match="groups of 32 do not divide 48"):
        unpack(Layout("pack-quantized", 4, 32), right, (4, 48))
    for change in ({"symmetric": False}, {"actorder": "group"}, {"strategy": "block"}, {"dynamic": True}):
        with pytest.raises(UserError, match="are not read here"):
            Layout.read("pack-quantized", layout.scheme | change)
    assert Layout.read("pack-quantized", layout.scheme | {"actorder": "static"}) == layout
