"""Scales and clipping points that are trained with the model.

lsq: the step size of weights, a free parameter a sharer (Esser et al. 2020, arXiv:1902.08153). lac: the share of the
largest magnitude that activations keep, one parameter a site and layer, as in OmniQuant (Shao et al. 2023,
arXiv:2308.13137): PACT's trained clipping point (Choi et al. 2018, arXiv:1805.06085) relative to each token. Both are
kept as logarithms (Jain et al. 2019, arXiv:1903.08066), so that one learning rate suits scales of every size.
"""

from functools import partial

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from precisionlm.precision.dot_general import TAG, quantize
from precisionlm.precision.formats import Grid
from precisionlm.precision.scaling import Scaling, gather, magnitude_of, spread


def initial_log_magnitude(w: jax.Array, axis: int, scaling: Scaling, grid: Grid) -> jax.Array:
    """ln of what maps to the largest value, one a sharer: the least squared error for normal weights (float32)."""
    return jnp.log(magnitude_of(w.astype(jnp.float32), axis, scaling, grid))


def weights_magnitude(log_magnitude: jax.Array) -> jax.Array:
    """lsq's parameter → what maps to the largest value."""
    return jnp.exp(log_magnitude)


def activations_magnitude(x: jax.Array, axis: int, scaling: Scaling, grid: Grid, log_share: jax.Array) -> jax.Array:
    """lac's parameter → what maps to the largest value: a share of the largest magnitude of each sharer."""
    largest = jax.lax.stop_gradient(magnitude_of(x.astype(jnp.float32), axis, scaling, grid))
    return largest * jnp.exp(log_share)


@partial(jax.custom_vjp, nondiff_argnums=(2, 3, 4))
def learned_quantize(
    x: jax.Array, magnitude: jax.Array, axis: int, scaling: Scaling, tag: str, grid: Grid
) -> jax.Array:
    """x rounded to the grid whose largest value is `magnitude` (one a sharer), in x's dtype; tag: site.operand.

    Gradients: of x straight through inside the range and zero outside; of the magnitude m the sum over its sharers of
    dy (q(x) - x) / m inside and dy sign(x) outside (LSQ, equation 3), over sqrt(sharers * largest value).
    """
    return checkpoint_name(quantize(x, axis, scaling, grid, None, magnitude), TAG + tag)


def _forward(x, magnitude, axis, scaling, tag, grid):
    return learned_quantize(x, magnitude, axis, scaling, tag, grid), (x, magnitude, grid)


def _backward(axis, scaling, tag, residual, dy):
    x, magnitude, grid = residual
    y, dy32 = x.astype(jnp.float32), dy.astype(jnp.float32)
    m = spread(magnitude, x.shape, axis, scaling)
    inside = (jnp.abs(y) <= m) | (grid.on == 0)
    rounded = quantize(x, axis, scaling, grid, None, magnitude).astype(jnp.float32)
    effect = jnp.where(inside, (rounded - y) / m, jnp.sign(y))
    dm = gather(dy32 * effect, axis, scaling) * jax.lax.rsqrt(x.size / magnitude.size * grid.qmax)
    return jnp.where(inside, dy, jnp.zeros_like(dy)), dm * (grid.on > 0), jax.tree.map(jnp.zeros_like, grid)


learned_quantize.defvjp(_forward, _backward)
