"""The steps and evaluations of one run, and what is recorded of them."""

import math
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any, NoReturn

import jax

from precisionlm.cluster.processes import SharedClock, on_first
from precisionlm.errors import DivergedError, PreemptedError
from precisionlm.precision.binding import Structure
from precisionlm.storage.checkpoint import Checkpoints, folder_of
from precisionlm.storage.run_directory import RunDirectory
from precisionlm.training.evaluate import evaluate, place
from precisionlm.training.optimizer import hyperparameters
from precisionlm.training.run import Run, evaluation_row
from precisionlm.training.step import State, everywhere, train_step, without_learned_scales
from precisionlm.training.tracking import ProfileWindow, TrackedLog
from precisionlm.training.trunk import Trunk, is_kept, publish

Progress = Callable[[int, int, float], None]  # (steps done, steps in all, loss in nats/token)
_SKIPS_UNTIL_DIVERGED = 100  # steps in a row without a finite gradient, under on_nan: skip


class Training:
    """The steps and evaluations of one run, from a state to the end."""

    def __init__(
        self,
        run: Run,
        directory: RunDirectory,
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
        self._directory, self._branch = directory, position.get("branch", {})
        self._recorder = Recorder(run, log, progress, position.get("skipped", 0))
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
            self._checkpoints.check()
            by_steps = config.every_steps and step % config.every_steps == 0
            by_clock = clock.passed()
            if config.trunk and run.trunk is not None and step == run.trunk.steps:
                self._keep_trunk(step, run.trunk)
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
        self._checkpoints.save(step, self._state, self._position())

    def _position(self) -> dict[str, Any]:
        return {
            "data": self._batches.get_state(),
            "wall_seconds": time.monotonic() - self._began,
            "skipped": self._recorder.skipped,
            "branch": self._branch,
        }

    def _keep_trunk(self, step: int, trunk: Trunk) -> None:
        if on_first(lambda: is_kept(self._directory)):
            return
        self._recorder.settle()
        on_first(self._log.flush)
        config = self._run.experiment.checkpoint
        folder = folder_of(self._directory, config, "trunk")
        with Checkpoints(folder, config) as kept:
            kept.save(step, self._state, self._position())
            kept.wait()
        on_first(lambda: publish(self._directory, trunk, str(folder)))

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


class Recorder:
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
