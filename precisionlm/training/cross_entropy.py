"""Cross entropy with as few passes over the logits as a compiler's fusions allow: logits are the largest array of small
models, and each pass over them takes as long as a product of a layer.

Legend: B sequences, T tokens, V vocabulary.
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax


@partial(jax.custom_vjp, nondiff_argnums=(2,))
def cross_entropy(logits_BTV: jax.Array, targets_BT: jax.Array, together: bool) -> tuple[jax.Array, jax.Array]:
    """Cross entropy of each target (nats) and its log-normalizer, both float32 [B, T], of float32 logits.

    together: take the largest logit and the target's in one reduction of two operands; only where V lies on one device
    and reductions of several operands are fast (GPUs). The values are the same.
    """
    return _forward(logits_BTV, targets_BT, together)[0]


def _forward(logits_BTV: jax.Array, targets_BT: jax.Array, together: bool) -> Any:
    # A comparison instead of a gather: it is fused with the reduction, and needs no copy of the logits.
    chosen_BTV = jnp.where(_is_target(logits_BTV, targets_BT), logits_BTV, 0.0)
    if together:
        largest_BT, target_BT = lax.reduce(
            (logits_BTV, chosen_BTV), (-jnp.inf, 0.0), lambda a, b: (lax.max(a[0], b[0]), lax.add(a[1], b[1])), (2,)
        )
    else:
        largest_BT, target_BT = jnp.max(logits_BTV, axis=-1), jnp.sum(chosen_BTV, axis=-1)
    # A row whose largest logit is no number has none as its normalizer.
    log_z_BT = largest_BT + jnp.log(jnp.sum(jnp.exp(logits_BTV - largest_BT[..., None]), axis=-1))
    return (log_z_BT - target_BT, log_z_BT), (logits_BTV, targets_BT, log_z_BT)


def _backward(together: bool, kept: Any, gradients: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, None]:
    del together
    logits_BTV, targets_BT, log_z_BT = kept
    of_nll_BT, of_log_z_BT = gradients
    softmax_BTV = jnp.exp(logits_BTV - log_z_BT[..., None])
    is_target_BTV = _is_target(logits_BTV, targets_BT)
    return softmax_BTV * (of_nll_BT + of_log_z_BT)[..., None] - jnp.where(
        is_target_BTV, of_nll_BT[..., None], 0.0
    ), None


def _is_target(logits_BTV: jax.Array, targets_BT: jax.Array) -> jax.Array:
    return jnp.arange(logits_BTV.shape[-1]) == targets_BT[..., None]


cross_entropy.defvjp(_forward, _backward)
