"""Trains many runs of one program as one program, from a queue: a member that is done leaves its slot to the next run.

The device computes a dispatch while the host records the one before. Members end at their own step and a diverging one
is taken out; neither changes what the others compute.
"""

import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np

from precisionlm.cluster.preemption import nothing_to_lose
from precisionlm.errors import PreemptedError, UserError
from precisionlm.packing import saved
from precisionlm.packing.corpus import Order
from precisionlm.packing.member import Member, claimed
from precisionlm.packing.narrow import pays, slots_needed
from precisionlm.packing.prepare import Prepared
from precisionlm.packing.program import blank_stack, put, take
from precisionlm.packing.queue import Queue
from precisionlm.packing.reached import Reached, Results, Status
from precisionlm.storage.claim import BusyError
from precisionlm.storage.failure import failed_alone
from precisionlm.storage.result import Result
from precisionlm.storage.run_directory import RunDirectory
from precisionlm.training.run import Run

Report = Callable[[int, int, float], None]  # (steps made in all, runs under way, mean of their losses in nats/token)


@dataclass(frozen=True)
class Keep:
    """weights: whether a finished run leaves its weights, beside its rows; every_seconds: between two checkpoints of a
    pack."""

    weights: bool = True
    every_seconds: float = 600.0


@dataclass(frozen=True)
class Trained:
    """outcome: run id → what became of it; narrower: slots of the pack in which the other runs go on better, with their
    state on disk; None where none is left."""

    outcome: dict[str, Status]
    narrower: int | None = None


def train_pack(
    prepared: Prepared,
    runs: Sequence[Run],
    out: Path,
    keep: Keep = Keep(),
    report: Report = lambda steps, runs, loss: None,
    interrupted: Callable[[], bool] = lambda: False,
) -> Trained:
    """Train every run that nobody else holds, all of one program and on one dataset, until all are done or so few are
    left that a narrower pack pays. Each leaves the same files as `training.execute.train` leaves.

    Raises UserError as `train` does, and PreemptedError as soon as `interrupted` says so: then the state of all members
    is on disk, and the same runs continue where they were.
    """
    stopped = "stopped before a pack was compiled; the same command goes on"
    with nothing_to_lose(stopped):
        if interrupted():
            raise PreemptedError(stopped)
        prepared.compile()
    with (
        ThreadPoolExecutor(1, "results") as writer,  # one: orbax is not made for several at once
        ExitStack() as held,
    ):
        pack = _Pack(prepared, runs, out, keep, interrupted, writer, held)
        pack.train(report)
    saved.discard_finished(out)
    return Trained(pack.outcome, pack.narrower)


@dataclass(frozen=True)
class _Dispatch:
    """Steps under way: of each slot its member, the steps that it had made before and those that it makes now; when it
    was begun (s, monotonic); the metrics [K, R]."""

    members: list[Member | None]
    before: list[int]
    todo: list[int]
    begun: float
    metrics: dict[str, jax.Array]


