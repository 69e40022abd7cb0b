"""Which model is which Hugging Face class: `config.json` from ours and ours from `config.json`.

plain, grouped queries, tied  LlamaForCausalLM
qk_norm, any head size        Qwen3ForCausalLM
projection_norm               BitNetForCausalLM with hidden_act silu: its attn_sub_norm and ffn_sub_norm
both norms                    none
"""

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

from precisionlm.config import ModelConfig
from precisionlm.errors import UserError
from precisionlm.sections import validated


@dataclass(frozen=True)
class Architecture:
    """model_type and class name of transformers. ours: the keys of our model that make it. absent: what its config
    means where a key is absent; a key that is needed and not here has no meaning then that we take."""

    model_type: str
    class_name: str
    ours: dict[str, bool]
    absent: dict[str, Any]


_ROPE = {"rope_theta": 10000.0, "rms_norm_eps": 1e-6, "tie_word_embeddings": False}
LLAMA = Architecture(
    "llama", "LlamaForCausalLM", {}, _ROPE | {"hidden_act": "silu", "num_key_value_heads": None, "head_dim": None}
)
QWEN3 = Architecture("qwen3", "Qwen3ForCausalLM", {"qk_norm": True}, _ROPE | {"hidden_act": "silu", "head_dim": 128})
BITNET = Architecture("bitnet", "BitNetForCausalLM", {"projection_norm": True}, {"head_dim": None})
ARCHITECTURES = (LLAMA, QWEN3, BITNET)

