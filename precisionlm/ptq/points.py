"""Points of a run whose weights are kept: its end, checkpoints on the way, the trunk's state before the decay."""

import math
import statistics
from dataclasses import dataclass
from typing import Any

from etils import epath

from precisionlm.data import source
from precisionlm.errors import UserError
from precisionlm.ptq.method import Steps
from precisionlm.storage.checkpoint import folder_of, steps_in
from precisionlm.storage.run_directory import RunDirectory, read_metrics
from precisionlm.training.flops import training_flops_per_token
from precisionlm.training.optimizer import decay_share, final_rate_fraction, hyperparameters
from precisionlm.training.run import Run, non_embedding_of


@dataclass(frozen=True)
class Point:
    """Weights after so many steps, in a folder of checkpoints. end: the run has no more steps."""

    folder: epath.PathLike
    step: int
    end: bool


def one_before(point: Point) -> int | None:
    """The step of the checkpoint before a point's; None where there is none."""
    return next((step for step in steps_in(point.folder) if step < point.step), None)


def points(run: Run, directory: RunDirectory, steps: Steps) -> list[Point]:
    """Those of a finished run that are asked for, by step. Raises UserError where a step was not kept."""
    total = run.experiment.training.steps
    folders = [folder_of(directory, run.experiment.checkpoint, name) for name in ("trunk", "checkpoints")]
    if steps == "last":
        return [Point(folders[-1], total, True)]
    kept = {step: Point(folder, step, step == total) for folder in folders for step in steps_in(folder)}
    wanted = set(kept) if steps == "all" else set(steps)
    if missing := sorted(wanted - set(kept)):
        there = ", ".join(map(str, sorted(kept))) or "none"
        raise UserError(f"{directory.path}: no checkpoint of step {', '.join(map(str, missing))}; kept: {there}")
    return [kept[step] for step in sorted(wanted)]


def columns(run: Run, directory: RunDirectory, point: Point) -> dict[str, Any]:
    """What the row of a point says otherwise than that of the whole run: all that counts steps and tokens."""
    if point.end:
        return {}
    e, steps = run.experiment, point.step
    tokens, unique, hyper = steps * e.batch_tokens, e.data.unique_tokens, hyperparameters(e)
    before = [line for line in read_metrics(directory.metrics) if line["step"] <= steps and "loss" in line]
    losses = [line["loss"] for line in before[-max(1, steps // 20) :]]
    skipped = sum(line["finite"] == 0 for line in before)
    constant = (1 - decay_share(hyper)) * hyper["steps"]  # steps before the rate falls
    return {
        "intermediate": True,
        "steps": steps,
        "D_tokens": tokens,
        "D_unique": source.distinct_tokens(run.dataset, e.data.sequence_length, tokens, unique),
        "epochs": source.epochs(run.dataset, e.data.sequence_length, tokens, unique),
        "flops": tokens * training_flops_per_token(e.model, non_embedding_of(run), e.data.sequence_length),
        "train_loss": math.nan if None in losses or not losses else statistics.fmean(losses),
        "final_lr_fraction": final_rate_fraction(steps, hyper),
        "decay_share": max(0.0, 1 - constant / steps),
        "skipped_steps": skipped,
        "wall_seconds": before[-1].get("wall_seconds") if before else None,
    }
