"""The tokens of a split as one array, whatever files they lie in: mapped where they are here, else read in ranges."""

import bisect
import resource
from concurrent.futures import Executor
from typing import Any

import numpy as np

from precisionlm.data.cache import ShardCache
from precisionlm.data.meta import Shard
from precisionlm.data.places import Place, is_concurrent, is_url, joined, read_ranges

_PIECE = 1 << 23  # bytes of one read of a long stretch


class Tokens:
    """All tokens of a split: [tokens], uint16 or uint32. Slices and gathers are arrays; the whole is none.

    UserError and PreemptedError from every read, as `places` has them.
    """

    def __init__(self, folder: Place, shards: tuple[Shard, ...], dtype: "np.dtype[Any]", cache: ShardCache | None):
        self._shards, self.dtype, self._cache = shards, dtype, cache
        self._places = [joined(folder, shard.file) for shard in shards]
        self._starts = np.cumsum([0, *(shard.tokens for shard in shards)], dtype=np.int64).tolist()
        self._mapped: dict[int, np.ndarray] = {}
        _allow_open_files(2 * len(shards) + 512)  # a mapped file counts, and its lock

    def __len__(self) -> int:
        return int(self._starts[-1])

    @property
    def itemsize(self) -> int:
        """Bytes of a token."""
        return int(self.dtype.itemsize)

    @property
    def nbytes(self) -> int:
        """Bytes of all tokens."""
        return len(self) * self.itemsize

    @property
    def is_here(self) -> bool:
        """Whether every shard is on this machine."""
        return all(self._here(n) is not None for n in range(len(self._shards)))

    def __getitem__(self, index: "slice | int") -> Any:
        if isinstance(index, slice):
            start, stop, step = index.indices(len(self))
            return gather(self, np.array([start]), max(stop - start, 0))[0][::step]
        return gather(self, np.array([index % len(self)]), 1)[0, 0]

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        whole: np.ndarray = self[:]
        return whole if dtype is None else whole.astype(dtype)

    def read(self, starts: np.ndarray, length: int, pool: Executor | None) -> np.ndarray:
        """The stretches of `length` tokens from each start: [starts, length]. pool: reads ranges side by side."""
        out = np.empty((len(starts), length), self.dtype)
        missing: dict[int, list[tuple[int, int, int, int]]] = {}  # shard → (row, column, first token, tokens)
        for row, start in enumerate(starts.tolist()):
            n, column = bisect.bisect_right(self._starts, start) - 1, 0
            while column < length:
                first = start + column - self._starts[n]
                count = min(length - column, self._shards[n].tokens - first)
                if (array := self._here(n)) is not None:
                    out[row, column : column + count] = array[first : first + count]
                elif count:
                    missing.setdefault(n, []).append((row, column, first, count))
                n, column = n + 1, column + count
        if self._cache is not None and self._cache.failure is not None:
            raise self._cache.failure
        for n, pieces in missing.items():
            self._read_ranges(n, pieces, out, pool)
        return out

    def _here(self, n: int) -> np.ndarray | None:
        """The tokens of a shard on this machine."""
        if n not in self._mapped:
            shard = self._shards[n]
            if not is_url(self._places[n]):
                self._mapped[n] = np.memmap(self._places[n], self.dtype, "r", shard.offset, (shard.tokens,))
            elif self._cache is None or (found := self._cache.mapped(shard, self.dtype)) is None:
                return None
            else:
                self._mapped[n] = found
        return self._mapped[n]

    def _read_ranges(
        self, n: int, pieces: list[tuple[int, int, int, int]], out: np.ndarray, pool: Executor | None
    ) -> None:
        place, offset, size = self._places[n], self._shards[n].offset, self.itemsize
        long = _PIECE // size
        parts = [
            (row, column + at, first + at, min(long, count - at))
            for row, column, first, count in pieces
            for at in range(0, count, long)
        ]
        ranges = [(offset + first * size, offset + (first + count) * size) for _, _, first, count in parts]
        if pool is None or is_concurrent(place):
            found = read_ranges(place, ranges)
        else:
            found = [data for [data] in pool.map(lambda one: read_ranges(place, [one]), ranges)]
        for (row, column, _, count), data in zip(parts, found, strict=True):
            out[row, column : column + count] = np.frombuffer(data, self.dtype)


def gather(tokens: "np.ndarray | Tokens", starts: np.ndarray, length: int, pool: Executor | None = None) -> np.ndarray:
    """The stretches of `length` tokens from each start: [starts, length]."""
    if isinstance(tokens, Tokens):
        return tokens.read(starts, length, pool)
    if not len(starts):
        return np.empty((0, length), tokens.dtype)
    found: np.ndarray = np.lib.stride_tricks.sliding_window_view(tokens, length)[starts]
    return found


def _allow_open_files(count: int) -> None:
    """Raises the soft limit of this process, as far as the hard one goes."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY and soft < count:
        most = count if hard == resource.RLIM_INFINITY else min(count, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, most), hard))
