"""How far a job is and how long it still takes: a bar on a terminal, a line now and then in a log."""

import statistics
import sys
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn

from precisionlm.terminal import below, harmless

_LOG_EVERY_SECONDS = 10.0
_RECENT = 11  # reports of progress whose pace counts: few, so that a change of pace is soon seen


class Reporter(Protocol):
    """Takes (share of the whole job done, 0…1; what is happening now)."""

    def __call__(self, share: float, text: str) -> None: ...


class TimeLeft:
    """How long a job still takes, from its latest reports.

    The pace is the median over what lay between reports of progress, so that what stands still for once (set-up,
    compilation, an evaluation) is not extrapolated to the rest of the job; nor is what is slower than the job was so
    far, as the last few runs of a pack are. Where a job stood still for longer than the reports that the pace is of
    took together, another stage begins, and nothing is known of its pace yet.
    """

    def __init__(self) -> None:
        self._first: tuple[float, float] | None = None  # time and share of the first report
        self._last: tuple[float, float] | None = None  # of the last report of progress
        self._recent: deque[tuple[float, float]] = deque(maxlen=_RECENT)  # seconds, and the share done in them

    def after(self, now: float, share: float) -> str:
        """In words, after a report at `now` (s); unknown until progress was reported twice, nothing at the end."""
        if share >= 1:
            return f"{clock(0)} left"
        if self._first is None or self._last is None:
            self._first = self._last = now, share
            return "time left unknown"
        stood = now - self._last[0]
        if self._recent and stood > sum(seconds for seconds, _ in self._recent):
            self._recent.clear()
            self._last = now, share
        elif share > self._last[1]:
            self._recent.append((stood, share - self._last[1]))
            self._last = now, share
        if len(self._recent) < 2:
            return "time left unknown"
        pace = statistics.median_low(seconds / done for seconds, done in self._recent)  # of the whole job
        began, at = self._first
        return f"{clock(min(pace, (now - began) / (share - at)) * (1 - share))} left"


@contextmanager
def reporting(title: str) -> Iterator[Reporter]:
    """A reporter for one job, on standard error."""
    console = Console(file=below(sys.stderr))
    if not console.is_terminal:
        yield _LogReporter(title)
        return
    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        TaskProgressColumn(),
        TimeElapsedColumn(),
        TextColumn("{task.fields[left]}"),
        TextColumn("{task.fields[text]}", markup=False),
    )
    time_left = TimeLeft()
    with Progress(*columns, console=console) as bar:
        task = bar.add_task(title, total=1.0, left="", text="")

        def report(share: float, text: str) -> None:
            bar.update(task, completed=share, left=time_left.after(time.monotonic(), share), text=harmless(text))

        yield report


class _LogReporter:
    def __init__(self, title: str):
        self._title, self._began = title, time.monotonic()
        self._next, self._time_left = self._began, TimeLeft()

    def __call__(self, share: float, text: str) -> None:
        now = time.monotonic()
        left = self._time_left.after(now, share)
        if now < self._next and share < 1:  # the last is always told
            return
        self._next = now + _LOG_EVERY_SECONDS
        elapsed = now - self._began
        print(
            f"{self._title} {100 * share:3.0f} %  {clock(elapsed)} elapsed, {left}  {text}", file=sys.stderr, flush=True
        )


def clock(seconds: float) -> str:
    """`1:02:03` or `2:03`."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
