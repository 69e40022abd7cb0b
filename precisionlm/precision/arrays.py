"""An array as training quantizes it: the API's door to `precision.quantize`."""

from functools import partial
from typing import overload

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import ArrayLike

from precisionlm.errors import UserError, nearest
from precisionlm.precision.grid import Grid
from precisionlm.precision.quantize import block_hadamard
from precisionlm.precision.quantize import quantize as _quantize
from precisionlm.precision.recipe import OPERANDS, Quantization, Recipe
from precisionlm.precision.scaling import LEARNED, Scaling


@overload
def quantize(  # type: ignore[overload-overlap]  # a JAX array is an ArrayLike
    x: jax.Array, precision: str | Recipe, axis: int, *, operand: str = "w", key: jax.Array | None = None
) -> jax.Array: ...
@overload
def quantize(
    x: ArrayLike, precision: str | Recipe, axis: int, *, operand: str = "w", key: jax.Array | None = None
) -> np.ndarray: ...
def quantize(
    x: jax.Array | ArrayLike,
    precision: str | Recipe,
    axis: int,
    *,
    operand: str = "w",
    key: jax.Array | None = None,
) -> jax.Array | np.ndarray:
    """x rounded to a format under its scales, exactly as training rounds it in simulation: float32 arithmetic, returned
    in x's type (a JAX array as one; float64 becomes float32).

    precision: a format such as e4m3, int4, int4/g32, mxfp4, nvfp4, or a recipe such as W4A8-g128. axis: along which
    values share a scale, the one that a product contracts: 0 of weights [in, out], -1 of activations [..., in].
    operand: whose format of the recipe, at most sites of the blocks: w, a, q, k, v, p, dgrad_dy, dgrad_w, wgrad_dy or
    wgrad_x. key: for stochastic rounding. Rotated formats are rounded in their Hadamard blocks and turned back. Raises
    UserError for a format that is none, one that the array's shape does not fit, and scales that only training learns.
    """
    if operand not in OPERANDS:
        raise UserError(f"operand '{operand}': {nearest(operand, list(OPERANDS))}")
    recipe = precision if isinstance(precision, Recipe) else Recipe.parse(precision)
    given = x if isinstance(x, jax.Array) else np.asarray(x)
    if not -given.ndim <= axis < given.ndim:
        raise UserError(f"axis {axis} of an array of shape {given.shape}")
    values = jnp.asarray(given if jnp.issubdtype(given.dtype, jnp.floating) else given.astype(np.float32))
    quantization = recipe.commonest(operand)
    if quantization is not None:
        _check(quantization, values.shape, axis, key)
        values = _rounded(values, quantization.format.grid(), key, axis, quantization.scaling)
    return values if isinstance(x, jax.Array) else np.asarray(values)


def _check(quantization: Quantization, shape: tuple[int, ...], axis: int, key: jax.Array | None) -> None:
    scaling = quantization.scaling
    if scaling.clip in LEARNED:
        raise UserError(f"{quantization}: its scales ({scaling.clip}) are learned in training; an array alone has none")
    if scaling.signs:
        raise UserError(
            f"{quantization}: random signs belong to a product of two operands; had{scaling.rotate} has none"
        )
    if scaling.stochastic and key is None:
        raise UserError(f"{quantization} rounds stochastically: give key=jax.random.key(0)")
    sides = (0, -1) if scaling.sharing == "block" else (axis,)
    for side, size in ((s, n) for s in sides for n in (scaling.group, scaling.rotate) if n):
        if shape[side] % size:
            raise UserError(f"{quantization}: {size} does not divide the {shape[side]} values along axis {side}")


@partial(jax.jit, static_argnums=(3, 4))
def _rounded(x: jax.Array, grid: Grid, key: jax.Array | None, axis: int, scaling: Scaling) -> jax.Array:
    turned = partial(block_hadamard, axis=axis, size=scaling.rotate) if scaling.rotate else lambda y: y
    return turned(_quantize(turned(x), axis, scaling, grid, key))
