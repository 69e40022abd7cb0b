"""Several workers on one folder: each passes over what others hold, and takes over what they leave."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from precisionlm.cluster.processes import on_first
from precisionlm.packing.saved import discard_finished
from precisionlm.progress import Reporter
from precisionlm.storage.claim import holder
from precisionlm.storage.run_directory import RunDirectory
from precisionlm.sweep.rows import Row, status_of
from precisionlm.sweep.scheduler import Options, SweepOutcome, run_sweep


def work(
    rows: Sequence[Row],
    out: Path,
    report: Reporter,
    interrupted: Callable[[], bool],
    options: Options = Options(),
    say: Callable[[str], None] = lambda line: None,
) -> SweepOutcome:
    """`run_sweep`, then again what others held meanwhile and hold no more, because they died or failed, until every
    row has ended or is held: nobody waits for a run that another worker trains. Raises what `run_sweep` raises."""
    outcome = run_sweep(rows, out, report, interrupted, options, say)
    while outcome.busy:
        looked = on_first(lambda: {run_id: _held_or_status(RunDirectory(out, run_id)) for run_id in outcome.busy})
        free = {run_id: status for run_id, status in looked.items() if status != "held"}
        left = [replace(row, status=free[row.run.run_id]) for row in rows if row.run.run_id in free]
        if not left:
            break
        outcome.busy = [run_id for run_id in outcome.busy if run_id not in free]
        say(f"{len(left)} runs that others held are looked at again")
        again = run_sweep(left, out, report, interrupted, replace(options, retry_failed=False), say)
        for name, value in vars(again).items():
            setattr(outcome, name, getattr(outcome, name) + value)
    on_first(lambda: discard_finished(out))  # of a command that ended between its last result and this
    return outcome


def _held_or_status(directory: RunDirectory) -> str:
    return "held" if holder(directory) is not None else status_of(directory)
