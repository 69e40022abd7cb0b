"""Finished runs whose weights are not evaluated yet in all the formats that a sweep asks for: those trained one by one,
and those that were finished before a format was added."""

from collections.abc import Callable, Sequence
from pathlib import Path

import jax
from etils import epath

from precisionlm.errors import UserError
from precisionlm.precision.recipe import Quantization
from precisionlm.progress import Reporter
from precisionlm.ptq.evaluate import Options, after, bound_to, quantize_run, recorded
from precisionlm.storage.checkpoint import folder_of
from precisionlm.storage.claim import BusyError, claim
from precisionlm.storage.result import Result
from precisionlm.storage.run_directory import RunDirectory
from precisionlm.sweep.rows import Row
from precisionlm.training.run import Run
from precisionlm.training.trunk import is_kept


def check_fit(rows: Sequence[Row], quantizations: Sequence[Quantization]) -> None:
    """Raises UserError where a format does not fit a model's sizes, before anything is trained."""
    for e in {(e.model, e.data.sequence_length): e for e in (row.run.experiment for row in rows)}.values():
        for quantization in quantizations:
            bound_to(e, quantization)


def round_finished(
    rows: Sequence[Row],
    out: Path,
    quantizations: Sequence[Quantization],
    report: Reporter,
    interrupted: Callable[[], bool],
    say: Callable[[str], None] = lambda line: None,
) -> None:
    """Evaluate what is missing, of runs that nobody holds. Says for how many it cannot be done: their weights were not
    kept, or this is one of several processes. A run of which something cannot be read stops no other. Raises
    PreemptedError as `quantize_run` does."""
    left_out = 0
    for row in rows:
        directory = RunDirectory(out, row.run.run_id)
        try:
            result = Result.read(directory)
            missing = _steps_missing(row.run, directory, quantizations)
        except UserError as error:
            say(f"left out: {error}")
            continue
        if result is None or result.status != "done":
            continue
        there = [step for step, folder in missing.items() if folder.exists()] if jax.process_count() == 1 else []
        left_out += len(there) < len(missing)
        if not there:
            continue
        try:
            with claim(directory):
                options = Options(tuple(there))
                quantize_run(directory.path, "rtn", quantizations, lambda text: report(1.0, text), interrupted, options)
        except BusyError:
            continue
        except UserError as error:
            say(f"run {row.run.run_id} was not evaluated with rounded weights: {error}")
    if left_out:
        kept = "one process can, with precisionlm ptq" if jax.process_count() > 1 else "their weights were not kept"
        say(f"{left_out} runs were not evaluated with rounded weights: {kept}")


def _steps_missing(
    run: Run, directory: RunDirectory, quantizations: Sequence[Quantization]
) -> dict[int, epath.PathLike]:
    """Steps after which a format is not evaluated yet, the last one and that from which others begin, and where the
    weights would be."""
    config, total = run.experiment.checkpoint, run.experiment.training.steps
    found = {total: (folder_of(directory, config), "")}
    if run.trunk is not None and run.trunk.steps < total and is_kept(directory):
        found[run.trunk.steps] = folder_of(directory, config, "trunk"), after(run.trunk.steps)
    return {
        step: folder
        for step, (folder, more) in found.items()
        if any(recorded(directory, "rtn", quantization, more) is None for quantization in quantizations)
    }
