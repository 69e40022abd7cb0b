"""Documents' tokens → shards of fixed size."""

import contextlib
import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import numpy as np

from precisionlm.data.meta import DTYPES, SPLIT_FILES, Shard, Split

SHARD_TOKENS = 1 << 28  # of a shard
_PIECE = 1 << 23


class SplitWriter:
    """The tokens of one split, each document followed by end-of-text, in files of `shard_tokens` each: counted and
    hashed. A split of one shard is the one file of `SPLIT_FILES`."""

    def __init__(self, folder: Path, split: str, dtype: str, eos_id: int, shard_tokens: int, done: Sequence[int]):
        """done: (tokens, documents) that an earlier call has written."""
        self._folder, self._split, self._shard_tokens = folder, split, shard_tokens
        self._dtype, self._eos = DTYPES[dtype], np.array([eos_id], DTYPES[dtype])
        self._whole, self._shards = hashlib.sha256(), list[_Open]()
        self._file: IO[bytes]
        self.tokens, self.documents = done
        self._take_name_back()
        for _ in range(-(-self.tokens // shard_tokens)):
            self._take_up()
        if not self._shards:
            self._begin()
        if sum(shard.documents for shard in self._shards) != self.documents:
            raise OSError("the files of an earlier call are not those of its journal")

    def append(self, ids: np.ndarray) -> None:
        """A part of a document."""
        self._write(np.asarray(ids).astype(self._dtype, copy=False))
        self.tokens += len(ids)

    def end(self) -> None:
        """The document ends."""
        self._write(self._eos)
        self._shards[-1].documents += 1
        self.tokens, self.documents = self.tokens + 1, self.documents + 1

    def flush(self) -> None:
        """What was written is on the disk."""
        self._file.flush()
        os.fsync(self._file.fileno())

    def finish(self) -> Split:
        """Closes the files, on the disk: what was written."""
        self.flush()
        self._file.close()
        if len(self._shards) == 1:
            self._path(0).rename(self._folder / SPLIT_FILES[self._split])
            return Split(self.tokens, self.documents, self._whole.hexdigest())
        shards = tuple(
            Shard(self._path(n).name, shard.tokens, shard.documents, shard.sha256.hexdigest())
            for n, shard in enumerate(self._shards)
        )
        return Split(self.tokens, self.documents, self._whole.hexdigest(), shards)

    def close(self) -> None:
        """Lets go of the file, whatever became of it."""
        with contextlib.suppress(OSError):
            self._file.close()

    def _path(self, number: int) -> Path:
        return self._folder / f"{self._split}-{number:05}.bin"

    def _write(self, data: np.ndarray) -> None:
        while len(data):
            if self._shards[-1].tokens == self._shard_tokens:
                self.flush()
                self._file.close()
                self._begin()
            part = data[: self._shard_tokens - self._shards[-1].tokens]
            self._file.write(part.data)
            self._count(part.data)
            self._shards[-1].tokens += len(part)
            data = data[len(part) :]

    def _begin(self) -> None:
        self._file = open(self._path(len(self._shards)), "wb")  # noqa: SIM115
        self._shards.append(_Open())

    def _take_name_back(self) -> None:
        """An earlier call may have been killed after `finish`, and have gone on to nothing."""
        named = self._folder / SPLIT_FILES[self._split]
        if self.tokens and named.exists() and not self._path(0).exists():
            named.rename(self._path(0))
        named.unlink(missing_ok=True)

    def _count(self, data: "memoryview | bytes") -> None:
        self._whole.update(data)
        self._shards[-1].sha256.update(data)

    def _take_up(self) -> None:
        """The next shard of an earlier call: read again, for its hash, and continued where it is the last."""
        self._file = open(self._path(len(self._shards)), "r+b")  # noqa: SIM115
        tokens = min(self._shard_tokens, self.tokens - len(self._shards) * self._shard_tokens)
        self._shards.append(shard := _Open(tokens))
        left = tokens * self._dtype.itemsize
        while left:
            data = self._file.read(min(_PIECE, left))
            if not data:
                raise OSError("the files of an earlier call are shorter than its journal says")
            self._count(data)
            shard.documents += int(np.count_nonzero(np.frombuffer(data, self._dtype) == self._eos[0]))
            left -= len(data)
        self._file.truncate(tokens * self._dtype.itemsize)
        if len(self._shards) * self._shard_tokens < self.tokens:
            self._file.close()


@dataclass
class _Open:
    """A shard that is being written."""

    tokens: int = 0
    documents: int = 0
    sha256: Any = field(default_factory=hashlib.sha256)
