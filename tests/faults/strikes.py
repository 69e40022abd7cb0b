"""Inside a process of the campaign: what is done to it, at the n-th call of a named function.

Nothing in the product knows of it: the function's name is bound to one that counts, and that strikes at its n-th call
or some milliseconds after it.
"""

import importlib
import os
import resource
import signal
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import wraps
from typing import Any

KILL, TERM, CTRL_C, FULL_DISK, DAMAGE, PEER = "kill", "term", "ctrl-C", "full disk", "damaged checkpoint", "peer killed"
KINDS = (KILL, TERM, CTRL_C, FULL_DISK, DAMAGE, PEER)
SOFT = (CTRL_C, FULL_DISK)  # after which an interpreter can go on with the next command


@dataclass(frozen=True)
class Strike:
    """kind: of KINDS; target: dotted name of a function; nth: at which of its calls, from 1; delay: how long after
    that call's beginning (ms)."""

    kind: str
    target: str
    nth: int
    delay: int = 0


class Watch:
    """How often each target was called, and whether the strike came."""

    def __init__(self, strike: Strike | None):
        self.calls: Counter[str] = Counter()
        self.struck = False
        self._strike, self._counting = strike, threading.Lock()
        self._timer: threading.Timer | None = None

    def called(self, target: str) -> None:
        """Count a call; strike if it is the one."""
        with self._counting:
            self.calls[target] += 1
            now = self._strike is not None and (target, self.calls[target]) == (self._strike.target, self._strike.nth)
        if now:
            assert self._strike is not None
            if self._strike.delay:
                self._timer = threading.Timer(self._strike.delay / 1000, self._do)
                self._timer.daemon = True
                self._timer.start()
            else:
                self._do()

    def over(self) -> None:
        """The command has ended: what was not struck is not struck any more."""
        if self._timer is not None:
            self._timer.cancel()

    def _do(self) -> None:
        assert self._strike is not None
        self.struck = True
        match self._strike.kind:
            case "term":
                os.kill(os.getpid(), signal.SIGTERM)
            case "ctrl-C":
                os.killpg(0, signal.SIGINT)  # a terminal sends it to all processes of a command
            case "full disk":
                # Every write to a file fails from here on, as on a full disk but for the number of the error.
                resource.setrlimit(resource.RLIMIT_FSIZE, (0, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))
            case _:
                os.kill(os.getpid(), signal.SIGKILL)


@contextmanager
def watching(targets: Iterable[str], strike: Strike | None) -> Iterator[Watch]:
    """While entered, calls of the targets are counted, and one of them is struck."""
    watch, limit = Watch(strike), resource.getrlimit(resource.RLIMIT_FSIZE)
    with ExitStack() as bound:
        for target in targets:
            owner, name = owner_of(target)
            bound.callback(setattr, owner, name, getattr(owner, name))
            setattr(owner, name, _counted(getattr(owner, name), target, watch))
        try:
            yield watch
        finally:
            watch.over()
            resource.setrlimit(resource.RLIMIT_FSIZE, limit)


def owner_of(target: str) -> tuple[Any, str]:
    """(module or class, name) of a dotted name."""
    parts = target.split(".")
    for cut in range(len(parts) - 1, 0, -1):
        try:
            owner: Any = importlib.import_module(".".join(parts[:cut]))
        except ModuleNotFoundError:
            continue
        for part in parts[cut:-1]:
            owner = getattr(owner, part)
        return owner, parts[-1]
    raise ValueError(target)


def _counted(function: Callable[..., Any], target: str, watch: Watch) -> Callable[..., Any]:
    @wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        watch.called(target)
        return function(*args, **kwargs)

    return call
