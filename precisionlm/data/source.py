"""Packed tokens → batches: fixed windows, in a global deterministic order, the same on any number of hosts."""

import weakref
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from typing import Any

import grain
import numpy as np

from precisionlm.data.dataset import Dataset
from precisionlm.data.mixture import Mixture
from precisionlm.data.tokens import Tokens, gather
from precisionlm.errors import UserError

Batch = dict[str, np.ndarray]
Data = Dataset | Mixture

_AHEAD_TOKENS, _AHEAD_BATCHES = 1 << 23, 256  # read before they are asked for, where tokens are not on this machine
_BATCH_THREADS, _RANGE_THREADS = 8, 64


def unique_sequences(dataset: Data, sequence_length: int, unique_tokens: int | None = None) -> int:
    """Distinct training windows (count): all of them, or the first `unique_tokens`' worth to study repetition, of which
    every part of a mixture gives its share.

    UserError: `unique_tokens` that the training split does not have, or less than one window.
    """
    return sum(_part_sequences(dataset, sequence_length, unique_tokens))


def distinct_tokens(dataset: Data, sequence_length: int, tokens: int, unique_tokens: int | None = None) -> int:
    """D_unique: distinct tokens (count) that a run of `tokens` tokens trains on."""
    counts = _part_sequences(dataset, sequence_length, unique_tokens)
    return sum(min(t, n * sequence_length) for t, n in zip(_shares(dataset, tokens), counts, strict=True))


def epochs(dataset: Data, sequence_length: int, tokens: int, unique_tokens: int | None = None) -> float:
    """Passes over the (limited) training split that a run of `tokens` tokens makes; of a mixture, the mean over its
    tokens of the passes over their parts."""
    passes = part_epochs(dataset, sequence_length, tokens, unique_tokens)
    total = sum(weight for weight, _ in dataset.parts)
    return sum(weight / total * n for (weight, _), n in zip(dataset.parts, passes, strict=True))


def part_epochs(
    dataset: Data, sequence_length: int, tokens: int, unique_tokens: int | None = None
) -> tuple[float, ...]:
    """`epochs` of every part."""
    counts, total = _part_sequences(dataset, sequence_length, unique_tokens), sum(w for w, _ in dataset.parts)
    return tuple(
        tokens * weight / total / (count * sequence_length)
        for (weight, _), count in zip(dataset.parts, counts, strict=True)
    )


def described(dataset: Data, sequence_length: int, tokens: int, unique_tokens: int | None = None) -> str:
    """A mixture in one line: of every part its share, sha256 (first 12 digits), path and epochs; else empty."""
    if len(dataset.parts) == 1:
        return ""
    passes, total = part_epochs(dataset, sequence_length, tokens, unique_tokens), sum(w for w, _ in dataset.parts)
    return " + ".join(
        f"{weight / total:.6g} {part.meta.train.sha256[:12]} ({part.path}, {n:.4g} epochs)"
        for (weight, part), n in zip(dataset.parts, passes, strict=True)
    )


