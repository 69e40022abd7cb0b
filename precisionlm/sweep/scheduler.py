"""Run what is left of a sweep, one experiment after the other in one process, so that executables are shared."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from precisionlm.config import Experiment
from precisionlm.errors import DivergedError, PreemptedError
from precisionlm.progress import Reporter
from precisionlm.storage.result import Result
from precisionlm.storage.run_directory import RunDirectory
from precisionlm.training.execute import train
from precisionlm.training.flops import training_flops_per_token
from precisionlm.training.run import Run, check_schema, check_weights_from, non_embedding_of, prepare_run
from precisionlm.training.step import Program, train_step


@dataclass(frozen=True)
class Row:
    """One experiment of a sweep before it is run. flops: of training, by formula; shared: of them, those that a shorter
    run of the sweep does before (see `training.trunk`)."""

    run: Run
    status: str
    non_embedding: int
    flops: float
    shared: float = 0.0


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
        check_schema(run, out)
        directory = RunDirectory(out, run.run_id)
        finished = Result.read(directory)
        status = finished.status if finished else "begun" if directory.path.exists() else "new"
        if status == "new":
            check_weights_from(run)
        n = non_embedding_of(run)
        flops = experiment.tokens * training_flops_per_token(run.experiment.model, n, experiment.data.sequence_length)
        rows[run.run_id] = Row(run, status, n, flops)
    return [_with_shared(row, rows.values()) for row in rows.values()]


def _with_shared(row: Row, rows: Iterable[Row]) -> Row:
    trunk = row.run.trunk
    if trunk is None:
        return row
    kept = [
        other.run.trunk.steps
        for other in rows
        if other.run.experiment.checkpoint.trunk
        and other.run.trunk is not None
        and other.run.trunk.identity == trunk.identity
        and other.run.experiment.training.steps < row.run.experiment.training.steps
        and other.run.trunk.steps <= trunk.steps
    ]
    return replace(row, shared=row.flops * max(kept, default=0) / row.run.experiment.training.steps)


def run_sweep(rows: Sequence[Row], out: Path, report: Reporter, interrupted: Callable[[], bool]) -> SweepOutcome:
    """Train what is not finished. Runs that share a program come one after the other. A diverged run is a result.

    Raises PreemptedError as soon as `interrupted` says so, also between runs; the same call continues.
    """
    total = sum(row.flops - row.shared for row in rows) or 1.0
    done_flops = 0.0
    outcome: dict[str, list[str]] = {"done": [], "skipped": [], "diverged": []}
    programs = list(dict.fromkeys(row.run.program for row in rows))  # in an order that all processes share
    before = sum(train_step(program)._cache_size() for program in programs)
    for i, row in enumerate(sorted(rows, key=lambda row: _turn(row, programs))):
        if interrupted():
            raise PreemptedError(f"{i} of {len(rows)} runs are finished; the same command continues with the others")
        e = row.run.experiment
        text = f"N {row.non_embedding:,} D {e.tokens:,} {row.run.recipe}"

        progress = partial(_report_run, report, done_flops / total, (row.flops - row.shared) / total, text)
        report(done_flops / total, text)
        try:
            status = train(e, out, progress, interrupted).status
        except DivergedError:
            status = "diverged"
        outcome[status].append(row.run.run_id)
        done_flops += row.flops - row.shared
    compiled = sum(train_step(program)._cache_size() for program in programs) - before
    return SweepOutcome(outcome["done"], outcome["skipped"], outcome["diverged"], compiled)


def _turn(row: Row, programs: list[Program]) -> tuple[int, int]:
    """Runs of one program together, shorter ones first: longer ones may begin where their decay began."""
    return programs.index(row.run.program), row.run.experiment.training.steps


def _report_run(report: Reporter, begin: float, share: float, text: str, step: int, steps: int, loss: float) -> None:
    report(begin + share * step / steps, f"{text}  loss {loss:.3f}")
