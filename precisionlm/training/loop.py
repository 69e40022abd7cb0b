"""One run from start to result: resume, audit, train, evaluate, record."""

import fcntl
import math
import os
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NoReturn

import jax

from precisionlm.config import Experiment, to_yaml
from precisionlm.errors import DivergedError, PreemptedError, UserError
from precisionlm.precision import audit
from precisionlm.precision.binding import Structure
from precisionlm.training.checkpoint import Checkpoints
from precisionlm.training.evaluate import evaluate, place
from precisionlm.training.measure import operand_values
from precisionlm.training.optimizer import hyperparameters
from precisionlm.training.processes import SharedClock, check_rows, gather, is_first, on_all, on_first
from precisionlm.training.run import Run, evaluation_row, prepare_run, result_row
from precisionlm.training.run_directory import MetricsLog, RunDirectory, has_evaluation, read_metrics, trim_metrics
from precisionlm.training.step import (
    State,
    abstract_state,
    everywhere,
    initial_state,
    train_step,
    without_learned_scales,
)
from precisionlm.training.tracking import ProfileWindow, TrackedLog, trackers

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

    All processes call it alike (see `processes`). Raises UserError (bad input), DivergedError (recorded in result.json
    first) and PreemptedError (state saved first, as soon as `interrupted` says so). devices: of the mesh, all by
    default.
    """
    run = on_all(lambda: prepare_run(experiment, devices))
    if len(ids := set(gather(run.run_id))) > 1:
        raise UserError(f"the processes would train different runs ({', '.join(sorted(ids))}): config or data differ")
    check_rows(run.program.mesh)
    directory = RunDirectory(out, run.run_id)
    result = on_first(lambda: directory.read_json("result.json"))
    if result is None:
        on_first(directory.create)
        with _sole_owner(directory):
            result = on_first(lambda: directory.read_json("result.json"))  # of an owner who finished meanwhile
            if result is None:
                return _owned(run, directory, progress, interrupted)
    return Outcome(run.run_id, directory.path, "skipped", result)


@contextmanager
def _sole_owner(directory: RunDirectory) -> Iterator[None]:
    """One command a run: the lock goes with the process that holds it, however it ends."""

    def lock() -> None:
        path = directory.path / ".lock"
        try:
            fcntl.flock(held.enter_context(path.open("w")), fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(f"run {directory.path.name} is being trained by another process") from None
        except OSError as error:
            raise UserError(f"{path}: cannot be locked: {error.strerror}") from None

    with ExitStack() as held:
        on_first(lock)
        yield


def _owned(run: Run, directory: RunDirectory, progress: Progress, interrupted: Callable[[], bool]) -> Outcome:
    def begin() -> None:
        directory.clear_partial()
        directory.write_text("config.yaml", to_yaml(run.experiment))

    on_first(begin)
    with Checkpoints(directory.checkpoints, run.experiment.checkpoint) as checkpoints:
        result = _train(run, directory, checkpoints, progress, interrupted)
    if result["status"] == "diverged":
        raise DivergedError(f"run {run.run_id} diverged: {result['reason']} (recorded in {directory.path})")
    return Outcome(run.run_id, directory.path, "done", result)


def _train(
    run: Run, directory: RunDirectory, checkpoints: Checkpoints, progress: Progress, interrupted: Callable[[], bool]
) -> dict[str, Any]:
    """Train from the newest checkpoint to the end; returns result.json's content, also of a diverged run."""
    began = time.monotonic()
    start, state, position = checkpoints.restore(abstract_state(run.program)) or (0, None, {})
    began -= position.get("wall_seconds", 0.0)
    if state is None:
        state = initial_state(run.program, run.experiment.training.seed, run.grids)

    def stop_before_compiling() -> None:
        if interrupted():
            raise PreemptedError(f"run {run.run_id} stopped after step {start}; the same command continues it")

    stop_before_compiling()
    applied = on_first(lambda: directory.read_json("audit.json"))
    if applied is None:
        applied = audit_run(run, state)
        on_first(lambda: directory.write_json("audit.json", applied))
    if run.experiment.tracking.log_hlo:
        text = step_text(run, state)
        on_first(lambda: directory.write_text("step.stablehlo.txt", text))
    stop_before_compiling()
    on_first(lambda: trim_metrics(directory.metrics, start))
    status, reason, evaluations = "done", "", []
    with ExitStack() as open_until_done:
        log = MetricsLog(directory.metrics if is_first() else Path(os.devnull))
        open_until_done.callback(log.close)
        tree = run.experiment.model_dump()
        others = trackers(run.experiment.tracking, directory.path, run.run_id, tree, is_first())
        tracked = TrackedLog(log, on_all(lambda: open_until_done.enter_context(others)))
        window = ProfileWindow(run.experiment.tracking, directory.path, is_first())
        open_until_done.callback(window.close)
        training = _Training(run, state, position, tracked, checkpoints, progress, interrupted, began, window)
        try:
            evaluated = on_first(lambda: has_evaluation(directory.metrics, start))
            evaluations = training.finish(start, evaluated)
        except DivergedError as error:
            status, reason, evaluations = "diverged", str(error), [evaluation_row("trained", None)]
    checkpoints.wait()  # a finished run has its last checkpoint

    def record() -> dict[str, Any]:
        metrics = list(read_metrics(directory.metrics))
        row = result_row(run, applied, metrics, time.monotonic() - began)
        result = {"status": status, "reason": reason, "row": row, "evaluations": evaluations}
        directory.write_json("result.json", result)
        return result

    return on_first(record)


