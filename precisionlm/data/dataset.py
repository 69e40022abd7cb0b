"""A prepared folder, on a disk or in a bucket: its record, its tokens, and whether they agree."""

import contextlib
import fcntl
import functools
import hashlib
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from precisionlm.data.cache import ShardCache
from precisionlm.data.meta import DTYPES, META_FILE, SPLIT_FILES, TOKENIZER_FILE, Meta, Shard, token_dtype
from precisionlm.data.places import Place, is_url, joined, read_bytes, read_ranges, size_of
from precisionlm.data.tokens import Tokens, gather
from precisionlm.errors import UserError

_PROBES, _PROBE_TOKENS = 64, 1 << 14  # stretches of each split looked at when a dataset is opened
_PIECE = 1 << 23  # bytes verified at a time
GIB = 1 << 30


def machine_cache() -> Path:
    """Where this machine keeps what it need not fetch or check again."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "precisionlm"


@dataclass(frozen=True)
class Dataset:
    """A prepared folder. Token files are memory-mapped at first use; those of a bucket are read in ranges, and kept in
    `cache` up to `cache_bytes`."""

    path: Place
    meta: Meta
    cache: Path | None = None
    cache_bytes: int = 0

    @classmethod
    def open(cls, path: Place, cache: Path | None = None, cache_bytes: int = 32 * GIB) -> "Dataset":
        """Opens a folder made by `prepare` and checks its record against its files, without reading them whole.

        UserError: sizes, dtype, tokenizer or token range that contradict meta.json. `verify` checks every byte.
        PreemptedError: a bucket that cannot be reached.
        """
        path = path if is_url(path) else Path(path)
        meta = Meta.read(path)
        where = joined(path, META_FILE)
        wider = bool(meta.train.shards) and meta.dtype == "uint32"  # others may have written more than is needed
        if meta.dtype != (dtype := token_dtype(meta.vocab_size)) and not wider:
            raise UserError(f"{where}: dtype is {meta.dtype}, a vocabulary of {meta.vocab_size} is stored as {dtype}")
        if meta.eos_id >= meta.vocab_size:
            raise UserError(f"{where}: eos_id {meta.eos_id} lies outside the vocabulary of {meta.vocab_size}")
        tokenizer = read_bytes(joined(path, TOKENIZER_FILE))
        if tokenizer is None or hashlib.sha256(tokenizer).hexdigest() != meta.tokenizer_sha256:
            raise UserError(
                f"{joined(path, TOKENIZER_FILE)} is missing or not the tokenizer that meta.json names (sha256); "
                "prepare anew"
            )
        dataset = cls(path, meta, cache or machine_cache() / "shards", cache_bytes)
        for split in SPLIT_FILES:
            dataset._check_sizes(split)
            dataset._probe(split)
        return dataset

    def tokenizer(self) -> bytes:
        """Its tokenizer.json. Raises PreemptedError as `open` does."""
        found = read_bytes(joined(self.path, TOKENIZER_FILE))
        assert found is not None  # `open` has seen it
        return found

    @property
    def parts(self) -> "tuple[tuple[int, Dataset], ...]":
        """(weight, folder): a folder is a mixture of itself."""
        return ((1, self),)

    def tokens(self, split: str) -> "np.ndarray | Tokens":
        """All tokens of `train` or `validation`: [tokens], uint16 or uint32, read-only; mapped where they are one file
        of this machine."""
        return self._train if split == "train" else self._validation

    @functools.cached_property
    def _train(self) -> "np.ndarray | Tokens":
        return self._tokens("train")

    @functools.cached_property
    def _validation(self) -> "np.ndarray | Tokens":
        return self._tokens("validation")

    def _tokens(self, split: str) -> "np.ndarray | Tokens":
        shards, dtype = self.meta.shards(split), DTYPES[self.meta.dtype]
        if len(shards) == 1 and not is_url(place := joined(self.path, shards[0].file)):
            return np.memmap(place, dtype, "r", shards[0].offset, (shards[0].tokens,))
        return Tokens(self.path, shards, dtype, self._shard_cache)

    @functools.cached_property
    def _shard_cache(self) -> ShardCache | None:
        return ShardCache(self.cache, self.cache_bytes) if self.cache and self.cache_bytes else None

    def fetch(self) -> None:
        """Begins to bring what lies in a bucket into the cache, validation first, while there is room."""
        size = DTYPES[self.meta.dtype].itemsize
        shards = [shard for split in ("validation", "train") for shard in self.meta.shards(split)]
        far = [(s, place, s.tokens * size) for s in shards if is_url(place := joined(self.path, s.file))]
        if far and self._shard_cache is not None:
            self._shard_cache.fetch(far)

    def verify(self, progress: Callable[[int, int], None] = lambda done, total: None) -> None:
        """Reads everything; progress is told bytes done and in all. UserError: a sha256, document count or token range
        that contradicts meta.json."""
        dtype, done = DTYPES[self.meta.dtype], 0
        total = sum(s.tokens * dtype.itemsize for split in SPLIT_FILES for s in self.meta.shards(split))
        for split in SPLIT_FILES:
            whole, counted, ends = hashlib.sha256(), getattr(self.meta, split), 0
            for shard in self.meta.shards(split):
                name, own, own_ends = joined(self.path, shard.file), hashlib.sha256(), 0
                for data in self._pieces(shard):
                    whole.update(data)
                    own.update(data)
                    tokens = np.frombuffer(data, dtype)
                    self._check_range(name, int(tokens.max()))
                    own_ends += int(np.count_nonzero(tokens == self.meta.eos_id))
                    progress(done := done + len(data), total)
                _check(name, "sha256", own.hexdigest(), shard.sha256)
                if own_ends != shard.documents:
                    raise UserError(f"{name} holds {own_ends} documents, meta.json says {shard.documents}")
                ends += own_ends
            _check(f"{self.path}: the {split} split", "sha256", whole.hexdigest(), counted.sha256)

    def verify_once(self) -> None:
        """`verify` of what lies on this machine, unless it was done here since the files last changed; shards of a
        bucket are checked when they come. UserError as there."""
        if is_url(self.path) or any(is_url(s.file) for split in SPLIT_FILES for s in self.meta.shards(split)):
            return
        seen = hashlib.sha256()
        for split in SPLIT_FILES:
            for shard in self.meta.shards(split):
                path = os.path.realpath(joined(self.path, shard.file))
                stat = os.stat(path)
                seen.update(repr((path, stat.st_size, stat.st_mtime_ns, stat.st_ino, shard)).encode())
        with _remembered(machine_cache() / "verified" / seen.hexdigest()) as known:
            if not known:
                self.verify()

    def _pieces(self, shard: Shard) -> Iterator[bytes]:
        place, end = joined(self.path, shard.file), shard.offset + shard.tokens * DTYPES[self.meta.dtype].itemsize
        for start in range(shard.offset, end, _PIECE):
            stop = min(start + _PIECE, end)
            if is_url(place):
                yield read_ranges(place, [(start, stop)])[0]
            else:
                with open(place, "rb") as file:
                    file.seek(start)
                    yield file.read(stop - start)

    def _check_sizes(self, split: str) -> None:
        counted, itemsize = getattr(self.meta, split), DTYPES[self.meta.dtype].itemsize
        for shard in self.meta.shards(split):
            name = joined(self.path, shard.file)
            found, asked = size_of(name), shard.offset + shard.tokens * itemsize
            if not shard.tokens or found < asked or (found != asked and not counted.shards):
                raise UserError(
                    f"{name} holds {found} bytes, meta.json says {shard.tokens} {self.meta.dtype} tokens = {asked} "
                    "bytes: truncated or replaced; prepare anew"
                )

    def _probe(self, split: str) -> None:
        tokens, count = self.tokens(split), getattr(self.meta, split).tokens
        length = min(_PROBE_TOKENS, count)
        starts = np.linspace(0, count - length, _PROBES).astype(np.int64)
        name = joined(self.path, self.meta.shards(split)[-1].file)
        found = gather(tokens, starts, length)
        self._check_range(name, int(found.max()))
        if found[-1, -1] != self.meta.eos_id:
            raise UserError(f"{name} does not end with the end-of-text token {self.meta.eos_id}: not these tokens")

    def _check_range(self, name: str, largest: int) -> None:
        if largest >= self.meta.vocab_size:
            raise UserError(
                f"{name} holds token {largest}, meta.json says a vocabulary of {self.meta.vocab_size}: not these tokens"
            )


def _check(name: str, what: str, found: str, asked: str) -> None:
    if found != asked:
        raise UserError(f"{name} has {what} {found[:12]}…, meta.json says {asked[:12]}…")


@contextlib.contextmanager
def _remembered(record: Path) -> Iterator[bool]:
    """Whether the record is there; it is after the block, unless that fails. One process of a machine at a time."""
    try:
        record.parent.mkdir(parents=True, exist_ok=True)
        file = open(record, "a+b", buffering=0)  # noqa: SIM115
    except OSError:  # a machine without a place to remember checks every time
        yield False
        return
    with file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield bool(file.seek(0, os.SEEK_END))
        with contextlib.suppress(OSError):
            file.truncate(0)
            file.write(b"verified\n")
