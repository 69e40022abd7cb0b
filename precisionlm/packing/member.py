"""One run in a pack: what is recorded of it, and when something is due."""

import warnings
from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np

from precisionlm.errors import DivergedError
from precisionlm.packing.corpus import Order
from precisionlm.packing.saved import Slot
from precisionlm.storage.checkpoint import Checkpoints, DamagedError, folder_of, newest_position, restore_params
from precisionlm.storage.claim import claim
from precisionlm.storage.result import Result
from precisionlm.storage.run_directory import MetricsLog, RunDirectory, trim_metrics
from precisionlm.training import provenance
from precisionlm.training.auditing import Measure, audited
from precisionlm.training.execute import beginning_of, conclude, set_up
from precisionlm.training.loop import Beginning
from precisionlm.training.run import Run, diverged_evaluation
from precisionlm.training.step import abstract_state
from precisionlm.training.tracking import TrackedLog, trackers
from precisionlm.training.trunk import is_kept, publish
from precisionlm.training.watch import Watch


class Member:
    """A run that its pack holds (see `claim`), from its beginning to its result. step: made, or under way (count)."""

    def __init__(self, run: Run, directory: RunDirectory, order: Order, beginning: Beginning, held: ExitStack):
        self.run, self.directory, self.order = run, directory, order
        self._beginning, self._held = beginning, held
        self.step = beginning.step
        self.watch = Watch(run.experiment.training, beginning.position)
        self.diverged: str | None = None  # why
        self.trunk_due: int | None = None  # the step after which others may begin from its state, if that is to come
        self.last_loss: float | None = None
        self._applied: dict[str, Any] = {}
        self._log: TrackedLog | None = None

    @property
    def steps(self) -> int:
        """Of the whole run."""
        return self.run.experiment.training.steps

    def todo(self, at_most: int) -> int:
        """Steps until something is due, but at most so many."""
        return min(at_most, min(self.steps, self.trunk_due or self.steps) - self.step)

    def open(self, together: int, products: Counter[str], measure: Measure) -> None:
        """Audit and start recording. together: runs of the pack; products and measure: `prepare.Prepared`'s. Raises
        UserError."""
        program = self.run.program
        provenance.append(self.directory, provenance.segment(program.mesh, self.run.attention, self.step, together))
        self._applied = audited(self.run, self.directory, self._beginning.state, products, measure)
        trim_metrics(self.directory.metrics, self.step)
        trunk = self.run.trunk
        if self.run.experiment.checkpoint.trunk and trunk and trunk.steps >= max(1, self.step):
            self.trunk_due = None if is_kept(self.directory) else trunk.steps
        log = MetricsLog(self.directory.metrics)
        self._held.callback(log.close)
        config, path = self.run.experiment.tracking, self.directory.path
        others = trackers(config, path, self.run.run_id, self.run.experiment.model_dump(), first=True)
        self._log = TrackedLog(log, self._held.enter_context(others))

    def leave_state(self) -> Any:
        """The state to begin with, which the member keeps no longer."""
        state = self._beginning.state
        self._beginning = Beginning(self.step, {}, self._beginning.position, self._beginning.now)
        return state

    def record(self, first: int, count: int, metrics: dict[str, np.ndarray], seconds: float | None) -> None:
        """Write down `count` steps after the first so many, metrics [K] of each, until one shows that the run has
        diverged; seconds: each took, None where that was not measured."""
        assert self._log is not None
        times = {"wall_seconds": self._beginning.wall_seconds()} | ({} if seconds is None else {"seconds": seconds})
        for k in range(count):
            if self.diverged is not None:
                return
            values = {name: float(value[k]) for name, value in metrics.items()}
            self._log.write({"step": first + k + 1, **values, **times})
            self.last_loss = values["loss"]
            self._watched(partial(self.watch.see, first + k + 1, values))

    def conclude_steps(self) -> None:
        """All steps are recorded: whether they make a result."""
        if self.diverged is None:
            self._watched(self.watch.conclude)

    def _watched(self, look: Callable[[], None]) -> None:
        try:
            look()
        except DivergedError as error:
            self.diverged = str(error)

    def flush(self) -> None:
        """Everything recorded is on disk."""
        assert self._log is not None
        self._log.flush()

    def slot(self) -> Slot:
        """What a checkpoint of the pack keeps of it."""
        return Slot(self.run.run_id, self.step, self.position())

    def position(self) -> dict[str, Any]:
        """What a checkpoint keeps beside the state (`loop.Beginning`)."""
        return {
            "data": self.order.position(self.step),
            "wall_seconds": self._beginning.wall_seconds(),
            **self.watch.position(),
            "branch": self._beginning.position.get("branch", {}),
        }

    def keep_state(self, state: Any, name: str = "checkpoints") -> Path:
        """Save a state of the run alone, as `train` does, and wait until it is on disk."""
        self.flush()
        config = self.run.experiment.checkpoint
        folder = folder_of(self.directory, config, name)
        with Checkpoints(folder, config) as kept:
            kept.save(self.step, state, self.position())
            kept.wait()
        return Path(str(folder))

    def forget_states(self) -> None:
        """Remove what `keep_state` left."""
        folder_of(self.directory, self.run.experiment.checkpoint).rmtree(missing_ok=True)

    def keep_trunk(self, state: Any) -> None:
        """Save the state that longer runs begin from."""
        assert self.run.trunk is not None
        publish(self.directory, self.run.trunk, str(self.keep_state(state, "trunk")))
        self.trunk_due = None

    def finish(self, evaluations: list[dict[str, Any]]) -> Literal["done", "diverged"]:
        """Write the result and let the run go."""
        self.flush()
        status: Literal["done", "diverged"] = "done" if self.diverged is None else "diverged"
        if status == "diverged":
            evaluations = [diverged_evaluation()]
        reason, skipped = self.diverged or "", self.watch.skipped_steps
        conclude(self.run, self.directory, self._beginning, self._applied, skipped, status, reason, evaluations)
        self.let_go()
        return status

    def let_go(self) -> None:
        """Close what is open and give up the claim."""
        self._held.close()


