"""Runs by what they are: a row a run directory, from its files alone: finished, under way, failed or damaged."""

import math
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from precisionlm.config import load
from precisionlm.errors import UserError, nearest
from precisionlm.expressions import evaluate, truth
from precisionlm.precision.recipe import canonical
from precisionlm.storage.failure import read_failure
from precisionlm.storage.result import Result
from precisionlm.storage.run_directory import RunDirectory, last_metrics
from precisionlm.sweep.status import STATES, standing_of
from precisionlm.watching.reading import run_folders

TRACES = ("config.yaml", "result.json", "failed.json", "metrics.jsonl")  # by any of which a folder is a run's
STATUSES = (*STATES, "damaged", "copy")
_NUMBERS = ("N", "D", "seed", "step", "steps", "batch_tokens", "loss", "tokens_per_second", "age")
_TEXTS = ("run_id", "name", "recipe", "status", "reason", "folder")
_USUAL = {"N_params": "N", "D_tokens": "D", "val_loss": "loss"}  # as columns of the runs table are called


@dataclass(frozen=True)
class Listed:
    """One run. What is not known is None, or empty.

    status: those of sweeps (done, diverged, running, failed, begun), damaged (its files cannot be read; reason says
    which), or copy (it holds another run's result). N: non-embedding parameters; D: tokens that it is to train on, or
    has. loss: of validation where it is finished, else of the last training step (nats/token); age: since one of its
    files changed (s).
    """

    run_id: str
    folder: str
    status: str
    age: float | None
    name: str = ""
    recipe: str = ""
    reason: str = ""
    N: float | None = None
    D: float | None = None
    seed: float | None = None
    step: float | None = None
    steps: float | None = None
    batch_tokens: float | None = None
    loss: float | None = None
    tokens_per_second: float | None = None

    @property
    def row(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


def runs_under(roots: Sequence[Path]) -> list[Listed]:
    """Every run directory among the paths and at most two folders below them. Raises UserError where there is none."""
    now = time.time()
    found = [_listed(folder, now) for folder in run_folders(roots, TRACES)]
    if not found:
        raise UserError(f"{', '.join(map(str, roots))}: no run directory here, nor at most two folders below")
    return found


def those(runs: Sequence[Listed], where: str | None) -> list[Listed]:
    """The runs for which an expression (`expressions`) holds, such as `N > 1e6 and status == 'done'`. Raises
    UserError."""
    if where is None or not runs:
        return list(runs)
    columns: dict[str, Any] = {name: np.array([getattr(one, name) for one in runs], float) for name in _NUMBERS}
    columns |= {name: np.array([getattr(one, name) for one in runs], object) for name in _TEXTS}
    columns |= {usual: columns[name] for usual, name in _USUAL.items()}
    holds = truth(evaluate(where, columns, "--where", {"recipe": canonical}))
    if holds is None:
        raise UserError(f"--where '{where}': is no true or false; such as loss < 3.2 and recipe == 'W4A8'")
    return [one for one, kept in zip(runs, np.broadcast_to(holds, len(runs)), strict=True) if kept]


def ordered(runs: Sequence[Listed], key: str | None, reverse: bool = False) -> list[Listed]:
    """The runs by one of their columns, by size, tokens, recipe and seed if None; what is not known comes last. Raises
    UserError for no column."""
    keys = ("N", "D", "recipe", "seed") if key is None else (_USUAL.get(key, key),)
    for one in keys:
        if one not in (*_NUMBERS, *_TEXTS):
            raise UserError(f"--sort {key}: {nearest(one, [*_NUMBERS, *_TEXTS])}")

    def known(run: Listed) -> bool:
        return all(getattr(run, one) not in (None, "") for one in keys)

    def place(run: Listed) -> tuple[Any, ...]:
        return tuple(getattr(run, one) for one in keys)

    rest = [run for run in runs if not known(run)]
    return sorted(filter(known, runs), key=place, reverse=reverse) + rest


def _listed(folder: Path, now: float) -> Listed:
    directory = RunDirectory.at(folder.absolute())
    changed = [path.stat().st_mtime for name in TRACES if (path := folder / name).is_file()]
    run_id, where, age = directory.path.name, str(folder), now - max(changed) if changed else None
    try:
        if (result := Result.read(directory)) is not None:
            theirs = result.row.get("run_id", run_id)
            status, reason = ("copy", f"holds run {theirs}") if theirs != run_id else (result.status, result.reason)
            return Listed(run_id, where, status, age, reason=reason, **_of_result(result))
        failure = read_failure(directory)
        if failure is not None and not (folder / "config.yaml").is_file():
            return Listed(run_id, where, "failed", age, reason=failure)
        e = load(folder / "config.yaml")
    except UserError as error:
        return Listed(run_id, where, "damaged", age, reason=str(error))
    standing = standing_of(run_id, e, directory)
    losses = [line["loss"] for line in last_metrics(directory.metrics) if "loss" in line]
    return Listed(
        run_id,
        where,
        standing.state,
        age,
        e.name,
        standing.recipe,
        standing.reason,
        standing.non_embedding,
        standing.tokens,
        standing.seed,
        standing.step,
        standing.steps,
        e.batch_tokens,
        _number(losses[-1]) if losses else None,
        standing.tokens_per_second,
    )


def _of_result(result: Result) -> dict[str, Any]:
    row = result.row
    numbers = ("seed", "steps", "batch_tokens", "tokens_per_second")
    of_training = next((one for one in result.evaluations if one.get("evaluation") == "trained"), {})
    return {
        "name": str(row.get("name") or ""),
        "recipe": str(row.get("recipe") or ""),
        "N": _number(row.get("N_params")),
        "D": _number(row.get("D_tokens")),
        "step": _number(row.get("steps")),
        "loss": _number(of_training.get("val_loss")),
        **{name: _number(row.get(name)) for name in numbers},
    }


def _number(value: Any) -> float | None:
    return value if isinstance(value, int | float) and math.isfinite(value) else None