class TrainBatches(Iterator[Batch]):
    """An endless iterator over training batches with a position that can be saved; see `train_batches`.

    order: batch number → windows; read: windows, and threads to read them with → tokens; ahead: batches (count) that
    are read before they are asked for, none where tokens are on this machine: a gather from mapped memory costs less.
    """

    def __init__(
        self,
        order: grain.MapDataset,
        read: Callable[[np.ndarray, Executor | None], np.ndarray],
        identity: dict[str, Any],
        ahead: Callable[[], int] = lambda: 0,
    ):
        self._order, self._read, self._identity, self._ahead = order, read, identity, ahead
        self._next = 0
        self._reading: deque[tuple[int, Future[np.ndarray]]] = deque()
        self._threads: tuple[ThreadPoolExecutor, ThreadPoolExecutor] | None = None

    def __next__(self) -> Batch:
        number, ahead = self._next, self._ahead()
        while self._reading and self._reading[0][0] != number:
            self._reading.popleft()[1].cancel()
        for n in range(number + len(self._reading), number + ahead):
            self._reading.append((n, self._submit(n)))
        tokens = self._reading.popleft()[1].result() if self._reading else self._read(self._order[number], None)
        self._next = number + 1
        return {"tokens": tokens}

    def windows_of(self, batch: int) -> np.ndarray:
        """The windows of a batch, by its number from 0 on and wherever the iterator is: int [rows], window i being
        training tokens i·T … i·T + T (those of a mixture are numbered part after part)."""
        return self._order[batch]

    def batch_of(self, windows: np.ndarray) -> Batch:
        """The batch of these windows."""
        return {"tokens": self._read(windows, None)}

    def get_state(self) -> dict[str, Any]:
        """The position as plain JSON: global batches drawn and what they were drawn from. The same on all shards."""
        return {"next_index": self._next, **self._identity}

    def set_state(self, state: dict[str, Any]) -> None:
        """Continues after the batch at which `state` was taken, on any number of shards.

        UserError: `state` belongs to another order of batches.
        """
        for name, value in self._identity.items():
            if state.get(name) != value:
                raise UserError(f"the saved data position has {name} {state.get(name)!r}, this run has {value!r}")
        self._next = state["next_index"]

    def _submit(self, number: int) -> "Future[np.ndarray]":
        if self._threads is None:
            self._threads = ThreadPoolExecutor(_BATCH_THREADS), ThreadPoolExecutor(_RANGE_THREADS)
            for pool in self._threads:
                weakref.finalize(self, pool.shutdown, wait=False, cancel_futures=True)
        batches, ranges = self._threads
        return batches.submit(self._read, self._order[number], ranges)


