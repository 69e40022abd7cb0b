"""Several folders with weights: exact shares, one order on any number of hosts, resumed exactly, recorded."""

import json
import shutil
from itertools import islice
from pathlib import Path

import numpy as np
import pytest

from precisionlm.config import DataConfig, Experiment, build
from precisionlm.data.meta import Meta, Split
from precisionlm.data.mixture import Mixture, opened, whole_weights
from precisionlm.data.source import (
    Dataset,
    described,
    distinct_tokens,
    epochs,
    train_batches,
    unique_sequences,
    validation_batches,
)
from precisionlm.errors import UserError
from precisionlm.training.run import identified

from ..conftest import tiny_tree
from .test_data_source import take

T = 10


def part(name: str, tokens: int, first: int, held_out: int = 1001) -> Dataset:
    """A folder in memory whose tokens count up from `first`."""
    meta = Meta("uint32", 1 << 20, 0, "", Split(tokens, 1, name * 64), Split(held_out, 2, name * 64), "", "", {})
    data = Dataset(Path(name), meta)
    arrays = {
        split: np.arange(first, first + n, dtype="<u4") for split, n in (("_train", tokens), ("_validation", held_out))
    }
    data.__dict__.update(arrays)
    return data


def mixture() -> Mixture:
    """Seven windows of a for three of b: 100 windows of tokens below 10⁵, 20 of those above."""
    return Mixture(((7, part("a", 1001, 1)), (3, part("b", 201, 100_001))))


