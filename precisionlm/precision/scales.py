"""What number a scale is, and its place beside the values that share it.

Scales are computed in float32 over one axis of a tensor: the axis that its matrix product contracts (or, for attention
values, the head axis, so that no scale is shared over time). Group and block scales are broadcast, never tiled: a
product with groups stays one product.
"""

from dataclasses import replace

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from precisionlm.precision.grid import Grid, power_of_two_below
from precisionlm.precision.scaling import LEARNED, Parts, Scaling

SCALE_TAG = "scale"


def scale_of(
    x: jax.Array, axis: int | tuple[int, ...], scaling: Scaling, grid: Grid, extent: jax.Array | None = None
) -> jax.Array:
    """The float32 scale s of each value, so that x / s fits the grid. Broadcastable against x; zero groups give a
    finite scale. x: float32. axis: who shares a channel or group scale; groups run along the last of several axes.
    extent: the largest magnitudes along `axis` where they are known already, one a channel (for trained scales: what
    maps to the grid's bound, one a sharer).

    The scales themselves, one a sharer, are named SCALE_TAG: small, and worth saving for the backward pass, where
    computing them again would be a pass over x.
    """
    if scaling.parts is not None:
        return _by_parts(x, axis, scaling, grid, scaling.parts)
    if extent is None or not from_largest(scaling):
        extent = extent_of(x, axis, scaling, grid)
    elif scaling.sharing == "tensor" and scaling.clip not in LEARNED:
        extent = jnp.max(extent, keepdims=True)
    scale = checkpoint_name(_from_extent(extent, scaling, grid), SCALE_TAG)
    return spread(scale, x.shape, axis, scaling)


def _by_parts(x: jax.Array, axis: int | tuple[int, ...], scaling: Scaling, grid: Grid, parts: Parts) -> jax.Array:
    """The scales of projections that lie side by side in x, each from its own values."""
    lead = x.shape[: x.ndim - parts.axes]
    features = x.reshape(*lead, parts.outer, sum(parts.sizes), -1)
    # Along features, or for a tensor's one scale over everything.
    own_axes = tuple(range(len(lead), features.ndim)) if _axes(axis, x.ndim)[-1] >= len(lead) else axis
    alone, scales, start = replace(scaling, parts=None), [], 0
    for size in parts.sizes:
        part = jax.lax.slice_in_dim(features, start, start + size, axis=-2)
        scale = scale_of(part, own_axes, alone, grid)
        scales.append(jnp.broadcast_to(scale, (*scale.shape[:-3], parts.outer, size, features.shape[-1])))
        start += size
    scale = jnp.concatenate(scales, axis=-2)
    return scale.reshape(*scale.shape[:-3], *x.shape[len(lead) :])


def from_largest(scaling: Scaling) -> bool:
    """Whether the scales follow from the largest magnitudes along an axis, one a channel."""
    return scaling.clip in LEARNED or (scaling.sharing in ("channel", "tensor") and scaling.clip != "mse")


def extent_of(x: jax.Array, axis: int | tuple[int, ...], scaling: Scaling, grid: Grid) -> jax.Array:
    """What maps to the grid's bound, one a sharer (`shape_of_scales`): the largest magnitude, or the clipping point
    that suits a normal variable."""
    parts, reduced = _partition(x.shape, axis, scaling)
    groups = x.reshape(parts)
    if scaling.clip in ("mse", "lsq"):
        return jnp.sqrt(jnp.mean(groups**2, axis=reduced, keepdims=True)) * grid.reach
    return jnp.max(jnp.abs(groups), axis=reduced, keepdims=True)


def spread(per_sharer: jax.Array, shape: tuple[int, ...], axis: int | tuple[int, ...], scaling: Scaling) -> jax.Array:
    """One number a sharer → broadcastable against an array of that shape."""
    if scaling.sharing in ("tensor", "channel"):
        return per_sharer
    return jnp.broadcast_to(per_sharer, _partition(shape, axis, scaling)[0]).reshape(shape)


def shape_of_scales(shape: tuple[int, ...], axis: int | tuple[int, ...], scaling: Scaling) -> tuple[int, ...]:
    """The shape of one number a sharer, for an array of that shape."""
    parts, reduced = _partition(shape, axis, scaling)
    return tuple(1 if i in reduced else size for i, size in enumerate(parts))


def gather(values: jax.Array, axis: int | tuple[int, ...], scaling: Scaling) -> jax.Array:
    """The sum of `values` over each sharer: the transpose of `spread`."""
    parts, reduced = _partition(values.shape, axis, scaling)
    return jnp.sum(values.reshape(parts), axis=reduced, keepdims=True)


def _partition(
    shape: tuple[int, ...], axis: int | tuple[int, ...], scaling: Scaling
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """(shape with the sharers' axes split off, axes over which a scale is shared)."""
    axes = _axes(axis, len(shape))
    if scaling.sharing == "tensor":
        return shape, tuple(range(len(shape)))
    if scaling.sharing == "channel":
        return shape, axes
    n = scaling.group
    if scaling.sharing == "group":
        return (*shape[: axes[-1]], shape[axes[-1]] // n, n, *shape[axes[-1] + 1 :]), (axes[-1] + 1,)
    blocked = (shape[0] // n, n, *shape[1:-1], shape[-1] // n, n)
    return blocked, (1, len(blocked) - 1)


def _axes(axis: int | tuple[int, ...], rank: int) -> tuple[int, ...]:
    return tuple(a % rank for a in ((axis,) if isinstance(axis, int) else axis))


def _from_extent(amax: jax.Array, scaling: Scaling, grid: Grid) -> jax.Array:
    """The scale of values whose largest magnitude is amax."""
    if scaling.scale_type == "e8m0":
        # OCP MX 1.0 §6.3: 2^(floor(log2 amax) - emax); magnitudes above the largest value saturate.
        largest = power_of_two_below(jnp.asarray(grid.qmax))
        floor = power_of_two_below(jnp.where(amax == 0, 1.0, amax))
        scale = jnp.maximum(floor / largest, 2.0**-126)
        # What saturates biases stochastic rounding: values enter at the share of their size (3/4 for E2M1) at which
        # nothing does (Tseng et al. 2025, arXiv:2502.20586, Algorithm 1).
        return scale * (2 * largest / grid.qmax) if scaling.stochastic else scale
    if scaling.scale_type == "e8m0up":
        ratio = _exact(jnp.where(amax == 0, 1.0, amax) / grid.qmax)
        below = power_of_two_below(ratio)
        return jnp.maximum(jnp.where(ratio > below, 2 * below, below), 2.0**-126)
    if scaling.scale_type == "e4m3":
        tensor_scale = _exact(_at_least(jnp.max(amax)) / (448.0 * grid.bound))
        blocks = jnp.clip(amax / grid.bound / tensor_scale, 2.0**-9, 448.0).astype(jnp.float8_e4m3fn)
        return _exact(blocks.astype(jnp.float32) * tensor_scale)
    scale = _at_least(amax) / grid.bound
    if scaling.scale_type == "bf16":
        return scale.astype(jnp.bfloat16).astype(jnp.float32)
    return _exact(scale)


def _at_least(amax: jax.Array) -> jax.Array:
    """amax, but 1 where it is so small that a scale made from it might leave float32's normal numbers: those values
    become zeros."""
    return jnp.where(amax < 2.0**-60, 1.0, amax)


def _exact(scale: jax.Array) -> jax.Array:
    """The scale as it was rounded: without this, compilers turn 1 / (a / b) into b / a."""
    return jax.lax.reduce_precision(scale, exponent_bits=8, mantissa_bits=23)
