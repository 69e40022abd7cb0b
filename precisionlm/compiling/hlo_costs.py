"""What one step of a compiled program costs a device: matrix products, collectives, traffic to memory.

Read from optimized HLO. Instructions inside loops count as often as the loop turns; XLA's own cost analysis counts them
once. On a program's loop bodies counted once, the traffic found here was 1 % below XLA's.
"""

import math
import re
from collections import Counter
from dataclasses import dataclass

import numpy as np

from precisionlm.compiling.hlo import Array, Computation, Instruction, Module, group_size
from precisionlm.compiling.kernels import is_kernel, kernel_flops, kernel_rereads

COLLECTIVES = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute")
_CONTROL = ("while", "conditional", "call")  # their bodies count by themselves
_FREE = (
    *_CONTROL,
    "parameter",
    "constant",
    "tuple",
    "get-tuple-element",
    "bitcast",
    "after-all",
    "partition-id",
    "iota",
)
# Which of its arrays is the result of what goes on meanwhile: the others are its operand once more, and a flag.
_RESULT = {"copy-start": 0, "slice-start": 1, "collective-permute-start": 1}
_NO_COPY = re.compile(r'custom_call_target="(AllocateBuffer|ConcatBitcast|AssumeGatherIndicesInBound)"')


@dataclass(frozen=True)
class Product:
    """Matrix products of one pair of operand types, such as `s8 x s8 -> s32`. flops: multiplies and adds of a step."""

    types: str
    count: int
    flops: float


@dataclass(frozen=True)
class Collective:
    """Collectives of one kind and type. bytes: what a device sends in a step, on rings."""

    kind: str
    dtype: str
    count: int
    bytes: float


def products(module: Module) -> list[Product]:
    """Matrix products by operand types, largest share of FLOPs first. A TPU spells them as convolutions; fused
    attention is a kernel, counted by formula (`compiling.kernels`)."""
    count: Counter[str] = Counter()
    flops: dict[str, float] = {}
    for name, i in module.instructions():
        if i.opcode in ("dot", "convolution"):
            lhs, rhs = (module.computations[name][operand].arrays[0] for operand in i.operands[:2])
            passes = " highest" if "operand_precision={highest" in i.attributes else ""
            types = f"{lhs.dtype} x {rhs.dtype} -> {i.arrays[0].dtype}{passes}"
            count[types] += module.executions[name]
            flops[types] = flops.get(types, 0.0) + module.executions[name] * product_flops(i, lhs, rhs)
        elif is_kernel(i):
            types, of_call = kernel_flops(i, module.computations[name])
            count[types] += module.executions[name]
            flops[types] = flops.get(types, 0.0) + module.executions[name] * of_call
    return [Product(types, count[types], flops[types]) for types in sorted(flops, key=lambda t: -flops[t])]


def product_flops(i: Instruction, lhs: Array, rhs: Array) -> float:
    """2 * multiplications of a dot or convolution; padding and dilation holes of a convolution multiply nothing."""
    out = math.prod(i.arrays[0].dims)
    if i.opcode == "dot":
        contracting = re.search(r"lhs_contracting_dims=\{([\d,]*)\}", i.attributes)
        axes = [int(a) for a in contracting[1].split(",") if a] if contracting else []
        return 2.0 * out * math.prod(lhs.dims[a] for a in axes)
    labels = re.search(r"dim_labels=(\w+)_(\w+)->(\w+)", i.attributes)
    if not labels:
        raise ValueError(f"convolution {i.name} without dim_labels")
    left, right, result = labels.groups()
    taps, positions, window = 1, 1, _window(i.attributes)
    for d in range(len(left) - 2):
        sizes = (lhs.dims[left.index(str(d))], rhs.dims[right.index(str(d))], i.arrays[0].dims[result.index(str(d))])
        taps *= _taps(*sizes, {key: values[d] for key, values in window.items()})
        positions *= sizes[2]
    return 2.0 * out / positions * rhs.dims[right.index("i")] * taps


def _window(attributes: str) -> dict[str, list[tuple[int, ...]]]:
    """`window={size=16x8 stride=15x7 pad=0_0x1_1 lhs_dilate=16x8}` → {"size": [(16,), (8,)], …}."""
    text = re.search(r"window=\{([^}]*)\}", attributes)
    fields = dict(part.split("=") for part in text[1].split()) if text else {}
    return {key: [tuple(map(int, d.split("_"))) for d in value.split("x")] for key, value in fields.items()}


def _taps(lhs: int, kernel: int, out: int, window: dict[str, tuple[int, ...]]) -> int:
    """Pairs (output position, kernel position) of one spatial dimension that meet a real input value."""
    stride, low = window.get("stride", (1,))[0], window.get("pad", (0,))[0]
    lhs_dilation, kernel_dilation = window.get("lhs_dilate", (1,))[0], window.get("rhs_dilate", (1,))[0]
    position = np.arange(out)[:, None] * stride + np.arange(kernel) * kernel_dilation - low
    real = (position >= 0) & (position <= (lhs - 1) * lhs_dilation) & (position % lhs_dilation == 0)
    return int(real.sum())


