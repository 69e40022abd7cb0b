"""SIGTERM and SIGINT as a flag that loops poll: state is saved before the process goes."""

import signal
from types import FrameType
from typing import Any


class Interruption:
    """While entered, SIGTERM and the first SIGINT set a flag; a second SIGINT ends the process at once."""

    def __init__(self) -> None:
        self._requested = False
        self._previous: dict[int, Any] = {}

    def __call__(self) -> bool:
        """Whether the process was asked to go."""
        return self._requested

    def __enter__(self) -> "Interruption":
        for number in (signal.SIGTERM, signal.SIGINT):
            self._previous[number] = signal.signal(number, self._request)
        return self

    def __exit__(self, *exception: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _request(self, number: int, frame: FrameType | None) -> None:
        self._requested = True
        # Not Python's own handler: it would wait for the end of a compilation.
        signal.signal(signal.SIGINT, signal.SIG_DFL)
