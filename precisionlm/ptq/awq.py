"""AWQ (Lin et al. 2023, arXiv:2306.00978): input channels with large values get a finer grid, what comes before takes
the scales back.

A site's weights are multiplied by s = a^r along their inputs, a being the mean |x| of a channel, and the inputs divided
by it: in the gains of the norm before qkv and gate_up; before `out` and `down` in those of the projection norms, or
else in the weights of v and of the up projection. All of these are exact. Key/value heads that several query heads
share have one s for all of them.
"""

from functools import cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from precisionlm.config import ModelConfig
from precisionlm.precision.scaling import Scaling
from precisionlm.ptq.blocks import ENTERS, PART, part, weight, with_weight
from precisionlm.ptq.rtn import rounded
from precisionlm.training.step import Program

RATIOS = np.linspace(0.0, 1.0, 21)  # from the identity to the whole magnitude


def channel_scales(magnitude_I: jax.Array, ratio: jax.Array) -> jax.Array:
    """s [in] = a^r, at least 1e-4, over the geometric mean of its extremes; ones for a ratio of zero."""
    s_I = jnp.maximum(magnitude_I**ratio, 1e-4)
    return s_I / jnp.sqrt(jnp.max(s_I) * jnp.min(s_I))


def shared_magnitude(model: ModelConfig, site: str, magnitude_I: jax.Array) -> jax.Array:
    """The magnitude of each channel as far as what comes before can tell channels apart."""
    if site != "out" or model.projection_norm:
        return magnitude_I
    K = model.kv_heads or model.heads
    a_KGH = magnitude_I.reshape(K, model.heads // K, -1)
    return jnp.broadcast_to(jnp.mean(a_KGH, axis=1, keepdims=True), a_KGH.shape).reshape(-1)


@cache
def errors(program: Program, site: str, scaling: Scaling, searched: bool) -> Any:
    """Jitted (layer, what enters the site's part of the block x_BTD, magnitude [in], layer's grids, grid of the
    weights) → summed squared error of the part's output at each of RATIOS, [ratios]."""
    name = PART[site]

    def of_batch(layer, x_BTD, magnitude_I, grids, grid):
        right = part(program, name, layer, x_BTD, grids).astype(jnp.float32)

        def error(ratio):
            s_I = channel_scales(magnitude_I, ratio)
            tried = folded(program.model, layer, site, s_I)
            tried = with_weight(tried, site, rounded(weight(tried, site), scaling, grid, searched))
            # The norm before the part is none of it.
            x_own_BTD = (x_BTD.astype(jnp.float32) / s_I).astype(x_BTD.dtype) if site in ENTERS.values() else x_BTD
            found = part(program, name, tried, x_own_BTD, grids)
            return jnp.sum((found.astype(jnp.float32) - right) ** 2)

        return jax.lax.map(error, jnp.asarray(RATIOS, jnp.float32))

    return jax.jit(of_batch)


def best(found: np.ndarray) -> int:
    """The first of the least errors [ratios]; the identity where no other is finite and below its own."""
    return int(np.argmin(np.where(np.isfinite(found), found, np.inf)))


def folded(model: ModelConfig, layer: Any, site: str, s_I: jax.Array) -> Any:
    """The block with the site's weights times s along their inputs, and its inputs over s by what comes before."""
    w = weight(layer, site)
    layer = with_weight(layer, site, w * s_I.reshape(-1, *[1] * (w.ndim - 1)))
    if site in ("qkv", "gate_up"):
        return _divided_gain(layer, (f"{PART[site]}_norm",), s_I)
    if model.projection_norm:
        return _divided_gain(layer, (PART[site], f"{site}_norm"), s_I)
    if site == "down":
        before = weight(layer, "gate_up")  # [D, 2, F], the up projection second
        return with_weight(layer, "gate_up", before.at[:, 1].divide(s_I))
    K = model.kv_heads or model.heads
    G = model.heads // K
    before = weight(layer, "qkv")
    heads = before.reshape(len(before), K, G + 2, -1)  # v is the last of each key/value head's
    v = heads.at[:, :, G + 1].divide(s_I.reshape(K, G, -1)[:, 0])
    return with_weight(layer, "qkv", v.reshape(before.shape))


def _divided_gain(layer: Any, path: tuple[str, ...], s_I: jax.Array) -> Any:
    first, *rest = path
    if rest:
        return layer | {first: _divided_gain(layer[first], tuple(rest), s_I)}
    return layer | {first: layer[first] | {"scale": layer[first]["scale"] / s_I}}
