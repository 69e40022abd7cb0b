import json
import shutil
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from precisionlm.data.meta import Meta, Split
from precisionlm.data.source import Dataset, TrainBatches, distinct_tokens, epochs, train_batches, validation_batches
from precisionlm.errors import UserError


def counting(tokens: int, held_out: int = 10) -> Dataset:
    """A dataset in memory whose token at position p is p: a window's first token tells which window it is."""
    meta = Meta("uint32", 1 << 20, 0, "", Split(tokens, 1, "a" * 64), Split(held_out, 1, ""), "", "", {})
    dataset = Dataset(Path("memory"), meta)
    dataset.__dict__.update(_train=np.arange(tokens, dtype="<u4"), _validation=np.arange(held_out, dtype="<u4"))
    return dataset


def take(batches: TrainBatches, count: int) -> list[np.ndarray]:
    return [batch["tokens"] for batch in islice(batches, count)]


def test_a_window_is_T_tokens_and_the_next(dataset: Dataset) -> None:
    tokens, T = np.asarray(dataset.tokens("train")), 16
    known = {tuple(tokens[i * T : i * T + T + 1].tolist()) for i in range((len(tokens) - 1) // T)}
    for batch in take(train_batches(dataset, T, 8, seed=0), 20):
        assert batch.shape == (8, T + 1) and batch.dtype == np.int32
        assert {tuple(row) for row in batch.tolist()} <= known


def test_every_epoch_holds_every_window_once_in_another_order() -> None:
    data, T = counting(101), 5  # 20 windows
    rows = np.concatenate(take(train_batches(data, T, 4, seed=1), 15))
    orders = [tuple((epoch[:, 0] // T).tolist()) for epoch in rows.reshape(3, 20, T + 1)]
    assert all(sorted(order) == list(range(20)) for order in orders)
    assert len(set(orders)) == 3
    np.testing.assert_array_equal(rows, rows[:, :1] + np.arange(T + 1))


def test_batches_run_across_the_end_of_an_epoch() -> None:
    rows = np.concatenate(take(train_batches(counting(101), 5, 3, seed=1), 20))
    for epoch in rows.reshape(3, 20, 6):
        assert sorted((epoch[:, 0] // 5).tolist()) == list(range(20))


def test_the_order_depends_on_the_seed_alone() -> None:
    first, again, other = (np.stack(take(train_batches(counting(999), 8, 4, seed), 50)) for seed in (3, 3, 4))
    np.testing.assert_array_equal(first, again)
    assert (first != other).any()


@pytest.mark.parametrize("stop", [0, 1, 7, 23])
def test_resume_is_exact_within_and_across_epochs(dataset: Dataset, stop: int) -> None:
    T = dataset.meta.train.tokens // 40  # 5 batches an epoch
    unbroken = take(train_batches(dataset, T, 8, seed=5), 30)
    broken = train_batches(dataset, T, 8, seed=5)
    take(broken, stop)
    state = json.loads(json.dumps(broken.get_state()))
    resumed = train_batches(dataset, T, 8, seed=5)
    take(resumed, 3)  # a position of its own, to be forgotten
    resumed.set_state(state)
    np.testing.assert_array_equal(np.stack(take(resumed, 30 - stop)), np.stack(unbroken[stop:]))


@settings(max_examples=15, deadline=None)
@given(st.integers(2000, 4000), st.sampled_from([4, 8, 12]), st.integers(0, 2**32 - 1), st.integers(0, 400))
def test_shards_together_are_the_global_batch(tokens: int, batch_size: int, seed: int, stop: int) -> None:
    data, T = counting(tokens), 6
    whole = train_batches(data, T, batch_size, seed)
    state = {**whole.get_state(), "next_index": stop}  # in one of the first epochs
    whole.set_state(state)
    expected = take(whole, 5)
    for count in (1, 2, 4):
        shards = [train_batches(data, T, batch_size, seed, index, count) for index in range(count)]
        for shard in shards:
            shard.set_state(state)
        together = [np.concatenate(parts) for parts in zip(*(take(shard, 5) for shard in shards), strict=True)]
        np.testing.assert_array_equal(np.stack(together), np.stack(expected))
        assert all(shard.get_state() == whole.get_state() for shard in shards)


def test_a_position_in_another_order_is_refused() -> None:
    data = counting(999)
    state = train_batches(data, 8, 4, seed=1).get_state()
    for other, name in (
        (train_batches(data, 8, 4, seed=2), "seed 1, this run has 2"),
        (train_batches(data, 8, 2, seed=1), "batch_size 4"),
        (train_batches(data, 4, 4, seed=1), "sequence_length 8"),
        (train_batches(data, 8, 4, seed=1, unique_tokens=80), "sequences 124, this run has 10"),
    ):
        with pytest.raises(UserError, match=name):
            other.set_state(state)


def test_unique_tokens_limits_what_is_seen() -> None:
    data, T = counting(1001), 10
    rows = np.concatenate(take(train_batches(data, T, 4, seed=0, unique_tokens=79), 7))
    assert set((rows[:, 0] // T).tolist()) == set(range(7))
    assert distinct_tokens(data, T, tokens=50, unique_tokens=79) == 50
    assert distinct_tokens(data, T, tokens=280, unique_tokens=79) == 70
    assert epochs(data, T, tokens=280, unique_tokens=79) == 4.0
    assert distinct_tokens(data, T, tokens=10**6) == 1000 and epochs(data, T, tokens=500) == 0.5
    for wrong in (9, 1010):
        with pytest.raises(UserError, match=r"can give 1 to 100 \(1000 tokens\)"):
            train_batches(data, T, 4, seed=0, unique_tokens=wrong)


@pytest.mark.parametrize("max_tokens", [None, 1, 24, 25, 100, 10**6])
def test_validation_counts_every_target_once(max_tokens: int | None) -> None:
    data, T, B = counting(100, held_out=101), 6, 4  # 100 targets, 24 a batch
    batches = validation_batches(data, T, B, max_tokens)
    wanted = min(100, max_tokens or 100)
    assert len(batches) == -(-wanted // 24)
    targets = np.concatenate([batch["tokens"][:, 1:][batch["mask"]] for batch in batches])
    inputs = np.concatenate([batch["tokens"][:, :-1][batch["mask"]] for batch in batches])
    np.testing.assert_array_equal(targets, np.arange(1, wanted + 1))
    np.testing.assert_array_equal(inputs, np.arange(wanted))
    for batch in batches:
        assert batch["tokens"].shape == (B, T + 1) and batch["tokens"].dtype == np.int32
        assert batch["mask"].shape == (B, T) and batch["mask"].dtype == np.bool_


def test_validation_shards_together_are_the_whole() -> None:
    data = counting(100, held_out=101)
    whole = validation_batches(data, 6, 4, 90)
    shards = [validation_batches(data, 6, 4, 90, index, 2) for index in range(2)]
    for batch, *parts in zip(whole, *shards, strict=True):
        for name in ("tokens", "mask"):
            np.testing.assert_array_equal(batch[name], np.concatenate([part[name] for part in parts]))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda data: train_batches(data, 8, 6, 0, 0, 4), "batch_size 6 cannot be split evenly over 4 shards"),
        (lambda data: train_batches(data, 8, 8, 0, 4, 4), "shard_index 4 is not one of 4 shards"),
        (lambda data: train_batches(data, 8, 0, 0), "batch_size 0"),
        (lambda data: train_batches(data, 8, 8, -1), "data seed is -1"),
        (lambda data: train_batches(data, 0, 8, 0), "sequence_length is 0"),
        (lambda data: train_batches(data, 100, 8, 0), "the training split makes 0 sequences of 100 tokens"),
        (lambda data: validation_batches(data, 8, 8, 0), "max_tokens 0 must be at least 1"),
    ],
)
def test_sizes_that_do_not_fit(call: Callable[[Dataset], object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        call(counting(100))


@pytest.fixture
def copy(prepared: Path, tmp_path: Path) -> Iterator[Path]:
    yield shutil.copytree(prepared, tmp_path / "copy")


def rewrite(folder: Path, **changes: object) -> None:
    meta = json.loads((folder / "meta.json").read_text())
    (folder / "meta.json").write_text(json.dumps({**meta, **changes}))


def one_line(folder: Path) -> str:
    with pytest.raises(UserError) as caught:
        Dataset.open(folder)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("name", ["train.bin", "val.bin"])
def test_truncated_and_missing_files(copy: Path, name: str) -> None:
    data = (copy / name).read_bytes()
    for broken in (data[:-2], data[:-1], b""):
        (copy / name).write_bytes(broken)
        assert f"{name} holds {len(broken)} bytes" in one_line(copy)
    (copy / name).unlink()
    assert f"{name} holds 0 bytes" in one_line(copy)


def test_another_tokenizer(copy: Path) -> None:
    with open(copy / "tokenizer.json", "a") as file:
        file.write("\n")
    assert "not the tokenizer that meta.json names" in one_line(copy)
    (copy / "tokenizer.json").unlink()
    assert "tokenizer.json is missing" in one_line(copy)


def test_changed_bytes_of_the_same_length(copy: Path, dataset: Dataset) -> None:
    tokens = np.fromfile(copy / "train.bin", "u2")
    tokens[5], tokens[6] = tokens[6], tokens[5]
    tokens.tofile(copy / "train.bin")
    with pytest.raises(UserError, match="sha256"):
        Dataset.open(copy).verify()
    dataset.verify()


def test_lying_meta(copy: Path, dataset: Dataset) -> None:
    train = {"tokens": dataset.meta.train.tokens, "documents": 3, "sha256": dataset.meta.train.sha256}
    lies: list[tuple[dict[str, object], str]] = [
        ({"vocab_size": 300}, "meta.json says a vocabulary of 300"),
        ({"vocab_size": 1 << 17}, "is stored as uint32"),
        ({"dtype": "uint32"}, "is stored as uint16"),
        ({"dtype": "float32"}, "valid: uint16, uint32"),
        ({"eos_id": 512}, "outside the vocabulary"),
        ({"eos_id": 1}, "does not end with the end-of-text token 1"),
        ({"train": {**train, "tokens": 7}}, "meta.json says 7 uint16 tokens"),
        ({"train": {**train, "tokens": "7"}}, "tokens is '7', not a valid int"),
        ({"train": {**train, "tokens": -1}}, "tokens is -1"),
        ({"train": 5}, "not an object"),
        ({"format_version": 2}, "format version 2; this program reads 1"),
        ({"surprise": 1}, "surprise"),
        ({"vocab_size": True}, "vocab_size is True"),
    ]
    honest = (copy / "meta.json").read_text()
    for lie, message in lies:
        rewrite(copy, **lie)
        assert message in one_line(copy)
        (copy / "meta.json").write_text(honest)
    rewrite(copy, train=train)
    with pytest.raises(UserError, match=r"documents, meta\.json says 3"):
        Dataset.open(copy).verify()
    for text, message in (("{", "cannot be read"), ("[]", "not a JSON object"), ("{}", "format version None")):
        (copy / "meta.json").write_text(text)
        assert message in one_line(copy)


def test_a_folder_without_data(tmp_path: Path) -> None:
    assert "no prepared data" in one_line(tmp_path / "absent")
    assert "no prepared data" in one_line(tmp_path)
