"""Keys and values of the tokens before, for generation: variables of a collection of their own beside the parameters.

Where a model is applied without them, it computes whole sequences. Legend as in `attention`; S: the cache's length.
"""

from dataclasses import replace
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

from precisionlm.config import ModelConfig
from precisionlm.precision.binding import Structure

COLLECTION = "cache"
_KEPT = ("k", "v")  # operands of attention that are quantized when they are kept, once


def empty(model: ModelConfig, sequences: int, length: int, dtype: str) -> dict[str, Any]:
    """The collection before the first token, for B sequences of at most `length` tokens."""
    shape = (
        model.layers,
        sequences,
        length,
        model.kv_heads or model.heads,
        model.head_size or model.width // model.heads,
    )
    kept = {"keys": jnp.zeros(shape, dtype), "values": jnp.zeros(shape, dtype)}
    attention = kept | {"length": jnp.zeros(model.layers, jnp.int32)}
    return {"length": jnp.zeros((), jnp.int32), "blocks": {"attention": attention}}


def positions(module: nn.Module, time: int) -> jax.Array:
    """Of the next T tokens, float32 [T]: from 0, or after those in the module's cache."""
    position_T = jnp.arange(time, dtype=jnp.float32)
    if not module.has_variable(COLLECTION, "length"):
        return position_T
    return _advance(module, time) + position_T


def join(module: nn.Module, k_BTKH: jax.Array, v_BTKH: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Keep keys and values behind those before: all keys and values [B, S, K, H], and who sees whom, bool [T, S]."""
    time, start = k_BTKH.shape[1], _advance(module, k_BTKH.shape[1])
    kept = []
    for name, new in (("keys", k_BTKH), ("values", v_BTKH)):
        before: jax.Array = module.get_variable(COLLECTION, name)
        kept.append(lax.dynamic_update_slice_in_dim(before, new.astype(before.dtype), start, axis=1))
        module.put_variable(COLLECTION, name, kept[-1])
    keys, values = kept
    visible_TS = jnp.arange(keys.shape[1]) <= start + jnp.arange(time)[:, None]
    return keys, values, visible_TS


def rest(structure: Structure) -> Structure:
    """What of a structure is left to do where keys and values come quantized."""
    kept = tuple(
        (site, tuple((o, scaling) for o, scaling in operands if site != "attention" or o not in _KEPT))
        for site, operands in structure.sites
    )
    return replace(structure, sites=kept)


def _advance(module: nn.Module, time: int) -> jax.Array:
    """Tokens in the cache before `time` more."""
    before: jax.Array = module.get_variable(COLLECTION, "length")
    module.put_variable(COLLECTION, "length", before + time)
    return before
