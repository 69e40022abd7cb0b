"""Scales of a weight: those that its recipe says, or those of least squared error."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from precisionlm.precision.grid import Grid, round_to_grid
from precisionlm.precision.scales import gather, scale_of, spread
from precisionlm.precision.scaling import Scaling

_SHRINKS = np.linspace(0.98, 0.3, 35)  # of the largest magnitude; the search of IST-DASLab/gptq goes to 0.2
_BINADES = np.array([0.5, 2.0])  # for scales that are powers of two


@partial(jax.jit, static_argnames=("scaling", "searched"))
def weight_scales(w: jax.Array, scaling: Scaling, grid: Grid, searched: bool = False) -> jax.Array:
    """The scale of each value of w [in, …], float32, of w's shape; shared along `in`. searched: instead of those that
    the recipe says, each sharer's own multiple of them that makes the squared error of rounding least (as `mse` of
    IST-DASLab/gptq's quantizer); the recipe's where none is better. Projections under one scale a tensor share the
    multiple."""
    y = w.astype(jnp.float32)
    given = scale_of(y, 0, scaling, grid)
    if not searched:
        return jnp.broadcast_to(given, w.shape)
    # Under two levels of scales the upper one is the tensor's: the block that holds its largest value keeps its scale.
    holds_largest = gather(jnp.where(jnp.abs(y) == jnp.max(jnp.abs(y)), 1.0, 0.0), 0, scaling) > 0
    pinned = holds_largest & (scaling.scale_type == "e4m3")

    def scales(factor: jax.Array) -> jax.Array:
        return scale_of(y * spread(factor, w.shape, 0, scaling), 0, scaling, grid)

    def error(scale: jax.Array) -> jax.Array:
        rounded = round_to_grid(y * (1.0 / scale), grid) * scale
        return gather((rounded - y) ** 2, 0, scaling)

    def better(best: tuple[jax.Array, jax.Array], multiple: jax.Array) -> tuple[tuple[jax.Array, jax.Array], None]:
        factor, least = best
        tried = jnp.where(pinned, 1.0, jnp.full_like(factor, multiple))
        found = error(scales(tried))
        return (jnp.where(found < least, tried, factor), jnp.minimum(found, least)), None

    start = error(jnp.broadcast_to(given, w.shape))
    multiples = _BINADES if scaling.scale_type.startswith("e8m0") else _SHRINKS
    (factor, _), _ = lax.scan(better, (jnp.ones_like(start), start), jnp.asarray(multiples, jnp.float32))
    return jnp.broadcast_to(scales(factor), w.shape)