def claimed(run: Run, out: Path, order: Order, saved: tuple[Slot, Any] | None) -> Member | Result:
    """The run as a member, at its beginning: what a pack saved of it, or what `train` would begin with; its result
    where it has one. saved: what was its slot and its state. Raises BusyError where another process trains it, and
    UserError as `train` does."""
    directory = RunDirectory(out, run.run_id)
    directory.create()
    with ExitStack() as held:
        held.enter_context(claim(directory))
        if (result := Result.read(directory)) is not None:
            return result
        set_up(run, directory)
        beginning = _beginning(run, directory, saved)
        return Member(run, directory, order, beginning, held.pop_all())


def _beginning(run: Run, directory: RunDirectory, saved: tuple[Slot, Any] | None) -> Beginning:
    config = run.experiment.checkpoint
    folder, found = folder_of(directory, config), None
    if (last := newest_position(folder)) is not None and last[0] == run.experiment.training.steps:
        # Trained, but not evaluated: of that the weights alone are kept.
        try:
            _, params = restore_params(folder, abstract_state(run.program)["params"])
            return Beginning(last[0], {"params": params}, last[1])
        except DamagedError as error:
            warnings.warn(f"{error}; trying an older one", stacklevel=2)
            (folder / str(last[0])).rmtree()
    if newest_position(folder) is not None:
        with Checkpoints(folder, config) as checkpoints:
            found = beginning_of(run, directory, checkpoints)
    if saved is not None and (found is None or found.step < saved[0].step):
        return Beginning(saved[0].step, saved[1], saved[0].position)
    return found or beginning_of(run, directory, None)
