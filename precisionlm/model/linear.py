"""A linear layer whose three matrix products follow the recipe of its site."""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from precisionlm.precision.binding import Grids, Structure
from precisionlm.precision.dot_general import block_hadamard, dot_general, quantize
from precisionlm.precision.formats import Grid
from precisionlm.precision.learned import (
    activations_magnitude,
    initial_log_magnitude,
    learned_quantize,
    weights_magnitude,
)
from precisionlm.precision.scaling import Scaling, scale_of


class Linear(nn.Module):
    """x [..., in] @ w [in, *features] → [..., *features]; weights are float32, the product runs in x's dtype.

    With `audit` a mutable collection, sows what the recipe does to this site's forward operands; with `perturbations`
    present, the gradient of the output can be read there. magnitude: max|x| along the last axis, [..., 1], where known.

    With learned scales, `w_clip` (ln of the largest value, one a sharer) and `a_clip` (ln of the share kept) are
    parameters.
    """

    site: str
    features: tuple[int, ...]
    structure: Structure
    init: Callable[..., Any]

    @nn.compact
    def __call__(
        self, x: jax.Array, grids: Grids, key: jax.Array | None = None, magnitude: jax.Array | None = None
    ) -> jax.Array:
        master = self.param("w", self.init, (x.shape[-1], *self.features), jnp.float32)
        operands, site_grids = self.structure.site(self.site), grids.get(self.site, {})
        if rotate := max((s.rotate for o, s in operands.items() if o in ("a", "w")), default=0):
            x, master, magnitude = block_hadamard(x, -1, rotate), block_hadamard(master, 0, rotate), None
        learned = self._learned_magnitudes(x, master, operands, site_grids)
        if self.is_mutable_collection("audit"):
            batch_axes, feature_axes = tuple(range(x.ndim - 1)), tuple(range(1, master.ndim))
            seen: dict[str, tuple[jax.Array, int | tuple[int, ...]]] = {
                "a": (x, -1),
                "w": (master, 0),
                "dgrad_w": (master, feature_axes),
                "wgrad_x": (x, batch_axes),
            }
            for name, (value, axis) in seen.items():
                if name in operands:
                    if name in ("dgrad_w", "wgrad_x"):
                        value = rotated(value, axis, operands[name])
                    found = operand_statistics(value, axis, operands[name], site_grids[name], learned.get(name))
                    self.sow("audit", name, found)
        if "a" in learned:
            x = learned_quantize(x, learned["a"], -1, operands["a"], f"{self.site}.a", site_grids["a"])
        if "w" in learned:
            master = learned_quantize(master, learned["w"], 0, operands["w"], f"{self.site}.w", site_grids["w"])
        w = master.astype(x.dtype)
        if key is not None:
            key = jax.random.fold_in(key, sum(map(ord, self.site)))
        product = dot_general(self.structure, self.site, site_grids, key, master, magnitude)
        y = product(x, w, (((x.ndim - 1,), (0,)), ((), ())))
        return self.perturb("dy", y)

    def _learned_magnitudes(self, x, master, operands, site_grids):
        """Operand → what its largest value stands for, one a sharer, for operands whose scales are trained."""
        found = {}
        if (scaling := operands.get("w")) and scaling.clip == "lsq":
            init = lambda _: initial_log_magnitude(master, 0, scaling, site_grids["w"])  # noqa: E731
            found["w"] = weights_magnitude(self.param("w_clip", init))
        if (scaling := operands.get("a")) and scaling.clip == "lac":
            log_share = self.param("a_clip", nn.initializers.zeros, (), jnp.float32)
            found["a"] = activations_magnitude(x, -1, scaling, site_grids["a"], log_share)
        return found


def rotated(x: jax.Array, axis: int | tuple[int, ...], scaling: Scaling) -> jax.Array:
    """An operand of a gradient product as it is when it is quantized."""
    return block_hadamard(x, axis if isinstance(axis, int) else axis[-1], scaling.rotate) if scaling.rotate else x


def operand_statistics(
    x: jax.Array, axis: int | tuple[int, ...], scaling: Scaling, grid: Grid, magnitude: jax.Array | None = None
) -> dict[str, jax.Array]:
    """Shares and means over all values of one operand: clipped (beyond the largest value), zeros (non-zero values that
    became zero), mse (mean squared error of quantization), power (mean square)."""
    y = x.astype(jnp.float32)
    error = quantize(x, axis, scaling, grid, None, magnitude).astype(jnp.float32) - y
    scaled = jnp.abs(y) / scale_of(y, axis, scaling, grid, magnitude)
    off = grid.on == 0
    return {
        "clipped": jnp.where(off, 0.0, jnp.mean(scaled > grid.qmax * (1 + 1e-6))),
        "zeros": jnp.mean((y + error == 0) & (y != 0)),
        "mse": jnp.mean(error**2),
        "power": jnp.mean(y**2),
    }


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
