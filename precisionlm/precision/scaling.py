"""Who shares a scale, how it is made, and how its operand is treated: what decides a program's structure."""

from dataclasses import dataclass

SHARINGS = ("tensor", "channel", "group", "block")
CLIPPINGS = ("absmax", "edge", "mse", "lsq", "lac", "lwc")
LEARNED = ("lsq", "lac", "lwc")
SCALE_TYPES = ("f32", "bf16", "e8m0", "e8m0up", "e4m3")


@dataclass(frozen=True)
class Parts:
    """How the features of a product's output fall into projections (q, k and v; gate and up): the last `axes` axes are
    [outer, sum(sizes), inner], and a projection holds `sizes` neighbours of the middle one."""

    axes: int
    outer: int
    sizes: tuple[int, ...]


@dataclass(frozen=True)
class Scaling:
    """How one operand is scaled: the part of a quantization that decides a program's structure.

    sharing: tensor (one scale), channel (all values along the axis: a weight's output channel, an activation's token),
    group (`group` consecutive values along the axis), block (`group` x `group` weights along input and output: the same
    scales for the forward product and the input gradient's, as DeepSeek-V3). scale_type: f32; bf16; e8m0 (powers of two
    by the OCP MX 1.0 floor rule); e8m0up (the least power of two that clips nothing: NVIDIA's rule, arXiv:2506.08027);
    e4m3 (block scales in E4M3 under one float32 scale a tensor, as NVFP4).
    clip: absmax (the largest magnitude maps to the largest value), edge (to the outer edge of the last bucket, AQT's
    default), mse (the scale is a multiple of the root mean square, the best one for a normal variable: QuEST), or a
    trained parameter: lsq, the step size of weights, and lac and lwc, the share of the largest magnitude that
    activations and weights keep (`precision.learned`). stochastic: stochastic rounding.
    rotate: size of the block-Hadamard transform of a product's two operands along the contracted axis before they are
    quantized (QuEST, Quartet); 0 for none. signs: with random signs before it (NVIDIA's NVFP4 recipe,
    arXiv:2509.25149). trust: no gradient passes where a value was clipped (QuEST's trust estimator, §3.2).
    per_token: scales of a weight-gradient product's operand run along the channels of a token (Sun et al. 2025, Eq. 7),
    not over the tokens that this product contracts. parts: the projections that one product computes together, each
    with scales of its own; None for one. code_dtype: in which values enter a native product; empty in simulation.
    """

    sharing: str = "channel"
    group: int = 0
    scale_type: str = "f32"
    clip: str = "absmax"
    stochastic: bool = False
    rotate: int = 0
    signs: bool = False
    trust: bool = False
    per_token: bool = False
    parts: Parts | None = None
    code_dtype: str = ""
