"""One block of the transformer at a time: what its linear layers see, and what comes out of it."""

from functools import cache
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from precisionlm.model.attention import Attention, rotary_tables
from precisionlm.model.linear import Linear
from precisionlm.model.transformer import MLP, Block, packed_grids
from precisionlm.precision.binding import Grids, PackedGrids
from precisionlm.ptq.hessian import second_moment
from precisionlm.training.step import Program

PART = {"qkv": "attention", "out": "attention", "gate_up": "mlp", "down": "mlp"}
ENTERS = {"attention": "qkv", "mlp": "gate_up"}  # the site whose input is that of the part


Moments = dict[str, jax.Array]
"""Of a site's inputs x over tokens, float32. hessian: x xᵀ [in, in]; drift: x (x* - x)ᵀ [in, in], x* being those of the
unquantized model; magnitude: |x| [in]."""


def forward(program: Program, layer: Any, x_BTD: jax.Array, grids: PackedGrids) -> tuple[jax.Array, dict[str, Any]]:
    """A block with its parameters `layer`: x_BTD → (x_BTD, site → what enters its linear layer). grids: of the layer,
    numbers [K]."""
    inputs: dict[str, jax.Array] = {}

    def see(call, args, kwargs, context):
        if isinstance(context.module, Linear) and context.method_name == "__call__":
            inputs[context.module.site] = args[0]
        return call(*args, **kwargs)

    t = program.transformer()
    with nn.intercept_methods(see):
        block = Block(t.model, t.structure, t.kernel, t.placed)
        y_BTD: Any = block.apply({"params": layer}, x_BTD, grids, None, _tables(program, x_BTD))
    return y_BTD[0], inputs


def part(program: Program, name: str, layer: Any, x_BTD: jax.Array, grids: PackedGrids) -> jax.Array:
    """`attention` or `mlp` alone, from what enters its first linear layer to what it adds to the residual stream."""
    t = program.transformer()
    own = {"params": layer[name]}
    if name == "attention":
        attention = Attention(t.model, t.structure, t.kernel, t.placed)
        y_BTD: Any = attention.apply(own, x_BTD, _tables(program, x_BTD), grids.unpack(), None)
    else:
        y_BTD = MLP(t.model, t.structure, t.placed).apply(own, x_BTD, grids.unpack(), None)
    return y_BTD


def _tables(program: Program, x_BTD: jax.Array) -> tuple[jax.Array, jax.Array]:
    return rotary_tables(jnp.arange(x_BTD.shape[1], dtype=jnp.float32), program.model)


def of_layer(grids: Grids, layers: int, layer: int) -> PackedGrids:
    """The grids of the sites of one block."""
    packed = packed_grids(grids, layers)
    return PackedGrids(packed.numbers[layer], packed.tree)


@cache
def embedding(program: Program) -> Any:
    """Jitted (params, tokens_BT, grids) → what enters the first block, x_BTD."""

    def embedded(params, tokens_BT, grids):
        return program.transformer().apply({"params": params}, tokens_BT, grids, method="embedded")

    return jax.jit(embedded)


@cache
def advance(program: Program) -> Any:
    """Jitted (layer, x_BTD, grids) → what leaves the block."""
    return jax.jit(lambda layer, x_BTD, grids: forward(program, layer, x_BTD, grids)[0])


@cache
def inputs_of(program: Program, site: str) -> Any:
    """Jitted (layer, x_BTD, grids) → what enters the linear layer of a site."""
    return jax.jit(lambda layer, x_BTD, grids: forward(program, layer, x_BTD, grids)[1][site])


@cache
def observe(program: Program, sites: tuple[str, ...], wanted: tuple[str, ...]) -> Any:
    """Jitted (layer, its x_BTD, unquantized layer, its x_BTD, grids) → site → Moments summed over the tokens of x_BTD,
    those that are wanted."""

    def found(layer, x_BTD, original, x_original_BTD, grids):
        _, inputs = forward(program, layer, x_BTD, grids)
        unquantized = forward(program, original, x_original_BTD, grids)[1] if "drift" in wanted else inputs
        return {site: _moments(inputs[site], unquantized[site], wanted) for site in sites}

    return jax.jit(found)


def _moments(x: jax.Array, original: jax.Array, wanted: tuple[str, ...]) -> Moments:
    found = {}
    if "hessian" in wanted:
        found["hessian"] = second_moment(x, x)
    if "drift" in wanted:
        found["drift"] = second_moment(x, original - x)
    if "magnitude" in wanted:
        found["magnitude"] = jnp.sum(jnp.abs(x.astype(jnp.float32)), axis=(0, 1))
    return found


def weight(layer: Any, site: str) -> jax.Array:
    """Of a site's linear layer, [in, …]."""
    return layer[PART[site]][site]["w"]


def with_weight(layer: Any, site: str, w: jax.Array) -> Any:
    """The block's parameters with another weight at a site."""
    own = layer[PART[site]]
    return layer | {PART[site]: own | {site: own[site] | {"w": w}}}
