"""A sweep file: one experiment and a grid of changes to it.

experiment: {…}                      # the tree of config.Experiment, or the path of its YAML file
grid:                                # every combination of the axes
  size:                              # a named axis: a list of {key path: value, …}
    - {model.layers: 2, model.width: 64, model.heads: 2, model.mlp_width: 192}
    - {model.layers: 4, model.width: 128, model.heads: 4, model.mlp_width: 384}
  tokens: [1e6, 4e6]                 # D; becomes training.steps, rounded to whole steps
  precision.recipe: [bf16, W4A8]     # a key path: a list of values
  preset: [sun-41m, sun-85m]         # a paper's model with its optimizer, batch and sequence length (model.presets)
"""

import itertools
from pathlib import Path
from typing import Any

from precisionlm.config import Experiment, apply_overrides, build, read_yaml
from precisionlm.errors import UserError, nearest
from precisionlm.model.presets import preset_changes, with_preset


def load_sweep(path: str | Path, overrides: list[str] | None = None) -> list[Experiment]:
    """All experiments of a sweep file, overrides applied to each. Raises UserError naming the file and the key."""
    tree = read_yaml(path)
    for key in tree:
        if key not in ("experiment", "grid"):
            raise UserError(f"{path}: unknown key '{key}'; {nearest(str(key), ['experiment', 'grid'])}")
    base = tree.get("experiment")
    if isinstance(base, str):
        base = read_yaml(Path(path).parent / base)
    if isinstance(base, dict):
        base = with_preset(base)
    if not isinstance(base, dict) or not isinstance(tree.get("grid"), dict):
        raise UserError(f"{path}: needs 'experiment:' (a tree or a file) and 'grid:' (axes with lists of values)")
    axes = [_axis(str(path), str(name), values) for name, values in tree["grid"].items()]
    points = []
    for combination in itertools.product(*axes):
        changes = {key: value for part in combination for key, value in part.items()}
        points.append(_build_point(base, changes, overrides or [], str(path)))
    return points


def _axis(path: str, name: str, values: Any) -> list[dict[str, Any]]:
    if not isinstance(values, list) or not values:
        raise UserError(f"{path}: grid axis '{name}' must be a list of values")
    if "." in name or name in ("tokens", "preset"):
        return [{name: value} for value in values]
    if not all(isinstance(value, dict) for value in values):
        raise UserError(
            f"{path}: grid axis '{name}' is no key path (such as precision.recipe), so it must list "
            "{key path: value} mappings"
        )
    return values


def _build_point(base: dict[str, Any], changes: dict[str, Any], overrides: list[str], path: str) -> Experiment:
    tree = apply_overrides(base, [])
    tokens = changes.pop("tokens", None)
    if name := changes.pop("preset", None):
        changes = preset_changes(str(name)) | changes
    for key_path, value in changes.items():
        *parents, key = key_path.split(".")
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {})
            if not isinstance(node, dict):
                raise UserError(f"{path}: grid: '{key_path}': '{parent}' is no section")
        node[key] = value
    tree = apply_overrides(tree, overrides)
    if tokens is not None and not any(word.startswith("--training.steps") for word in overrides):
        if not isinstance(tokens, int | float) or tokens <= 0:
            raise UserError(f"{path}: grid: tokens = {tokens}: must be a positive number of tokens")
        training = tree.setdefault("training", {})
        training["steps"] = 1
        batch_tokens = build(tree, path).batch_tokens
        training["steps"] = max(1, round(tokens / batch_tokens))
    return build(tree, path)
