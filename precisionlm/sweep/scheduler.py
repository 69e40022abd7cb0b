"""Run what is left of a sweep, one experiment after the other in one process, so that executables are shared."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from precisionlm.config import Experiment
from precisionlm.errors import DivergedError, PreemptedError
from precisionlm.progress import Reporter
from precisionlm.training.flops import training_flops_per_token
from precisionlm.training.loop import train
from precisionlm.training.run import Run, non_embedding_of, prepare_run
from precisionlm.training.run_directory import RunDirectory
from precisionlm.training.step import train_step


@dataclass(frozen=True)
class Row:
    """One experiment of a sweep before it is run. flops: of training, by formula."""

    run: Run
    status: str
    non_embedding: int
    flops: float


@dataclass(frozen=True)
class SweepOutcome:
    """Runs by what became of them, and the training-step executables that the sweep compiled."""

    done: list[str]
    skipped: list[str]
    diverged: list[str]
    compilations: int


def plan(experiments: Sequence[Experiment], out: Path) -> list[Row]:
    """Every experiment checked against data and devices, with its status (new, begun, done, diverged). Nothing is run.

    Raises UserError for the first experiment that cannot run, so that a sweep fails before it spends anything.
    """
    rows: dict[str, Row] = {}
    for experiment in experiments:
        run = prepare_run(experiment)
        if run.run_id in rows:
            continue
        directory = RunDirectory(out, run.run_id)
        finished = directory.read_json("result.json")
        status = finished["status"] if finished else "begun" if directory.path.exists() else "new"
        n = non_embedding_of(run)
        flops = experiment.tokens * training_flops_per_token(run.experiment.model, n, experiment.data.sequence_length)
        rows[run.run_id] = Row(run, status, n, flops)
    return list(rows.values())


def run_sweep(rows: Sequence[Row], out: Path, report: Reporter, interrupted: Callable[[], bool]) -> SweepOutcome:
    """Train what is not finished. Runs that share a program come one after the other. A diverged run is a result.

    Raises PreemptedError as soon as `interrupted` says so, also between runs; the same call continues.
    """
    total = sum(row.flops for row in rows) or 1.0
    done_flops = 0.0
    outcome: dict[str, list[str]] = {"done": [], "skipped": [], "diverged": []}
    programs = list(dict.fromkeys(row.run.program for row in rows))  # in an order that all processes share
    before = sum(train_step(program)._cache_size() for program in programs)
    for i, row in enumerate(sorted(rows, key=lambda row: programs.index(row.run.program))):
        if interrupted():
            raise PreemptedError(f"{i} of {len(rows)} runs are finished; the same command continues with the others")
        e = row.run.experiment
        text = f"N {row.non_embedding:,} D {e.tokens:,} {row.run.recipe}"

        progress = partial(_report_run, report, done_flops / total, row.flops / total, text)
        report(done_flops / total, text)
        try:
            status = train(e, out, progress, interrupted).status
        except DivergedError:
            status = "diverged"
        outcome[status].append(row.run.run_id)
        done_flops += row.flops
    compiled = sum(train_step(program)._cache_size() for program in programs) - before
    return SweepOutcome(outcome["done"], outcome["skipped"], outcome["diverged"], compiled)


def _report_run(report: Reporter, begin: float, share: float, text: str, step: int, steps: int, loss: float) -> None:
    report(begin + share * step / steps, f"{text}  loss {loss:.3f}")
