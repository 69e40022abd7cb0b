"""A sweep file: one experiment and what is changed in it.

experiment: {…}                      # the tree of config.Experiment, or the path of its YAML file
grid:                                # every combination of the axes
  size:                              # a named axis: a list of {key path: value, …}
    - {model.layers: 2, model.width: 64, model.heads: 2, model.mlp_width: 192}
    - {model.layers: 4, model.width: 128, model.heads: 4, model.mlp_width: 384}
  tokens: [1e6, 4e6]                 # D; becomes training.steps, rounded to whole steps
  precision.recipe: [bf16, W4A8]     # a key path: a list of values
  preset: [sun-41m, sun-85m]         # a paper's model with its optimizer, batch and sequence length (model.presets)
zip: {…}                             # axes of equal length that go forward together; every step of them with every
                                     # combination of the grid
where: D/N < 500 and N > 1e5         # which rows are meant (sweep.where), or a list of such expressions
seeds: 3                             # training.seed 0, 1, 2 for every row; or a list of seeds
lr: {mup: {base_width: 256, rate: 3e-3}}                    # the peak rate of a row by a rule (sweep.rules)
budget: {flops: 1e19, chip_hours: 4, chip: H100, mfu: 0.3}  # refused above these (sweep.budget)
evaluate: {ptq: [W3, W4-g128, mxfp4]}                       # weights rounded to these formats after training
"""

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import Field, field_validator

from precisionlm.config import Experiment, apply_overrides, build
from precisionlm.errors import UserError
from precisionlm.model.presets import preset_changes, with_preset
from precisionlm.precision.recipe import Quantization
from precisionlm.ptq.method import weight_quantization
from precisionlm.sections import Section, validated
from precisionlm.sweep.budget import Budget
from precisionlm.sweep.rules import LearningRate
from precisionlm.yaml_text import read_yaml

_RATE, _SEED, _STEPS = "optimizer.learning_rate", "training.seed", "training.steps"
_SHORT = ("tokens", "preset")  # axes that are no key paths and list values all the same

_MOST_ROWS = 100_000  # of a file

Changes = dict[str, Any]  # key path (or `tokens`, `preset`) → value


class Evaluate(Section):
    """What finished runs are evaluated at, beside their own precision."""

    ptq: list[str] = Field([])

    @field_validator("ptq")
    @classmethod
    def _formats(cls, words: list[str]) -> list[str]:
        for word in words:
            try:
                weight_quantization(word)
            except UserError as error:
                raise ValueError(str(error)) from None
        return words


class SweepFile(Section):
    """The keys of a sweep file; what the axes say is read by `read_sweep`."""

    experiment: Any = None
    grid: Any = None
    zip: Any = None
    where: Any = None
    seeds: Any = None
    lr: LearningRate | None = None
    budget: Budget | None = None
    evaluate: Evaluate = Evaluate()

    @field_validator("where")
    @classmethod
    def _expressions(cls, given: Any) -> tuple[str, ...]:
        texts = given if isinstance(given, list) else [] if given is None else [given]
        if not all(isinstance(text, str) for text in texts):
            raise ValueError("must be an expression such as D/N < 500, or a list of them")
        return tuple(texts)

    @field_validator("seeds")
    @classmethod
    def _listed(cls, given: Any) -> list[int] | None:
        seeds = list(range(min(given, _MOST_ROWS + 1))) if type(given) is int else given
        if given is None or (isinstance(seeds, list) and seeds and all(type(seed) is int for seed in seeds)):
            return seeds
        raise ValueError("must be how many seeds, such as 3, or a list of them")


@dataclass(frozen=True)
class Sweep:
    """experiments: in the order of the axes, the last one changing fastest; ptq: formats in which finished runs are
    evaluated too."""

    experiments: list[Experiment]
    budget: Budget | None = None
    ptq: tuple[Quantization, ...] = ()


def load_sweep(path: str | Path, overrides: list[str] | None = None) -> list[Experiment]:
    """The experiments of a sweep file (`read_sweep`)."""
    return read_sweep(path, overrides).experiments


def read_sweep(path: str | Path, overrides: list[str] | None = None) -> Sweep:
    """A sweep file, overrides applied to each of its experiments. Raises UserError naming the file and the key."""
    file, source = validated(SweepFile, read_yaml(path), str(path)), str(path)
    base = file.experiment
    if isinstance(base, str):
        base = read_yaml(Path(path).parent / base)
    if isinstance(base, dict):
        base = with_preset(base)
    if not isinstance(base, dict) or (file.grid is None and file.zip is None and file.seeds is None):
        raise UserError(f"{path}: needs 'experiment:' (a tree or a file) and 'grid:' (axes with lists of values)")
    axes = _axes(file, source)
    if (rows := math.prod(map(len, axes.values()))) > _MOST_ROWS:
        raise UserError(f"{path}: the axes make {rows:,} rows, at most {_MOST_ROWS:,} are possible; split the sweep")
    points = []
    for combination in itertools.product(*axes.values()):
        changes = {key: value for part in combination for key, value in part.items()}
        points.append(_build_point(base, changes, file.lr, overrides or [], source))
    if file.where is not None:
        points = _meant(points, file.where, f"{path}: where")
    return Sweep(points, file.budget, tuple(weight_quantization(word) for word in file.evaluate.ptq))


