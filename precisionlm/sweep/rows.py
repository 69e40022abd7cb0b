"""The experiments of a sweep before they are run: sizes, costs, and what became of each so far."""

import sys
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from precisionlm.config import Experiment
from precisionlm.errors import UserError
from precisionlm.storage.failure import read_failure
from precisionlm.storage.result import Result
from precisionlm.storage.run_directory import RunDirectory
from precisionlm.training.flops import training_flops_per_token
from precisionlm.training.run import Run, check_schema, check_weights_from, non_embedding_of, prepare_run
from precisionlm.whole_file import check_writable


@dataclass(frozen=True)
class Row:
    """One experiment of a sweep. status: new, begun, done, diverged or failed; flops: of training, by formula; shared:
    of them, those that a shorter run of the sweep does before (see `training.trunk`)."""

    run: Run
    status: str
    non_embedding: int
    flops: float
    shared: float = 0.0

    @property
    def finished(self) -> bool:
        """Whether it has a result."""
        return self.status in ("done", "diverged")


def plan(experiments: Sequence[Experiment], out: Path) -> list[Row]:
    """Every experiment checked against data and devices, with its status. Nothing is run.

    Raises UserError for the first experiment that cannot run, so that a sweep fails before it spends anything.
    """
    check_writable(out)
    rows: dict[str, Row] = {}
    for experiment in experiments:
        run = prepare_run(experiment)
        if run.run_id in rows:
            continue
        check_schema(run, out)
        status = status_of(RunDirectory(out, run.run_id))
        if status == "new":
            check_weights_from(run)
        n = non_embedding_of(run)
        flops = experiment.tokens * training_flops_per_token(run.experiment.model, n, experiment.data.sequence_length)
        rows[run.run_id] = Row(run, status, n, flops)
    return [_with_shared(row, rows.values()) for row in rows.values()]


def status_of(directory: RunDirectory) -> str:
    """What became of a run so far; failed too where its files cannot be read, which is said on standard error."""
    try:
        finished = Result.read(directory)
        if finished is not None:
            return finished.status
        if read_failure(directory) is not None:
            return "failed"
    except UserError as error:
        print(f"left out: {error}", file=sys.stderr)
        return "failed"
    return "begun" if directory.path.exists() else "new"


def packed_with(run: Run) -> tuple[Hashable, ...]:
    """Equal for runs that can be one pack."""
    e, meta = run.experiment, run.dataset.meta
    data = (meta.train.sha256, meta.validation.sha256, e.data.sequence_length)
    return (run.program, e.training.batch_size, *data, e.training.eval_tokens, e.training.eval_bf16)


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
