"""Round-to-nearest post-training quantization of the weights of the blocks' linear layers."""

from typing import Any

import jax
import jax.numpy as jnp

from precisionlm.precision.binding import Grids, Structure
from precisionlm.precision.quantize import quantize


def round_to_nearest(params: Any, structure: Structure, grids: Grids) -> Any:
    """Parameters with the weights w [L, in, …] of every site rounded as a recipe bound to the model says of them, under
    scales along `in`; the rest untouched."""

    def one(path: tuple[Any, ...], leaf: jax.Array) -> jax.Array:
        if path[-1].key != "w":
            return leaf
        site = path[-2].key
        scaling = structure.site(site)["w"]
        return jax.vmap(lambda w, grid: quantize(w, 0, scaling, grid))(jnp.asarray(leaf), grids[site]["w"])

    return jax.tree_util.tree_map_with_path(one, params)
