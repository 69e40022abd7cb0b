"""Shards, on a disk and in a bucket: the tokens, order and run ids of one local file; what is cached, what fails."""

import errno
import json
import threading
import time
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from precisionlm.cli.main import main
from precisionlm.config import Experiment
from precisionlm.data import places, source
from precisionlm.data.meta import Meta
from precisionlm.data.source import Dataset, train_batches, validation_batches
from precisionlm.errors import PreemptedError, UserError
from precisionlm.storage.run_directory import read_metrics
from precisionlm.training.execute import train
from precisionlm.training.run import identified

from ..conftest import tiny_tree
from .conftest import cut
from .emulator import Lag
from .test_golden import HELD_OUT, LATER, ORDER, digest


def wait(condition: Callable[[], bool]) -> None:
    """Until a background thread has done something."""
    limit = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < limit
        time.sleep(0.01)


def fetched() -> bool:
    """No thread brings shards."""
    return not any(thread.name == "shards" for thread in threading.enumerate())


@pytest.fixture(params=["local", "ranges", "cached"])
def data(request: pytest.FixtureRequest, sharded: Path, tmp_path: Path, bucket: type[Lag]) -> Dataset:
    if request.param == "local":
        return Dataset.open(sharded)
    return Dataset.open(f"lag://{sharded}", tmp_path / "cache", (1 << 30) if request.param == "cached" else 0)


def test_shards_are_one_file_to_training(data: Dataset) -> None:
    batches = train_batches(data, 16, 8, seed=3)
    assert digest([batch["tokens"] for batch in islice(batches, 40)]) == ORDER
    batches.set_state(batches.get_state() | {"next_index": 1000})
    wait(fetched)
    assert digest([batch["tokens"] for batch in islice(batches, 4)]) == LATER
    found = validation_batches(data, 16, 8, 1500, 1, 2)
    assert digest([batch[name] for batch in found for name in ("tokens", "mask", "documents")]) == HELD_OUT
    data.verify()


def test_any_stretch_and_the_whole(data: Dataset, dataset: Dataset) -> None:
    tokens, whole = data.tokens("train"), np.asarray(dataset.tokens("train"))
    np.testing.assert_array_equal(np.asarray(tokens), whole)
    assert len(tokens) == len(whole) and tokens.dtype == whole.dtype and tokens.nbytes == whole.nbytes
    for part in (slice(2990, 3010), slice(5, 5), slice(100, 9100, 7), slice(-5, None)):
        np.testing.assert_array_equal(tokens[part], whole[part])
    assert tokens[-1] == whole[-1]


def test_run_ids_are_of_the_content(tokens_folder: Path, tmp_path: Path, bucket: type[Lag]) -> None:
    def of(path: object) -> str:
        tree = tiny_tree(tokens_folder)
        tree["data"] |= {"path": str(path), "cache": str(tmp_path / "cache")}
        return identified(Experiment(**tree))[0]

    shards = cut(tokens_folder, tmp_path / "shards", 10_000)
    assert of(tokens_folder) == of(shards) == of(f"lag://{tokens_folder}") == of(f"lag://{shards}")


def test_the_cache_is_bounded_and_whole(sharded: Path, tmp_path: Path, bucket: type[Lag]) -> None:
    cache = tmp_path / "cache"

    def used() -> int:
        return sum(path.stat().st_size for path in cache.iterdir())

    data = Dataset.open(f"lag://{sharded}", cache, 10_000)  # one shard of training has 6000 bytes
    batches = train_batches(data, 16, 8, seed=3)
    wait(fetched)
    assert 0 < used() <= 10_000 and not list(cache.glob("*.partial"))
    assert digest([batch["tokens"] for batch in islice(batches, 40)]) == ORDER
    whole = Dataset.open(f"lag://{sharded}", cache, 1 << 30)
    train_batches(whole, 16, 8, seed=3)
    wait(fetched)
    bucket.requests = 0
    again = Dataset.open(f"lag://{sharded}", cache, 1 << 30)
    opened = bucket.requests
    assert digest([batch["tokens"] for batch in islice(train_batches(again, 16, 8, seed=3), 40)]) == ORDER
    assert bucket.requests == opened  # the tokens came from the disk


