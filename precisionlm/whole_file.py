"""Files and folders that are complete or absent, and on disk: written under another name, synced, renamed, the folder
synced."""

import fcntl
import glob
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from precisionlm.errors import CannotWriteError, UserError


@contextmanager
def written(path: Path, kept: str = "") -> Iterator[Path]:
    """A path of the same ending to write to, which becomes `path` when the block ends and is removed if it fails.
    Folders above are made; what killed processes left of it is removed. kept: said after
    the reason. Raises CannotWriteError."""
    if "\0" in str(path):
        raise UserError("the path of a file holds a null character")
    partial = path.with_name(f".{path.stem}.{os.getpid()}.partial{path.suffix}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _remove_left(path)
        try:
            with open(partial, "ab") as held:
                with suppress(OSError):  # file systems without locks
                    fcntl.flock(held, fcntl.LOCK_EX)  # until the block, or the process, ends
                yield partial
                sync(partial)
                partial.replace(path)
            sync(path.parent)  # the rename is the folder's
        finally:
            with suppress(OSError):
                partial.unlink(missing_ok=True)
    except OSError as error:
        raise CannotWriteError(f"{path}: cannot be written: {error.strerror or error}{kept}") from None


def _remove_left(path: Path) -> None:
    """The partial files of a path that no process holds."""
    for left in path.parent.glob(f".{glob.escape(path.stem)}.*.partial{glob.escape(path.suffix)}"):
        with suppress(OSError), open(left, "ab") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            left.unlink()


def _nothing(folder: Path) -> bool:
    return False


@contextmanager
def filled(out: Path, ours: Callable[[Path], bool] = _nothing) -> Iterator[Path]:
    """A folder to fill, which becomes `out` when the block ends and is removed if it fails. ours: whether what is there
    may be replaced. Raises UserError where something else is there, and where it cannot be written."""
    if "\0" in str(out):
        raise UserError("the path of a folder holds a null character")
    if out.exists() and (not out.is_dir() or (any(out.iterdir()) and not ours(out))):
        raise UserError(f"{out} is there and not empty; give a new folder")
    partial, old = (out.with_name(f".{out.name}.{os.getpid()}.{word}") for word in ("partial", "old"))
    try:
        partial.mkdir(parents=True)
        yield partial
        for path in partial.rglob("*"):
            sync(path)
        if out.exists():
            out.rename(old)
        partial.rename(out)
        sync(out.parent)
    except OSError as error:
        raise UserError(f"{out}: cannot be written: {error.strerror}; nothing is left of it") from None
    finally:
        if old.exists() and not out.exists():
            old.rename(out)
        for rest in (partial, old):
            shutil.rmtree(rest, ignore_errors=True)


def sync(path: Path) -> None:
    """A file or a folder to the disk. Raises OSError; file systems that sync no folders are let be."""
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except PermissionError:  # a folder that may be written to, not read
        return
    try:
        os.fsync(descriptor)
    except OSError:
        if not path.is_dir():
            raise
    finally:
        os.close(descriptor)


def check_writable(folder: Path) -> None:
    """Raises UserError where a folder is not there and cannot be made, or takes no files; makes nothing."""
    if "\0" in str(folder):
        raise UserError("the path of a folder holds a null character")
    there = folder.absolute()
    while not os.path.lexists(there) and there != there.parent:
        there = there.parent
    if not there.is_dir():
        raise UserError(f"{folder}: cannot be written: {there} is no folder")
    if not os.access(there, os.W_OK | os.X_OK):
        raise UserError(f"{folder}: cannot be written: no rights in {there}")
