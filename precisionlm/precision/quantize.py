"""One operand through its grid: the numbers that enter a matrix product, and the marks by which the audit finds them.

Arithmetic is float32: q = round(x * (1 / s)), result q * s. A quantized value leaves three names in the program, one
after the other, which cost nothing: the values before (ORIGINAL), their scales spread over them (SCALES), and what
enters the product (TAG), each followed by `site.operand`.
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.ad_checkpoint import checkpoint_name

from precisionlm.precision.grid import Grid, round_to_grid
from precisionlm.precision.recipe import OPERANDS, SITES
from precisionlm.precision.scales import scale_of
from precisionlm.precision.scaling import Scaling

ORIGINAL, SCALES, TAG = "original:", "scales:", "quantized:"
Axes = int | tuple[int, ...]


def quantize(
    x: jax.Array,
    axis: Axes,
    scaling: Scaling,
    grid: Grid,
    key: jax.Array | None = None,
    extent: jax.Array | None = None,
    tag: str = "",
    dtype: Any = None,
) -> jax.Array:
    """x rounded to the grid under its scales, in `dtype` (x's own if absent); no gradient rule.

    axis: who shares a channel or group scale (groups run along the last of several axes). key: for stochastic rounding.
    extent: what maps to the largest value, one a sharer, where known (`scaling.extent_of`). tag: `site.operand`, for
    the audit.
    """
    y = values_of(x, extent, tag)
    q, scale = codes_of(y, axis, scaling, grid, key, extent, tag)
    return named(jnp.where(grid.on > 0, q * scale, y).astype(dtype or x.dtype), TAG, tag)


def named(x: jax.Array, kind: str, tag: str) -> jax.Array:
    """x under one of the three names; x itself where there is no tag."""
    return checkpoint_name(x, kind + tag) if tag else x


def values_of(x: jax.Array, extent: jax.Array | None, tag: str = "") -> jax.Array:
    """x in float32, for one pass over it if its extent is known, else for two."""
    if x.dtype != jnp.bfloat16:
        return named(x.astype(jnp.float32), ORIGINAL, tag)
    if extent is None:
        # The barrier makes both passes read the bf16 values from memory; without it compilers hand on the float32 that
        # x was computed in, twice the bytes and not the values that x has.
        x = lax.optimization_barrier(x)
    return named(lax.reduce_precision(x.astype(jnp.float32), exponent_bits=8, mantissa_bits=7), ORIGINAL, tag)


def codes_of(
    y: jax.Array,
    axis: Axes,
    scaling: Scaling,
    grid: Grid,
    key: jax.Array | None,
    extent: jax.Array | None,
    tag: str = "",
    last: tuple[int, ...] = (),
) -> tuple[jax.Array, jax.Array]:
    """(values of the grid, scales), float32, of y in float32. last: axes that a product of codes contracts. Rounding
    sees them at the end, so that the codes are written in that layout by the pass that makes them."""
    scale = named(scale_of(y, axis, scaling, grid, extent), SCALES, tag)
    order = axes_last(y.ndim, last)
    noise = jax.random.uniform(key, y.shape).transpose(order) if scaling.stochastic and key is not None else None
    q = round_to_grid((y * (1.0 / scale)).transpose(order), grid, noise)
    return q.transpose(np.argsort(order)), scale


def axes_last(rank: int, last: tuple[int, ...]) -> tuple[int, ...]:
    """The order of axes with some at the end."""
    return (*(i for i in range(rank) if i not in last), *last)


def operand_key(key: jax.Array | None, tag: str) -> jax.Array | None:
    """The key for stochastic rounding of one operand of one site, from a key that is new every step and layer."""
    site, operand = tag.split(".")
    index = SITES.index(site) * len(OPERANDS) + OPERANDS.index(operand)
    return None if key is None else jax.random.fold_in(key, index)


def fake_quantize(
    x: jax.Array, axis: int, scaling: Scaling, grid: Grid, tag: str, key: jax.Array | None = None
) -> jax.Array:
    """`quantize` with the straight-through gradient: it passes unchanged. key: of the step and layer."""
    return _straight_through(x, axis, scaling, tag, grid, operand_key(key, tag) if scaling.stochastic else None)


@partial(jax.custom_vjp, nondiff_argnums=(1, 2, 3))
def _straight_through(x, axis, scaling, tag, grid, key):
    return quantize(x, axis, scaling, grid, key, tag=tag)


def _straight_through_fwd(x, axis, scaling, tag, grid, key):
    return _straight_through(x, axis, scaling, tag, grid, key), None


def _straight_through_bwd(axis, scaling, tag, residual, dy):
    return dy, None, None


_straight_through.defvjp(_straight_through_fwd, _straight_through_bwd)


@partial(jax.custom_vjp, nondiff_argnums=(1, 2))
def trusted(x: jax.Array, axis: Axes, scaling: Scaling, grid: Grid) -> jax.Array:
    """x, whose gradient is zero where quantization clips it: beyond the largest value by more than half a step
    (Panferov et al. 2025, arXiv:2502.05003, §3.2, T = half the step)."""
    return x


def _trusted_fwd(x, axis, scaling, grid):
    return x, (x, grid)


def _trusted_bwd(axis, scaling, residual, dy):
    x, grid = residual
    y = values_of(x, None)
    codes, half = y / scale_of(y, axis, scaling, grid), grid.high * grid.fine / 2
    inside = ((codes <= grid.qmax + half) & (codes >= grid.qmin - half)) | (grid.on == 0)
    return jnp.where(inside, dy, jnp.zeros_like(dy)), jax.tree.map(jnp.zeros_like, grid)


trusted.defvjp(_trusted_fwd, _trusted_bwd)


def block_hadamard(x: jax.Array, axis: int, size: int, signs: bool = False) -> jax.Array:
    """x times an orthonormal Hadamard matrix in blocks of `size` (a power of two) along an axis; its own inverse.
    signs: times random signs first, the same in every block, product and run.

    Rotating both operands of a product along the contracted axis leaves the product as it is and spreads outliers.
    """
    axis %= x.ndim
    blocks = x.reshape(*x.shape[:axis], -1, size, *x.shape[axis + 1 :])
    matrix = np.ones((1, 1))
    while len(matrix) < size:
        matrix = np.block([[matrix, matrix], [matrix, -matrix]])
    if signs:
        matrix = np.random.default_rng(0).choice([-1.0, 1.0], size)[:, None] * matrix
    # Float32 operands keep their digits: backends' default would round them to TF32 or bfloat16.
    precision = lax.Precision.HIGHEST if x.dtype == jnp.float32 else None
    rotated = jnp.tensordot(blocks, jnp.asarray(matrix * size**-0.5, x.dtype), (axis + 1, 0), precision=precision)
    return jnp.moveaxis(rotated, -1, axis + 1).reshape(x.shape)
