"""Packed tokens → batches: fixed windows, in a global deterministic order, the same on any number of hosts."""

import functools
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grain
import numpy as np

from precisionlm.data.meta import DTYPES, META_FILE, SPLIT_FILES, TOKENIZER_FILE, Meta, sha256_of, token_dtype
from precisionlm.errors import UserError

Batch = dict[str, np.ndarray]

_PROBES, _PROBE_TOKENS = 64, 1 << 14  # stretches of each split looked at when a dataset is opened


@dataclass(frozen=True)
class Dataset:
    """A prepared folder. Token files are memory-mapped at first use."""

    path: Path
    meta: Meta

    @classmethod
    def open(cls, path: str | Path) -> "Dataset":
        """Opens a folder made by `prepare` and checks its record against its files, without reading them whole.

        UserError: sizes, dtype, tokenizer or token range that contradict meta.json. `verify` checks every byte.
        """
        path = Path(path)
        meta = Meta.read(path)
        where = path / META_FILE
        if meta.dtype != (dtype := token_dtype(meta.vocab_size)):
            raise UserError(f"{where}: dtype is {meta.dtype}, a vocabulary of {meta.vocab_size} is stored as {dtype}")
        if meta.eos_id >= meta.vocab_size:
            raise UserError(f"{where}: eos_id {meta.eos_id} lies outside the vocabulary of {meta.vocab_size}")
        tokenizer = path / TOKENIZER_FILE
        if not tokenizer.is_file() or sha256_of(tokenizer) != meta.tokenizer_sha256:
            raise UserError(f"{tokenizer} is missing or not the tokenizer that meta.json names (sha256); prepare anew")
        dataset = cls(path, meta)
        for split, name in SPLIT_FILES.items():
            counted = getattr(meta, split)
            asked = counted.tokens * DTYPES[meta.dtype].itemsize
            found = (path / name).stat().st_size if (path / name).is_file() else 0
            if found != asked or not counted.tokens:
                raise UserError(
                    f"{path / name} holds {found} bytes, meta.json says {counted.tokens} {meta.dtype} tokens = {asked} "
                    "bytes: truncated or replaced; prepare anew"
                )
            tokens = dataset.tokens(split)
            starts = np.linspace(0, max(len(tokens) - _PROBE_TOKENS, 0), _PROBES).astype(np.int64)
            dataset._check_range(split, max(int(tokens[s : s + _PROBE_TOKENS].max()) for s in starts))
            if tokens[-1] != meta.eos_id:
                raise UserError(
                    f"{path / name} does not end with the end-of-text token {meta.eos_id}: not these tokens"
                )
        return dataset

    def verify(self) -> None:
        """Reads everything. UserError: a sha256, document count or token range that contradicts meta.json."""
        for split, name in SPLIT_FILES.items():
            counted, tokens = getattr(self.meta, split), self.tokens(split)
            if (found := sha256_of(self.path / name)) != counted.sha256:
                raise UserError(f"{self.path / name} has sha256 {found[:12]}…, meta.json says {counted.sha256[:12]}…")
            self._check_range(split, int(tokens.max()))
            if (ends := int(np.count_nonzero(tokens == self.meta.eos_id))) != counted.documents:
                raise UserError(f"{self.path / name} holds {ends} documents, meta.json says {counted.documents}")

    def tokens(self, split: str) -> np.ndarray:
        """All tokens of `train` or `validation`: [tokens], uint16 or uint32, memory-mapped and read-only."""
        return self._train if split == "train" else self._validation

    @functools.cached_property
    def _train(self) -> np.ndarray:
        return np.memmap(self.path / SPLIT_FILES["train"], DTYPES[self.meta.dtype], "r")

    @functools.cached_property
    def _validation(self) -> np.ndarray:
        return np.memmap(self.path / SPLIT_FILES["validation"], DTYPES[self.meta.dtype], "r")

    def _check_range(self, split: str, largest: int) -> None:
        if largest >= self.meta.vocab_size:
            raise UserError(
                f"{self.path / SPLIT_FILES[split]} holds token {largest}, meta.json says a vocabulary of "
                f"{self.meta.vocab_size}: not these tokens"
            )


def unique_sequences(dataset: Dataset, sequence_length: int, unique_tokens: int | None = None) -> int:
    """Distinct training windows (count): all of them, or the first `unique_tokens`' worth to study repetition.

    UserError: `unique_tokens` that the training split does not have, or less than one window.
    """
    if sequence_length < 1:
        raise UserError(f"sequence_length is {sequence_length}; it must be at least 1")
    available = (dataset.meta.train.tokens - 1) // sequence_length
    asked = available if unique_tokens is None else unique_tokens // sequence_length
    if not 1 <= asked <= available:
        wanted = f"unique_tokens {unique_tokens}" if unique_tokens is not None else "the training split"
        raise UserError(
            f"{wanted} makes {asked} sequences of {sequence_length} tokens; {dataset.path} can give 1 to {available} "
            f"({available * sequence_length} tokens)"
        )
    return asked


def distinct_tokens(dataset: Dataset, sequence_length: int, tokens: int, unique_tokens: int | None = None) -> int:
    """D_unique: distinct tokens (count) that a run of `tokens` tokens trains on."""
    return min(tokens, unique_sequences(dataset, sequence_length, unique_tokens) * sequence_length)


def epochs(dataset: Dataset, sequence_length: int, tokens: int, unique_tokens: int | None = None) -> float:
    """Passes over the (limited) training split that a run of `tokens` tokens makes."""
    return tokens / (unique_sequences(dataset, sequence_length, unique_tokens) * sequence_length)


