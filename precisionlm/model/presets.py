"""The model sizes of three precision-scaling papers, each with its optimizer, batch and sequence length.

kumar: Kumar et al. 2024, arXiv:2411.04330. The paper prints parameter counts only. Depth, width and MLP width are ours:
   OLMo-style shapes (heads of 64, SwiGLU of about 8/3 the width in multiples of 128, untied head, no qk-norm) whose
   non-embedding counts come within 1 % of the nominal ones. Peak rate 6e-4 at the smallest width, divided by the
   relative width (muP) and, through `depth_scale`, by the root of the relative depth (depth-muP). Not stated there:
   clipping (1.0 here), last learning rate (a tenth of the peak, as OLMo).
sun: Sun et al. 2025, arXiv:2501.02423, Table 1. Heads are width / heads wide: 64, but 128 at 7B and 70B (printed: 64
   throughout). The printed 7B count, 7 083 130 880, needs an MLP width of 11008 where the table prints 10752.
chen: Chen et al. 2025, arXiv:2505.14302, Table 3: grouped-query attention.

None of the papers states its tokenizer. Vocabularies here are those of the tokenizers published with the papers'
training sets, padded: Dolma 1.7 (Kumar, Sun) 50 280 entries to 50 304, OLMo-2 mix (Chen) 100 278 to 100 352.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from precisionlm.config import Experiment, ModelConfig, OptimizerConfig, apply_overrides, build
from precisionlm.errors import UserError, nearest
from precisionlm.yaml_text import read_yaml

DOLMA_VOCABULARY, OLMO2_VOCABULARY = 50_304, 100_352


@dataclass(frozen=True)
class Preset:
    """A model size as a paper trained it. batch_size: sequences; sequence_length: tokens."""

    model: ModelConfig
    optimizer: OptimizerConfig
    batch_size: int
    sequence_length: int


def non_embedding_parameters(model: ModelConfig) -> int:
    """Weights of the blocks' linear layers: layers * (2 h q + 2 h kv + 3 h ffn), with q and kv the widths of all query
    and all key heads. The count of Sun et al. 2025, Table 1 (there q = kv = h)."""
    head_size = model.head_size or model.width // model.heads
    attention = 2 * (model.heads + (model.kv_heads or model.heads)) * head_size
    return model.layers * model.width * (attention + 3 * model.mlp_width)


def preset(name: str) -> Preset:
    """A preset by name, such as `sun-41m`. Raises UserError that names the nearest."""
    if name not in PRESETS:
        raise UserError(f"no model preset '{name}'; {nearest(name, list(PRESETS))}")
    return PRESETS[name]


def preset_changes(name: str) -> dict[str, Any]:
    """key path → value, for a tree of config.Experiment. Raises UserError."""
    p = preset(name)
    return {
        "name": name,
        "model": p.model.model_dump(),
        "optimizer": p.optimizer.model_dump(),
        "data.sequence_length": p.sequence_length,
        "training.batch_size": p.batch_size,
    }


def with_preset(tree: dict[str, Any]) -> dict[str, Any]:
    """A tree of config.Experiment whose `preset: NAME` is replaced by what it stands for; keys beside it win. Raises
    UserError."""
    if "preset" not in tree:
        return tree
    own = {key: value for key, value in tree.items() if key != "preset"}
    return _merged(_replaced({}, str(tree["preset"])), own)


def load_experiment(path: str | Path, overrides: list[str] | None = None) -> Experiment:
    """An experiment's YAML, which may name a `preset:`, with `--a.b value` overrides; `--preset NAME` replaces the
    file's model, optimizer, batch and sequence length. Raises UserError with file and key path."""
    words = overrides or []
    tree = with_preset(read_yaml(path))
    name = apply_overrides(tree, words).get("preset")
    if name is not None:
        tree = _replaced(tree, str(name))
    changed = apply_overrides(tree, words)
    return build({key: value for key, value in changed.items() if key != "preset"}, str(path))


