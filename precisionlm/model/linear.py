"""A linear layer whose three matrix products follow the recipe of its site."""

from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from precisionlm.model.placement import UNPLACED, Placement
from precisionlm.precision.binding import Grids, Structure
from precisionlm.precision.dot_general import dot_general
from precisionlm.precision.learned import (
    initial_log_extent,
    kept_extent,
    learned_quantize,
    shape_of_shares,
    weights_extent,
)
from precisionlm.precision.quantize import block_hadamard, trusted


class Linear(nn.Module):
    """x [..., in] @ w [in, *features] → [..., *features]; weights are float32, the product runs in x's dtype.

    extent: max|x| along the last axis, [..., 1], where known. With learned scales, `w_clip` (ln of the largest value,
    one a sharer) and `a_clip` (ln of the share kept) are parameters.
    """

    site: str
    features: tuple[int, ...]
    structure: Structure
    initializer: Callable[..., Any]
    placed: Placement = UNPLACED

    @nn.compact
    def __call__(
        self, x: jax.Array, grids: Grids, key: jax.Array | None = None, extent: jax.Array | None = None
    ) -> jax.Array:
        w = self.param("w", self.initializer, (x.shape[-1], *self.features), jnp.float32)
        operands, site_grids = self.structure.site(self.site), grids.get(self.site, {})
        if rotate := max((s.rotate for o, s in operands.items() if o in ("a", "w")), default=0):
            signs = any(s.signs for o, s in operands.items() if o in ("a", "w"))
            x, w, extent = block_hadamard(x, -1, rotate, signs), block_hadamard(w, 0, rotate, signs), None
        learned, originals = self._learned_extents(x, w, operands, site_grids), {"w": w}
        if "a" in learned:
            originals["a"] = x
            x = learned_quantize(x, learned["a"], -1, operands["a"], f"{self.site}.a", site_grids["a"])
        if "w" in learned:
            w = learned_quantize(w, learned["w"], 0, operands["w"], f"{self.site}.w", site_grids["w"])
        if (scaling := operands.get("a")) and scaling.trust:
            x = trusted(x, -1, scaling, site_grids["a"])
        if (scaling := operands.get("w")) and scaling.trust:
            w = trusted(w, 0, scaling, site_grids["w"])
        return linear(self.structure, self.site, x, w, grids, key, originals, extent, self.placed.wide_sums)

    def _learned_extents(self, x, w, operands, site_grids):
        """Operand → what its largest value stands for, one a sharer, for operands whose scales are trained."""
        found = {}
        if (scaling := operands.get("w")) and scaling.clip == "lsq":
            init = lambda _: initial_log_extent(w, 0, scaling, site_grids["w"])  # noqa: E731
            found["w"] = weights_extent(self.param("w_clip", init))
        for name, value, axis, clip in (("a", x, -1, "lac"), ("w", w, 0, "lwc")):
            if (scaling := operands.get(name)) and scaling.clip == clip:
                shape = shape_of_shares(value.shape, axis, scaling)
                log_share = self.param(f"{name}_clip", nn.initializers.zeros, shape, jnp.float32)
                found[name] = kept_extent(value, axis, scaling, site_grids[name], log_share)
        return found


def linear(
    structure: Structure,
    site: str,
    x: jax.Array,
    w: jax.Array,
    grids: Grids,
    key: jax.Array | None,
    originals: Mapping[str, jax.Array],
    extent: jax.Array | None = None,
    wide_sums: bool = False,
) -> jax.Array:
    """x [..., in] @ w [in, ...] as the recipe has it at a site; w in float32, the product in x's dtype. originals: what
    operands are quantized from; extent: max|x| along the last axis, where known; wide_sums: the gradient of w leaves
    its product in float32, so that devices add up their parts of it in that dtype."""
    product = dot_general(structure, site, grids.get(site, {}), key, originals, extent)
    axes = (((x.ndim - 1,), (0,)), ((), ()))
    if wide_sums and x.dtype != jnp.float32:
        return product(x, w, axes, preferred_element_type=jnp.float32).astype(x.dtype)
    return product(x, w.astype(x.dtype), axes)


def largest_magnitude(x: jax.Array) -> jax.Array:
    """max|x| along the last axis, float32 [..., 1], of the values that x has in its own dtype."""
    y = x.astype(jnp.float32)
    if x.dtype == jnp.bfloat16:
        y = jax.lax.reduce_precision(y, exponent_bits=8, mantissa_bits=7)
    return jnp.max(jnp.abs(y), axis=-1, keepdims=True)


class RMSNorm(nn.Module):
    """x * scale / rms(x) over the last axis, in float32, returned in x's dtype."""

    epsilon: float

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.with_magnitude(x)[0]

    @nn.compact
    def with_magnitude(self, x: jax.Array) -> tuple[jax.Array, jax.Array]:
        """The normalized x [..., D] and its largest magnitude along D, float32 [..., 1].

        The magnitude comes from the pass that computes rms(x): all of a row is multiplied by one positive number, and
        rounding keeps order, so it is exactly the maximum of what is returned.
        """
        scale = self.param("scale", nn.initializers.ones, (x.shape[-1],), jnp.float32)
        y = x.astype(jnp.float32)
        inverse_rms = jax.lax.rsqrt(jnp.mean(y**2, axis=-1, keepdims=True) + self.epsilon)
        gained = y * scale
        magnitude = jnp.max(jnp.abs(gained), axis=-1, keepdims=True) * inverse_rms
        if x.dtype == jnp.bfloat16:
            magnitude = jax.lax.reduce_precision(magnitude, exponent_bits=8, mantissa_bits=7)
        return (gained * inverse_rms).astype(x.dtype), jax.lax.stop_gradient(magnitude)
