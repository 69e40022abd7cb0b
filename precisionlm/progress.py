"""How far a job is and how long it still takes: a bar on a terminal, a line now and then in a log."""

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn

_LOG_EVERY_SECONDS = 10.0


class Reporter(Protocol):
    """Takes (share of the whole job done, 0…1; what is happening now)."""

    def __call__(self, share: float, text: str) -> None: ...


@contextmanager
def reporting(title: str) -> Iterator[Reporter]:
    """A reporter for one job, on standard error."""
    console = Console(stderr=True)
    if not console.is_terminal:
        yield _LogReporter(title)
        return
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TaskProgressColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        TextColumn("{task.fields[text]}"),
    )
    with Progress(*columns, console=console) as bar:
        task = bar.add_task(title, total=1.0, text="")
        yield lambda share, text: bar.update(task, completed=share, text=text)


class _LogReporter:
    def __init__(self, title: str):
        self._title, self._began = title, time.monotonic()
        self._next = self._began

    def __call__(self, share: float, text: str) -> None:
        now = time.monotonic()
        if now < self._next:
            return
        self._next = now + _LOG_EVERY_SECONDS
        elapsed = now - self._began
        left = f"{clock(elapsed * (1 - share) / share)} left" if share > 0 else "time left unknown"
        print(
            f"{self._title} {100 * share:3.0f} %  {clock(elapsed)} elapsed, {left}  {text}", file=sys.stderr, flush=True
        )


def clock(seconds: float) -> str:
    """`1:02:03` or `2:03`."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
