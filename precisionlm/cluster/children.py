"""Child processes that do not outlive their parent, however it ends: a pipe whose other end only the parent has tells
the child that it is gone, by the system's hand."""

import os
import signal
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from multiprocessing import parent_process
from multiprocessing.context import SpawnContext, SpawnProcess
from typing import Any

_VARIABLE = "PRECISIONLM_PARENT"  # the child's end of the pipe


@contextmanager
def parental() -> Iterator[tuple[dict[str, str], tuple[int, ...]]]:
    """What a child gets, which ends with this process where it calls `end_with_parent`: variables of its environment,
    and `pass_fds` of subprocess. It is to have ended when the context is left."""
    theirs, ours = os.pipe()
    try:
        yield {_VARIABLE: str(theirs)}, (theirs,)
    finally:
        os.close(ours)
        os.close(theirs)


def end_with_parent() -> None:
    """Have this process end as soon as the parent that began it with `parental` does, if one did."""
    given = os.environ.pop(_VARIABLE, None)  # not for children of our own
    if given is not None:
        threading.Thread(target=_wait_and_end, args=(int(given),), name="parent", daemon=True).start()


def _wait_and_end(parent: int) -> None:
    os.read(parent, 1)
    os._exit(1)


class _Process(SpawnProcess):
    """Never hears of a Ctrl-C, from its first instruction on: what is blocked where it is begun is blocked there."""

    def start(self) -> None:
        before = signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGINT,))
        try:
            super().start()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)


class _Context(SpawnContext):  # a fork would copy the threads of JAX and of the tokenizer
    Process = _Process


def pool(processes: int, begin: Callable[..., None], *arguments: Any) -> ProcessPoolExecutor:
    """Processes that end with this one, however it ends; each calls `begin(*arguments)` first. A Ctrl-C, which a
    terminal sends to all processes of a command, is this one's to answer."""
    return ProcessPoolExecutor(processes, _Context(), _begin, (begin, arguments))


def _begin(begin: Callable[..., None], arguments: tuple[Any, ...]) -> None:
    # The queue of jobs has its writing end in every process of the pool, so its end tells none of them.
    threading.Thread(target=_join_and_end, args=(parent_process(),), name="parent", daemon=True).start()
    begin(*arguments)


def _join_and_end(parent: Any) -> None:
    parent.join()
    os._exit(1)
