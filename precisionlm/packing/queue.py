"""Which run of a queue is next: the longest first, but budgets of one trunk in turn, since each begins where the decay
of the one before began (`training.trunk`)."""

from collections.abc import Sequence
from pathlib import Path

from precisionlm.storage.run_directory import RunDirectory
from precisionlm.training.run import Run
from precisionlm.training.trunk import is_kept


class Queue:
    """Runs to come, by turn."""

    def __init__(self, runs: Sequence[Run], out: Path):
        self._out = out
        self._waiting = sorted(runs, key=_turn)
        self._gone: dict[str, Run] = {}

    def first(self, run_ids: Sequence[str]) -> None:
        """These come before all others, in this order."""
        order = {run_id: i for i, run_id in enumerate(run_ids)}
        self._waiting.sort(key=lambda run: order.get(run.run_id, len(order)))

    @property
    def chains(self) -> int:
        """How many trunks those that wait share."""
        return len({run.trunk.identity for run in self._waiting if run.trunk is not None})

    @property
    def longest(self) -> int:
        """Steps of the longest that waits."""
        return max((run.experiment.training.steps for run in self._waiting), default=0)

    def next_ready(self) -> Run | None:
        """Take the next run that need not wait for another one's trunk; None if there is none now."""
        for i, run in enumerate(self._waiting):
            if not self._must_wait(run):
                self._gone[run.run_id] = run
                return self._waiting.pop(i)
        return None

    def finished(self, run: Run) -> None:
        """A run that was taken has ended, or is somebody else's: nobody waits for it any longer."""
        self._gone.pop(run.run_id, None)

    def _must_wait(self, run: Run) -> bool:
        if run.trunk is None or RunDirectory(self._out, run.run_id).path.exists():
            return False
        return any(
            other.experiment.checkpoint.trunk
            and other.trunk is not None
            and other.trunk.identity == run.trunk.identity
            and 0 < other.trunk.steps <= run.trunk.steps
            and other.experiment.training.steps < run.experiment.training.steps
            and not is_kept(RunDirectory(self._out, other.run_id))
            for other in [*self._waiting, *self._gone.values()]
        )


def _turn(run: Run) -> tuple[bool, int]:
    chained = run.experiment.checkpoint.trunk and run.trunk is not None
    steps = run.experiment.training.steps
    return (not chained, steps if chained else -steps)
