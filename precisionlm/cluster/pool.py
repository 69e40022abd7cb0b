"""A pool of processes that does not outlive its parent, and leaves it to answer a Ctrl-C."""

import os
import signal
import threading
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import parent_process
from multiprocessing.context import SpawnContext, SpawnProcess
from typing import Any


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