def collectives(module: Module, devices: int) -> list[Collective]:
    """Collectives by kind and type, most bytes first. The pieces of one asynchronous collective count once."""
    found: dict[tuple[str, str], tuple[str, Instruction]] = {}
    for name, i in module.instructions():
        kind = i.opcode.removesuffix("-start")
        if kind in COLLECTIVES:
            if kind == "all-reduce" and "all-reduce-scatter" in name:  # TPU's fused form
                kind = "reduce-scatter"
            channel = re.search(r"channel_id=(\d+)", i.attributes)
            found[kind, channel[1] if channel else f"{name} {i.name}"] = name, i
    count: Counter[tuple[str, str]] = Counter()
    sent: dict[tuple[str, str], float] = {}
    for (kind, _), (name, i) in found.items():
        arrays = [array for operand in i.operands for array in module.computations[name][operand].arrays]
        group = group_size(i.attributes, devices)
        ring = {"all-gather": group - 1, "all-reduce": 2 * (group - 1) / group, "collective-permute": 1}
        share = ring.get(kind, (group - 1) / group)
        key = kind, max(arrays, key=lambda array: array.bytes).dtype
        count[key] += module.executions[name]
        sent[key] = sent.get(key, 0.0) + module.executions[name] * share * sum(array.bytes for array in arrays)
    return [Collective(*key, count[key], sent[key]) for key in sorted(sent, key=lambda k: -sent[k])]


def memory_traffic(module: Module) -> float:
    """Bytes that a step's fusions and other top-level instructions read from and write to HBM: every operand once, of
    one that is only sliced the slices, of one that is updated in place the update."""
    inner = {c for _, i in module.instructions() if i.opcode not in _CONTROL for c in i.called()}
    total = 0.0
    for name, i in module.instructions():
        if name not in inner and i.opcode not in _FREE and not i.opcode.endswith("-done"):
            total += module.executions[name] * _traffic(module, module.computations[name], i)
    return total


def _traffic(module: Module, body: Computation, i: Instruction) -> float:
    operands = [body[operand].arrays for operand in i.operands if operand in body]
    if _NO_COPY.search(i.attributes):
        return 0.0
    if i.opcode in _RESULT:
        result = i.arrays[_RESULT[i.opcode]]
        read = result.bytes if i.opcode == "slice-start" else operands[0][0].bytes
        return _in_hbm((result,)) + read * (operands[0][0].space == 0)
    if i.opcode in ("dynamic-slice", "slice", "gather"):
        return 2 * _in_hbm(i.arrays)
    if i.opcode == "dynamic-update-slice":
        return 2 * _in_hbm(operands[1])
    if i.opcode != "fusion":
        again = kernel_rereads(i, body) if is_kernel(i) else 0.0
        return _in_hbm(i.arrays) + sum(map(_in_hbm, operands)) + again
    fused = module.computations[i.called()[0]]
    updates = [f for f in fused.values() if f.opcode == "dynamic-update-slice"]
    updated = {_source(fused, f.operands[0]) for f in updates}
    total = sum(2 * _in_hbm(fused[f.operands[1]].arrays) for f in updates)
    for parameter, arrays in zip(_parameters(fused), operands, strict=True):
        if parameter not in updated:
            total += _read(module, fused, parameter, _in_hbm(arrays))
    in_place = {f.arrays[0].dims for f in updates}
    return total + _in_hbm(tuple(array for array in i.arrays if array.dims not in in_place))


def _read(module: Module, body: Computation, name: str, whole: float) -> float:
    """Bytes that a fused computation reads of one value of `whole` bytes."""
    total = 0.0
    for user, alias in _users(body, name):
        if user.opcode in ("dynamic-slice", "slice"):
            total += sum(array.bytes for array in user.arrays)
        elif user.opcode == "fusion":
            inner = module.computations[user.called()[0]]
            total += _read(module, inner, _parameters(inner)[user.operands.index(alias)], whole)
        else:
            return whole
    return min(whole, total)


def _in_hbm(arrays: tuple[Array, ...]) -> float:
    return sum(array.bytes for array in arrays if array.space == 0)


def _parameters(body: Computation) -> list[str]:
    """Names of a computation's parameters, in order."""
    found = {int(i.operands[0]): i.name for i in body.values() if i.opcode == "parameter"}
    return [found[index] for index in sorted(found)]


def _users(body: Computation, name: str) -> list[tuple[Instruction, str]]:
    """Instructions that use a value, and under which name: bitcasts are seen through."""
    found = []
    for i in body.values():
        if name in i.operands:
            found += _users(body, i.name) if i.opcode == "bitcast" else [(i, name)]
    return found


def _source(body: Computation, name: str) -> str:
    """The value that bitcasts and copies rename."""
    while body[name].opcode in ("bitcast", "copy", "reshape"):
        name = body[name].operands[0]
    return name
