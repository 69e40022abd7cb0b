"""The grid of `bench sweep`: sixteen precisions of one structure, and seeds beyond those, of every size."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from precisionlm.bench.steps import SIZES, tree_of
from precisionlm.data.meta import SPLIT_FILES, Meta
from precisionlm.errors import UserError

RECIPES = tuple(f"W{w}A{a}KV{kv}" for w in (8, 4, 3, 2) for a in (8, 4) for kv in (8, 4))


def vocabulary_of(sizes: Sequence[str]) -> int:
    """Of sizes that share it. Raises UserError for an unknown size, and where they do not."""
    found = {size: tree_of(size, RECIPES[0])["model"]["vocab_size"] for size in sizes}
    if len(set(found.values())) > 1:
        listed = ", ".join(f"{size} {count:,}" for size, count in found.items())
        raise UserError(f"--sizes: one grid has one vocabulary, these have {listed}")
    return next(iter(found.values()))


def batch_tokens(size: str) -> int:
    """Of a step."""
    sequences, length = SIZES[size][5:]
    return sequences * length


def steps_of(size: str, tokens: float) -> int:
    """Steps of a run of about so many tokens."""
    return max(1, round(tokens / batch_tokens(size)))


def sweep_tree(sizes: Sequence[str], runs: int, tokens: float, data: Path) -> dict[str, Any]:
    """A sweep file of so many runs of every size, each of about so many tokens of a prepared folder."""
    base = _on(data, tree_of(sizes[0], RECIPES[0], steps=steps_of(sizes[0], tokens)))
    return {
        "experiment": base,
        "grid": {"size": [_size_point(size, tokens) for size in sizes], "run": [_run_point(r) for r in range(runs)]},
    }


def run_tree(size: str, number: int, tokens: float, data: Path) -> dict[str, Any]:
    """The file of one run of that grid."""
    recipe, seed = _run_point(number).values()
    return _on(data, tree_of(size, recipe, steps=steps_of(size, tokens), seed=seed))


def torch_arguments(size: str, number: int, tokens: float, data: Path) -> dict[str, Any]:
    """The same run for `torch_peer`."""
    recipe, seed = _run_point(number).values()
    layers, width, heads, mlp_width, vocabulary, sequences, length = SIZES[size]
    w, a, kv = (int(bits) for bits in re.findall(r"\d+", recipe))
    return {
        "layers": layers,
        "width": width,
        "heads": heads,
        "mlp_width": mlp_width,
        "vocab_size": vocabulary,
        "sequences": sequences,
        "length": length,
        "steps": steps_of(size, tokens),
        "seed": seed,
        "data": str(data / SPLIT_FILES["train"]),
        "dtype": Meta.read(data).dtype,
        "bits": {"w": w, "a": a, "kv": kv},
    }


def _run_point(number: int) -> dict[str, Any]:
    return {"precision.recipe": RECIPES[number % len(RECIPES)], "training.seed": number // len(RECIPES)}


def _size_point(size: str, tokens: float) -> dict[str, Any]:
    tree = tree_of(size, RECIPES[0], steps=steps_of(size, tokens))
    sections = ("model", "training")
    changes = {f"{section}.{key}": value for section in sections for key, value in tree[section].items()}
    return changes | {"data.sequence_length": tree["data"]["sequence_length"]}


def _on(data: Path, tree: dict[str, Any]) -> dict[str, Any]:
    return tree | {"data": tree["data"] | {"path": str(data)}}
