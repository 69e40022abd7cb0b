"""One run from start to result: resume, audit, train, evaluate, record."""

import math
import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import jax

from precisionlm.cluster.preemption import nothing_to_lose
from precisionlm.cluster.processes import check_rows, gather, is_first, on_all, on_first
from precisionlm.config import Experiment, load, to_yaml
from precisionlm.errors import DivergedError, PreemptedError, UserError
from precisionlm.storage.checkpoint import Checkpoints, folder_of, restore_params, restore_state
from precisionlm.storage.claim import claim
from precisionlm.storage.result import Result
from precisionlm.storage.run_directory import (
    MetricsLog,
    RunDirectory,
    copy_metrics,
    has_evaluation,
    read_metrics,
    trim_metrics,
)
from precisionlm.training import provenance
from precisionlm.training.auditing import audited, step_text
from precisionlm.training.loop import Beginning, Progress, Recorder, Training
from precisionlm.training.run import Run, check_schema, check_weights_from, diverged_evaluation, prepare_run, result_row
from precisionlm.training.step import (
    abstract_state,
    initial_state,
    without_learned_scales,
)
from precisionlm.training.tracking import ProfileWindow, TrackedLog, trackers
from precisionlm.training.trunk import latest_shared


@dataclass(frozen=True)
class Outcome:
    """status: done, or skipped where the run was finished before."""

    run_id: str
    path: Path
    status: str
    result: Result


def train(
    experiment: Experiment,
    out: Path,
    progress: Progress = lambda done, steps, loss: None,
    interrupted: Callable[[], bool] = lambda: False,
    devices: list[jax.Device] | None = None,
) -> Outcome:
    """Train, evaluate and record one experiment under `out`/<run id>; resume it if it was begun, skip it if finished.

    All processes call it alike (see `processes`). Raises UserError (bad input), DivergedError (recorded in result.json
    first) and PreemptedError (state saved first, as soon as `interrupted` says so). devices: of the mesh, all by
    default.
    """
    run = on_all(lambda: prepare_run(experiment, devices))
    if len(ids := set(gather(run.run_id))) > 1:
        raise UserError(f"the processes would train different runs ({', '.join(sorted(ids))}): config or data differ")
    check_rows(run.program.mesh)
    on_first(lambda: check_schema(run, out))
    directory = RunDirectory(out, run.run_id)
    result = _result_of(directory)
    if result is None:
        on_first(directory.create)
        with _sole_owner(directory):
            result = _result_of(directory)  # of an owner who finished meanwhile
            if result is None:
                return _owned(run, directory, progress, interrupted)
    return Outcome(run.run_id, directory.path, "skipped", result)


def _result_of(directory: RunDirectory) -> Result | None:
    """The run's result as process 0 sees it."""

    def content() -> dict[str, Any] | None:
        found = Result.read(directory)
        return None if found is None else found.model_dump()

    found = on_first(content)
    return None if found is None else Result(**found)


@contextmanager
def _sole_owner(directory: RunDirectory) -> Iterator[None]:
    """One command a run, whichever its processes."""
    with ExitStack() as held:
        on_first(lambda: held.enter_context(claim(directory)))
        yield


def _owned(run: Run, directory: RunDirectory, progress: Progress, interrupted: Callable[[], bool]) -> Outcome:
    on_first(lambda: set_up(run, directory))
    with Checkpoints(folder_of(directory, run.experiment.checkpoint), run.experiment.checkpoint) as checkpoints:
        result = _train(run, directory, checkpoints, progress, interrupted)
    if result.status == "diverged":
        raise DivergedError(f"run {run.run_id} diverged: {result.reason} (recorded in {directory.path})")
    return Outcome(run.run_id, directory.path, "done", result)


def set_up(run: Run, directory: RunDirectory) -> None:
    """What the owner of a run directory does first."""
    directory.clear_partial()
    directory.write_text("config.yaml", to_yaml(run.experiment))


def _train(
    run: Run, directory: RunDirectory, checkpoints: Checkpoints, progress: Progress, interrupted: Callable[[], bool]
) -> Result:
    """Train from the newest checkpoint to the end; returns the result, also of a diverged run."""
    beginning = beginning_of(run, directory, checkpoints)
    on_first(lambda: provenance.append(directory, provenance.segment(run.program.mesh, run.attention, beginning.step)))
    stopped = f"run {run.run_id} stopped after step {beginning.step}; the same command continues it"
    with ExitStack() as compiling:
        compiling.enter_context(nothing_to_lose(stopped))
        return _train_from(beginning, run, directory, checkpoints, progress, interrupted, stopped, compiling.close)


