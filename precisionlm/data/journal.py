"""How far a preparation is, so that a killed one goes on, and the folder that appears complete or not at all."""

import contextlib
import fcntl
import json
import os
import shutil
from array import array
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from precisionlm.data.meta import SPLIT_FILES
from precisionlm.errors import UserError

_JOURNAL = "journal.json"


@dataclass
class Position:
    """How far a preparation is: the part of the source (`validation` or `train`), the file in it, the records of that
    file done, and of each split the (tokens, documents) written; counts of records by what became of them, and of
    windows of long texts that were cut without agreement."""

    part: str = ""
    file: int = 0
    records: int = 0
    splits: dict[str, list[int]] = field(default_factory=dict)
    counts: Counter[str] = field(default_factory=Counter)
    hard_cuts: int = 0


class Digests:
    """The hashes of the documents of each split: 8 bytes a document, in memory and, with the journal, on the disk."""

    def __init__(self) -> None:
        self._of: dict[str, array[int]] = {split: array("Q") for split in SPLIT_FILES}
        self._saved = dict.fromkeys(SPLIT_FILES, 0)

    def add(self, split: str, digest: int) -> None:
        """One more document."""
        self._of[split].append(digest)

    def duplicates(self) -> int:
        """Documents (count) with the content of an earlier one."""
        every = np.concatenate([np.frombuffer(of, np.uint64) for of in self._of.values()])
        return len(every) - len(np.unique(every))

    def held_out(self) -> set[int]:
        """Of the validation split."""
        return set(self._of["validation"])

    def save(self, folder: Path) -> None:
        """Appends what is new since the last call."""
        for split, of in self._of.items():
            with open(folder / f"{split}.digests", "ab") as file:
                file.truncate(8 * self._saved[split])
                of[self._saved[split] :].tofile(file)
                file.flush()
                os.fsync(file.fileno())
            self._saved[split] = len(of)

    def load(self, folder: Path, documents: dict[str, int]) -> None:
        """Takes up so many of each split."""
        for split, count in documents.items():
            with open(folder / f"{split}.digests", "rb") as file:
                self._of[split].fromfile(file, count)
            self._saved[split] = count


def read_journal(folder: Path, arguments: dict[str, Any]) -> Position | None:
    """How far an earlier call with the same arguments came; None where there is nothing to go on with."""
    try:
        tree = json.loads((folder / _JOURNAL).read_text())
        if tree["arguments"] != json.loads(json.dumps(arguments)):
            return None
        return Position(**{**tree["position"], "counts": Counter(tree["position"]["counts"])})
    except (OSError, ValueError, KeyError, TypeError):
        return None


def write_journal(folder: Path, arguments: dict[str, Any], position: Position) -> None:
    """After what it speaks of is on the disk."""
    write_whole(folder / _JOURNAL, json.dumps({"arguments": arguments, "position": vars(position)}).encode())


def write_whole(path: Path, content: bytes) -> None:
    """A small file, complete or not at all, on the disk. UserError: it cannot be written."""
    partial = path.parent / f".{path.name}.partial"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(partial, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        partial.rename(path)
        _sync(path.parent)
    except OSError as error:
        partial.unlink(missing_ok=True)
        raise UserError(f"{path} cannot be written: {error.strerror}") from None


def remove_traces(folder: Path) -> None:
    """What only a preparation that is under way needs. Gone only once the folder has its name: until then a call that
    was killed is gone on with."""
    for name in (_JOURNAL, *(f"{split}.digests" for split in SPLIT_FILES)):
        (folder / name).unlink(missing_ok=True)


@contextlib.contextmanager
def appearing_complete(out: Path, arguments: dict[str, Any]) -> Iterator[Path]:
    """A scratch folder beside `out` that takes its name at the end, on the disk. Whatever goes wrong before the first
    journal leaves nothing; after it, what a call with the same arguments goes on with, unless the disk is full.
    UserError: another process prepares `out`, or has filled it."""
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        folder = out.parent / f".{out.name}.partial"
        folder.mkdir(exist_ok=True)
        lock = os.open(folder, os.O_RDONLY)
    except OSError as error:
        raise UserError(f"{out} cannot be written: {error.strerror}") from None
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise UserError(f"{out} is being prepared by another process; wait for it, or end it") from None
        if read_journal(folder, arguments) is None:
            for old in folder.iterdir():
                shutil.rmtree(old) if old.is_dir() else old.unlink()
        try:
            yield folder
            for path in (*folder.iterdir(), folder):
                _sync(path)
        except OSError as error:
            shutil.rmtree(folder, ignore_errors=True)
            raise UserError(f"{out} cannot be written: {error.strerror or error}; nothing was left") from None
        except BaseException:
            if not (folder / _JOURNAL).exists():
                shutil.rmtree(folder, ignore_errors=True)
            raise
        try:
            folder.rename(out)  # replaces an empty folder only
        except OSError:
            shutil.rmtree(folder, ignore_errors=True)
            raise UserError(f"{out} was filled by another process meanwhile; call again") from None
        _sync(out.parent)
        remove_traces(out)
    finally:
        os.close(lock)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
