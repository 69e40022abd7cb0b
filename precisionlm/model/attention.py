"""Causal attention with quantizable queries, keys, values and probabilities.

Legend: B batch, T query time, S key time, D width, N query heads, K key/value heads, G = N / K, H head size.
Scales of q, k and v run along H, so no scale is shared over time. Both products run through AQT's DotGeneral as those
of linear layers do; fused kernels (`model.fused`) take q, k and v quantized by the same function.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp

from precisionlm.config import ModelConfig, RopeScaling
from precisionlm.model import cache
from precisionlm.model.fused import Kernel, fitting, splash_attention
from precisionlm.model.linear import Linear, RMSNorm
from precisionlm.model.placement import UNPLACED, Placement
from precisionlm.precision.binding import Grids, Structure
from precisionlm.precision.dot_general import dot_general
from precisionlm.precision.quantize import fake_quantize


def rotary_tables(position_T: jax.Array, model: ModelConfig) -> tuple[jax.Array, jax.Array]:
    """cos and sin [T, H / 2] of the rotary embedding (Su et al. 2021, arXiv:2104.09864) at positions, float32."""
    head_size = model.head_size or model.width // model.heads
    angle = position_T[:, None] * frequencies(head_size, model.rope_base, model.rope_scaling)
    return jnp.cos(angle), jnp.sin(angle)


def frequencies(head_size: int, base: float, scaling: RopeScaling | None = None) -> jax.Array:
    """Radians per position of each pair, [H / 2], falling. scaling: Llama 3's (Grattafiori et al. 2024,
    arXiv:2407.21783, as its reference code has it): those that turn seldom in the original length are divided by the
    factor, those that turn often stay, and between the two it is a line."""
    frequency = base ** (-jnp.arange(0, head_size, 2, dtype=jnp.float32) / head_size)
    if scaling is None:
        return frequency
    low, high = scaling.low_frequency_factor, scaling.high_frequency_factor
    turns = scaling.original_length * frequency / (2 * jnp.pi)
    kept = jnp.clip((turns - low) / (high - low), 0.0, 1.0)
    return frequency * (kept + (1 - kept) / scaling.factor)


def rotate(x: jax.Array, tables: tuple[jax.Array, jax.Array]) -> jax.Array:
    """Rotate halves of the last axis of x [B, T, heads, H] by position."""
    cos, sin = (table[None, :, None, :].astype(x.dtype) for table in tables)
    first, second = jnp.split(x, 2, axis=-1)
    return jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)


class Attention(nn.Module):
    """Grouped-query attention, x_BTD → x_BTD. kernel: what the platform has; used where it fits (`fused.fitting`)."""

    model: ModelConfig
    structure: Structure
    kernel: Kernel = Kernel()
    placed: Placement = UNPLACED

    @nn.compact
    def __call__(
        self,
        x_BTD: jax.Array,
        tables: tuple[jax.Array, jax.Array],
        grids: Grids,
        key: jax.Array | None,
        magnitude_BT1: jax.Array | None = None,
    ) -> jax.Array:
        m, (B, T, D) = self.model, x_BTD.shape
        K, H = m.kv_heads or m.heads, m.head_size or m.width // m.heads
        G = m.heads // K
        normal = nn.initializers.normal(m.init_std)
        linear = Linear("qkv", (K * (G + 2) * H,), self.structure, normal, self.placed, name="qkv")
        qkv_BTX = self.placed.features(linear(x_BTD, grids, key, magnitude_BT1))
        qkv_BTKGH = qkv_BTX.reshape(B, T, K, G + 2, H)
        # Split, not indexed: the gradient of indexing adds padded arrays.
        q_BTKGH, k_BTK1H, v_BTK1H = jnp.split(qkv_BTKGH, (G, G + 1), axis=-2)
        q_BTNH, k_BTKH, v_BTKH = q_BTKGH.reshape(B, T, K * G, H), k_BTK1H[..., 0, :], v_BTK1H[..., 0, :]
        if m.qk_norm:
            q_BTNH = RMSNorm(m.norm_epsilon, name="q_norm")(q_BTNH)
            k_BTKH = RMSNorm(m.norm_epsilon, name="k_norm")(k_BTKH)
        q_BTNH, k_BTKH = rotate(q_BTNH, tables), rotate(k_BTKH, tables)
        kernel = fitting(self.kernel, m, self.structure, T, self.placed.tensor)
        if self.has_variable(cache.COLLECTION, "keys"):
            o_BTNH = self._after_others(q_BTNH, k_BTKH, v_BTKH, grids, key)
        elif kernel.name == "xla":
            o_BTNH = self._explicit(q_BTNH, k_BTKH, v_BTKH, grids, key)
        else:
            o_BTNH = self._fused(kernel, q_BTNH, k_BTKH, v_BTKH, grids, key)
        o_BTX, magnitude_BT1 = self.placed.features(o_BTNH.reshape(B, T, m.heads * H)), None
        if m.projection_norm:
            o_BTX, magnitude_BT1 = RMSNorm(m.norm_epsilon, name="out_norm").with_magnitude(o_BTX)
        residual = nn.initializers.normal(m.init_std / (2 * m.layers) ** 0.5)
        return Linear("out", (D,), self.structure, residual, self.placed, name="out")(o_BTX, grids, key, magnitude_BT1)

    def _fused(self, kernel, q_BTNH, k_BTKH, v_BTKH, grids, key):
        qkv = [self._quantized(o, x, grids, key) for o, x in (("q", q_BTNH), ("k", k_BTKH), ("v", v_BTKH))]
        if kernel.name == "splash":
            return self.placed.by_heads(splash_attention, *qkv)
        return jax.nn.dot_product_attention(*qkv, is_causal=True, implementation="cudnn")

    def _after_others(self, q_BTNH, k_BTKH, v_BTKH, grids, key):
        """Attention of tokens that follow those in the cache, which they join. Keys and values are kept as they enter
        the products, so both come quantized."""
        k_BTKH, v_BTKH = (self._quantized(name, x, grids, key) for name, x in (("k", k_BTKH), ("v", v_BTKH)))
        keys, values, visible_TS = cache.join(self, k_BTKH, v_BTKH)
        return _attend(cache.rest(self.structure), q_BTNH, keys, values, visible_TS, grids, key)

    def _explicit(self, q_BTNH, k_BTKH, v_BTKH, grids, key):
        T = q_BTNH.shape[1]
        causal_TS = jnp.tril(jnp.ones((T, T), bool))
        return _attend(self.structure, q_BTNH, k_BTKH, v_BTKH, causal_TS, grids, key)

    def _quantized(self, operand, x, grids, key):
        """x as the recipe has this operand; scales along the last axis."""
        scaling = self.structure.site("attention").get(operand)
        if scaling is None:
            return x
        grid = grids["attention"][operand]
        return fake_quantize(x, -1, scaling, grid, f"attention.{operand}", key)


def _attend(structure, q_BTNH, k_BSKH, v_BSKH, visible_TS, grids, key):
    """Both products, a query seeing what is visible to its time step."""
    B, T, N, H = q_BTNH.shape
    K = k_BSKH.shape[2]
    own = grids.get("attention", {})
    score = dot_general(structure, "attention", own, key, operands=("q", "k"))
    mix = dot_general(structure, "attention", own, key, operands=("p", "v"), rhs_axis=3)
    q_BTKGH = q_BTNH.reshape(B, T, K, N // K, H)
    per_head = ((0, 2), (0, 2))
    logits_BKTGS = score(q_BTKGH, k_BSKH, (((4,), (3,)), per_head), preferred_element_type=jnp.float32)
    visible_T1S = visible_TS[:, None]
    p_BKTGS = jax.nn.softmax(jnp.where(visible_T1S, logits_BKTGS * H**-0.5, -jnp.inf), axis=-1).astype(v_BSKH.dtype)
    o_BKTGH = mix(p_BKTGS, v_BSKH, (((4,), (1,)), ((0, 1), (0, 2))))
    return o_BKTGH.transpose(0, 2, 1, 3, 4).reshape(B, T, N, H)