# Keys that change no logit, whatever they hold.
_HARMLESS = {
    *("architectures", "model_type", "torch_dtype", "dtype", "transformers_version", "_name_or_path", "use_cache"),
    *("bos_token_id", "eos_token_id", "pad_token_id", "initializer_range", "attention_dropout", "max_window_layers"),
    *("max_position_embeddings", "return_dict", "id2label", "label2id", "problem_type", "chunk_size_feed_forward"),
    *("_attn_implementation", "attn_implementation", "_commit_hash"),
    "pretraining_tp",  # the same product in parts
}
_TAKEN = {
    *("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "rope_scaling"),
    *("num_key_value_heads", "head_dim", "rms_norm_eps", "tie_word_embeddings", "rope_theta", "rope_parameters"),
    *("hidden_act", "quantization_config"),
}
# Keys that change logits unless they hold one of these.
_ONLY: dict[str, tuple[Any, ...]] = {
    "partial_rotary_factor": (1.0, 1),
    "logits_scaling": (1.0, 1),
    "residual_multiplier": (1.0, 1),
    "embedding_multiplier": (1.0, 1),
}


def architecture_of(model: ModelConfig) -> Architecture:
    """The class that computes what a model does. Raises UserError where there is none."""
    if model.qk_norm and model.projection_norm:
        raise UserError(
            "model.qk_norm with model.projection_norm: no Hugging Face class has both norms (Qwen3 has the first, "
            "BitNet the second), so this model cannot be exported"
        )
    heads_width = model.heads * (model.head_size or model.width // model.heads)
    if model.projection_norm and heads_width != model.width:
        raise UserError(
            f"model.projection_norm: BitNetForCausalLM needs heads x head_size = width, but {heads_width} is not "
            f"{model.width}; this model cannot be exported"
        )
    return QWEN3 if model.qk_norm else BITNET if model.projection_norm else LLAMA


def config_of(model: ModelConfig, sequence_length: int, eos_id: int, dtype: str) -> dict[str, Any]:
    """The content of config.json. dtype: of the tensors. Raises UserError."""
    architecture = architecture_of(model)
    rope: dict[str, Any] = {"rope_type": "default", "rope_theta": model.rope_base}
    older: dict[str, Any] = {"rope_theta": model.rope_base}  # for readers before transformers 5
    if s := model.rope_scaling:
        scaling = {
            "rope_type": "llama3",
            "factor": s.factor,
            "low_freq_factor": s.low_frequency_factor,
            "high_freq_factor": s.high_frequency_factor,
            "original_max_position_embeddings": s.original_length,
        }
        rope, older = rope | scaling, older | {"rope_scaling": scaling}
    return {
        "architectures": [architecture.class_name],
        "model_type": architecture.model_type,
        "vocab_size": model.vocab_size,
        "hidden_size": model.width,
        "intermediate_size": model.mlp_width,
        "num_hidden_layers": model.layers,
        "num_attention_heads": model.heads,
        "num_key_value_heads": model.kv_heads or model.heads,
        "head_dim": model.head_size or model.width // model.heads,
        "hidden_act": "silu",
        "rms_norm_eps": model.norm_epsilon,
        "tie_word_embeddings": model.tie_embeddings,
        "max_position_embeddings": sequence_length,
        "rope_parameters": rope,
        **older,
        "attention_bias": False,
        "attention_dropout": 0.0,
        "initializer_range": model.init_std,
        "use_cache": True,
        "bos_token_id": None,
        "eos_token_id": eos_id,
        "pad_token_id": None,
        "dtype": dtype,
        "torch_dtype": dtype,
    }


def model_of(config: dict[str, Any], where: str, ignored: Collection[str] = ()) -> ModelConfig:
    """Our model of a config.json. ignored: keys that are passed over, whatever they would change. Raises UserError for
    other classes than these, and for keys that would change the logits or that nobody knows here."""
    config = {key: value for key, value in config.items() if key not in ignored}
    architecture = next((a for a in ARCHITECTURES if a.model_type == config.get("model_type")), None)
    if architecture is None:
        known = ", ".join(a.model_type for a in ARCHITECTURES)
        raise UserError(f"{where}: model_type is {config.get('model_type')!r}; known: {known}")
    classes = config.get("architectures") or [architecture.class_name]
    if classes != [architecture.class_name]:
        raise UserError(f"{where}: architectures is {classes!r}; only {architecture.class_name} is read")
    _check_other_keys(config, where)

    def of(key: str) -> Any:
        if key not in config and key not in architecture.absent:
            raise UserError(f"{where}: key '{key}' is missing")
        return config.get(key, architecture.absent.get(key))

    if of("hidden_act") != "silu":
        raise UserError(f"{where}: hidden_act is {config.get('hidden_act')!r}; only silu (SwiGLU) is computed here")
    base, scaling = _rope(config, architecture, where)
    tree = {
        "layers": of("num_hidden_layers"),
        "width": of("hidden_size"),
        "heads": of("num_attention_heads"),
        "kv_heads": of("num_key_value_heads"),
        "head_size": of("head_dim"),
        "mlp_width": of("intermediate_size"),
        "vocab_size": of("vocab_size"),
        "tie_embeddings": of("tie_word_embeddings"),
        "norm_epsilon": of("rms_norm_eps"),
        "rope_base": base,
        "rope_scaling": scaling,
        "init_std": config.get("initializer_range", 0.02),
        **architecture.ours,
    }
    model = validated(ModelConfig, tree, where)
    # As our own configs would say it: what follows from the rest is not given.
    same = {
        "kv_heads": None if model.kv_heads == model.heads else model.kv_heads,
        "head_size": None if model.head_size == model.width / model.heads else model.head_size,
    }
    return model.model_copy(update=same)


def _check_other_keys(config: dict[str, Any], where: str) -> None:
    for key, value in config.items():
        off = value is None or value is False
        plain = key == "layer_types" and set(value or ["full_attention"]) == {"full_attention"}
        window = key == "sliding_window" and config.get("use_sliding_window") is False
        if key in _TAKEN or key in _HARMLESS or off or plain or window or value in _ONLY.get(key, ()):
            continue
        raise UserError(
            f"{where}: {key} is {value!r}, which would change the logits, or is not known here; --ignore {key} passes "
            "over it"
        )


def _rope(config: dict[str, Any], architecture: Architecture, where: str) -> tuple[float, dict[str, Any] | None]:
    """(base, our scaling) of the rotary embedding, from the keys of transformers 4 or 5."""
    given = config.get("rope_parameters") or config.get("rope_scaling") or {}
    if not isinstance(given, dict):
        raise UserError(f"{where}: rope_parameters is {given!r}, not an object")
    base = given.get("rope_theta", config.get("rope_theta", architecture.absent.get("rope_theta")))
    if base is None:
        raise UserError(f"{where}: key 'rope_theta' is missing")
    kind = given.get("rope_type", given.get("type", "default"))
    if kind == "default":
        return float(base), None
    keys = {
        "factor": "factor",
        "low_freq_factor": "low_frequency_factor",
        "high_freq_factor": "high_frequency_factor",
        "original_max_position_embeddings": "original_length",
    }
    alien = set(given) - set(keys) - {"rope_type", "type", "rope_theta"}
    if kind != "llama3" or alien or not set(keys) <= set(given):
        what = f"with {', '.join(sorted(alien))}" if alien else "" if kind != "llama3" else "without all of its keys"
        raise UserError(f"{where}: rope_type is {kind!r} {what}".rstrip() + "; default and llama3 are computed here")
    scaling: dict[str, Any] = {ours: float(given[theirs]) for theirs, ours in keys.items()}
    return float(base), scaling | {"original_length": int(scaling["original_length"])}
