"""One run from start to result: resume, audit, train, evaluate, record."""

import fcntl
import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import jax

from precisionlm.config import Experiment, to_yaml
from precisionlm.data.source import TrainBatches
from precisionlm.errors import DivergedError, PreemptedError, UserError
from precisionlm.precision import audit
from precisionlm.precision.binding import Structure
from precisionlm.training.checkpoint import Checkpoints
from precisionlm.training.evaluate import evaluate, place
from precisionlm.training.measure import operand_values
from precisionlm.training.optimizer import hyperparameters
from precisionlm.training.run import Run, evaluation_row, prepare_run, result_row
from precisionlm.training.run_directory import MetricsLog, RunDirectory, read_metrics
from precisionlm.training.step import State, abstract_state, initial_state, train_step, without_learned_scales

Progress = Callable[[int, int, float], None]  # (steps done, steps in all, loss in nats/token)
_SKIPS_UNTIL_DIVERGED = 100  # steps in a row without a finite gradient, under on_nan: skip


@dataclass(frozen=True)
class Outcome:
    """status: done, or skipped where the run was finished before. result: the content of result.json."""

    run_id: str
    path: Path
    status: str
    result: dict[str, Any]


def train(
    experiment: Experiment,
    out: Path,
    progress: Progress = lambda done, steps, loss: None,
    interrupted: Callable[[], bool] = lambda: False,
    devices: list[jax.Device] | None = None,
) -> Outcome:
    """Train, evaluate and record one experiment under `out`/<run id>; resume it if it was begun, skip it if finished.

    Raises UserError (bad input), DivergedError (recorded in result.json first) and PreemptedError (state saved first,
    as soon as `interrupted` says so). devices: of the mesh, all by default.
    """
    run = prepare_run(experiment, devices)
    directory = RunDirectory(out, run.run_id)
    finished = directory.read_json("result.json")
    if finished:
        return Outcome(run.run_id, directory.path, "skipped", finished)
    try:
        directory.path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--out {out}: cannot make the run directory: {error.strerror}") from None
    with _sole_owner(directory):
        directory.write_text("config.yaml", to_yaml(run.experiment))
        checkpoints = Checkpoints(directory.checkpoints, run.experiment.checkpoint)
        try:
            result = _train(run, directory, checkpoints, progress, interrupted)
        finally:
            checkpoints.close()
    if result["status"] == "diverged":
        raise DivergedError(f"run {run.run_id} diverged: {result['reason']} (recorded in {directory.path})")
    return Outcome(run.run_id, directory.path, "done", result)