def audit_run(run: Run, state: State) -> dict[str, Any]:
    """audit.json's content, from the training step's program and the first batch. Raises UserError where a recipe entry
    reached no product."""
    tokens = place(next(run.train_batches())["tokens"], run.program)
    counts = audit.count_products(_traced_step(run, state, tokens).jaxpr)
    audit.check_applied(run.recipe, run.program.structure, counts)
    values = operand_values(run.program, state, tokens, run.grids)
    return audit.report(run.recipe, run.program.structure, counts, values, run.experiment.model.layers)


def step_text(run: Run, state: State) -> str:
    """The training step's program in StableHLO, as the compiler gets it."""
    return str(_traced_step(run, state, place(next(run.train_batches())["tokens"], run.program)).lower().as_text())


def _traced_step(run: Run, state: State, tokens: jax.Array) -> Any:
    hyper, seed = hyperparameters(run.experiment), run.experiment.training.seed
    return train_step(run.program).trace(state, tokens, run.grids, hyper, seed)


class _Training:
    """The steps and evaluations of one run, from a state to the end."""

    def __init__(
        self,
        run: Run,
        state: State,
        position: dict[str, Any],
        log: TrackedLog,
        checkpoints: Checkpoints,
        progress: Progress,
        interrupted: Callable[[], bool],
        began: float,
        window: ProfileWindow,
    ):
        self._run, self._state, self._log, self._checkpoints = run, state, log, checkpoints
        self._interrupted, self._began, self._window = interrupted, began, window
        self._recorder = _Recorder(run, log, progress, position.get("skipped", 0))
        self._batches = run.train_batches()
        if position:
            self._batches.set_state(position["data"])

    def finish(self, start: int, evaluated: bool) -> list[dict[str, Any]]:
        """Every step after `start`, then the final evaluations. evaluated: whether an evaluation due after `start` is
        in the log. Step n's metrics are read while step n + 1 runs, so the device never waits for the host.

        Raises DivergedError and PreemptedError, the latter after a checkpoint.
        """
        run, config = self._run, self._run.experiment.checkpoint
        steps, eval_every = run.experiment.training.steps, run.experiment.training.eval_every
        numbers = (run.grids, hyperparameters(run.experiment), run.experiment.training.seed)
        grids, hyper, seed = everywhere(run.program, numbers)
        step_fn, clock = train_step(run.program), SharedClock(config.every_seconds)

        def evaluation_due(step: int) -> bool:
            return eval_every is not None and step % eval_every == 0 and 0 < step < steps

        if evaluation_due(start) and not evaluated:
            self._evaluate_between(start)
        for step in range(start + 1, steps + 1):
            self._window.before(step)
            tokens = place(next(self._batches)["tokens"], run.program)
            with jax.transfer_guard_host_to_device("disallow"):
                self._state, metrics = step_fn(self._state, tokens, grids, hyper, seed)
            self._recorder.settle()
            self._recorder.pending = (step, metrics)
            by_steps = config.every_steps and step % config.every_steps == 0
            by_clock = clock.passed()
            if self._interrupted() and step < steps:
                self._stop(step)
            if by_steps or by_clock or step == steps:
                self._save(step)
                clock.restart()
            if evaluation_due(step):
                self._evaluate_between(step)
        self._recorder.settle()
        try:
            return _evaluations(run, self._state, self._interrupted)
        except PreemptedError:
            self._stop(steps)

    def _save(self, step: int) -> None:
        self._recorder.settle()  # a state after a diverged step must not become a checkpoint
        on_first(self._log.flush)
        position = {
            "data": self._batches.get_state(),
            "wall_seconds": time.monotonic() - self._began,
            "skipped": self._recorder.skipped,
        }
        self._checkpoints.save(step, self._state, position)

    def _stop(self, step: int) -> NoReturn:
        self._save(step)
        self._checkpoints.wait()
        of = self._run.experiment.training.steps
        raise PreemptedError(f"run {self._run.run_id} saved at step {step} of {of}; the same command continues it")

    def _evaluate_between(self, step: int) -> None:
        self._recorder.settle()
        batches = self._run.validation_batches()
        try:
            now = evaluate(self._run.program, self._state["params"], batches, self._run.grids, self._interrupted)
        except PreemptedError:
            self._stop(step)
        self._log.write({"step": step, "val_loss": now.loss, "val_loss_se": now.standard_error})


class _Recorder:
    """Reads the metrics of the step before, writes them down, and decides whether the run has diverged."""

    def __init__(self, run: Run, log: TrackedLog, progress: Progress, skipped: int):
        self.pending: tuple[int, dict[str, jax.Array]] | None = None
        self.skipped = skipped  # steps in a row
        self._run, self._log, self._progress = run, log, progress
        self._last = time.perf_counter()

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
        self.skipped = 0 if finite else self.skipped + 1
        if not finite and (training.on_nan == "stop" or self.skipped >= _SKIPS_UNTIL_DIVERGED):
            raise DivergedError(f"loss or gradient not finite at step {step}")
        if finite and values["loss"] > training.divergence_loss:
            raise DivergedError(f"loss {values['loss']:.2f} nats/token at step {step} is above divergence_loss")


def _evaluations(run: Run, state: State, interrupted: Callable[[], bool]) -> list[dict[str, Any]]:
    """The final evaluation at the precision trained at, and without quantization if asked for."""
    batches = run.validation_batches()
    rows = [evaluation_row("trained", evaluate(run.program, state["params"], batches, run.grids, interrupted))]
    if run.experiment.training.eval_bf16 and run.recipe.quantized():
        plain = replace(run.program, structure=Structure())
        rows.append(
            evaluation_row("bf16", evaluate(plain, without_learned_scales(state["params"]), batches, {}, interrupted))
        )
    return rows
