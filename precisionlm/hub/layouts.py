"""How quantized weights lie in files: the layouts of compressed-tensors, which vLLM and transformers read.

A weight is [out, in]; its values are codes times scales, in float32. What a layout cannot hold bit for bit is an error.

pack-quantized        int2…int8: codes + 2^(b-1) as a dense little-endian stream of bits along `in`, in int32 words
int-quantized         int8 as it is
float-quantized       FP8 (E4M3 with a NaN code)
mxfp4-pack-quantized  two E2M1 codes a byte, the first one low; a scale 2^(e-127), e in a byte, for 32 along `in`
mxfp8-quantized       FP8 under such scales
nvfp4-pack-quantized  E2M1 under E4M3 scales for 16, those over one float32 G a tensor: value = code * s / G
"""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from precisionlm.errors import UserError
from precisionlm.hub.tensors import BF16, FP8
from precisionlm.precision.recipe import Quantization

Tensors = dict[str, np.ndarray]  # what follows the linear layer's name and a dot → tensor
E2M1 = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6], np.float32)


@dataclass(frozen=True)
class Layout:
    """format: compressed-tensors' name. bits: of a code. group: values along `in` that share a scale; 0: all. short:
    float scales are bfloat16, not float32."""

    format: str
    bits: int
    group: int = 0
    short: bool = False

    @property
    def scheme(self) -> dict[str, Any]:
        """The `weights` of a config group."""
        floats = self.format in ("float-quantized", "mxfp4-pack-quantized", "mxfp8-quantized", "nvfp4-pack-quantized")
        found: dict[str, Any] = {
            "num_bits": self.bits,
            "type": "float" if floats else "int",
            "symmetric": True,
            "strategy": "group" if self.group else "channel",
            "dynamic": False,
        }
        if self.group:
            found["group_size"] = self.group
        if self.format.startswith("mx"):
            found["scale_dtype"] = "torch.uint8"
        if self.format.startswith("nvfp4"):
            found |= {"strategy": "tensor_group", "scale_dtype": "torch.float8_e4m3fn"}
        return found

    @staticmethod
    def read(format: str, scheme: dict[str, Any]) -> "Layout":
        """Of a config group. Raises UserError for what is not read here."""
        strategy, group = scheme.get("strategy"), scheme.get("group_size") or 0
        found = Layout(format, scheme.get("num_bits", 0), group if strategy in ("group", "tensor_group") else 0)
        alien = [key for key in ("dynamic", "actorder", "block_structure") if scheme.get(key) not in (None, False)]
        alien = [key for key in alien if (key, scheme[key]) not in (("actorder", "static"), ("actorder", "weight"))]
        fits = strategy == found.scheme["strategy"] and scheme.get("type") == found.scheme["type"]
        if format not in _WRITE or alien or not fits or scheme.get("symmetric") is False:
            what = ", ".join(
                f"{key} {scheme.get(key)}" for key in ("num_bits", "type", "strategy", "symmetric", *alien)
            )
            raise UserError(f"weights in format {format} ({what}) are not read here; known: {', '.join(_WRITE)}")
        return found


def layout_of(quantization: Quantization, with_int8: bool = False) -> Layout:
    """The layout of a weight's format. with_int8: its product takes int8 activations. Raises UserError where no layout
    holds the format."""
    f, s = quantization.format, quantization.scaling
    why, short = "", s.scale_type == "bf16"
    if s.rotate:
        why = "its values are rotated, which readers do not undo; leave had away"
    elif f.kind == "int" and f.unsigned:
        why = "its codes are unsigned"
    elif f.kind == "int" and not f.levels <= 256:
        why = "codes of at most 8 bits are packed"
    elif f.kind == "int":
        bits = max(2, math.ceil(math.log2(f.levels)))
        plain = with_int8 and bits == 8 and not s.group
        return Layout("int-quantized" if plain else "pack-quantized", bits, s.group, short)
    elif s.stochastic and s.scale_type.startswith("e8m0"):
        why = "its scales under sr are no powers of two; leave sr away"
    elif (f.exponent, f.mantissa, f.special) == (4, 3, "nan"):
        mx = s.scale_type.startswith("e8m0") and s.sharing == "group" and s.group == 32
        return Layout("mxfp8-quantized", 8, 32) if mx else Layout("float-quantized", 8, s.group, short)
    elif (f.exponent, f.mantissa) == (2, 1) and s.sharing == "group":
        if s.scale_type.startswith("e8m0") and s.group == 32:
            return Layout("mxfp4-pack-quantized", 4, 32)
        if s.scale_type == "e4m3" and s.group == 16:
            return Layout("nvfp4-pack-quantized", 4, 16)
    else:
        why = "E4M3 without a NaN code reaches 480; use e4m3fn" if f.name == "e4m3" else ""
    held = "int2…int8, e4m3fn, mxfp4, mxfp8 and nvfp4"
    raise UserError(
        f"'{quantization}' has no layout of compressed-tensors" + (f": {why}" if why else f" ({held} have)")
    )


