"""More than 100 billion tokens: no offset overflows. The files are holes, but for a few windows."""

import hashlib
import os
from pathlib import Path

import numpy as np
import pytest

from precisionlm.data.meta import Meta, Shard, Split
from precisionlm.data.source import Dataset, train_batches, unique_sequences

from .emulator import Lag

T, TOKENS = 2048, 120_000_000_000


@pytest.fixture(params=["one file", "shards", "bucket"])
def data(request: pytest.FixtureRequest, tmp_path: Path, bucket: type[Lag]) -> Dataset:
    """End-of-text (0) throughout."""
    shards = (
        () if request.param == "one file" else tuple(Shard(f"s{n}.bin", TOKENS // 3, 9, "0" * 64) for n in range(3))
    )
    for name, tokens in ((s.file, s.tokens) for s in shards) if shards else (("train.bin", TOKENS),):
        with open(tmp_path / name, "wb") as file:
            try:
                file.truncate(2 * tokens)
            except OSError as error:
                pytest.skip(f"this file system has no files of {2 * tokens:,} bytes: {error}")
    (tmp_path / "val.bin").write_bytes(bytes(4096))
    (tmp_path / "tokenizer.json").write_text("{}")
    train = Split(TOKENS, 27 if shards else 9, "0" * 64, shards)
    held_out = Split(2048, 2048, hashlib.sha256(bytes(4096)).hexdigest())
    Meta("uint16", 50257, 0, hashlib.sha256(b"{}").hexdigest(), train, held_out, "", "", {}).write(tmp_path)
    place = f"lag://{tmp_path}" if request.param == "bucket" else tmp_path
    return Dataset.open(place, cache_bytes=0)


def test_windows_far_beyond_32_bits(data: Dataset, tmp_path: Path) -> None:
    count = unique_sequences(data, T)
    assert count == (TOKENS - 1) // T
    batches = train_batches(data, T, 64, seed=1)
    asked = np.concatenate([[0, count - 1, count // 3], batches.windows_of(0), batches.windows_of(10**6)])
    assert asked.max() * T > 2**36
    rng = np.random.default_rng(0)
    content = rng.integers(1, 50257, (len(asked), T + 1)).astype("<u2")
    for window, row in zip(asked.tolist(), content, strict=True):
        write(data.meta, tmp_path, window * T, row)
    np.testing.assert_array_equal(batches.batch_of(asked)["tokens"], content)
    np.testing.assert_array_equal(next(batches)["tokens"], content[3:67])
    batches.set_state(batches.get_state() | {"next_index": 10**6})
    np.testing.assert_array_equal(next(batches)["tokens"], content[67:])
    tokens = data.tokens("train")
    assert len(tokens) == TOKENS and tokens.nbytes == 2 * TOKENS
    np.testing.assert_array_equal(tokens[(count - 1) * T : (count - 1) * T + 9], content[1][:9])


def write(meta: Meta, folder: Path, position: int, row: np.ndarray) -> None:
    """Tokens at a position of the training split, across shards."""
    begin = 0
    for shard in meta.shards("train"):
        first, last = max(position, begin), min(position + len(row), begin + shard.tokens)
        if first < last:
            descriptor = os.open(folder / shard.file, os.O_WRONLY)
            os.pwrite(descriptor, row[first - position : last - position].tobytes(), 2 * (first - begin))
            os.close(descriptor)
        begin += shard.tokens
