"""The steps and evaluations of one run, and what is recorded of them."""

import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, NoReturn

import jax
import numpy as np

from precisionlm.cluster.processes import SharedClock, on_first
from precisionlm.config import TrainingConfig
from precisionlm.data.source import Batch
from precisionlm.errors import PreemptedError
from precisionlm.precision.binding import Structure
from precisionlm.storage.checkpoint import Checkpoints, folder_of
from precisionlm.storage.run_directory import RunDirectory
from precisionlm.training.auditing import quantization_errors
from precisionlm.training.evaluate import evaluate, place
from precisionlm.training.optimizer import hyperparameters
from precisionlm.training.run import Run, record_evaluation
from precisionlm.training.step import State, everywhere, train_step, without_learned_scales
from precisionlm.training.tracking import ProfileWindow, TrackedLog
from precisionlm.training.trunk import Trunk, is_kept, publish
from precisionlm.training.watch import Watch

Progress = Callable[[int, int, float], None]  # (steps done, steps in all, loss in nats/token: NaN before the first)


@dataclass(frozen=True)
class Beginning:
    """Where training goes on: steps done, the state after them, and the position that was saved with it: of the data,
    wall_seconds, steps skipped in a row and in all, branch; empty at the start."""

    step: int
    state: State
    position: dict[str, Any]
    now: float = field(default_factory=time.monotonic)

    def wall_seconds(self) -> float:
        """Since the run began, over all resumes."""
        return time.monotonic() - self.now + self.position.get("wall_seconds", 0.0)


class Training:
    """The steps and evaluations of one run, from its beginning to the end."""

    def __init__(
        self,
        run: Run,
        directory: RunDirectory,
        checkpoints: Checkpoints,
        beginning: Beginning,
        recorder: "Recorder",
        interrupted: Callable[[], bool],
    ):
        self._run, self._directory, self._checkpoints = run, directory, checkpoints
        self._beginning, self._recorder, self._interrupted = beginning, recorder, interrupted
        self._state = beginning.state
        self._batches = run.train_batches()
        if beginning.position:
            self._batches.set_state(beginning.position["data"])

    def finish(self, evaluated: bool, compiled: Callable[[], None] = lambda: None) -> list[dict[str, Any]]:
        """Every step that is left, then the final evaluations. evaluated: whether an evaluation due at the beginning is
        in the log; compiled: called once the first step is under way. Step n's metrics are read while step n + 1 runs,
        so the device never waits for the host.

        Raises DivergedError and PreemptedError, the latter after a checkpoint.
        """
        run, config, start = self._run, self._run.experiment.checkpoint, self._beginning.step
        steps, eval_every = run.experiment.training.steps, run.experiment.training.eval_every
        errors_every = run.experiment.tracking.quantization_every
        numbers = (run.grids, hyperparameters(run.experiment), run.experiment.training.seed)
        grids, hyper, seed = everywhere(run.program, numbers)
        step_fn, clock = train_step(run.program), SharedClock(config.every_seconds)

        def evaluation_due(step: int) -> bool:
            return eval_every is not None and step % eval_every == 0 and 0 < step < steps

        if evaluation_due(start) and not evaluated:
            self._evaluate_between(start)
        for step in range(start + 1, steps + 1):
            if self._recorder.window.due(step):
                self._recorder.settle()
                self._recorder.window.before(step)
            begun = time.monotonic()
            tokens = place(self._next_tokens(step), run.program)
            if errors_every is not None and step % errors_every == 0:
                begun += self._measure_quantization(step, tokens)
            with jax.transfer_guard_host_to_device("disallow"):
                self._state, metrics = step_fn(self._state, tokens, grids, hyper, seed)
            compiled()
            self._recorder.settle()
            self._recorder.pending = Pending(step, begun, metrics)
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
        self._recorder.conclude()
        batches = run.validation_batches()
        try:
            return self._evaluations(batches)
        except PreemptedError:
            self._stop(steps)

    def _next_tokens(self, step: int) -> np.ndarray:
        """The batch of a step. Where its bucket cannot be reached, the steps before it are saved first, by a process
        that is alone: several would wait for each other."""
        try:
            return next(self._batches)["tokens"]
        except PreemptedError:
            if jax.process_count() == 1:
                self._save(step - 1)
                self._checkpoints.wait()
            raise

    def _evaluations(self, batches: list[Batch]) -> list[dict[str, Any]]:
        """The final evaluation at the precision trained at, and without quantization if asked for."""
        run, params = self._run, self._state["params"]
        found = {"trained": evaluate(run.program, params, batches, run.grids, self._interrupted)}
        if run.experiment.training.eval_bf16 and run.recipe.quantized():
            plain = replace(run.program, structure=Structure())
            found["bf16"] = evaluate(plain, without_learned_scales(params), batches, {}, self._interrupted)
        return [
            record_evaluation(self._directory, name, f"evaluations/{name}.npz", evaluation)
            for name, evaluation in found.items()
        ]

    def _measure_quantization(self, step: int, tokens: jax.Array) -> float:
        """Write down the quantization errors of a step about to be made; returns how long it took (s)."""
        self._recorder.settle()
        began = time.monotonic()
        if found := quantization_errors(self._run, self._state, tokens):
            self._recorder.log.write({"step": step, **found})
        return time.monotonic() - began

    def _save(self, step: int) -> None:
        self._recorder.settle()  # a state after a diverged step must not become a checkpoint
        on_first(self._recorder.log.flush)
        self._checkpoints.save(step, self._state, self._position())

    def _position(self) -> dict[str, Any]:
        return {
            "data": self._batches.get_state(),
            "wall_seconds": self._beginning.wall_seconds(),
            **self._recorder.watch.position(),
            "branch": self._beginning.position.get("branch", {}),
        }

    def _keep_trunk(self, step: int, trunk: Trunk) -> None:
        if on_first(lambda: is_kept(self._directory)):
            return
        self._recorder.settle()
        on_first(self._recorder.log.flush)
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
        self._recorder.log.write({"step": step, "val_loss": now.loss, "val_loss_se": now.standard_error})