def pack(layout: Layout, values: np.ndarray, scales: np.ndarray, upper: np.float32 | None = None) -> Tensors:
    """A weight as tensors. values, scales: float32 [out, in], of each value; upper: NVFP4's scale of the scales."""
    shared = scales[:, :: layout.group or scales.shape[1]]
    codes_of, tensors_of = _WRITE[layout.format]
    found = tensors_of(layout, codes_of(layout, values, scales), shared, upper)
    if layout.short:
        found["weight_scale"] = found["weight_scale"].astype(BF16)
    _check_holds(layout, found, values)
    return found


def pack_again(layout: Layout, values: np.ndarray, came_with: Tensors) -> Tensors:
    """A weight whose values came from a file with these scales, as the tensors it came in."""
    scales = np.repeat(_scales(layout, came_with), layout.group or values.shape[1], axis=1)
    codes_of, tensors_of = _WRITE[layout.format]
    found = tensors_of(layout, codes_of(layout, values, scales), scales[:, :1], np.float32(1)) | came_with
    _check_holds(layout, found, values)
    return found


def _check_holds(layout: Layout, tensors: Tensors, values: np.ndarray) -> None:
    """NVFP4 divides by its float32 scale where we multiply: the last bit of a value may differ, never its code."""
    back, nearly = unpack(layout, tensors, values.shape)[0], layout.format == "nvfp4-pack-quantized"
    same = np.allclose(back, values, rtol=1e-6, atol=0) if nearly else np.array_equal(back, values)
    assert same, f"{layout.format} does not hold these values"


