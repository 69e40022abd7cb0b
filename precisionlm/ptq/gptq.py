"""GPTQ (Frantar et al. 2022, arXiv:2210.17323): each row is rounded in turn, and those after it make up for its error.

Scales are fixed beforehand, from the weights as they come (static groups), and rows go in the order of falling second
moments (act-order); so neither needs anything at inference, and neither depends on blocks. Format and scales are
numbers: one executable a shape.
"""

from functools import partial

import jax
import jax.numpy as jnp
from jax import lax

from precisionlm.precision.grid import Grid, round_to_grid
from precisionlm.ptq.hessian import UNTUNED, inverse_root

_BLOCK = 128  # rows whose errors are carried over to the rest in one product


@partial(jax.jit, compiler_options=UNTUNED)
def gptq(w: jax.Array, scales: jax.Array, hessian: jax.Array, grid: Grid) -> tuple[jax.Array, jax.Array]:
    """(values of the grid times scales, damping) for weights [in, out] under scales of the same shape.

    hessian: second moments of the inputs [in, in], float32; rows of inputs that are always zero become zero. damping:
    as `inverse_root` says; NaN where the Hessian cannot be used, and then the weights are rounded to nearest.
    """
    rows, w = len(w), w.astype(jnp.float32)
    order = jnp.argsort(-jnp.diagonal(hessian))
    root, damping = inverse_root(hessian[order][:, order])
    ordered = jnp.where((jnp.diagonal(hessian) == 0)[:, None], 0.0, w)[order]
    more = -rows % _BLOCK  # zeros that round to zero, under ones
    ordered = jnp.pad(ordered, ((0, more), (0, 0)))
    steps = jnp.pad(scales[order], ((0, more), (0, 0)), constant_values=1.0)
    root = jnp.pad(root, ((0, more), (0, more))) + jnp.diag(jnp.where(jnp.arange(rows + more) < rows, 0.0, 1.0))
    found = _in_order(ordered, steps, root, grid)[:rows][jnp.argsort(order)]
    nearest = round_to_grid(w * (1.0 / scales), grid) * scales
    return jnp.where(jnp.isnan(damping), nearest, found), damping


def _in_order(w: jax.Array, scales: jax.Array, root: jax.Array, grid: Grid) -> jax.Array:
    """Rows rounded from the first to the last; their number is a multiple of the block's."""
    size = len(w)

    def block(b, carry):
        w, done = carry
        start = b * _BLOCK
        own_w, own_scales, own_root = (lax.dynamic_slice_in_dim(x, start, _BLOCK) for x in (w, scales, root))
        square = lax.dynamic_slice_in_dim(own_root, start, _BLOCK, axis=1)

        def row(i, carry):
            rounded, errors = carry
            # What the rows before it in the block left to make up for; errors of later ones are zero yet.
            now = own_w[i] - jnp.sum(square[:, i][:, None] * errors, axis=0)
            value = round_to_grid(now * (1.0 / own_scales[i]), grid) * own_scales[i]
            return rounded.at[i].set(value), errors.at[i].set((now - value) / square[i, i])

        rounded, errors = lax.fori_loop(0, _BLOCK, row, (jnp.zeros_like(own_w), jnp.zeros_like(own_w)))
        later = jnp.where(jnp.arange(size) >= start + _BLOCK, own_root, 0.0)
        w = w - jnp.matmul(later.T, errors, precision=lax.Precision.HIGHEST)
        return w, lax.dynamic_update_slice_in_dim(done, rounded, start, axis=0)

    return lax.fori_loop(0, size // _BLOCK, block, (w, jnp.zeros_like(w)))[1]
