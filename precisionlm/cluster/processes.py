"""Several processes as one trainer: how they find each other, and how they decide alike.

Every process runs the same program on its own devices and on its own rows of every batch. Files, printing and progress
are process 0's. What one process alone can know (a file, a clock, a signal) is agreed on before anybody acts on it,
since a process that goes another way leaves the others waiting in a collective.
"""

import json
import math
import os
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import jax
import numpy as np
from jax.experimental import multihost_utils

from precisionlm.cluster.lifeline import Lifeline
from precisionlm.cluster.meeting import meet
from precisionlm.cluster.preemption import nothing_to_lose
from precisionlm.errors import DONE, PreemptedError, UserError, debugging, exit_code
from precisionlm.terminal import Plain

T = TypeVar("T")

_BY_HAND = "give --coordinator, --processes and --process"
_ROOM = 1024  # bytes; messages are padded to a multiple, so that few sizes are compiled


@dataclass(frozen=True)
class Address:
    """Where a process stands among the others. coordinator: HOST:PORT at which they meet process 0; processes: how many
    (count); process: which one this is, from 0; devices: the local ones that are its own, None for all."""

    coordinator: str
    processes: int
    process: int
    devices: Sequence[int] | None = None


def address(
    coordinator: str | None, processes: int | None, process: int | None, detect: bool, timeout: float
) -> Address | None:
    """The arguments of a command as an address; None where none is given. detect: find all out from Slurm, GKE, a TPU
    pod or Open MPI instead, which may take until the host of process 0 has a name, at most `timeout` (s).

    Raises UserError for half of the arguments or where nothing is detected.
    """
    given = (coordinator, processes, process)
    if detect and any(word is not None for word in given):
        raise UserError("--distributed finds everything out; leave --coordinator, --processes and --process away")
    if detect:
        return _detected(timeout)
    if coordinator is None or processes is None or process is None:
        if any(word is not None for word in given):
            raise UserError("--coordinator HOST:PORT, --processes N and --process I belong together")
        return None
    if not 0 <= process < processes:
        raise UserError(f"--process {process}: must be at least 0 and below --processes {processes}")
    host, _, port = coordinator.rpartition(":")
    if not host or not port.isdigit() or not 0 < int(port) < 1 << 16:
        raise UserError(f"--coordinator {coordinator}: must be HOST:PORT")
    return Address(coordinator, processes, process)


def _detected(timeout: float) -> Address:
    # JAX's own detection, apart from what it does next: it has no public name.
    from jax._src.clusters import ClusterEnv

    try:
        found = ClusterEnv.auto_detect_unset_distributed_params(None, None, None, None, None, math.ceil(timeout))
    except (ValueError, KeyError) as error:
        raise UserError(f"--distributed: what the scheduler says cannot be read: {error!r}; {_BY_HAND}") from None
    except RuntimeError as error:  # the name of process 0's host is not known yet
        raise PreemptedError(f"the processes did not find each other within {timeout:g} s: {error}") from None
    coordinator, processes, process, devices = found
    if coordinator is None or processes is None or process is None:
        raise UserError(f"--distributed: no Slurm, GKE, TPU pod or Open MPI is found here; {_BY_HAND}")
    return Address(coordinator, processes, process, devices)


@contextmanager
def joined(where: Address | None, timeout: float) -> Iterator[Lifeline | None]:
    """As one of several processes, from when all have met to the end; None for one alone.

    timeout: for all to come (s). Raises PreemptedError where one does not, and UserError where they were started
    differently. A process that ends by an error which the others do not have ends all of them as preempted.
    """
    if where is None:
        yield None
        return
    _keep_stdout_ours()
    with nothing_to_lose("stopped before all processes were there; the same command tries again"):
        lifeline = None
        port = int(where.coordinator.rpartition(":")[2])
        if where.processes > 1:
            lifeline = meet(where.coordinator, where.processes, where.process, timeout)
            port = lifeline.port
        # What JAX asks its preemption service, ours ask the lifeline: the service would take SIGTERM away from us.
        jax.config.update("jax_enable_preemption_service", False)
        host = where.coordinator.rpartition(":")[0]
        jax.distributed.initialize(
            f"{host}:{port}",
            where.processes,
            where.process,
            None if where.devices is None else list(where.devices),
            cluster_detection_method="deactivate",
        )
    if lifeline is None:
        yield None
        return
    try:
        yield lifeline
    except BaseException as error:
        code = exit_code(error)
        if code is None and debugging():  # nobody waits for its traceback where all end at once
            traceback.print_exception(error)
        lifeline.leave(1 if code is None else code, f"{type(error).__name__}: {error}" if code is None else str(error))
        raise
    lifeline.leave(DONE, "")


def _keep_stdout_ours() -> None:
    """The collectives' library announces itself on standard output, where a user's JSON goes: send it to stderr."""
    ours = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    sys.stdout = Plain(ours)


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


def agreed(lifeline: Lifeline | None, interrupted: Callable[[], bool]) -> Callable[[], bool]:
    """`interrupted` on any process, as a decision that all take at the same poll.

    All must poll the result equally often. A poll costs about a microsecond: the poll at which all stop is settled in
    the background, so that no step waits for a collective.
    """
    if lifeline is None:
        return interrupted

    def poll() -> bool:
        if interrupted():
            lifeline.ask_to_stop()
        return lifeline.stops()

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
