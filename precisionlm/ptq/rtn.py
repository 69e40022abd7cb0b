"""Round-to-nearest post-training quantization of the weights of the blocks' linear layers."""

from collections.abc import Iterator
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from precisionlm.precision.binding import Grids, Structure
from precisionlm.precision.grid import Grid, round_to_grid
from precisionlm.precision.quantize import block_hadamard
from precisionlm.precision.recipe import BLOCK_LINEAR
from precisionlm.precision.scaling import Scaling
from precisionlm.ptq.blocks import PART
from precisionlm.ptq.scales import weight_scales


def round_to_nearest(params: Any, structure: Structure, grids: Grids, searched: bool = False) -> Any:
    """Parameters with the weights w [L, in, …] of every site rounded as a recipe bound to the model says of them, under
    scales along `in`; the rest untouched. searched: `scales.weight_scales`."""

    def one(path: tuple[Any, ...], leaf: jax.Array) -> jax.Array:
        if path[-1].key != "w":
            return leaf
        site = path[-2].key
        scaling = structure.site(site)["w"]
        return jax.vmap(lambda w, grid: rounded(w, scaling, grid, searched))(jnp.asarray(leaf), grids[site]["w"])

    return jax.tree_util.tree_map_with_path(one, params)


def weights_and_scales(
    params: Any, structure: Structure, grids: Grids, searched: bool
) -> Iterator[tuple[int, str, jax.Array, jax.Array]]:
    """(layer, site, values, scales) of what `round_to_nearest` makes, both [in, …]."""
    for site in BLOCK_LINEAR:
        scaling = structure.site(site)["w"]
        for layer, w in enumerate(params["blocks"][PART[site]][site]["w"]):
            grid = jax.tree.map(lambda g, i=layer: jnp.asarray(g[i]), grids[site]["w"])
            scales = weight_scales(rotated(w, scaling), scaling, grid, searched)
            yield layer, site, rounded(w, scaling, grid, searched), scales


@partial(jax.jit, static_argnames=("scaling", "searched"))
def rounded(w: jax.Array, scaling: Scaling, grid: Grid, searched: bool = False) -> jax.Array:
    """w [in, …] rounded to nearest; in Hadamard blocks along `in`, and turned back, where its scaling has them."""
    turned = rotated(w, scaling)
    scales = weight_scales(turned, scaling, grid, searched)
    return rotated(round_to_grid(turned.astype(jnp.float32) * (1.0 / scales), grid) * scales, scaling)


def rotated(w: jax.Array, scaling: Scaling, axis: int = 0) -> jax.Array:
    """w in the Hadamard blocks of its scaling along an axis; its own inverse. w itself without them."""
    return block_hadamard(w, axis, scaling.rotate) if scaling.rotate else w
