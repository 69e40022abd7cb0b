"""Members at the end of their steps, or where others begin from them: evaluated together, their results written by a
thread meanwhile."""

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Literal

import jax

from precisionlm.packing.member import Member
from precisionlm.packing.prepare import Prepared
from precisionlm.packing.rows import Evaluated, evaluate_members

Status = Literal["done", "diverged", "skipped", "busy", "failed"]


@dataclass(frozen=True)
class Reached:
    """A member after so many steps, and its state there."""

    member: Member
    step: int
    state: Any

    @property
    def end(self) -> bool:
        """Whether these are all its steps."""
        return self.step == self.member.steps


class Results:
    """Of a pack. keep: whether members leave their weights; writer: of one thread; outcome: run id → what became of it,
    filled in as results are written."""

    def __init__(
        self,
        prepared: Prepared,
        keep: bool,
        interrupted: Callable[[], bool],
        writer: ThreadPoolExecutor,
        outcome: dict[str, Status],
    ):
        self._prepared, self._keep, self._interrupted = prepared, keep, interrupted
        self._writer, self._outcome = writer, outcome
        self._waiting: list[Reached] = []
        self._writes: list[Future[None]] = []

    @property
    def members(self) -> list[Member]:
        """Those that are not evaluated yet."""
        return [reached.member for reached in self._waiting]

    @property
    def full(self) -> bool:
        """Whether as many wait as are evaluated together."""
        return len(self._waiting) >= self._prepared.shape.runs

    def add(self, reached: Reached) -> None:
        """Take in a state: one that is not the last is evaluated only for what comes of rounding it."""
        if reached.end or self._prepared.ptq:
            self._waiting.append(reached)
        if reached.end and self._keep:
            self._writes.append(self._writer.submit(self._keep_weights, reached))

    def evaluate(self) -> None:
        """Evaluate what waits and have the results written. Raises PreemptedError as soon as `interrupted` says so."""
        while self._waiting:
            batch = self._waiting[: self._prepared.shape.runs]
            of_each = [(reached.member.run, reached.state["params"]) for reached in batch]
            shape, evaluator, ptq = self._prepared.shape, self._prepared.evaluator, self._prepared.ptq
            found = evaluate_members(shape, evaluator, of_each, ptq, self._interrupted)
            del self._waiting[: len(batch)]
            for reached, evaluated in zip(batch, found, strict=True):
                self._writes.append(self._writer.submit(self._leave, reached, evaluated))

    def check(self) -> None:
        """Raises UserError if something could not be written; waits for nothing."""
        for write in [write for write in self._writes if write.done()]:
            write.result()
            self._writes.remove(write)

    def wait(self) -> None:
        """Everything is on disk. Raises UserError as `check` does."""
        for write in self._writes:
            write.result()

    def save(self) -> int:
        """Everything is on disk, also the weights of runs that are trained and not evaluated; how many those are."""
        trained = [reached for reached in self._waiting if reached.end]
        for reached in [] if self._keep else trained:
            self._keep_weights(reached)
        self.wait()
        return len(trained)

    def _keep_weights(self, reached: Reached) -> None:
        device = self._prepared.shape.devices.devices.flat[0]
        reached.member.keep_state({"params": jax.device_put(reached.state["params"], device)})

    def _leave(self, reached: Reached, evaluated: Evaluated) -> None:
        member = reached.member
        if not reached.end:
            evaluated.write_intermediate(member.run, member.directory, reached.step)
            return
        try:
            if not self._keep:
                member.forget_states()
            self._outcome[member.run.run_id] = member.finish(evaluated.write(member.directory))
        except BaseException:  # nobody else has it any more
            member.let_go()
            raise
