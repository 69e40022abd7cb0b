"""SIGTERM and SIGINT as a flag that loops poll: state is saved before the process goes. Where there is nothing to save,
as in a compilation of many minutes that no flag can end, the process goes at once."""

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

from precisionlm.errors import PREEMPTED

_ASKED = (signal.SIGTERM, signal.SIGINT)
_OVER = b"\0"  # no signal's number
_at_once: list[str] = []  # what to say, by whom nothing is lost; the innermost last


@contextmanager
def nothing_to_lose(line: str) -> Iterator[None]:
    """While entered, whoever is asked to go goes at once with `line`, exit code 75: whatever it does is either on disk
    or not begun. What came before must be polled for after entering."""
    _at_once.append(line)
    try:
        yield
    finally:
        _at_once.remove(line)


def end_at_once(line: str) -> None:
    """End the process as preempted, from any thread, whatever the others wait for."""
    os.write(2, f"preempted: {line}\n".encode())
    os._exit(PREEMPTED)


def _deaf() -> None:
    signal.set_wakeup_fd(-1)
    _heard()


def _heard() -> None:
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _ASKED)


# A forked child must not tell its parent of the child's own signals, from its first moment on.
os.register_at_fork(
    before=lambda: signal.pthread_sigmask(signal.SIG_BLOCK, _ASKED), after_in_parent=_heard, after_in_child=_deaf
)


class Interruption:
    """While entered, SIGTERM and the first SIGINT set a flag; a second SIGINT ends the process at once.

    Python runs its handlers between two of its own instructions, so never while the main thread compiles. The system's
    note of a signal (`signal.set_wakeup_fd`) reaches a thread of our own even then.
    """

    def __init__(self) -> None:
        self._requested = False
        self._previous: dict[int, Any] = {}

    def __call__(self) -> bool:
        """Whether the process was asked to go."""
        return self._requested

    def __enter__(self) -> "Interruption":
        self._notes, self._note = os.pipe()
        os.set_blocking(self._note, False)
        self._previous_note = signal.set_wakeup_fd(self._note, warn_on_full_buffer=False)
        for number in _ASKED:
            self._previous[number] = signal.signal(number, self._request)
        self._listener = threading.Thread(target=self._listen, name="signals", daemon=True)
        self._listener.start()
        return self

    def __exit__(self, *exception: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        signal.set_wakeup_fd(self._previous_note)
        os.write(self._note, _OVER)
        self._listener.join()
        os.close(self._note)
        os.close(self._notes)

    def _request(self, number: int, frame: FrameType | None) -> None:
        self._requested = True
        # Not Python's own handler: it would wait for the end of a compilation.
        signal.signal(signal.SIGINT, signal.SIG_DFL)

    def _listen(self) -> None:
        while (number := os.read(self._notes, 1)) != _OVER:
            if number[0] in _ASKED:
                self._requested = True
                if _at_once:
                    end_at_once(_at_once[-1])
