"""Fused attention, whose scores [T, T] never leave the chip: which kernel serves where, and why not elsewhere.

`cudnn` is NVIDIA's, through jax.nn; `splash` JAX's Pallas kernel for TPUs (jax.experimental.pallas.ops.tpu). Both take
queries, keys and values as the recipe quantizes them; neither knows a mask but the causal one, nor does any other part
of the model (packed documents see each other). `xla` means the explicit products of `model.attention`.

Legend: B batch, T time, N query heads, K key/value heads, H head size.
"""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as splash
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask as masks

from precisionlm.config import ModelConfig
from precisionlm.precision.binding import Structure

ATTENTION_TAG = "attention"  # what splash keeps for its backward pass, for remat policies
_OF_PLATFORM = {"gpu": "cudnn", "tpu": "splash"}
_LANES = 128  # splash takes times in multiples of a TPU's vector


@dataclass(frozen=True)
class Kernel:
    """name: `xla`, `cudnn` or `splash`; reason: why none of the fused ones, empty where it is one."""

    name: str = "xla"
    reason: str = ""

    def __str__(self) -> str:
        return f"{self.name}: {self.reason}" if self.reason else self.name


def platform_kernel(platform: str, dtype: str, deterministic: bool) -> Kernel:
    """The fused kernel of a platform, for activations of a dtype."""
    if platform not in _OF_PLATFORM:
        return Kernel(reason=f"no fused kernel on {platform}")
    if dtype != "bfloat16":
        return Kernel(reason=f"activations are {dtype}, and fused kernels multiply in bfloat16")
    if deterministic and platform == "gpu":
        return Kernel(reason="training.deterministic, and the fused backward pass adds in any order")
    return Kernel(_OF_PLATFORM[platform])


def fitting(kernel: Kernel, model: ModelConfig, structure: Structure, time: int, tensor: int) -> Kernel:
    """The kernel, if it computes what the recipe says at this sequence length and on so many tensor-parallel devices;
    else the explicit products. Fused kernels know no quantized probabilities, and their gradients use the operands that
    they were given."""
    operands, kv_heads = structure.site("attention"), model.kv_heads or model.heads
    if kernel.name == "xla":
        return kernel
    if "p" in operands:
        return Kernel(reason="the recipe quantizes attention's probabilities")
    if operands and structure.backward != "quantized":
        return Kernel(reason="precision.backward unquantized, and fused gradients take the quantized operands")
    if kernel.name == "splash" and time % _LANES:
        return Kernel(reason=f"sequences of {time} tokens are no multiple of {_LANES}")
    if kernel.name == "splash" and kv_heads % tensor:
        return Kernel(reason=f"{kv_heads} key/value heads do not divide over mesh.tensor {tensor}")
    return kernel


def block_size(time: int) -> int:
    """Times that splash takes together: 512, and 1024 where that leaves four blocks, so that not much of what the
    causal mask hides is computed; less where they do not divide T."""
    return next(size for size in (1024, 512, 256, _LANES) if time % size == 0 and size <= max(512, time // 4))


def splash_attention(q_BTNH: jax.Array, k_BTKH: jax.Array, v_BTKH: jax.Array) -> jax.Array:
    """Causal attention on a TPU, o_BTNH. Scores are scaled by H ** -0.5 through q, in its own dtype: exact for powers
    of four, else one more rounding."""
    (_, T, N, H), size = q_BTNH.shape, block_size(q_BTNH.shape[1])
    kernel = splash.make_splash_mha(
        masks.MultiHeadMask([masks.CausalMask((T, T))] * N),
        block_sizes=splash.BlockSizes(
            block_q=size, block_kv=size, block_q_dkv=size, block_kv_dkv=size, block_q_dq=size, block_kv_dq=size
        ),
        head_shards=1,
        q_seq_shards=1,
        residual_checkpoint_name=ATTENTION_TAG,
    )
    scaled_BTNH = (q_BTNH.astype(jnp.float32) * H**-0.5).astype(q_BTNH.dtype)
    heads_first = (x.transpose(0, 2, 1, 3) for x in (scaled_BTNH, k_BTKH, v_BTKH))
    return jax.vmap(kernel)(*heads_first).transpose(0, 2, 1, 3)