def test_other_data_makes_room(sharded: Path, tmp_path: Path, bucket: type[Lag]) -> None:
    cache = tmp_path / "cache"
    cache.mkdir()
    (cache / f"{'0' * 64}.tokens").write_bytes(b"x" * 9_000)
    train_batches(Dataset.open(f"lag://{sharded}", cache, 10_000), 16, 8, seed=3)
    wait(fetched)
    names = {path.stem for path in cache.iterdir()}
    assert names and names <= {
        shard.sha256 for split in ("train", "validation") for shard in Meta.read(sharded).shards(split)
    }


def test_damage_on_the_way_is_noticed(sharded: Path, tmp_path: Path, bucket: type[Lag]) -> None:
    damaged = tmp_path / "damaged"
    damaged.mkdir()
    for path in sharded.iterdir():
        (damaged / path.name).write_bytes(path.read_bytes())
    tokens = np.fromfile(damaged / "train-00001.bin", "<u2")
    tokens[::-1].tofile(damaged / "train-00001.bin")
    data = Dataset.open(f"lag://{damaged}", tmp_path / "cache", 1 << 30)
    batches = train_batches(data, 16, 8, seed=3)
    wait(fetched)
    with pytest.raises(UserError, match=r"train-00001\.bin has sha256"):
        list(islice(batches, 100))
    with pytest.raises(UserError, match=r"train-00001\.bin has sha256"):
        data.verify()


