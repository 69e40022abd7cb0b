"""Who shares a scale, and what number the scale is.

Scales are computed in float32 over one axis of a tensor: the axis that its matrix product contracts (or, for attention
values, the head axis, so that no scale is shared over time). Group scales are broadcast, never tiled: a product with
groups stays one product.
"""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from precisionlm.precision.formats import Grid, power_of_two_below

SCALE_TAG = "scale"
SHARINGS = ("tensor", "channel", "group")
CLIPPINGS = ("absmax", "edge", "mse")
SCALE_TYPES = ("f32", "bf16", "e8m0", "e4m3")


@dataclass(frozen=True)
class Scaling:
    """How one operand is scaled: the part of a quantization that decides a program's structure.

    sharing: tensor (one scale), channel (all values along the axis: a weight's output channel, an activation's token),
    group (`group` consecutive values along the axis). scale_type: f32; bf16; e8m0 (powers of two by the OCP MX 1.0
    floor rule); e4m3 (block scales in E4M3 under one float32 scale a tensor, as NVFP4).
    clip: absmax (the largest magnitude maps to the largest value), edge (to the outer edge of the last bucket, AQT's
    default) or mse (the scale is a multiple of the root mean square, the best one for a normal variable: QuEST).
    stochastic: stochastic rounding. rotate: size of the block-Hadamard transform of a linear layer's input and weights
    before they are quantized (QuEST, Quartet); 0 for none.
    """

    sharing: str = "channel"
    group: int = 0
    scale_type: str = "f32"
    clip: str = "absmax"
    stochastic: bool = False
    rotate: int = 0


def scale_of(
    x: jax.Array, axis: int | tuple[int, ...], scaling: Scaling, grid: Grid, magnitude: jax.Array | None = None
) -> jax.Array:
    """The float32 scale s of each value, so that x / s fits the grid. Broadcastable against x; zero groups give a
    finite scale. x: float32. axis: who shares a channel or group scale; groups run along the last of several axes.
    magnitude: max|x| along the axis, where it is known already; used for channel scales.

    The scales themselves, one a sharer, are named SCALE_TAG: small, and worth saving for the backward pass, where
    computing them again would be a pass over x.
    """
    if scaling.sharing == "group":
        axis = (axis if isinstance(axis, int) else axis[-1]) % x.ndim
        groups = x.reshape(*x.shape[:axis], -1, scaling.group, *x.shape[axis + 1 :])
        scale = checkpoint_name(_from_magnitude(_magnitude(groups, axis + 1, scaling, grid), scaling, grid), SCALE_TAG)
        return jnp.broadcast_to(scale, groups.shape).reshape(x.shape)
    if magnitude is None or scaling.sharing == "tensor" or scaling.clip == "mse":
        magnitude = _magnitude(x, None if scaling.sharing == "tensor" else axis, scaling, grid)
    return checkpoint_name(_from_magnitude(magnitude, scaling, grid), SCALE_TAG)


def _magnitude(x: jax.Array, axis: int | tuple[int, ...] | None, scaling: Scaling, grid: Grid) -> jax.Array:
    """What maps to the grid's bound: the largest magnitude, or the clipping point that suits a normal variable."""
    if scaling.clip == "mse":
        return jnp.sqrt(jnp.mean(x**2, axis=axis, keepdims=True)) * grid.reach
    return jnp.max(jnp.abs(x), axis=axis, keepdims=True)


def _from_magnitude(amax: jax.Array, scaling: Scaling, grid: Grid) -> jax.Array:
    """The scale of values whose largest magnitude is amax."""
    amax = jnp.where(amax == 0, 1.0, amax)
    if scaling.scale_type == "e8m0":
        # OCP MX 1.0 §6.3: 2^(floor(log2 amax) - emax); magnitudes above the largest value saturate.
        largest = power_of_two_below(jnp.asarray(grid.qmax))
        return jnp.maximum(power_of_two_below(amax) / largest, 2.0**-126)
    scale = amax / grid.bound
    if scaling.scale_type == "bf16":
        return scale.astype(jnp.bfloat16).astype(jnp.float32)
    if scaling.scale_type == "e4m3":
        tensor_scale = jnp.max(amax) / (448.0 * grid.bound)
        blocks = jnp.clip(scale / tensor_scale, 2.0**-9, 448.0).astype(jnp.float8_e4m3fn).astype(jnp.float32)
        return blocks * tensor_scale
    return scale
