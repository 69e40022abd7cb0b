"""Causality under every recipe, shapes, counts, the kernel's parts."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from precisionlm.config import ModelConfig
from precisionlm.model.attention import rotary_tables, rotate
from precisionlm.model.linear import RMSNorm, largest_magnitude
from precisionlm.model.transformer import Transformer, _swiglu, axis_sizes, parameter_counts
from precisionlm.precision.binding import bind, leaks_future
from precisionlm.precision.recipe import parse_recipe

MODEL = ModelConfig(layers=2, width=64, heads=4, kv_heads=2, mlp_width=128, vocab_size=97)
T = 32
TOKENS = jax.random.randint(jax.random.key(0), (2, T), 0, 97)
CAUSAL = [
    "bf16",
    "W4A4KV4",
    "W4A4KV4Q4S8",
    "W4A4KV4-g32",
    "mxfp4",
    "W=e4m3,A=e4m3,P246=e2m1",
    "KV=int3/g8,S=int4/g8,W=int4/tensor",
    "W4A4@head:W8A8@embed:W8",
    "G=int4/sr,W4A4",
    "W4A4-mse-had16",
]


def logits_of(recipe: str, model: ModelConfig = MODEL, remat: str = "none"):
    structure, grids = bind(parse_recipe(recipe), model.layers, axis_sizes(model, T))
    transformer = Transformer(model, structure, "float32", remat)
    params = jax.jit(transformer.init)(jax.random.key(1), TOKENS, grids)["params"]
    return jax.jit(lambda p, tokens: transformer.apply({"params": p}, tokens, grids)), params, structure


@pytest.mark.parametrize("recipe", CAUSAL)
def test_a_later_token_changes_no_earlier_logit(recipe):
    apply, params, structure = logits_of(recipe)
    assert not leaks_future(structure)
    before, after = apply(params, TOKENS), apply(params, TOKENS.at[:, 20].set((TOKENS[:, 20] + 1) % 97))
    change = np.abs(np.asarray(before - after)).max(axis=(0, 2))
    assert change[:20].max() == 0.0
    assert change[20:].min() > 0.0


@pytest.mark.parametrize("recipe", ["W4,A=int8/tensor", "nvfp4", "KV=int4/tensor"])
def test_recipes_flagged_as_leaking_do_leak(recipe):
    apply, params, structure = logits_of(recipe)
    assert leaks_future(structure)
    other = TOKENS.at[:, 20:].set((TOKENS[:, 20:] + 1) % 97)
    assert np.abs(np.asarray(apply(params, TOKENS) - apply(params, other)))[:, :20].max() > 0.0


def count(model: ModelConfig) -> tuple[int, int]:
    shapes = jax.eval_shape(lambda: Transformer(model).init(jax.random.key(1), TOKENS, {}))
    return parameter_counts(shapes["params"])


def test_options_change_the_parameters_they_say():
    D, F, K, G, H, L, V = 64, 128, 2, 2, 16, 2, 97
    blocks = L * (D * K * (G + 2) * H + D * D + 3 * D * F)
    base = count(MODEL)
    assert base == (blocks, blocks + 2 * V * D + (2 * L + 1) * D)
    assert count(MODEL.model_copy(update={"tie_embeddings": True})) == (base[0], base[1] - V * D)
    normed = MODEL.model_copy(update={"qk_norm": True, "projection_norm": True})
    assert count(normed) == (base[0], base[1] + L * (2 * H + D + F))


def test_the_known_magnitude_of_swiglu_is_that_of_its_values():
    h_BT2F = jax.random.normal(jax.random.key(0), (4, 32, 2, 96), jnp.bfloat16) * 3
    both = jax.jit(lambda h: (_swiglu(h), largest_magnitude(_swiglu(jax.lax.optimization_barrier(h)))))
    h_BTF, magnitude_BT1 = both(h_BT2F)
    np.testing.assert_array_equal(np.abs(np.asarray(h_BTF, np.float32)).max(-1, keepdims=True), magnitude_BT1)


@pytest.mark.parametrize("layers", [2, 3, 100])
def test_unrolling_changes_no_gradient(layers):
    model = MODEL.model_copy(update={"layers": 3})
    structure, grids = bind(parse_recipe("W4A4KV4"), model.layers, axis_sizes(model, T))
    rolled = Transformer(model, structure, "float32", "dots")
    params = jax.jit(rolled.init)(jax.random.key(1), TOKENS, grids)["params"]
    gradients = (
        jax.jit(jax.grad(lambda p, t=t: jnp.mean(t.apply({"params": p}, TOKENS, grids) ** 2)))(params)
        for t in (rolled, rolled.clone(unroll=layers))
    )
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-7), *gradients)


def test_remat_changes_no_value():
    (plain, params, _), (recomputed, *_) = (logits_of("W4A4KV4", remat=remat) for remat in ("none", "full"))
    np.testing.assert_allclose(plain(params, TOKENS), recomputed(params, TOKENS), atol=1e-6)


def test_rotation_depends_on_relative_position_only():
    q, k = jax.random.normal(jax.random.key(2), (2, 1, 1, 1, 16))
    tables = rotary_tables(jnp.arange(10.0), ModelConfig(layers=1, width=16, heads=1, mlp_width=16))
    at = lambda x, t: rotate(jnp.broadcast_to(x, (1, 10, 1, 16)), tables)[0, t, 0]  # noqa: E731
    assert float(at(q, 3) @ at(k, 1)) == pytest.approx(float(at(q, 9) @ at(k, 7)), abs=1e-5)
    assert float(at(q, 3) @ at(k, 1)) != pytest.approx(float(at(q, 9) @ at(k, 1)), abs=1e-3)


def test_explicit_attention_equals_jax():
    q = jax.random.normal(jax.random.key(3), (2, T, 4, 16))
    k, v = jax.random.normal(jax.random.key(4), (2, 2, T, 2, 16))
    from precisionlm.model.attention import Attention
    from precisionlm.precision.binding import Structure

    ours = Attention(MODEL, Structure())._explicit(q, k, v, {}, None)
    np.testing.assert_allclose(ours, jax.nn.dot_product_attention(q, k, v, is_causal=True), atol=1e-5)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("recipe", ["KV4", "Q8KV4S8", "S4", "Q4"])
def test_attentions_products_are_those_of_quantized_operands(recipe, dtype):
    """Against plain einsums of quantized values with the straight-through gradient, for values and gradients."""
    from precisionlm.model.attention import Attention
    from precisionlm.precision.quantize import fake_quantize

    sizes = axis_sizes(MODEL, T)
    structure, grids = bind(parse_recipe(recipe), 1, sizes)
    own = {name: jax.tree.map(lambda leaf: leaf[0], grid) for name, grid in grids["attention"].items()}
    q = jax.random.normal(jax.random.key(3), (2, T, 4, 16), dtype)
    k, v = jax.random.normal(jax.random.key(4), (2, 2, T, 2, 16), dtype)

    def quantized(name, x):
        scaling = structure.site("attention").get(name)
        return fake_quantize(x, -1, scaling, own[name], name) if scaling else x

    def reference(q, k, v):
        k, v = (jnp.repeat(quantized(name, x), 2, axis=2) for name, x in (("k", k), ("v", v)))
        logits = jnp.einsum("BTNH,BSNH->BNTS", quantized("q", q), k, preferred_element_type=jnp.float32) / 4
        p = jax.nn.softmax(jnp.where(jnp.tril(jnp.ones((T, T), bool)), logits, -jnp.inf)).astype(v.dtype)
        return jnp.einsum("BNTS,BSNH->BTNH", quantized("p", p), v)

    def ours(q, k, v):
        return Attention(MODEL, structure).apply({}, q, k, v, {"attention": own}, None, method="_explicit")

    tolerance = {"atol": 1e-5} if dtype == "float32" else {"atol": 0.03}
    np.testing.assert_allclose(*(np.asarray(f(q, k, v), np.float32) for f in (ours, reference)), **tolerance)
    weights = jax.random.normal(jax.random.key(5), q.shape)
    found, wanted = (
        jax.grad(lambda *x, f=f: jnp.sum(f(*x).astype(jnp.float32) * weights), argnums=(0, 1, 2))(q, k, v)
        for f in (ours, reference)
    )
    for a, b in zip(found, wanted, strict=True):
        assert a.dtype == dtype
        np.testing.assert_allclose(np.asarray(a, np.float32), np.asarray(b, np.float32), atol=tolerance["atol"] * 4)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_norms_magnitude_is_exactly_that_of_its_output(dtype):
    x = (jax.random.normal(jax.random.key(5), (64, 96)) * 3).astype(dtype)
    norm = RMSNorm(1e-6)
    params = {"params": {"scale": jax.random.normal(jax.random.key(6), (96,))}}
    y, magnitude = norm.apply(params, x, method="with_magnitude")
    np.testing.assert_array_equal(magnitude[:, 0], np.abs(np.asarray(y, np.float32)).max(axis=-1))


def test_gradients_are_summed_in_float32_over_a_token_that_comes_often():
    model = MODEL.model_copy(update={"layers": 1, "qk_norm": True, "projection_norm": True})
    often, other = (
        jax.random.bernoulli(jax.random.key(0), 0.5, (8, 256)),
        jax.random.randint(jax.random.key(1), (8, 256), 0, model.vocab_size),
    )
    tokens = jnp.where(often, 3, other)
    params = jax.jit(Transformer(model).init)(jax.random.key(2), tokens, {})["params"]

    def gradients(dtype):
        def loss(params):
            return -jnp.mean(
                jax.nn.log_softmax(Transformer(model, dtype=dtype).apply({"params": params}, tokens, {}))[..., 5]
            )

        return jax.jit(jax.grad(loss))(params)

    for (path, exact), found in zip(
        jax.tree_util.tree_leaves_with_path(gradients("float32")), jax.tree.leaves(gradients("bfloat16")), strict=True
    ):
        error = jnp.linalg.norm(found - exact) / jnp.linalg.norm(exact)
        # jax 0.11 sums products on CPUs more coarsely (0.03); none of the others is a product.
        assert error < (0.05 if path[-1].key in ("w", "head") else 0.02), f"{jax.tree_util.keystr(path)}: {error}"