class TrainBatches(Iterator[Batch]):
    """An endless iterator over training batches with a position that can be saved; see `train_batches`."""

    def __init__(self, order: grain.MapDataset, windows: np.ndarray, identity: dict[str, Any]):
        self._order, self._windows, self._identity = order, windows, identity
        # Reading ahead in threads costs more than a batch: it is one gather from mapped memory.
        self._iterator = iter(order.to_iter_dataset(grain.ReadOptions(num_threads=0, prefetch_buffer_size=0)))

    def __next__(self) -> Batch:
        return self.batch_of(next(self._iterator))

    def windows_of(self, batch: int) -> np.ndarray:
        """The windows of a batch, by its number from 0 on and wherever the iterator is: int [rows], window i being
        training tokens i·T … i·T + T."""
        return self._order[batch]

    def batch_of(self, windows: np.ndarray) -> Batch:
        """The batch of these windows."""
        return {"tokens": self._windows[windows].astype(np.int32)}

    def get_state(self) -> dict[str, Any]:
        """The position as plain JSON: global batches drawn and what they were drawn from. The same on all shards."""
        return {**self._iterator.get_state(), **self._identity}

    def set_state(self, state: dict[str, Any]) -> None:
        """Continues after the batch at which `state` was taken, on any number of shards.

        UserError: `state` belongs to another order of batches.
        """
        for name, value in self._identity.items():
            if state.get(name) != value:
                raise UserError(f"the saved data position has {name} {state.get(name)!r}, this run has {value!r}")
        self._iterator.set_state({"next_index": state["next_index"]})


def train_batches(
    dataset: Dataset,
    sequence_length: int,
    batch_size: int,
    seed: int,
    shard_index: int = 0,
    shard_count: int = 1,
    unique_tokens: int | None = None,
) -> TrainBatches:
    """Endless {"tokens": int32 [batch_size / shard_count, sequence_length + 1]}: inputs and, shifted, targets.

    Window i is training tokens i·T … i·T + T. Windows come in a global order that depends on (dataset, T, seed,
    unique_tokens) alone and is drawn anew every epoch; global batch k is the same for every shard count, shard i
    holding its rows [i·B/n, (i+1)·B/n). UserError: sizes that do not fit.
    """
    rows = _shard_rows(batch_size, shard_index, shard_count)
    if not 0 <= seed < 1 << 32:
        raise UserError(f"data seed is {seed}; it must be at least 0 and below 2^32")
    count = unique_sequences(dataset, sequence_length, unique_tokens)
    used = dataset.tokens("train")[: count * sequence_length + 1]
    windows = np.lib.stride_tricks.sliding_window_view(used, sequence_length + 1)[::sequence_length]
    # Only indices are shuffled, repeated and batched; tokens are touched once, a whole batch at a time.
    order = grain.MapDataset.range(count).seed(seed).shuffle().repeat().batch(batch_size).map(lambda of: of[rows])
    identity = {
        "dataset": dataset.meta.train.sha256[:12],
        "sequence_length": sequence_length,
        "batch_size": batch_size,
        "seed": seed,
        "sequences": count,
    }
    return TrainBatches(order, windows, identity)


def validation_batches(
    dataset: Dataset,
    sequence_length: int,
    batch_size: int,
    max_tokens: int | None = None,
    shard_index: int = 0,
    shard_count: int = 1,
) -> list[Batch]:
    """The first `max_tokens` target tokens of the validation split (default: all), in order, the same for every run.

    A list of {"tokens": int32 [batch_size / shard_count, T + 1], "mask": bool [batch_size / shard_count, T],
    "documents": int32 [sequences]}; the mask is true where a target counts, false on the padding that fills the last
    window and the last batch. documents: of all sequences of the batch that count, those of other shards too, the
    document of the first target, by position in the split from 0. Sharded like `train_batches`. UserError: sizes that
    do not fit.
    """
    rows = _shard_rows(batch_size, shard_index, shard_count)
    if sequence_length < 1 or (max_tokens is not None and max_tokens < 1):
        raise UserError(f"sequence_length {sequence_length} and max_tokens {max_tokens} must be at least 1")
    targets = dataset.meta.validation.tokens - 1
    targets = targets if max_tokens is None else min(targets, max_tokens)
    per_batch = batch_size * sequence_length
    batches = []
    ends = np.flatnonzero(dataset.tokens("validation")[: targets + 1] == dataset.meta.eos_id)
    for start in range(0, targets, per_batch):
        used = np.zeros(per_batch + 1, np.int32)
        found = dataset.tokens("validation")[start : min(start + per_batch, targets) + 1]
        used[: len(found)] = found
        windows = np.lib.stride_tricks.sliding_window_view(used, sequence_length + 1)[::sequence_length]
        mask = (start + np.arange(per_batch) < targets).reshape(batch_size, sequence_length)
        first_targets = np.arange(start, min(start + per_batch, targets), sequence_length) + 1
        documents = np.searchsorted(ends, first_targets).astype(np.int32)  # an end-of-text token ends its own document
        batches.append({"tokens": np.ascontiguousarray(windows[rows]), "mask": mask[rows], "documents": documents})
    return batches


def _shard_rows(batch_size: int, shard_index: int, shard_count: int) -> slice:
    """The rows of a global batch that one shard holds."""
    if not 0 <= shard_index < shard_count:
        raise UserError(f"shard_index {shard_index} is not one of {shard_count} shards")
    if batch_size < 1 or batch_size % shard_count:
        raise UserError(f"batch_size {batch_size} cannot be split evenly over {shard_count} shards")
    per_shard = batch_size // shard_count
    return slice(shard_index * per_shard, (shard_index + 1) * per_shard)
