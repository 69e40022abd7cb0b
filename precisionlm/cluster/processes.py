"""Several processes as one trainer: how they find each other, and how they decide alike.

Every process runs the same program on its own devices and on its own rows of every batch. Files, printing and progress
are process 0's. What one process alone can know (a file, a clock, a signal) is agreed on before anybody acts on it,
since a process that goes another way leaves the others waiting in a collective.
"""

import itertools
import json
import os
import signal
import sys
import time
from collections.abc import Callable
from typing import Any, TypeVar

import jax
import numpy as np
from jax.experimental import multihost_utils

from precisionlm.errors import UserError

T = TypeVar("T")

_ROOM = 1024  # bytes; messages are padded to a multiple, so that few sizes are compiled


def start(coordinator: str | None, processes: int | None, process: int | None, detect: bool) -> None:
    """Join the other processes; nothing is done where no argument is given.

    coordinator: HOST:PORT of process 0; processes: how many (count); process: which one this is, from 0. detect: find
    all three out from Slurm, GKE, a TPU pod or Open MPI instead. Raises UserError for half of the arguments or where
    nothing is detected.
    """
    given = (coordinator, processes, process)
    if detect and any(word is not None for word in given):
        raise UserError("--distributed finds everything out; leave --coordinator, --processes and --process away")
    if coordinator is None or processes is None or process is None:
        if any(word is not None for word in given):
            raise UserError("--coordinator HOST:PORT, --processes N and --process I belong together")
        if not detect:
            return
    elif not 0 <= process < processes:
        raise UserError(f"--process {process}: must be at least 0 and below --processes {processes}")
    elif not coordinator.rpartition(":")[0] or not coordinator.rpartition(":")[2].isdigit():
        raise UserError(f"--coordinator {coordinator}: must be HOST:PORT")
    _keep_stdout_ours()
    try:
        if detect:
            jax.distributed.initialize()
        else:
            jax.distributed.initialize(coordinator, processes, process, cluster_detection_method="deactivate")
    except (ValueError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:300]
        hint = "give --coordinator, --processes and --process" if detect else "are all processes started?"
        raise UserError(f"the processes did not find each other ({reason}); {hint}") from None


def _keep_stdout_ours() -> None:
    """The collectives' library announces itself on standard output, where a user's JSON goes: send it to stderr."""
    ours = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    sys.stdout = ours


def is_first() -> bool:
    """Whether this is process 0, which writes and prints."""
    return jax.process_index() == 0


def gather(value: Any) -> list[Any]:
    """Every process's `value` (plain JSON), by process. All must call it; waits for the devices."""
    if jax.process_count() == 1:
        return [value]
    content = np.frombuffer(json.dumps(value).encode(), np.uint8)
    sizes = multihost_utils.process_allgather(np.array(len(content), np.int32))
    padded = np.zeros(-(-int(sizes.max()) // _ROOM) * _ROOM, np.uint8)
    padded[: len(content)] = content
    rows = multihost_utils.process_allgather(padded)
    return [json.loads(row[:size].tobytes()) for row, size in zip(rows, sizes, strict=True)]


def on_first(action: Callable[[], T]) -> T:
    """What `action` returns (plain JSON) on process 0, where alone it runs. Its UserError is raised on all."""
    if jax.process_count() == 1:
        return action()
    value, error = _attempt(action) if is_first() else (None, None)
    value, error = gather([value, error])[0]
    if error is not None:
        raise UserError(error)
    return value


def on_all(action: Callable[[], T]) -> T:
    """What `action` returns here. A UserError of any process is raised on all, so that none waits for it."""
    if jax.process_count() == 1:
        return action()
    value, error = _attempt(action)
    for process, message in enumerate(gather(error)):
        if message is not None:
            raise UserError(f"process {process}: {message}")
    return value


def _attempt(action: Callable[[], Any]) -> tuple[Any, str | None]:
    try:
        return action(), None
    except UserError as error:
        return None, str(error)


def check_rows(mesh: jax.sharding.Mesh) -> None:
    """Raises UserError where a process's devices do not hold the rows of the batch that it reads: its equal share, in
    order of processes."""
    owners = np.vectorize(lambda device: device.process_index)(mesh.devices).reshape(-1, mesh.shape["tensor"])
    expected = np.arange(len(owners))[:, None] * jax.process_count() // len(owners)
    if jax.process_count() > 1 and (owners != expected).any():
        raise UserError(
            f"mesh: tensor {mesh.shape['tensor']} spreads one row of a batch over several processes; choose a size "
            f"that divides the {jax.local_device_count()} devices of a process"
        )


def agreed(interrupted: Callable[[], bool]) -> Callable[[], bool]:
    """`interrupted` on any process, as a decision that all take at the same poll.

    All must poll the result equally often. A poll costs well under a microsecond: JAX's preemption service, which
    takes SIGTERM over from `start` on, settles the poll at which all stop in the background, so that no step waits for
    a collective. What `interrupted` knows itself (SIGINT) is passed on as SIGTERM.
    """
    if not jax.distributed.is_initialized():
        return interrupted
    polls, passed_on, stop = itertools.count(1), False, False

    def poll() -> bool:
        nonlocal passed_on, stop
        if not passed_on and interrupted():
            passed_on = True
            os.kill(os.getpid(), signal.SIGTERM)
        stop = stop or multihost_utils.reached_preemption_sync_point(next(polls))
        return stop

    return poll


class SharedClock:
    """Whether an interval has passed, by the clock of process 0, asked once a step.

    One process reads its clock at every step. Several agree by a collective at doubling distances, then at half of
    what is estimated to be left: a few dozen times an interval, however short the steps are.
    """

    def __init__(self, seconds: float | None):
        self._seconds = seconds
        self.restart()

    def restart(self) -> None:
        """The interval begins now."""
        self._began, self._asked, self._ask_at = time.monotonic(), 0, 1

    def passed(self) -> bool:
        """Whether the interval is over; False for ever where there is none."""
        if self._seconds is None:
            return False
        if jax.process_count() == 1:
            return time.monotonic() - self._began > self._seconds
        self._asked += 1
        if self._asked < self._ask_at:
            return False
        share = max((time.monotonic() - self._began) / self._seconds, 1e-9)
        share = float(multihost_utils.broadcast_one_to_all(np.array(share, np.float32)))
        self._ask_at = self._asked + max(1, min(self._asked, int(self._asked * (1 / share - 1) / 2)))
        return share > 1