@dataclass(frozen=True)
class Pending:
    """A dispatched step whose metrics nobody has read. begun: before its batch was asked for (s, monotonic)."""

    step: int
    begun: float
    metrics: dict[str, jax.Array]


class Recorder:
    """Reads the metrics of the step before, writes them down, and decides whether the run has diverged.

    A step's line in the log has `seconds`, its own wall time, and `wall_seconds`, since the run began over all resumes.
    A step takes from the end of the one before it, or from its own beginning where something else lay between them: an
    evaluation, a checkpoint, the keeping of a trunk. The first step after each start has no `seconds`, since it waits
    for the compiler.
    """

    def __init__(
        self,
        config: TrainingConfig,
        log: TrackedLog,
        window: ProfileWindow,
        progress: Progress,
        beginning: Beginning,
    ):
        self.pending: Pending | None = None
        self.watch = Watch(config, beginning.position)
        self.log, self.window = log, window
        self._config, self._progress, self._beginning = config, progress, beginning
        self._settled: float | None = None  # when the step before ended

    def settle(self) -> None:
        """Record the pending step, if there is one. Raises DivergedError."""
        if self.pending is None:
            return
        pending, self.pending = self.pending, None
        step = pending.step
        values = {name: float(value) for name, value in pending.metrics.items()}
        now = time.monotonic()
        times = {"wall_seconds": self._beginning.wall_seconds()}
        if self._settled is not None:
            times["seconds"] = now - max(self._settled, pending.begun)
        self.log.write({"step": step, **values, **times})
        self._settled = now
        self._progress(step, self._config.steps, values["loss"])
        self.watch.see(step, values)

    def conclude(self) -> None:
        """Settle the last step. Raises DivergedError."""
        self.settle()
        self.watch.conclude()
