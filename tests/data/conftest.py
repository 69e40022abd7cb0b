import hashlib
import random
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from precisionlm.data.meta import DTYPES, SPLIT_FILES, Meta, Shard
from precisionlm.data.prepare import prepare
from precisionlm.data.request import Request
from precisionlm.data.source import Dataset

from .emulator import Lag, register


def make_documents(count: int, seed: int = 0) -> list[str]:
    """Distinct documents of made-up words, accents, spaces and line ends included."""
    rng = random.Random(seed)
    words = ["".join(rng.choices("abcdefghijklmnopqrstuvwxyzéß日\t", k=rng.randint(2, 7))) for _ in range(400)]
    return [f"{n}\r\n" + " ".join(rng.choices(words, k=rng.randint(30, 120))) + "\n" for n in range(count)]


@pytest.fixture(scope="session")
def documents() -> list[str]:
    return make_documents(200)


@pytest.fixture(scope="session")
def text_folder(documents: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("text")
    for n, text in enumerate(documents):
        (folder / f"{n:03}.txt").write_bytes(text.encode())
    return folder


@pytest.fixture(scope="session")
def prepared(text_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Do not write here: shared by every test of the session."""
    out = tmp_path_factory.mktemp("prepared") / "tokens"
    prepare(Request(text_folder, vocab_size=512, validation_every=8), out)
    return out


@pytest.fixture(scope="session")
def dataset(prepared: Path) -> Dataset:
    return Dataset.open(prepared)


def cut(folder: Path, out: Path, shard_tokens: int) -> Path:
    """A prepared folder with the same tokens in shards of so many."""
    meta = Meta.read(folder)
    shutil.copytree(folder, out)
    splits = {}
    for split, name in SPLIT_FILES.items():
        tokens, shards = np.fromfile(out / name, DTYPES[meta.dtype]), []
        (out / name).unlink()
        for n, start in enumerate(range(0, len(tokens), shard_tokens)):
            part = tokens[start : start + shard_tokens]
            file = f"{split}-{n:05}.bin"
            part.tofile(out / file)
            ends = int(np.count_nonzero(part == meta.eos_id))
            shards.append(Shard(file, len(part), ends, hashlib.sha256(part.tobytes()).hexdigest()))
        splits[split] = replace(getattr(meta, split), shards=tuple(shards))
    replace(meta, **splits).write(out)
    return out


@pytest.fixture(scope="session")
def sharded(prepared: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tokens of `prepared` in many shards. Do not write here."""
    return cut(prepared, tmp_path_factory.mktemp("sharded") / "tokens", 3000)


@pytest.fixture
def bucket() -> Iterator[type[Lag]]:
    """The emulated bucket, without latency and failures."""
    register()
    Lag.latency, Lag.requests, Lag.failing = 0.0, 0, 0
    yield Lag
    Lag.latency, Lag.failing = 0.0, 0
