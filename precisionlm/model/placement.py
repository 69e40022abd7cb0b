"""Where activations live: the model says what they are, the trainer (`training.sharding`) says where they go."""

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


class _Unplaced:
    def residual(self, x_BTD: jax.Array) -> jax.Array:
        return x_BTD

    def features(self, x: jax.Array) -> jax.Array:
        return x


UNPLACED: Placement = _Unplaced()