def test_every_stretch_has_the_shares_of_the_weights() -> None:
    data = mixture()
    rows = np.concatenate(take(train_batches(data, T, 10, seed=0), 40))
    of_b = rows[:, 0] > 100_000
    assert (of_b.reshape(40, 10).sum(axis=1) == 3).all()
    np.testing.assert_array_equal(rows, rows[:, :1] + np.arange(T + 1))  # no window spans two folders
    for windows, count in ((rows[~of_b][:, 0] - 1, 100), (rows[of_b][:, 0] - 100_001, 20)):
        passes = [windows[start : start + count] // T for start in range(0, len(windows) - count + 1, count)]
        assert all(sorted(one) == list(range(count)) for one in passes)


def test_one_order_on_any_number_of_hosts_and_after_a_resume() -> None:
    data = mixture()
    whole = np.stack(take(train_batches(data, T, 8, seed=5), 50))
    shards = [np.stack(take(train_batches(data, T, 8, 5, n, 2), 50)) for n in range(2)]
    np.testing.assert_array_equal(np.concatenate(shards, axis=1), whole)
    broken = train_batches(data, T, 8, seed=5)
    take(broken, 17)
    resumed = train_batches(mixture(), T, 8, seed=5)
    resumed.set_state(json.loads(json.dumps(broken.get_state())))
    np.testing.assert_array_equal(np.stack(take(resumed, 33)), whole[17:])
    other = train_batches(Mixture(((6, data.parts[0][1]), (4, data.parts[1][1]))), T, 8, seed=5)
    with pytest.raises(UserError, match="saved data position has dataset"):
        other.set_state(broken.get_state())


def test_what_is_counted() -> None:
    data = mixture()
    assert unique_sequences(data, T) == 120
    assert distinct_tokens(data, T, 1000) == 700 + 200  # 300 of the second, of which 200 are distinct
    assert epochs(data, T, 1000) == pytest.approx(0.7 * 700 / 1000 + 0.3 * 300 / 200)
    assert described(data, T, 1000) == f"0.7 {'a' * 12} (a, 0.7 epochs) + 0.3 {'b' * 12} (b, 1.5 epochs)"
    assert described(data.parts[0][1], T, 1000) == ""
    assert unique_sequences(data, T, 500) == 35 + 15
    with pytest.raises(UserError, match="b can give 1 to 20"):
        train_batches(data, T, 8, 0, unique_tokens=1000)


@pytest.mark.parametrize("max_tokens", [None, 1000, 333])
def test_validation_has_the_shares_of_the_weights(max_tokens: int | None) -> None:
    data = mixture()
    targets = min(data.meta.validation.tokens - 1, max_tokens or 10**9)
    assert data.meta.validation.tokens - 1 == 1000 * 10 // 7
    batches = validation_batches(data, T, 8, max_tokens)
    kept = np.concatenate([batch["tokens"][:, 1:][batch["mask"]] for batch in batches])
    assert len(kept) == targets and abs((kept > 100_000).sum() - 0.3 * targets) <= 1
    assert sum(len(batch["documents"]) for batch in batches) == sum(
        batch["mask"].any(axis=1).sum() for batch in batches
    )
    documents = np.concatenate([batch["documents"] for batch in batches])
    firsts = np.concatenate([batch["tokens"][:, 1][batch["mask"].any(axis=1)] for batch in batches])
    assert not set(documents[firsts > 100_000]) & set(documents[firsts < 100_000])
    halves = [validation_batches(data, T, 8, max_tokens, n, 2) for n in range(2)]
    for batch, *parts in zip(batches, *halves, strict=True):
        np.testing.assert_array_equal(batch["tokens"], np.concatenate([half["tokens"] for half in parts]))


def test_weights() -> None:
    assert whole_weights([0.7, 0.3]) == whole_weights([7, 3]) == [7, 3]
    assert whole_weights([1, 1, 1]) == [1, 1, 1]
    with pytest.raises(UserError, match="less than a millionth"):
        whole_weights([1e-9, 1])


def test_a_mixture_in_a_config(tokens_folder: Path, prepared: Path, tmp_path: Path) -> None:
    twin = shutil.copytree(tokens_folder, tmp_path / "twin")

    def of(*weights: float) -> Experiment:
        tree = tiny_tree(tokens_folder)
        del tree["data"]["path"]
        places = (tokens_folder, twin)
        tree["data"]["mixture"] = [{"path": str(p), "weight": w} for p, w in zip(places, weights, strict=True)]
        return build(tree, "test")

    ids = {weights: identified(of(*weights))[0] for weights in ((7.0, 3.0), (0.7, 0.3), (3.0, 7.0))}
    assert ids[7.0, 3.0] == ids[0.7, 0.3] != ids[3.0, 7.0]
    assert ids[7.0, 3.0] != identified(build(tiny_tree(tokens_folder), "test"))[0]
    one = DataConfig(mixture=[{"path": str(twin), "weight": 2.0}], sequence_length=8)  # type: ignore[arg-type, list-item]
    assert isinstance(opened(one), Dataset)
    other = DataConfig(
        mixture=[{"path": str(p), "weight": 1.0} for p in (twin, prepared)],  # type: ignore[arg-type, misc]
        sequence_length=8,
    )
    with pytest.raises(UserError, match="made by different tokenizers"):
        opened(other)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({}, "data.path' is missing"),
        ({"path": "a", "mixture": [{"path": "b", "weight": 1.0}]}, "either path or mixture"),
        ({"mixture": []}, "mixture"),
        ({"mixture": [{"path": "b", "weight": 0.0}]}, r"data\.mixture\.0\.weight = 0\.0: .*greater than 0"),
        (
            {"mixture": [{"path": "b", "wieght": 1.0}]},
            r"key 'data\.mixture\.0\.weight' is missing|did you mean 'weight'",
        ),
    ],
)
def test_mixtures_that_are_none(data: dict[str, object], message: str) -> None:
    tree = tiny_tree(Path("x"))
    tree["data"] = {"sequence_length": 8, **data}
    with pytest.raises(UserError, match=message) as caught:
        build(tree, "test")
    assert "\n" not in str(caught.value)


def test_batches_of_a_mixture_of_files(tokens_folder: Path, tmp_path: Path) -> None:
    folders = [tokens_folder, shutil.copytree(tokens_folder, tmp_path / "twin")]
    data = opened(DataConfig(mixture=[{"path": str(f), "weight": 1.0} for f in folders], sequence_length=8))  # type: ignore[arg-type, misc]
    batches = list(islice(train_batches(data, 8, 4, 0), 3))
    assert all(batch["tokens"].dtype == np.int32 and batch["tokens"].shape == (4, 9) for batch in batches)
    data.verify_once()
