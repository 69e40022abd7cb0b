"""What splash attention costs. HLO shows a Pallas kernel as one opaque call, so its work is counted by formula from the
shapes that it takes: the products of the blocks that a causal mask leaves, and a read of what meets them for every one.
"""

import math
import re

from precisionlm.compiling.hlo import Array, Computation, Instruction

# Kernel → products for each pair of blocks, and positions among (q, k, v, do) of what is read again for every pair.
_KERNELS = {"fwd": (2, (1, 2)), "dq": (3, (1, 2)), "dkv": (4, (0, 3))}
_SPLASH = re.compile(r"splash_mha_(fwd|dq|dkv)_")


def is_kernel(i: Instruction) -> bool:
    """Whether an instruction is a Pallas kernel."""
    return 'custom_call_target="tpu_custom_call"' in i.attributes


def kernel_flops(i: Instruction, body: Computation) -> tuple[str, float]:
    """(types, multiplies and adds) of one call. Raises ValueError for a kernel without a formula."""
    kind, arrays, blocks = _splash(i, body)
    q = arrays[0]  # [..., query heads, T, H]
    share = (blocks + 1) / (2 * blocks)
    return f"{q.dtype} x {q.dtype} -> splash {kind}", 2.0 * _KERNELS[kind][0] * math.prod(q.dims) * q.dims[-2] * share


def kernel_rereads(i: Instruction, body: Computation) -> float:
    """Bytes of operands in HBM that one call reads beyond a first time."""
    kind, arrays, blocks = _splash(i, body)
    total = 0.0
    for array in (arrays[position] for position in _KERNELS[kind][1]):
        heads_sharing = arrays[0].dims[-3] / array.dims[-3]
        total += ((blocks + 1) / 2 * heads_sharing - 1) * array.bytes * (array.space == 0)
    return total


def _splash(i: Instruction, body: Computation) -> tuple[str, list[Array], int]:
    """(kernel, its operands q, k, v and, in gradients, do, blocks along T)."""
    found = _SPLASH.search(i.name)
    if not found:
        raise ValueError(f"{i.name}: a Pallas kernel whose cost has no formula")
    arrays = [body[operand].arrays[0] for operand in i.operands]
    blocks = arrays[0].dims[-1]  # of the schedule, [1, blocks, blocks]
    return found[1], [array for array in arrays if array.dtype == "bf16"], blocks
