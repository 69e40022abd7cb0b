"""A value grid is a few float32 scalars, so bits enter a compiled program as arguments; rounding to it.

One formula rounds to every grid here (values already divided by their scale, p the power of two at or below |x|):

    step = clip(p, low, high) * 2^-m,   q = clip(round_half_even(x / step) * step, qmin, qmax)

Integers have low = high = 1 and m = 0 (step 1); floats keep subnormals (below `low` the step stops shrinking). Rounding
to a multiple of a power of two is one addition and one subtraction: a float32 of 2^23 steps or more has no digits below
the step, and float32 addition rounds half to even. No exponent leaves the float unit, which is what makes it cheap.
"""

from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp


@partial(
    jax.tree_util.register_dataclass,
    data_fields=["on", "low", "high", "fine", "qmin", "qmax", "bound", "reach"],
    meta_fields=[],
)
@dataclass(frozen=True)
class Grid:
    """A format as seen by a compiled program: float32 scalars, or arrays with a leading layer axis.

    on: 1 rounds, 0 passes values through. low, high: powers of two at the smallest normal and at the largest value.
    fine: 2^-m, the step at 1 for m mantissa bits. qmin, qmax: smallest and largest value. bound: the value that the
    largest magnitude of a scale's group maps to. reach: where clipping a standard normal variable costs least, in
    standard deviations.
    """

    on: Any
    low: Any
    high: Any
    fine: Any
    qmin: Any
    qmax: Any
    bound: Any
    reach: Any


def power_of_two_below(x: jax.Array) -> jax.Array:
    """The largest power of two at or below |x|, exact; 0 for zero and float32 subnormals. x: float32."""
    return _bits_to_float(_float_to_bits(x) & 0x7F800000)


_SIGN = -(2**31)
_float_to_bits = partial(jax.lax.bitcast_convert_type, new_dtype=jnp.int32)
_bits_to_float = partial(jax.lax.bitcast_convert_type, new_dtype=jnp.float32)


def round_to_grid(x: jax.Array, grid: Grid, noise: jax.Array | None = None) -> jax.Array:
    """Nearest value of the grid, ties to even (up where there are no mantissa bits), saturating; with `noise` uniform
    in [0, 1) stochastic and unbiased.

    x: float32, already divided by its scale, any shape. noise: same shape. Zeros come out positive.
    """
    step = jnp.clip(power_of_two_below(x), grid.low, grid.high) * grid.fine
    if noise is not None:
        x = x + (noise - 0.5) * step
    # The anchor has x's sign so that it is no constant even where the grid is one: compilers merge (x + c) - c.
    anchor = _bits_to_float(_float_to_bits(step * 2.0**23) | (_float_to_bits(x) & _SIGN))
    return jnp.clip((x + anchor) - anchor, grid.qmin, grid.qmax)
