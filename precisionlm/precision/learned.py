"""Scales and clipping points that are trained with the model.

lsq: the step size of weights, a free parameter a sharer (Esser et al. 2020, arXiv:1902.08153). lwc, lac: the share of
the largest magnitude that is kept, as in OmniQuant (Shao et al. 2023, arXiv:2308.13137): of weights a parameter a
sharer, of activations one a layer or, with groups, one a group index, shared by all tokens (Chen et al. 2025, §3):
PACT's trained clipping point (Choi et al. 2018, arXiv:1805.06085) relative to each token. All are kept as logarithms
(Jain et al. 2019, arXiv:1903.08066), so that one learning rate suits scales of every size.
"""

from functools import partial

import jax
import jax.numpy as jnp

from precisionlm.precision.grid import Grid
from precisionlm.precision.quantize import quantize
from precisionlm.precision.scales import extent_of, gather, shape_of_scales, spread
from precisionlm.precision.scaling import Scaling


def initial_log_extent(w: jax.Array, axis: int, scaling: Scaling, grid: Grid) -> jax.Array:
    """ln of what maps to the largest value, one a sharer: the least squared error for normal weights (float32)."""
    return jnp.log(extent_of(w.astype(jnp.float32), axis, scaling, grid))


def weights_extent(log_extent: jax.Array) -> jax.Array:
    """lsq's parameter → what maps to the largest value."""
    return jnp.exp(log_extent)


def shape_of_shares(shape: tuple[int, ...], axis: int, scaling: Scaling) -> tuple[int, ...]:
    """The shape of lwc's parameter for weights, or of lac's for activations whose last axis is `axis`."""
    if scaling.clip == "lwc":
        return shape_of_scales(shape, axis, scaling)
    return (shape[axis] // scaling.group, 1) if scaling.sharing == "group" else ()


def kept_extent(x: jax.Array, axis: int, scaling: Scaling, grid: Grid, log_share: jax.Array) -> jax.Array:
    """lac's or lwc's parameter → what maps to the largest value: a share of the largest magnitude of each sharer."""
    largest = jax.lax.stop_gradient(extent_of(x.astype(jnp.float32), axis, scaling, grid))
    return largest * jnp.exp(log_share)


@partial(jax.custom_vjp, nondiff_argnums=(2, 3, 4))
def learned_quantize(x: jax.Array, extent: jax.Array, axis: int, scaling: Scaling, tag: str, grid: Grid) -> jax.Array:
    """x rounded to the grid whose largest value stands for `extent` (one a sharer), in x's dtype; tag: site.operand.

    Gradients: of x straight through inside the range and zero outside; of the extent m the sum over its sharers of
    dy (q(x) - x) / m inside and dy sign(x) outside (LSQ, equation 3), over sqrt(sharers * largest value).
    """
    return quantize(x, axis, scaling, grid, None, extent, tag)


def _forward(x, extent, axis, scaling, tag, grid):
    return learned_quantize(x, extent, axis, scaling, tag, grid), (x, extent, grid)


def _backward(axis, scaling, tag, residual, dy):
    x, extent, grid = residual
    y, dy32 = x.astype(jnp.float32), dy.astype(jnp.float32)
    m = spread(extent, x.shape, axis, scaling)
    inside = (jnp.abs(y) <= m) | (grid.on == 0)
    rounded = quantize(x, axis, scaling, grid, None, extent).astype(jnp.float32)
    effect = jnp.where(inside, (rounded - y) / m, jnp.sign(y))
    dm = gather(dy32 * effect, axis, scaling) * jax.lax.rsqrt(x.size / extent.size * grid.qmax)
    return jnp.where(inside, dy, jnp.zeros_like(dy)), dm * (grid.on > 0), jax.tree.map(jnp.zeros_like, grid)


learned_quantize.defvjp(_forward, _backward)
