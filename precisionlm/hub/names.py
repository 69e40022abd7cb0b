"""Our parameters and the tensors of a Hugging Face model: which is which, in both directions.

Theirs are one layer's each, and matrices [out, in]; ours have a leading layer axis [L], and matrices [in, …]. Queries,
keys and values of a key/value head stand together in ours: [D, K, G + 2, H]. Rotary positions turn halves in both.
Legend: D width, F MLP width, V vocabulary, K key/value heads, G query heads for each, H head size.
"""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np

from precisionlm.config import ModelConfig
from precisionlm.errors import UserError
from precisionlm.precision.recipe import BLOCK_LINEAR
from precisionlm.ptq.blocks import PART

PROJECTIONS = {
    "qkv": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    "out": ("self_attn.o_proj",),
    "gate_up": ("mlp.gate_proj", "mlp.up_proj"),
    "down": ("mlp.down_proj",),
}
EMBEDDING, NORM, HEAD = "model.embed_tokens.weight", "model.norm.weight", "lm_head.weight"


def linear(layer: int, projection: str) -> str:
    """The name of a linear layer, without what of it."""
    return f"model.layers.{layer}.{projection}"


def gains(model: ModelConfig) -> dict[tuple[str, ...], str]:
    """Path of a norm in a block → its name in theirs."""
    found: dict[tuple[str, ...], str] = {
        ("attention_norm",): "input_layernorm",
        ("mlp_norm",): "post_attention_layernorm",
    }
    if model.qk_norm:
        found |= {("attention", f"{one}_norm"): f"self_attn.{one}_norm" for one in "qk"}
    if model.projection_norm:
        found |= {("attention", "out_norm"): "self_attn.attn_sub_norm", ("mlp", "down_norm"): "mlp.ffn_sub_norm"}
    return found


def split(model: ModelConfig, site: str, w: np.ndarray) -> dict[str, np.ndarray]:
    """projection → [out, in] of one layer's values [in, …] at a site: weights, codes or scales."""
    rows = len(w)
    if site == "qkv":
        K, G, H = _heads(model)
        parts = np.split(w.reshape(rows, K, G + 2, H), (G, G + 1), axis=2)
    elif site == "gate_up":
        parts = np.split(w, 2, axis=1)
    else:
        parts = [w]
    matrices = [np.ascontiguousarray(part.reshape(rows, -1).T) for part in parts]
    return dict(zip(PROJECTIONS[site], matrices, strict=True))


def joined(model: ModelConfig, site: str, parts: Mapping[str, np.ndarray]) -> np.ndarray:
    """What `split` splits: projection → [out, in] → [in, …]."""
    matrices = [parts[projection].T for projection in PROJECTIONS[site]]
    rows = len(matrices[0])
    if site == "qkv":
        K, _, H = _heads(model)
        return np.concatenate([m.reshape(rows, K, -1, H) for m in matrices], axis=2).reshape(rows, -1)
    return np.stack(matrices, axis=1) if site == "gate_up" else matrices[0]


def shapes(model: ModelConfig) -> dict[str, dict[str, tuple[int, int]]]:
    """site → projection → (out, in)."""
    (K, G, H), D, F = _heads(model), model.width, model.mlp_width
    sizes = {"qkv": [(K * G * H, D), (K * H, D), (K * H, D)], "out": [(D, K * G * H)]}
    sizes |= {"gate_up": [(F, D), (F, D)], "down": [(D, F)]}
    return {site: dict(zip(PROJECTIONS[site], sizes[site], strict=True)) for site in BLOCK_LINEAR}


def others(model: ModelConfig, params: Any) -> Iterator[tuple[str, np.ndarray]]:
    """(name, float32 values) of all that is no linear layer of the blocks, from our parameters."""
    yield EMBEDDING, np.asarray(params["embedding"])
    for path, name in gains(model).items():
        scale_LD = np.asarray(_at(params["blocks"], path)["scale"])
        yield from ((f"{linear(layer, name)}.weight", scale_D) for layer, scale_D in enumerate(scale_LD))
    yield NORM, np.asarray(params["final_norm"]["scale"])
    if not model.tie_embeddings:
        yield HEAD, np.ascontiguousarray(np.asarray(params["head"]).T)


def parameters(
    model: ModelConfig, tensors: Mapping[str, np.ndarray], weight: Callable[[int, str], np.ndarray]
) -> dict[str, Any]:
    """Our parameters, float32. weight: layer, projection → its values [out, in]. Raises UserError for a tensor that is
    missing or of another shape than the model's."""
    V, D = model.vocab_size or 0, model.width

    def of(name: str, shape: tuple[int, ...]) -> np.ndarray:
        if name not in tensors:
            raise UserError(f"tensor '{name}' is missing")
        if tensors[name].shape != shape:
            raise UserError(f"tensor '{name}' is {tensors[name].shape}, its config says {shape}")
        return tensors[name].astype(np.float32)

    layers, blocks = range(model.layers), dict[str, Any]()
    for site, projections in shapes(model).items():
        values = []
        for layer in layers:
            parts = {projection: weight(layer, projection) for projection in projections}
            for projection, shape in projections.items():
                if parts[projection].shape != shape:
                    raise UserError(
                        f"{linear(layer, projection)} is {parts[projection].shape}, its config says {shape}"
                    )
            values.append(joined(model, site, parts))
        blocks.setdefault(PART[site], {})[site] = {"w": np.stack(values)}
    H = _heads(model)[2]
    size: dict[tuple[str, ...], int] = {("attention", "q_norm"): H, ("attention", "k_norm"): H}
    size |= {("attention", "out_norm"): model.heads * H, ("mlp", "down_norm"): model.mlp_width}
    for path, name in gains(model).items():
        scale_LD = np.stack([of(f"{linear(layer, name)}.weight", (size.get(path, D),)) for layer in layers])
        _at(blocks, path[:-1])[path[-1]] = {"scale": scale_LD}
    found = {"embedding": of(EMBEDDING, (V, D)), "blocks": blocks, "final_norm": {"scale": of(NORM, (D,))}}
    return found if model.tie_embeddings else found | {"head": np.ascontiguousarray(of(HEAD, (V, D)).T)}


def expected(model: ModelConfig) -> set[str]:
    """Names of all tensors of a model but those of its linear layers in the blocks."""
    per_layer = {f"{linear(layer, name)}.weight" for layer in range(model.layers) for name in gains(model).values()}
    return per_layer | {EMBEDDING, NORM} | (set() if model.tie_embeddings else {HEAD})


def _heads(model: ModelConfig) -> tuple[int, int, int]:
    K = model.kv_heads or model.heads
    return K, model.heads // K, model.head_size or model.width // model.heads


def _at(tree: Any, path: tuple[str, ...]) -> Any:
    for key in path:
        tree = tree[key]
    return tree
