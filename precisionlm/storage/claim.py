"""Who trains a run: one process at a time, and whoever is killed holds nothing any more."""

import fcntl
import json
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from precisionlm.errors import CannotWriteError, UserError
from precisionlm.storage.run_directory import RunDirectory

_NAME = ".lock"


class BusyError(UserError):
    """Another process trains the run."""


@contextmanager
def claim(directory: RunDirectory) -> Iterator[None]:
    """Hold a run directory. The lock goes with the process, however it ends; the file says who holds it. Raises
    BusyError where another process does, and UserError where the file system has no locks."""
    path = directory.path / _NAME
    try:
        file = path.open("a+b", buffering=0)
    except OSError as error:
        raise CannotWriteError(f"{path}: cannot be written: {error.strerror}") from None
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise BusyError(f"run {directory.path.name} is being trained by another process") from None
        except OSError as error:
            raise UserError(f"{path}: cannot be locked: {error.strerror}") from None
        holder = {"host": socket.gethostname(), "pid": os.getpid(), "since": time.time()}
        try:
            file.truncate(0)
            file.write(json.dumps(holder).encode())
        except OSError as error:
            raise CannotWriteError(f"{path}: cannot be written: {error.strerror}") from None
        yield


def holder(directory: RunDirectory) -> dict[str, Any] | None:
    """Who holds a run directory: host, pid, since (s since 1970), as far as they were written; None if nobody does."""
    path = directory.path / _NAME
    try:
        with path.open() as file:
            try:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                try:
                    return dict(json.loads(file.read()))
                except ValueError:
                    return {}
            return None
    except OSError:
        return None
