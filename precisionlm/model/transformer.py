"""A decoder-only transformer: RMSNorm, SwiGLU, RoPE, scan over layers. Precision is an argument of `apply`.

Legend: B batch, T time, D width, F MLP width, V vocabulary, L layers. Weights are float32; activations in `dtype`.
"""

from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from precisionlm.config import ModelConfig
from precisionlm.model import cache
from precisionlm.model.attention import Attention, rotary_tables
from precisionlm.model.fused import ATTENTION_TAG, Kernel
from precisionlm.model.linear import Linear, RMSNorm, largest_magnitude, linear
from precisionlm.model.placement import UNPLACED, Placement
from precisionlm.precision.binding import Grids, PackedGrids, Structure, pack
from precisionlm.precision.dot_general import PRODUCT_TAG
from precisionlm.precision.quantize import fake_quantize
from precisionlm.precision.scales import SCALE_TAG, from_largest
from precisionlm.precision.scaling import Parts

_NAMED = jax.checkpoint_policies.save_only_these_names(SCALE_TAG, PRODUCT_TAG, ATTENTION_TAG)


def _save_products(primitive: Any, *avals: Any, **parameters: Any) -> Any:
    """Save what is dear to compute: matrix products with weights, fused attention with its statistics, and scales."""
    if "dot_product_attention" in primitive.name:
        return True
    if primitive.name == "dot_general" and avals[0].dtype.itemsize == 1:
        return False  # a native product, which is saved under its scales
    dots = jax.checkpoint_policies.dots_with_no_batch_dims_saveable(primitive, *avals, **parameters)
    return dots or _NAMED(primitive, *avals, **parameters)


_REMAT = {"dots": _save_products, "full": jax.checkpoint_policies.nothing_saveable}


class MLP(nn.Module):
    """SwiGLU: down(silu(gate(x)) * up(x)), x_BTD → x_BTD."""

    model: ModelConfig
    structure: Structure
    placed: Placement = UNPLACED

    @nn.compact
    def __call__(
        self, x_BTD: jax.Array, grids: Grids, key: jax.Array | None, magnitude_BT1: jax.Array | None = None
    ) -> jax.Array:
        m = self.model
        normal = nn.initializers.normal(m.init_std)
        gate_up = Linear("gate_up", (2, m.mlp_width), self.structure, normal, self.placed, name="gate_up")
        h_BT2F = self.placed.features(gate_up(x_BTD, grids, key, magnitude_BT1))
        h_BTF, magnitude_BT1 = self.placed.features(_swiglu(h_BT2F)), None
        scaling = self.structure.site("down").get("a")
        if m.projection_norm:
            h_BTF, magnitude_BT1 = RMSNorm(m.norm_epsilon, name="down_norm").with_magnitude(h_BTF)
        elif scaling and from_largest(scaling):
            # From a computation of its own: so h_BTF has one reader, into which it is fused, and is never written but
            # quantized. The barrier keeps the compiler from finding that the two computations are the same.
            again_BT2F = jax.lax.optimization_barrier(jax.lax.stop_gradient(h_BT2F))
            magnitude_BT1 = largest_magnitude(_swiglu(again_BT2F))
        residual = nn.initializers.normal(m.init_std / (2 * m.layers) ** 0.5)
        return Linear("down", (m.width,), self.structure, residual, self.placed, name="down")(
            h_BTF, grids, key, magnitude_BT1
        )


def _swiglu(h_BT2F: jax.Array) -> jax.Array:
    return jax.nn.silu(h_BT2F[..., 0, :]) * h_BT2F[..., 1, :]


class Block(nn.Module):
    """One layer, in the form that `nn.scan` takes: (carry, per-layer inputs) → (carry, nothing)."""

    model: ModelConfig
    structure: Structure
    kernel: Kernel
    placed: Placement = UNPLACED

    @nn.compact
    def __call__(self, x_BTD, packed, key, tables):
        m, residual, grids = self.model, self.placed.residual, packed.unpack()
        attention = Attention(m, self.structure, self.kernel, self.placed, name="attention")
        y_BTD, magnitude_BT1 = RMSNorm(m.norm_epsilon, name="attention_norm").with_magnitude(x_BTD)
        x_BTD = residual(x_BTD + attention(y_BTD, tables, grids, key, magnitude_BT1))
        y_BTD, magnitude_BT1 = RMSNorm(m.norm_epsilon, name="mlp_norm").with_magnitude(x_BTD)
        mlp = MLP(m, self.structure, self.placed, name="mlp")
        return residual(x_BTD + mlp(y_BTD, grids, key, magnitude_BT1)), None