def _train_from(
    beginning: Beginning,
    run: Run,
    directory: RunDirectory,
    checkpoints: Checkpoints,
    progress: Progress,
    interrupted: Callable[[], bool],
    stopped: str,
    compiled: Callable[[], None],
) -> Result:
    """stopped: what is said where the run stops before its first step; compiled: called after that is under way."""

    def stop_before_compiling() -> None:
        if interrupted():
            raise PreemptedError(stopped)

    stop_before_compiling()
    progress(beginning.step, run.experiment.training.steps, math.nan)
    checkpoints.prepare(beginning.state)
    applied = audited(run, directory, beginning.state)
    if run.experiment.tracking.log_hlo:
        text = step_text(run, beginning.state)
        on_first(lambda: directory.write_text("step.stablehlo.txt", text))
    stop_before_compiling()
    on_all(checkpoints.wait)  # from here on the state is donated
    on_first(lambda: trim_metrics(directory.metrics, beginning.step))
    status: Literal["done", "diverged"] = "done"
    reason, evaluations = "", []
    with ExitStack() as open_until_done:
        log = MetricsLog(directory.metrics if is_first() else Path(os.devnull))
        open_until_done.callback(log.close)
        tree = run.experiment.model_dump()
        others = trackers(run.experiment.tracking, directory.path, run.run_id, tree, is_first())
        tracked = TrackedLog(log, on_all(lambda: open_until_done.enter_context(others)))
        window = ProfileWindow(run.experiment.tracking, directory.path, is_first())
        open_until_done.callback(window.close)
        recorder = Recorder(run.experiment.training, tracked, window, progress, beginning)
        training = Training(run, directory, checkpoints, beginning, recorder, interrupted)
        try:
            evaluated = on_first(lambda: has_evaluation(directory.metrics, beginning.step))
            evaluations = training.finish(evaluated, compiled)
        except DivergedError as error:
            status, reason, evaluations = "diverged", str(error), [diverged_evaluation()]
    checkpoints.wait()  # a finished run has its last checkpoint

    def record() -> None:
        conclude(run, directory, beginning, applied, recorder.watch.skipped_steps, status, reason, evaluations)

    on_first(record)
    result = _result_of(directory)
    assert result is not None
    return result


def conclude(
    run: Run,
    directory: RunDirectory,
    beginning: Beginning,
    applied: dict[str, Any],
    skipped_steps: int,
    status: Literal["done", "diverged"],
    reason: str,
    evaluations: list[dict[str, Any]],
) -> None:
    """Write the result of a run whose metrics and evaluations are on disk; applied: audit.json's content."""
    metrics = list(read_metrics(directory.metrics))
    branch, segments = beginning.position.get("branch", {}), provenance.segments(directory)
    row = result_row(run, applied, metrics, beginning.wall_seconds(), branch, skipped_steps, segments)
    Result(status=status, reason=reason, row=row, evaluations=evaluations, segments=segments).write(directory)


def beginning_of(run: Run, directory: RunDirectory, checkpoints: Checkpoints | None) -> Beginning:
    """The run's own newest checkpoint, else the state of a trunk it shares, else the start."""
    abstract = abstract_state(run.program)
    if checkpoints is not None and (own := checkpoints.restore(abstract)) is not None:
        return Beginning(*own)
    branch = on_first(lambda: latest_shared(directory, run.trunk) if run.trunk else None)
    if branch is not None:
        other = RunDirectory(directory.path.parent, branch["run_id"])
        if (found := restore_state(branch["state"], abstract)) is not None:
            on_first(lambda: copy_metrics(other.metrics, directory.metrics, branch["steps"]))
            step, state, position = found
            return Beginning(step, state, position | {"branch": {name: branch[name] for name in ("run_id", "steps")}})
    return Beginning(0, initial_state(run.program, run.experiment.training.seed, run.grids, _given_weights(run)), {})


def _given_weights(run: Run) -> Any:
    """Those of `training.weights_from`, whatever its recipe, without learned scales; None where it is not set."""
    source = run.weights_from
    if run.experiment.training.imported:
        raise UserError(
            "training.imported: these weights came from elsewhere and are not trained; begin a run with them by "
            "train CONFIG --weights-only RUN"
        )
    if source is None:
        return None
    on_all(lambda: check_weights_from(run))
    folder = folder_of(source, load(source.path / "config.yaml").checkpoint)
    return restore_params(folder, without_learned_scales(abstract_state(run.program)["params"]))[1]
