"""Where activations live: the model says what they are, the trainer (`training.sharding`) says where they go."""

from collections.abc import Callable
from typing import Protocol

import jax


class Placement(Protocol):
    """Constraints on activations; hashable."""

    def residual(self, x_BTD: jax.Array) -> jax.Array:
        """The residual stream between products."""
        ...

    def features(self, x: jax.Array) -> jax.Array:
        """What goes on between two products of attention or MLP, [B, T, ..., features]."""
        ...

    def by_heads(self, function: Callable[..., jax.Array], *xs_BTNH: jax.Array) -> jax.Array:
        """A function of arrays [B, T, heads, H] that gives another, on every device for its own sequences and heads:
        a kernel that the compiler cannot divide."""
        ...

    @property
    def tensor(self) -> int:
        """Devices that heads are spread over."""
        ...

    @property
    def wide_sums(self) -> bool:
        """Whether gradients of weights are summed over devices in float32, not in the dtype of activations."""
        ...


class _Unplaced:
    tensor, wide_sums = 1, False

    def residual(self, x_BTD: jax.Array) -> jax.Array:
        return x_BTD

    def features(self, x: jax.Array) -> jax.Array:
        return x

    def by_heads(self, function: Callable[..., jax.Array], *xs_BTNH: jax.Array) -> jax.Array:
        return function(*xs_BTNH)


UNPLACED: Placement = _Unplaced()