class Transformer(nn.Module):
    """tokens_BT (int) → logits_BTV (float32). remat: none, dots, full. kernel: the platform's for attention.

    placed: where activations live on a mesh. Without it the compiler follows the weights' sharding and computes every
    sequence on every device. unroll: layers per iteration of the scan.
    """

    model: ModelConfig
    structure: Structure = Structure()
    dtype: str = "bfloat16"
    remat: str = "none"
    kernel: Kernel = Kernel()
    placed: Placement = UNPLACED
    unroll: int = 1

    def setup(self):
        m = self.model
        block: Any = Block
        if self.remat != "none":
            # Without a loop, compilers would find what is computed again to be the same and keep it instead.
            block = nn.remat(Block, prevent_cse=self.unroll >= m.layers, policy=_REMAT[self.remat])
        self.blocks = nn.scan(
            block,
            variable_axes={"params": 0, cache.COLLECTION: 0},
            split_rngs={"params": True},
            in_axes=(0, 0, nn.broadcast),
            length=m.layers,
            unroll=min(self.unroll, m.layers),
        )(m, self.structure, self.kernel, self.placed, name="blocks")
        normal = nn.initializers.normal(m.init_std)
        self.embedding_VD = self.param("embedding", normal, (m.vocab_size, m.width), jnp.float32)
        self.final_norm = RMSNorm(m.norm_epsilon)
        if not m.tie_embeddings:
            self.head_DV = self.param("head", normal, (m.width, m.vocab_size), jnp.float32)

    def __call__(self, tokens_BT: jax.Array, grids: Grids, key: jax.Array | None = None) -> jax.Array:
        return self.logits(self.hidden(tokens_BT, grids, key), grids, key)

    def hidden(self, tokens_BT: jax.Array, grids: Grids, key: jax.Array | None = None) -> jax.Array:
        """Everything before the head: tokens_BT → x_BTD. key: for stochastic rounding, new every step."""
        m = self.model
        x_BTD = self.embedded(tokens_BT, grids, key)
        tables = rotary_tables(cache.positions(self, tokens_BT.shape[1]), m)
        keys_L = None if key is None else jax.random.split(key, m.layers)
        x_BTD, _ = self.blocks(x_BTD, packed_grids(grids, m.layers), keys_L, tables)
        return self.final_norm(x_BTD)

    def embedded(self, tokens_BT: jax.Array, grids: Grids, key: jax.Array | None = None) -> jax.Array:
        """What enters the first block: tokens_BT → x_BTD."""
        table_VD = self.embedding_VD
        if scaling := self.structure.site("embed").get("w"):
            grid, table_VD = grids["embed"]["w"], table_VD.astype(self.dtype)
            table_VD = fake_quantize(table_VD, -1, scaling, grid, "embed.w", key)
        # Cast after the gather: the gradient of a row is the sum over its token's occurrences, thousands in a batch,
        # and a sum kept in bfloat16 stops growing after 256 alike.
        rows_BTD = jnp.take(table_VD.astype(jnp.float32), tokens_BT, axis=0)
        return self.placed.residual(rows_BTD.astype(self.dtype))

    def logits(self, x_BTD: jax.Array, grids: Grids, key: jax.Array | None = None) -> jax.Array:
        """x_BTD → logits_BTV in float32."""
        w_DV = self.embedding_VD.T if self.model.tie_embeddings else self.head_DV
        wide = self.placed.wide_sums
        return linear(self.structure, "head", x_BTD, w_DV, grids, key, {"w": w_DV}, None, wide).astype(jnp.float32)


def packed_grids(grids: Grids, layers: int) -> PackedGrids:
    """The grids of the sites in the blocks, packed."""
    return pack({site: grid for site, grid in grids.items() if site not in ("embed", "head")}, layers)


def axis_sizes(model: ModelConfig, sequence_length: int) -> dict[str, dict[str, int]]:
    """site → operand → length of the axis that its scales run along, for checking group sizes."""
    head_size = model.head_size or model.width // model.heads
    kv_heads = model.kv_heads or model.heads
    inputs_outputs = {
        "qkv": (model.width, (model.heads + 2 * kv_heads) * head_size),
        "out": (model.heads * head_size, model.width),
        "gate_up": (model.width, model.mlp_width),
        "down": (model.mlp_width, model.width),
        "head": (model.width, model.vocab_size or 0),
    }
    T = sequence_length
    sizes = {
        site: {"a": i, "w": i, "dgrad_dy": o, "dgrad_w": o, "wgrad_dy": T, "wgrad_x": T}
        for site, (i, o) in inputs_outputs.items()
    }
    return sizes | {
        "attention": {"q": head_size, "k": head_size, "v": head_size, "p": T},
        "embed": {"w": model.width},
    }


def projections(model: ModelConfig) -> dict[str, Parts]:
    """site → the projections that its product computes together; where several papers have separate layers."""
    kv_heads = model.kv_heads or model.heads
    return {"qkv": Parts(1, kv_heads, (model.heads // kv_heads, 1, 1)), "gate_up": Parts(2, 1, (1, 1))}


def parameter_counts(params: Mapping[str, Any]) -> tuple[int, int]:
    """(non-embedding, total) parameters. Non-embedding: the weights of the blocks' linear layers, as the papers count
    (Sun et al. 2025, Table 1: layers * (4 h^2 + 3 h ffn)); norm gains, embedding and head are in the total only."""
    leaves = jax.tree_util.tree_leaves_with_path(params)
    total = sum(leaf.size for _, leaf in leaves)
    return sum(leaf.size for path, leaf in leaves if path[-1].key == "w"), total