def _replaced(tree: dict[str, Any], name: str) -> dict[str, Any]:
    """The tree with a preset's values in the place of its own."""
    tree = apply_overrides(tree, [])  # a copy
    for key_path, value in preset_changes(name).items():
        section, _, key = key_path.partition(".")
        if key:
            tree.setdefault(section, {})[key] = value
        else:
            tree[section] = value
    return tree


def _merged(base: Any, changes: Any) -> Any:
    if not (isinstance(base, dict) and isinstance(changes, dict)):
        return changes
    both = {key: _merged(base[key], changes[key]) for key in base.keys() & changes.keys()}
    return base | changes | both


_KUMAR_LAYERS, _KUMAR_WIDTH = 10, 512  # of the smallest model, where the printed learning rate holds


def _kumar(layers: int, width: int, mlp_width: int) -> Preset:
    model = ModelConfig(
        layers=layers,
        width=width,
        heads=width // 64,
        mlp_width=mlp_width,
        vocab_size=DOLMA_VOCABULARY,
        projection_norm=True,
    )
    optimizer = OptimizerConfig(
        learning_rate=float(f"{6e-4 * _KUMAR_WIDTH / width:.7g}"),  # as one would write it down
        depth_scale=_KUMAR_LAYERS,
        warmup_fraction=0.1,
        final_fraction=0.1,
        epsilon=1e-15,
    )
    return Preset(model, optimizer, batch_size=256, sequence_length=1024)


def _sun(layers: int, width: int, mlp_width: int, heads: int) -> Preset:
    model = ModelConfig(layers=layers, width=width, heads=heads, mlp_width=mlp_width, vocab_size=DOLMA_VOCABULARY)
    optimizer = OptimizerConfig(learning_rate=3e-4, warmup_steps=500)
    return Preset(model, optimizer, batch_size=1024, sequence_length=2048)


def _chen(layers: int, width: int, mlp_width: int, heads: int, kv_heads: int, batch_size: int, rate: float) -> Preset:
    model = ModelConfig(
        layers=layers,
        width=width,
        heads=heads,
        kv_heads=kv_heads,
        mlp_width=mlp_width,
        vocab_size=OLMO2_VOCABULARY,
    )
    optimizer = OptimizerConfig(learning_rate=rate, warmup_steps=500, final_fraction=0.1)
    return Preset(model, optimizer, batch_size, sequence_length=2048)


PRESETS: dict[str, Preset] = {
    "kumar-30m": _kumar(10, 512, 1280),
    "kumar-60m": _kumar(13, 640, 1536),
    "kumar-110m": _kumar(15, 768, 2176),
    "kumar-220m": _kumar(17, 1024, 2816),
    "kumar-440m": _kumar(22, 1280, 3456),
    "kumar-880m": _kumar(23, 1792, 4736),
    "kumar-1.17b": _kumar(24, 2048, 5248),
    "kumar-1.76b": _kumar(28, 2304, 6016),
    "sun-41m": _sun(12, 512, 1536, 8),
    "sun-85m": _sun(12, 768, 2048, 12),
    "sun-154m": _sun(12, 1024, 2816, 16),
    "sun-679m": _sun(24, 1536, 4096, 24),
    "sun-1.2b": _sun(24, 2048, 5632, 32),
    "sun-7b": _sun(35, 4096, 11008, 32),
    "sun-70b": _sun(88, 8192, 22016, 64),
    "chen-74m": _chen(12, 768, 2048, 16, 4, 256, 1.5e-3),
    "chen-145m": _chen(12, 1024, 3072, 16, 4, 256, 1e-3),
    "chen-297m": _chen(12, 1536, 4096, 24, 6, 512, 8e-4),
    "chen-595m": _chen(24, 1536, 4096, 24, 6, 512, 6e-4),
    "chen-973m": _chen(16, 2048, 8192, 32, 8, 512, 6e-4),
    "chen-2.8b": _chen(28, 3072, 8192, 24, 8, 512, 6e-4),
}