@contextmanager
def _sole_owner(directory: RunDirectory) -> Iterator[None]:
    """One process a run: the lock goes with the process, however it ends."""
    with (directory.path / ".lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(f"run {directory.path.name} is being trained by another process") from None
        yield


def _train(
    run: Run, directory: RunDirectory, checkpoints: Checkpoints, progress: Progress, interrupted: Callable[[], bool]
) -> dict[str, Any]:
    """Train from the newest checkpoint to the end; returns result.json's content, also of a diverged run."""
    batches, began = run.train_batches(), time.monotonic()
    start, state, position = checkpoints.restore(abstract_state(run.program)) or (0, None, None)
    if state is None:
        state = initial_state(run.program, run.experiment.training.seed, run.grids)
    if position is not None:
        batches.set_state(position["data"])
        began -= position["wall_seconds"]
    applied = directory.read_json("audit.json")
    if applied is None:
        applied = audit_run(run, state)
        directory.write_json("audit.json", applied)
    log = MetricsLog(directory.path / "metrics.jsonl", start)
    status, reason, evaluations = "done", "", []
    try:
        state = _steps(run, state, start, batches, log, checkpoints, began, progress, interrupted)
        evaluations = _evaluations(run, state)
    except DivergedError as error:
        status, reason, evaluations = "diverged", str(error), [evaluation_row("trained", None)]
    finally:
        log.close()
    metrics = list(read_metrics(directory.path / "metrics.jsonl"))
    row = result_row(run, applied, metrics, time.monotonic() - began)
    result = {"status": status, "reason": reason, "row": row, "evaluations": evaluations}
    directory.write_json("result.json", result)
    return result


def audit_run(run: Run, state: State) -> dict[str, Any]:
    """audit.json's content, from the training step's program and the first batch. Raises UserError where a recipe entry
    reached no product."""
    tokens = place(next(run.train_batches())["tokens"], run.program)
    hyper, seed = hyperparameters(run.experiment), run.experiment.training.seed
    counts = audit.count_products(train_step(run.program).trace(state, tokens, run.grids, hyper, seed).jaxpr)
    audit.check_applied(run.recipe, run.program.structure, counts)
    values = operand_values(run.program, state, tokens, run.grids)
    return audit.report(run.recipe, run.program.structure, counts, values, run.experiment.model.layers)


def _steps(
    run: Run,
    state: State,
    start: int,
    batches: TrainBatches,
    log: MetricsLog,
    checkpoints: Checkpoints,
    began: float,
    progress: Progress,
    interrupted: Callable[[], bool],
) -> State:
    """The training loop. Step n's metrics are read while step n + 1 runs, so the device never waits for the host."""
    steps, config = run.experiment.training.steps, run.experiment.checkpoint
    hyper, seed = hyperparameters(run.experiment), run.experiment.training.seed
    step_fn, recorder = train_step(run.program), _Recorder(run, log, progress)
    saved_at = time.monotonic()

    def save(step: int) -> None:
        recorder.settle()  # a state after a diverged step must not become a checkpoint
        log.flush()
        position = {"data": batches.get_state(), "wall_seconds": time.monotonic() - began}
        checkpoints.save(step, state, position)

    for step in range(start + 1, steps + 1):
        tokens = place(next(batches)["tokens"], run.program)
        state, metrics = step_fn(state, tokens, run.grids, hyper, seed)
        recorder.settle()
        recorder.pending = (step, metrics)
        by_steps = config.every_steps and step % config.every_steps == 0
        by_clock = config.every_seconds and time.monotonic() - saved_at > config.every_seconds
        stop = interrupted()
        if by_steps or by_clock or stop or step == steps:
            save(step)
            saved_at = time.monotonic()
        if stop and step < steps:
            checkpoints.wait()
            raise PreemptedError(f"run {run.run_id} saved at step {step} of {steps}; the same command continues it")
        every = run.experiment.training.eval_every
        if every and step % every == 0 and step < steps:
            recorder.settle()
            now = evaluate(run.program, state["params"], run.validation_batches(), run.grids)
            log.write({"step": step, "val_loss": now.loss, "val_loss_se": now.standard_error})
    recorder.settle()
    return state


class _Recorder:
    """Reads the metrics of the step before, writes them down, and decides whether the run has diverged."""

    def __init__(self, run: Run, log: MetricsLog, progress: Progress):
        self.pending: tuple[int, dict[str, jax.Array]] | None = None
        self._run, self._log, self._progress = run, log, progress
        self._last, self._skipped = time.perf_counter(), 0

    def settle(self) -> None:
        """Record the pending step, if there is one. Raises DivergedError."""
        if self.pending is None:
            return
        step, metrics = self.pending
        self.pending = None
        values = {name: float(value) for name, value in metrics.items()}
        now = time.perf_counter()
        line = {"step": step, **values, "seconds": now - self._last}
        self._log.write({name: value if math.isfinite(value) else None for name, value in line.items()})
        self._last = now
        training = self._run.experiment.training
        self._progress(step, training.steps, values["loss"])
        finite = values["finite"] == 1.0
        self._skipped = 0 if finite else self._skipped + 1
        if not finite and (training.on_nan == "stop" or self._skipped >= _SKIPS_UNTIL_DIVERGED):
            raise DivergedError(f"loss or gradient not finite at step {step}")
        if finite and values["loss"] > training.divergence_loss:
            raise DivergedError(f"loss {values['loss']:.2f} nats/token at step {step} is above divergence_loss")


def _evaluations(run: Run, state: State) -> list[dict[str, Any]]:
    """The final evaluation at the precision trained at, and without quantization if asked for."""
    batches = run.validation_batches()
    rows = [evaluation_row("trained", evaluate(run.program, state["params"], batches, run.grids))]
    if run.experiment.training.eval_bf16 and run.recipe.quantized():
        plain = replace(run.program, structure=Structure())
        rows.append(evaluation_row("bf16", evaluate(plain, without_learned_scales(state["params"]), batches, {})))
    return rows
