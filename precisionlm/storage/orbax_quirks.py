"""What orbax leaves behind after a read or write that failed: threads, coroutines and log lines, and how they end here.

A failure is heard of through its own error alone. What orbax gives up then calls back into an event loop that is gone,
or is thrown out of its own coroutines, seconds later and anywhere.
"""

import gc
import logging
import sys
import threading
import time
import traceback
import warnings
from collections.abc import Callable
from types import CoroutineType
from typing import Any, ClassVar

_LOGS = (logging.getLogger("absl"), logging.getLogger("asyncio"))  # where orbax's threads report
_LAST_SECONDS = 30.0  # that what orbax gave up is waited for


class Quiet:
    """While entered, orbax's threads report nothing."""

    _entered: ClassVar[list["Quiet"]] = []  # in threads of their own, which leave in any order
    _loud: ClassVar[Callable[[], None]]
    _changing: ClassVar[threading.Lock] = threading.Lock()

    def __enter__(self) -> "Quiet":
        with self._changing:
            if not self._entered:
                Quiet._loud = self._silence()
            self._entered.append(self)
        return self

    def __exit__(self, *exception: object) -> None:
        with self._changing:
            self._entered.remove(self)
            if not self._entered:
                Quiet._loud()

    @staticmethod
    def _silence() -> Callable[[], None]:
        """Returns what ends it."""
        hook, levels = sys.unraisablehook, [log.level for log in _LOGS]

        def unraisable(found: Any) -> None:
            late_write = isinstance(found.exc_value, RuntimeError) and "loop is closed" in str(found.exc_value)
            if not (late_write or _is_orbax(found.object)):
                hook(found)

        def loud() -> None:
            sys.unraisablehook = hook
            for log, level in zip(_LOGS, levels, strict=True):
                log.setLevel(level)

        for log in _LOGS:
            log.setLevel(logging.CRITICAL)
        sys.unraisablehook = unraisable
        return loud


def let_go(error: BaseException) -> None:
    """Drop the frames that an error and those behind it hold, and with them what orbax gave up."""
    following: BaseException | None = error
    with _unheard():
        while following is not None:
            traceback.clear_frames(following.__traceback__)
            following.__traceback__ = None
            following = following.__cause__ or following.__context__


def collect_given_up() -> None:
    """The reads and writes that orbax gives up after the first that failed complain when they are collected, which can
    only be once they have come to their end: let it be here, where nobody hears them, not anywhere later."""
    until = time.monotonic() + _LAST_SECONDS
    with _unheard():
        gc.collect()
        while (_threads() or any(map(_is_orbax, gc.get_objects()))) and time.monotonic() < until:
            time.sleep(0.05)
            gc.collect()


def _is_orbax(found: Any) -> bool:
    return type(found) is CoroutineType and "orbax" in found.cr_code.co_filename


def _unheard() -> warnings.catch_warnings:
    return warnings.catch_warnings(action="ignore", category=RuntimeWarning)  # a coroutine "was never awaited"


def _threads() -> list[threading.Thread]:
    """Orbax's own that are still at work."""
    return [thread for thread in threading.enumerate() if type(thread).__module__.startswith("orbax")]