def test_a_lost_connection_is_tried_again(
    sharded: Path, bucket: type[Lag], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setattr(places, "WAITS", (0.0, 0.0, 0.0))
    place = f"lag://{sharded}"
    bucket.failing = 3
    data = Dataset.open(place, tmp_path / "cache", 0)
    batches = train_batches(data, 16, 8, seed=3)
    bucket.failing = 2
    assert digest([batch["tokens"] for batch in islice(batches, 40)]) == ORDER
    bucket.failing = 10**9
    with pytest.raises(PreemptedError, match=r"^lag://.*cannot be reached \(ConnectionResetError: .*4 tries\)"):
        list(islice(batches, 1000))
    assert main(["bench", "loader", place]) == 75
    assert capsys.readouterr().err.count("\n") == 1


@pytest.mark.long
def test_training_saves_what_it_has_before_it_gives_up(
    tokens_folder: Path, experiment: Experiment, bucket: type[Lag], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(places, "WAITS", ())
    data = experiment.data.model_copy(update={"path": f"lag://{tokens_folder}", "cache_gib": 0.0})
    far = experiment.model_copy(update={"data": data})
    monkeypatch.setattr(source, "_AHEAD_TOKENS", 0)

    def fail(done: int, steps: int, loss: float | None) -> None:
        bucket.failing = 10**9 if done == 5 else 0

    with pytest.raises(PreemptedError, match="cannot be reached"):
        train(far, tmp_path / "far", fail)
    bucket.failing = 0
    again = train(far, tmp_path / "far")
    whole = train(experiment, tmp_path / "near")
    assert again.run_id == whole.run_id
    logs = [read_metrics(out.path / "metrics.jsonl") for out in (again, whole)]
    losses = [[line["loss"] for line in log if "loss" in line] for log in logs]
    assert losses[0] == losses[1] and len(losses[0]) == experiment.training.steps
    assert again.result.row["segments"] == 2


class HttpError(Exception):
    """As gcsfs raises an answer: the status is its `code`."""

    def __init__(self, code: int | str) -> None:
        super().__init__(f"Anonymous caller does not have access, {code}")
        self.code = code


class NoCredentialsError(Exception):
    """As botocore raises it."""


@pytest.mark.parametrize(
    ("error", "lost"),
    [
        (HttpError(401), False),
        (HttpError("403"), False),
        (HttpError(429), True),
        (HttpError(503), True),
        (OSError("Forbidden: https://storage.googleapis.com/b/o\nno permission"), False),  # gcsfs's 403
        (PermissionError("Access Denied"), False),  # s3fs's
        (NoCredentialsError("Unable to locate credentials"), False),
        (ValueError("Bad Request: https://storage.googleapis.com/b/o\nInvalid bucket name"), False),
        (OSError(errno.EIO, "SlowDown"), True),  # s3fs's, of what it has no name for
        (OSError(errno.ECONNREFUSED, "Connect call failed"), True),
        (ConnectionResetError("the peer is gone"), True),
        (TimeoutError(), True),
    ],
)
def test_what_is_refused_is_bad_input_and_what_breaks_is_tried_again(
    monkeypatch: pytest.MonkeyPatch, error: Exception, lost: bool
) -> None:
    def fail(path: str) -> None:
        asked.append(path)
        raise error

    asked: list[str] = []
    monkeypatch.setattr(places, "WAITS", (0.0, 0.0))
    monkeypatch.setattr(places, "filesystem", lambda place: (SimpleNamespace(cat_file=fail), "meta.json"))
    with pytest.raises(PreemptedError if lost else UserError) as caught:
        places.read_bytes("gs://bucket/meta.json")
    assert len(asked) == (3 if lost else 1)
    assert "\n" not in str(caught.value) and type(error).__name__ in str(caught.value)


def test_a_file_system_that_tries_again_itself_is_not_asked_for_minutes(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(path: str) -> None:
        raise ConnectionResetError("the peer is gone")

    clock = iter(range(0, 1000, 20))  # a try of gcsfs's takes half a minute
    monkeypatch.setattr(places, "time", SimpleNamespace(monotonic=lambda: next(clock), sleep=lambda seconds: None))
    monkeypatch.setattr(places, "filesystem", lambda place: (SimpleNamespace(cat_file=fail), "meta.json"))
    with pytest.raises(PreemptedError, match=r"2 tries"):
        places.read_bytes("gs://bucket/meta.json")


def test_what_is_not_there(tmp_path: Path, bucket: type[Lag], sharded: Path) -> None:
    for place, message in (
        (f"lag://{tmp_path}/absent", "holds no prepared data"),
        ("nowhere://bucket/data", "Protocol not known: nowhere"),
    ):
        with pytest.raises(UserError, match=message):
            Dataset.open(place)
    short = tmp_path / "short"
    short.mkdir()
    for path in sharded.iterdir():
        (short / path.name).write_bytes(path.read_bytes()[: -2 if path.name == "train-00000.bin" else None])
    with pytest.raises(UserError, match=r"train-00000\.bin holds 5998 bytes, meta\.json says 3000"):
        Dataset.open(f"lag://{short}")


def test_a_bucket_without_its_package(monkeypatch: pytest.MonkeyPatch) -> None:
    import fsspec

    def missing(url: str) -> None:
        raise ImportError("no gcsfs")

    monkeypatch.setattr(fsspec.core, "url_to_fs", missing)
    with pytest.raises(UserError, match=r"^gs://bucket/data/meta\.json: pip install 'precisionlm\[gcs\]'$"):
        Dataset.open("gs://bucket/data")


def test_shards_that_do_not_add_up(sharded: Path, tmp_path: Path) -> None:
    tree = json.loads((sharded / "meta.json").read_text())
    for change, message in (
        (tree["train"]["shards"][:-1], r"train: its shards hold \d+ tokens, not \d+"),
        ([], "no list of shards"),
        ([{"file": "x"}], "shard 0: missing or unknown fields"),
    ):
        (tmp_path / "meta.json").write_text(json.dumps({**tree, "train": {**tree["train"], "shards": change}}))
        with pytest.raises(UserError, match=message):
            Meta.read(tmp_path)
