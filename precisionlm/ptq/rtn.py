"""Round-to-nearest post-training quantization of the weights of the blocks' linear layers."""

from typing import Any

import jax
import jax.numpy as jnp

from precisionlm.precision.quantize import quantize
from precisionlm.precision.recipe import Quantization


def round_to_nearest(params: Any, quantization: Quantization) -> Any:
    """Parameters with every block's linear weights w [L, in, …] rounded under scales along `in`; the rest untouched."""
    grid = quantization.format.grid(edge=quantization.scaling.clip == "edge")

    def one(path: tuple[Any, ...], leaf: jax.Array) -> jax.Array:
        if path[-1].key != "w":
            return leaf
        return jax.vmap(lambda w: quantize(w, 0, quantization.scaling, grid))(jnp.asarray(leaf))

    return jax.tree_util.tree_map_with_path(one, params)