def _meant(points: list[Experiment], where: tuple[str, ...], source: str) -> list[Experiment]:
    from precisionlm.sweep.where import meant  # reads counts of real models: with JAX

    kept = [e for e in points if meant(e, where, source)]
    if not kept:
        raise UserError(f"{source}: none of the {len(points)} rows is left")
    return kept


def _axes(file: SweepFile, source: str) -> dict[str, Sequence[Changes]]:
    """The axes of the product by name, no key path set by two of them."""
    axes: dict[str, Sequence[Changes]] = dict(_section("grid", file.grid, source))
    together = _section("zip", file.zip, source)
    lengths = {f"'{name}' has {len(values)}": len(values) for name, values in together.items()}
    if len(set(lengths.values())) > 1:
        raise UserError(f"{source}: zip: the axes must be equally long; {', '.join(lengths)}")
    sets: dict[str, str] = {_RATE: "'lr:'"} if file.lr is not None else {}
    named = {f"grid axis '{name}'": values for name, values in axes.items()}
    named |= {f"zip axis '{name}'": values for name, values in together.items()}
    if file.seeds is not None:
        axes["seeds"] = named["'seeds:'"] = [{_SEED: seed} for seed in file.seeds]
    for name, values in named.items():
        for key in dict.fromkeys(_STEPS if key == "tokens" else key for value in values for key in value):
            if key in sets:
                raise UserError(f"{source}: {name} and {sets[key]} both set {key}; leave one of them away")
            sets[key] = name
    seeds = axes.pop("seeds", None)
    if together:
        steps = zip(*together.values(), strict=True)
        axes["zip"] = [{k: v for part in step for k, v in part.items()} for step in steps]
    return axes | ({} if seeds is None else {"seeds": seeds})


def _section(title: str, axes: Any, source: str) -> dict[str, list[Changes]]:
    if axes is not None and not isinstance(axes, dict):
        raise UserError(f"{source}: {title}: must be axes with lists of values, such as {{tokens: [1e6, 4e6]}}")
    return {str(name): _axis(source, title, str(name), values) for name, values in (axes or {}).items()}


def _axis(source: str, title: str, name: str, values: Any) -> list[Changes]:
    if not isinstance(values, list) or not values:
        raise UserError(f"{source}: {title} axis '{name}' must be a list of values")
    if "." in name or name in _SHORT:
        return [{name: value} for value in values]
    if not all(isinstance(value, dict) for value in values):
        raise UserError(
            f"{source}: {title} axis '{name}' is no key path (such as precision.recipe), so it must list "
            "{key path: value} mappings"
        )
    return values


def _build_point(
    base: dict[str, Any], changes: Changes, rule: LearningRate | None, overrides: list[str], source: str
) -> Experiment:
    """One experiment. Overrides win over `tokens` and over the rule as over all else."""
    tree = apply_overrides(base, [])
    tokens = changes.pop("tokens", None)
    if name := changes.pop("preset", None):
        changes = preset_changes(str(name)) | changes
    _set(tree, changes, source)
    tree = apply_overrides(tree, overrides)
    if tokens is not None and not _overridden(_STEPS, overrides):
        if type(tokens) not in (int, float) or not 0 < tokens < math.inf:
            raise UserError(f"{source}: tokens = {tokens}: must be a positive number of tokens")
        placeholders = {_STEPS: 1} | ({} if rule is None else {_RATE: 1.0})
        batch_tokens = build(_with(tree, placeholders, source), source).batch_tokens
        tree = _with(tree, {_STEPS: max(1, round(tokens / batch_tokens))}, source)
    if rule is not None and not _overridden(_RATE, overrides):
        sized = build(_with(tree, {_RATE: 1.0}, source), source)
        tree = _with(tree, {_RATE: rule.peak(sized)}, source)
    return build(tree, source)


def _overridden(key_path: str, overrides: list[str]) -> bool:
    return any(word.split("=")[0] == f"--{key_path}" for word in overrides)


def _with(tree: dict[str, Any], changes: Mapping[str, Any], source: str) -> dict[str, Any]:
    changed = apply_overrides(tree, [])  # a copy
    _set(changed, changes, source)
    return changed


def _set(tree: dict[str, Any], changes: Mapping[str, Any], source: str) -> None:
    for key_path, value in changes.items():
        *parents, key = key_path.split(".")
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {})
            if not isinstance(node, dict):
                raise UserError(f"{source}: '{key_path}': '{parent}' is no section")
        node[key] = value