class _Pack:
    def __init__(
        self,
        prepared: Prepared,
        runs: Sequence[Run],
        out: Path,
        keep: Keep,
        interrupted: Callable[[], bool],
        writer: ThreadPoolExecutor,
        held: ExitStack,
    ):
        self.outcome: dict[str, Status] = {}
        self.narrower: int | None = None
        self._prepared, self._shape, self._out, self._keep = prepared, prepared.shape, out, keep
        self._interrupted = interrupted
        self._queue = Queue(runs, out)
        self._slots: list[Member | None] = [None] * self._shape.runs
        self._results = Results(prepared, keep.weights, interrupted, writer, self.outcome)
        self._orders: dict[str, Order] = {}
        self._taken: list[str] = []
        self._settled: float | None = None  # when the dispatch before ended
        self._step_seconds = 0.0
        held.callback(self._let_all_go)
        self._left = saved.newest(self._shape, out, {run.run_id for run in runs})
        if self._left is not None:
            self._queue.first([slot.run_id for slot in self._left.slots if slot is not None])
        self._state = blank_stack(self._shape)()
        self._fill()
        self._checkpoints = (
            held.enter_context(saved.Checkpointed(out, self._taken, self._left)) if self._taken else None
        )
        if self._left is not None and self._checkpoints is not None:
            self._save()  # under a name of our own before the pack that was left is given up
            self._checkpoints.replaces(self._left, {run.run_id for run in runs})
        self._left = None

    def train(self, report: Report) -> None:
        made, saved_at = 0, time.monotonic()
        pending: _Dispatch | None = None
        while any(self._slots) or pending:
            now = None
            if any(self._slots):
                now = self._dispatch()
                made += sum(now.todo)
            self._settle(pending)
            pending = now
            stop, due = self._interrupted(), time.monotonic() - saved_at > self._keep.every_seconds
            if stop or due or self._needs_attention() or self._narrower():
                self._settle(pending)
                pending = None
                self._attend()
                if stop:
                    self._stop()
                self._fill()
                self.narrower = self._narrower()
                if due or self.narrower:
                    self._save()
                    saved_at = time.monotonic()
            report(made, sum(map(bool, self._slots)), self._mean_loss())
            self._results.check()
            if self._checkpoints is not None:
                self._checkpoints.check()
            if self.narrower:
                break
        self._evaluate()
        self._results.wait()

    # --- slots ---

    def _fill(self) -> None:
        """Give every empty slot the next run that is ready and free."""
        before = len(self._taken)
        while None in self._slots and (run := self._queue.next_ready()) is not None:
            member = self._claim(run)
            if member is None:
                self._queue.finished(run)
                continue
            try:
                member.open(self._shape.runs, self._prepared.products, self._prepared.measure)
            except BaseException as error:  # it has no slot yet that would let it go
                member.let_go()
                self.outcome[run.run_id] = failed_alone(RunDirectory(self._out, run.run_id), error)
                self._queue.finished(run)
                continue
            self._taken.append(run.run_id)
            state = member.leave_state()
            if member.step == member.steps:
                self._results.add(Reached(member, member.step, state))
                continue
            slot = self._slot_of(run)
            self._state = put(self._shape.alone())(self._state, jax.device_put(state, self._shape.shared), slot)
            self._slots[slot] = member
        if len(self._taken) > before:
            runs = [member.run for member in self._slots if member is not None]
            if runs:
                each = [member.run if member is not None else runs[0] for member in self._slots]
                self._numbers = self._prepared.numbers(each)
            saved.record(self._out, self._shape, self._taken)

    def _narrower(self) -> int | None:
        """Slots that are enough for what is left, if a pack of so many pays."""
        live = [member for member in self._slots if member is not None]
        if not live:
            return None
        needed = slots_needed(len(live), self._queue.chains, self._shape.devices.size)
        steps = max([member.steps - member.step for member in live] + [self._queue.longest - live[0].step])
        cost = self._prepared.seconds
        return needed if pays(self._shape.runs, needed, steps, self._step_seconds, cost) else None

    def _slot_of(self, run: Run) -> int:
        """An empty one; the one where it was, if it can be, so that a pack that is taken up again is the same pack."""
        there = [slot.run_id if slot else "" for slot in self._left.slots] if self._left else []
        if run.run_id in there and len(there) == len(self._slots) and self._slots[there.index(run.run_id)] is None:
            return there.index(run.run_id)
        return self._slots.index(None)

    def _claim(self, run: Run) -> Member | None:
        batches, found = run.train_batches(), None
        order = self._orders.setdefault(repr(batches.get_state()), Order(batches))
        for r, slot in enumerate(self._left.slots if self._left else ()):
            if slot is not None and slot.run_id == run.run_id:
                assert self._left is not None
                found = slot, self._alone(take(self._shape.alone())(self._left.state, r))
        try:
            member = claimed(run, self._out, order, found)
        except BusyError:
            self.outcome[run.run_id] = "busy"
            return None
        except UserError as error:
            self.outcome[run.run_id] = failed_alone(RunDirectory(self._out, run.run_id), error)
            return None
        if isinstance(member, Result):
            self.outcome[run.run_id] = "skipped"
            return None
        return member

    def _alone(self, tree: Any) -> Any:
        """A member's arrays as `train` has them."""
        return jax.device_put(tree, self._shape.devices.devices.flat[0])

    # --- steps ---

    def _dispatch(self) -> _Dispatch:
        begun, prepared = time.monotonic(), self._prepared
        members = list(self._slots)
        before = [0 if member is None else member.step for member in members]
        todo = [0 if member is None else member.todo(self._shape.steps) for member in members]
        batches = prepared.corpus.batches([None if m is None else (m.order, m.step) for m in members])
        self._state, metrics = prepared.advance(
            self._state, prepared.corpus.on_device, prepared.place(batches), *self._numbers, prepared.counts(todo)
        )
        for member, count in zip(members, todo, strict=True):
            if member is not None:
                member.step += count
        return _Dispatch(members, before, todo, begun, metrics)

    def _settle(self, dispatch: _Dispatch | None) -> None:
        """Record a dispatch, if there is one."""
        if dispatch is None:
            return
        metrics = {name: np.asarray(values) for name, values in dispatch.metrics.items()}
        now, seconds = time.monotonic(), None
        if self._settled is not None:  # the first one after a start waits for the compiler
            seconds = self._step_seconds = (now - max(self._settled, dispatch.begun)) / max(dispatch.todo)
        self._settled = now
        for r, member in enumerate(dispatch.members):
            if member is not None and member.diverged is None:
                own = {name: values[:, r] for name, values in metrics.items()}
                member.record(dispatch.before[r], dispatch.todo[r], own, seconds)

    def _mean_loss(self) -> float:
        losses = [member.last_loss for member in self._slots if member is not None and member.last_loss is not None]
        return float(np.mean(losses)) if losses else float("nan")

    def _needs_attention(self) -> bool:
        members = [member for member in self._slots if member is not None]
        return any(m.step in (m.steps, m.trunk_due) or m.diverged is not None for m in members)

    def _attend(self) -> None:
        """Keep trunks, and take out members that are done or have diverged; all is recorded."""
        for r, member in enumerate(self._slots):
            if member is None:
                continue
            if member.step == member.steps:
                member.conclude_steps()
            if member.diverged is not None:
                self.outcome[member.run.run_id] = member.finish([])
                self._queue.finished(member.run)
                self._slots[r] = None
                continue
            if member.step in (member.steps, member.trunk_due):
                reached = Reached(member, member.step, take(self._shape.alone())(self._state, r))
                if member.step == member.trunk_due:
                    member.keep_trunk(self._alone(reached.state))
                self._results.add(reached)
                if reached.end:
                    self._queue.finished(member.run)
                    self._slots[r] = None
        if self._results.full:
            self._evaluate()

    def _evaluate(self) -> None:
        try:
            self._results.evaluate()
        except PreemptedError:
            self._stop()

    # --- stops ---

    def _save(self) -> None:
        assert self._checkpoints is not None
        for member in self._slots:
            if member is not None:
                member.flush()
        self._checkpoints.save(self._state, [None if member is None else member.slot() for member in self._slots])

    def _stop(self) -> None:
        self._save()
        left = sum(member is not None for member in self._slots) + self._results.save()
        raise PreemptedError(f"the state of {left} runs is saved; the same command continues them and those to come")

    def _let_all_go(self) -> None:
        for member in [*self._slots, *self._results.members]:
            if member is not None:
                member.let_go()
