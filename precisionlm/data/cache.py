"""Shards of a bucket on this machine's disk: as many whole ones as fit, each checked by its hash when it comes.

Windows are drawn from all of a split with equal chance, and each once an epoch. So no rule of what to throw out beats
none: the shards that came first stay, and the windows of the others are read in ranges. What earlier runs on other data
left behind makes room, the least recently used first. Several processes of a machine share a folder.
"""

import contextlib
import fcntl
import hashlib
import os
import shutil
import threading
import weakref
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import numpy as np

from precisionlm.data.meta import Shard
from precisionlm.data.places import read_ranges
from precisionlm.errors import PreemptedError, UserError

_PIECE = 1 << 23  # bytes of one read
_AT_ONCE = 4  # reads side by side
_FREE_SHARE = 0.05  # of the disk, left free


class ShardCache:
    """The shards of one split that lie here. limit: bytes that all files of the folder take together."""

    def __init__(self, folder: Path, limit: int):
        self._folder, self._limit = folder, limit
        self._held: dict[str, int] = {}  # descriptors with a shared lock: what is in use here is thrown out by nobody
        weakref.finalize(self, _close, self._held)
        self.failure: UserError | None = None

    def mapped(self, shard: Shard, dtype: "np.dtype[np.unsignedinteger]") -> np.ndarray | None:
        """The tokens of a shard that is here, mapped; None for one that is not."""
        path = self._folder / _name(shard)
        if shard.sha256 not in self._held:
            try:
                descriptor = os.open(path, os.O_RDONLY)
            except OSError:
                return None
            fcntl.flock(descriptor, fcntl.LOCK_SH)
            os.utime(descriptor)
            self._held[shard.sha256] = descriptor
        if os.fstat(self._held[shard.sha256]).st_size != shard.tokens * dtype.itemsize:
            return None
        with os.fdopen(os.dup(self._held[shard.sha256]), "rb") as file:
            return np.memmap(file, dtype, "r")

    def fetch(self, shards: list[tuple[Shard, str, int]]) -> threading.Thread:
        """Begins to bring shards (with place and bytes) here, in order, while there is room."""
        thread = threading.Thread(target=self._fetch_all, args=(shards,), daemon=True, name="shards")
        thread.start()
        return thread

    def _fetch_all(self, shards: list[tuple[Shard, str, int]]) -> None:
        wanted = {_name(shard) for shard, *_ in shards}
        for shard, place, size in shards:
            try:
                self._folder.mkdir(parents=True, exist_ok=True)
                if (self._folder / _name(shard)).exists():
                    continue
                if not self._make_room(size, wanted):
                    return
                self._fetch(shard, place, size)
            except UserError as error:
                self.failure = error
                return
            except (OSError, PreemptedError, RuntimeError):  # windows are read in ranges then; the interpreter may end
                return

    def _fetch(self, shard: Shard, place: str, size: int) -> None:
        partial = self._folder / f".{_name(shard)}.partial"
        with open(partial, "ab") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:  # another process brings it
                return
            if not partial.exists() or not os.path.samestat(partial.stat(), os.fstat(file.fileno())):
                return  # another process brought it meanwhile
            file.truncate(0)
            digest = hashlib.sha256()
            try:
                for piece in self._pieces(place, shard.offset, size):
                    file.write(piece)
                    digest.update(piece)
                file.flush()
                if digest.hexdigest() != shard.sha256:
                    raise UserError(
                        f"{place} has sha256 {digest.hexdigest()[:12]}…, meta.json says {shard.sha256[:12]}…: damaged"
                    )
                partial.rename(self._folder / _name(shard))
            except BaseException:
                partial.unlink(missing_ok=True)
                raise

    def _pieces(self, place: str, offset: int, size: int) -> Iterator[bytes]:
        """The bytes of a shard in order, a few pieces read ahead."""
        ahead: deque[Future[list[bytes]]] = deque()
        with ThreadPoolExecutor(_AT_ONCE) as pool:
            for at in range(0, size, _PIECE):
                ahead.append(pool.submit(read_ranges, place, [(offset + at, offset + min(at + _PIECE, size))]))
                if len(ahead) == _AT_ONCE:
                    yield ahead.popleft().result()[0]
            while ahead:
                yield ahead.popleft().result()[0]

    def _make_room(self, size: int, wanted: set[str]) -> bool:
        """Whether a file of `size` bytes fits, after throwing out what no process uses and nobody here wants."""
        files = sorted(self._folder.glob("*.tokens"), key=lambda path: path.stat().st_mtime)
        taken = sum(path.stat().st_size for path in files)
        for path in files:
            if taken + size <= self._limit:
                break
            if path.name not in wanted and _unused(path):
                taken -= path.stat().st_size
                path.unlink(missing_ok=True)
        disk = shutil.disk_usage(self._folder)
        return taken + size <= self._limit and disk.free - size > _FREE_SHARE * disk.total


def _name(shard: Shard) -> str:
    return f"{shard.sha256}.tokens"


def _unused(path: Path) -> bool:
    with contextlib.suppress(OSError), open(path, "rb") as file:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return True
    return False


def _close(descriptors: dict[str, int]) -> None:
    for descriptor in descriptors.values():
        os.close(descriptor)
