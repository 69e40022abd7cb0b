"""Splash attention in interpret mode against explicit attention: values, gradients, sharded, in layers, in packs."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from precisionlm.config import MeshConfig, ModelConfig
from precisionlm.model import fused
from precisionlm.model.attention import Attention
from precisionlm.model.fused import Kernel, fitting, platform_kernel, splash_attention
from precisionlm.model.placement import UNPLACED
from precisionlm.model.transformer import Transformer, axis_sizes
from precisionlm.precision.binding import Structure, bind
from precisionlm.precision.marks import count_products
from precisionlm.precision.recipe import parse_recipe
from precisionlm.training.sharding import ActivationSharding, make_mesh

MODEL = ModelConfig(layers=2, width=64, heads=4, kv_heads=2, mlp_width=64, vocab_size=97)
T = 256  # as two blocks of 128
SPLASH = Kernel("splash")
BLOCK_SIZE = fused.block_size  # tests have their own


@pytest.fixture(autouse=True)
def interpreted(monkeypatch):
    """Pallas kernels run on this machine, in small blocks."""
    monkeypatch.setattr(fused, "block_size", lambda time: 128)
    monkeypatch.setattr(fused.splash, "make_splash_mha", partial(fused.splash.make_splash_mha, interpret=True))


def explicit(q, k, v):
    return Attention(MODEL, Structure()).apply({}, q, k, v, {}, None, method="_explicit")


def qkv(heads: int, kv_heads: int, size: int, batch: int = 2, time: int = T):
    shapes = [(batch, time, n, size) for n in (heads, kv_heads, kv_heads)]
    return [jax.random.normal(jax.random.key(i), shape) for i, shape in enumerate(shapes)]


def value_and_gradients(function, arrays):
    weights = jax.random.normal(jax.random.key(9), arrays[0].shape)
    loss = lambda *x: jnp.sum(function(*x) * weights)  # noqa: E731
    return jax.jit(jax.value_and_grad(loss, argnums=(0, 1, 2)))(*arrays)


def same(found, wanted, atol=2e-5):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=atol, rtol=1e-4), found, wanted)


@pytest.mark.parametrize(("heads", "kv_heads", "size"), [(4, 2, 64), (3, 1, 24)])
def test_splash_equals_explicit_attention(heads, kv_heads, size):
    arrays = qkv(heads, kv_heads, size)
    np.testing.assert_allclose(splash_attention(*arrays), explicit(*arrays), atol=2e-6)
    same(value_and_gradients(splash_attention, arrays), value_and_gradients(explicit, arrays))


def test_every_device_takes_its_own_sequences_and_heads():
    placed = ActivationSharding(make_mesh(MeshConfig(replica=2, fsdp=2, tensor=2)))
    assert (placed.tensor, UNPLACED.tensor) == (2, 1)
    arrays, seen = qkv(4, 2, 16, batch=8, time=128), []

    def attention(*own):
        seen.append([x.shape for x in own])
        return splash_attention(*own)

    same(value_and_gradients(partial(placed.by_heads, attention), arrays), value_and_gradients(explicit, arrays))
    assert seen[0] == [(2, 128, 2, 16), (2, 128, 1, 16), (2, 128, 1, 16)]


@pytest.mark.parametrize(("recipe", "remat"), [pytest.param("bf16", "full", marks=pytest.mark.long), ("Q8KV4", "dots")])
def test_a_model_with_splash_is_the_model_without(recipe, remat):
    """Through the scan over layers and its recomputation; keys, values and queries quantized before the kernel."""
    tokens = jax.random.randint(jax.random.key(0), (2, 128), 0, 97)
    structure, grids = bind(parse_recipe(recipe), MODEL.layers, axis_sizes(MODEL, 128))
    plain = Transformer(MODEL, structure, "float32", remat)
    params = jax.jit(plain.init)(jax.random.key(1), tokens, grids)["params"]
    weights = jax.random.normal(jax.random.key(2), (2, 128, 97))

    def gradients(transformer):
        loss = lambda p: jnp.mean(transformer.apply({"params": p}, tokens, grids) * weights)  # noqa: E731
        return jax.value_and_grad(loss)

    with_splash = gradients(plain.clone(kernel=SPLASH))
    same(jax.jit(with_splash)(params), jax.jit(gradients(plain))(params), atol=1e-6)
    counts = count_products(jax.make_jaxpr(with_splash)(params))
    for operand in structure.site("attention"):
        assert counts[f"attention.{operand}"] >= 3 * MODEL.layers


def test_splash_runs_under_the_vmap_of_packs():
    arrays = [jnp.stack([x, 2 * x]) for x in qkv(4, 2, 16)]
    found = jax.vmap(splash_attention)(*arrays)
    for run in range(2):
        np.testing.assert_allclose(found[run], explicit(*(x[run] for x in arrays)), atol=2e-5)


@pytest.mark.parametrize(
    ("time", "size"), [(128, 128), (384, 128), (512, 512), (2048, 512), (2560, 512), (4096, 1024), (32768, 1024)]
)
def test_blocks_divide_the_sequence(time, size):
    assert BLOCK_SIZE(time) == size and time % size == 0


@pytest.mark.parametrize(
    ("recipe", "backward", "time", "tensor", "reason"),
    [
        ("bf16", "quantized", 2048, 1, ""),
        ("W4A4KV4", "quantized", 2048, 2, ""),
        ("W4", "unquantized", 2048, 1, ""),
        ("S8", "quantized", 2048, 1, "the recipe quantizes attention's probabilities"),
        ("KV4", "unquantized", 2048, 1, "precision.backward unquantized, and fused gradients take the quantized"),
        ("bf16", "quantized", 2000, 1, "sequences of 2000 tokens are no multiple of 128"),
        ("bf16", "quantized", 2048, 4, "2 key/value heads do not divide over mesh.tensor 4"),
    ],
)
def test_where_splash_does_not_fit_the_reason_is_told(recipe, backward, time, tensor, reason):
    structure, _ = bind(parse_recipe(recipe), MODEL.layers, axis_sizes(MODEL, time), backward)
    kernel = fitting(SPLASH, MODEL, structure, time, tensor)
    assert kernel.name == ("xla" if reason else "splash")
    assert kernel.reason.startswith(reason) and str(kernel).startswith(f"xla: {reason}" if reason else "splash")


def test_platforms_have_their_kernels():
    assert platform_kernel("tpu", "bfloat16", deterministic=True) == SPLASH  # it adds in one order
    assert platform_kernel("gpu", "bfloat16", deterministic=False) == Kernel("cudnn")
    assert "deterministic" in platform_kernel("gpu", "bfloat16", deterministic=True).reason
    assert "float32" in platform_kernel("tpu", "float32", deterministic=False).reason
    assert platform_kernel("cpu", "bfloat16", deterministic=False).reason == "no fused kernel on cpu"