def unpack(layout: Layout, tensors: Tensors, shape: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
    """(values [out, in], scales [out, sharers]) of a weight, float32. Raises UserError for tensors of other shapes or
    dtypes than the layout's."""
    out, inside = shape
    group = layout.group or inside
    if inside % group:
        raise UserError(f"groups of {group} do not divide {inside} values")
    wanted = _shapes(layout, out, inside)
    for name, (dtypes, size) in wanted.items():
        if name not in tensors:
            raise UserError(f"'{name}' is missing ({layout.format})")
        found = tensors[name]
        if found.dtype not in dtypes or found.shape != size:
            raise UserError(f"'{name}' is {found.dtype} {found.shape}, not {dtypes[0]} {size} ({layout.format})")
    if alien := sorted(set(tensors) - set(wanted)):
        raise UserError(f"'{alien[0]}' is not read ({layout.format})")
    scales = _scales(layout, tensors)
    return _codes(layout, tensors, out, inside) * np.repeat(scales, group, axis=1), scales


def _scales(layout: Layout, tensors: Tensors) -> np.ndarray:
    """float32 [out, sharers]."""
    raw = tensors["weight_scale"]
    if raw.dtype == np.uint8:
        return np.ldexp(np.float32(1), raw.astype(np.int32) - 127).astype(np.float32)
    scales = raw.astype(np.float32)
    return scales / tensors["weight_global_scale"] if layout.format == "nvfp4-pack-quantized" else scales


def tensor_scale(scales: np.ndarray) -> np.float32:
    """NVFP4's float32 scale of a tensor, of which all its scales (float32) are E4M3 multiples."""
    about = np.float32(scales.max()) / np.float32(448)
    candidates = [about, np.nextafter(about, np.float32(0)), np.nextafter(about, np.float32(np.inf))]
    zeros = np.float32(1) / np.float32(448 * 6)  # of weights that are all zero
    for upper in (*candidates, zeros):
        lower = (scales / upper).astype(FP8).astype(np.float32)
        if np.array_equal(lower * upper, scales):
            return upper
    raise AssertionError("these scales are not E4M3 under one scale a tensor")


def _shapes(layout: Layout, out: int, inside: int) -> dict[str, tuple[tuple[Any, ...], tuple[int, ...]]]:
    """Tensor → (its dtypes, its shape)."""
    scale = (out, inside // (layout.group or inside))
    floats = (np.dtype(np.float32), BF16, np.dtype(np.float16))
    if layout.format == "pack-quantized":
        words = (np.dtype(np.int32),), (out, -(-inside * layout.bits // 32))
        return {"weight_packed": words, "weight_scale": (floats, scale), "weight_shape": ((np.dtype(np.int64),), (2,))}
    if layout.format in ("mxfp4-pack-quantized", "nvfp4-pack-quantized"):
        two: dict[str, tuple[tuple[Any, ...], tuple[int, ...]]] = {
            "weight_packed": ((np.dtype(np.uint8),), (out, inside // 2))
        }
        if layout.format.startswith("mx"):
            return two | {"weight_scale": ((np.dtype(np.uint8),), scale)}
        return two | {"weight_scale": ((FP8,), scale), "weight_global_scale": ((np.dtype(np.float32),), (1,))}
    one = np.dtype(np.int8) if layout.format == "int-quantized" else FP8
    of_scale = (np.dtype(np.uint8),) if layout.format == "mxfp8-quantized" else floats
    return {"weight": ((one,), (out, inside)), "weight_scale": (of_scale, scale)}


def _codes(layout: Layout, tensors: Tensors, out: int, inside: int) -> np.ndarray:
    """float32 [out, in]."""
    if layout.format == "pack-quantized":
        words = np.ascontiguousarray(tensors["weight_packed"]).view(np.uint8)
        bits = np.unpackbits(words, axis=1, bitorder="little")[:, : inside * layout.bits]
        powers = 2 ** np.arange(layout.bits, dtype=np.int32)
        return (bits.reshape(out, inside, layout.bits) @ powers - 2 ** (layout.bits - 1)).astype(np.float32)
    if "weight" in tensors:
        return tensors["weight"].astype(np.float32)
    pairs = tensors["weight_packed"]
    codes = np.stack([pairs & 15, pairs >> 4], axis=2).reshape(out, inside)
    return E2M1[codes & 7] * np.where(codes >> 3, np.float32(-1), np.float32(1))


def _integers(layout: Layout, values: np.ndarray, scales: np.ndarray) -> np.ndarray:
    return np.rint(values / scales).astype(np.int8)


def _fp8(layout: Layout, values: np.ndarray, scales: np.ndarray) -> np.ndarray:
    return (values / scales).astype(FP8)


def _e2m1(layout: Layout, values: np.ndarray, scales: np.ndarray) -> np.ndarray:
    """Sign and index among the magnitudes, in four bits."""
    x = values / scales
    nearest = np.searchsorted((E2M1[1:] + E2M1[:-1]) / 2, np.abs(x))
    return (nearest | np.where(x < 0, 8, 0)).astype(np.uint8)


def _packed(layout: Layout, codes: np.ndarray, scales: np.ndarray, upper: Any) -> Tensors:
    out, inside = codes.shape
    shifted = (codes.astype(np.int16) + 2 ** (layout.bits - 1)).astype(np.uint8)
    bits = np.unpackbits(shifted[:, :, None], axis=2, bitorder="little")[:, :, : layout.bits].reshape(out, -1)
    words = np.packbits(np.pad(bits, ((0, 0), (0, -bits.shape[1] % 32))), axis=1, bitorder="little").view("<i4")
    return {"weight_packed": words, "weight_scale": scales, "weight_shape": np.array([out, inside], np.int64)}


def _plain(layout: Layout, codes: np.ndarray, scales: np.ndarray, upper: Any) -> Tensors:
    return {"weight": codes, "weight_scale": _exponents(scales) if layout.format.startswith("mx") else scales}


def _nibbles(layout: Layout, codes: np.ndarray, scales: np.ndarray, upper: Any) -> Tensors:
    pairs = {"weight_packed": codes[:, 0::2] | (codes[:, 1::2] << 4)}
    if layout.format.startswith("mx"):
        return pairs | {"weight_scale": _exponents(scales)}
    assert upper is not None
    lower = (scales / upper).astype(FP8)
    return pairs | {"weight_scale": lower, "weight_global_scale": np.array([np.float32(1) / upper], np.float32)}


def _exponents(scales: np.ndarray) -> np.ndarray:
    return (np.frexp(scales)[1] - 1 + 127).astype(np.uint8)


_WRITE = {
    "pack-quantized": (_integers, _packed),
    "int-quantized": (_integers, _plain),
    "float-quantized": (_fp8, _plain),
    "mxfp4-pack-quantized": (_e2m1, _nibbles),
    "mxfp8-quantized": (_fp8, _plain),
    "nvfp4-pack-quantized": (_e2m1, _nibbles),
}