def train_batches(
    dataset: Data,
    sequence_length: int,
    batch_size: int,
    seed: int,
    shard_index: int = 0,
    shard_count: int = 1,
    unique_tokens: int | None = None,
) -> TrainBatches:
    """Endless {"tokens": int32 [batch_size / shard_count, sequence_length + 1]}: inputs and, shifted, targets.

    Window i is training tokens i·T … i·T + T. Windows come in a global order that depends on (dataset, T, seed,
    unique_tokens) alone and is drawn anew every epoch, for every part of a mixture by itself; of any stretch of
    windows each part has its share. Global batch k is the same for every shard count, shard i holding its rows
    [i·B/n, (i+1)·B/n). UserError: sizes that do not fit; from the iterator PreemptedError: a bucket that cannot be
    reached.
    """
    rows, T = _shard_rows(batch_size, shard_index, shard_count), sequence_length
    if not 0 <= seed < 1 << 32:
        raise UserError(f"data seed is {seed}; it must be at least 0 and below 2^32")
    counts = _part_sequences(dataset, T, unique_tokens)
    begins = np.cumsum([0, *counts], dtype=np.int64)
    tokens = [part.tokens("train") for _, part in dataset.parts]
    # Only indices are shuffled, repeated and batched; tokens are touched once, a whole batch at a time.
    orders = [
        grain.MapDataset.range(int(begin), int(begin) + count).seed(seed).shuffle().repeat()
        for begin, count in zip(begins, counts, strict=False)
    ]
    mixed = orders[0] if len(orders) == 1 else grain.MapDataset.mix(orders, [weight for weight, _ in dataset.parts])

    def read(windows: np.ndarray, pool: Executor | None) -> np.ndarray:
        out, of = np.empty((len(windows), T + 1), np.int32), np.searchsorted(begins, windows, "right") - 1
        for n in np.unique(of):
            out[of == n] = gather(tokens[n], (windows[of == n] - begins[n]) * T, T + 1, pool)
        return out

    far = [of for of in tokens if isinstance(of, Tokens) and not of.is_here]
    if far:
        for _, part in dataset.parts:
            part.fetch()

    def ahead() -> int:
        far[:] = [of for of in far if not of.is_here]
        return min(_AHEAD_BATCHES, max(2, _AHEAD_TOKENS // ((rows.stop - rows.start) * T))) if far else 0

    identity = {
        "dataset": dataset.meta.train.sha256[:12],
        "sequence_length": T,
        "batch_size": batch_size,
        "seed": seed,
        "sequences": sum(counts),
    }
    return TrainBatches(mixed.batch(batch_size).map(lambda of: of[rows]), read, identity, ahead)


def validation_batches(
    dataset: Data,
    sequence_length: int,
    batch_size: int,
    max_tokens: int | None = None,
    shard_index: int = 0,
    shard_count: int = 1,
) -> list[Batch]:
    """The first `max_tokens` target tokens of the validation split (default: all), in order, the same for every run;
    of a mixture, so many that every part gives its share.

    A list of {"tokens": int32 [batch_size / shard_count, T + 1], "mask": bool [batch_size / shard_count, T],
    "documents": int32 [sequences]}; the mask is true where a target counts, false on the padding that fills the last
    window and the last batch. documents: of all sequences of the batch that count, those of other shards too, the
    document of the first target, by position in the split from 0. Sharded like `train_batches`. UserError: sizes that
    do not fit. PreemptedError: a bucket that cannot be reached.
    """
    rows, T = _shard_rows(batch_size, shard_index, shard_count), sequence_length
    if T < 1 or (max_tokens is not None and max_tokens < 1):
        raise UserError(f"sequence_length {T} and max_tokens {max_tokens} must be at least 1")
    targets = dataset.meta.validation.tokens - 1
    targets = targets if max_tokens is None else min(targets, max_tokens)
    windows, masks, documents, seen = [], [], [], 0
    for (_, part), count in zip(dataset.parts, _shares(dataset, targets), strict=True):
        used = np.asarray(part.tokens("validation")[: count + 1])
        ends, sequences = np.flatnonzero(used == part.meta.eos_id), -(-count // T)
        padded = np.zeros(sequences * T + 1, np.int32)
        padded[: count + 1] = used
        windows.append(np.lib.stride_tricks.sliding_window_view(padded, T + 1)[::T][:sequences])
        masks.append((np.arange(sequences * T) < count).reshape(sequences, T))
        # An end-of-text token ends its own document.
        documents.append(seen + np.searchsorted(ends, np.arange(0, count, T) + 1).astype(np.int32))
        seen += part.meta.validation.documents
    return [
        {
            "tokens": _filled(windows, start, batch_size)[rows],
            "mask": _filled(masks, start, batch_size)[rows],
            "documents": np.concatenate(documents)[start : start + batch_size],
        }
        for start in range(0, sum(map(len, documents)), batch_size)
    ]


def _filled(parts: list[np.ndarray], start: int, count: int) -> np.ndarray:
    """Rows start … start + count of the parts one after the other, zeros beyond their end."""
    out = np.zeros((count, *parts[0].shape[1:]), parts[0].dtype)
    at = -start
    for part in parts:
        first, last = max(at, 0), min(at + len(part), count)
        if first < last:
            out[first:last] = part[first - at : last - at]
        at += len(part)
    return out


def _part_sequences(dataset: Data, sequence_length: int, unique_tokens: int | None) -> list[int]:
    """Distinct training windows (count) of every part."""
    if sequence_length < 1:
        raise UserError(f"sequence_length is {sequence_length}; it must be at least 1")
    found = []
    shares = [None] * len(dataset.parts) if unique_tokens is None else _shares(dataset, unique_tokens)
    for (_, part), share in zip(dataset.parts, shares, strict=True):
        available = (part.meta.train.tokens - 1) // sequence_length
        asked = available if share is None else share // sequence_length
        if not 1 <= asked <= available:
            wanted = f"unique_tokens {share}" if share is not None else "the training split"
            raise UserError(
                f"{wanted} makes {asked} sequences of {sequence_length} tokens; {part.path} can give 1 to {available} "
                f"({available * sequence_length} tokens)"
            )
        found.append(asked)
    return found


def _shares(dataset: Data, tokens: int) -> list[int]:
    """Tokens by weight; what is left by rounding down goes to the first parts."""
    total = sum(weight for weight, _ in dataset.parts)
    shares = [tokens * weight // total for weight, _ in dataset.parts]
    left = tokens - sum(shares)
    return [share + (n < left) for n, share in enumerate(shares)]


def _shard_rows(batch_size: int, shard_index: int, shard_count: int) -> slice:
    """The rows of a global batch that one shard holds."""
    if not 0 <= shard_index < shard_count:
        raise UserError(f"shard_index {shard_index} is not one of {shard_count} shards")
    if batch_size < 1 or batch_size % shard_count:
        raise UserError(f"batch_size {batch_size} cannot be split evenly over {shard_count} shards")
    per_shard = batch_size // shard_count
    return slice(shard_index * per_shard, (shard_index + 1) * per_shard)
