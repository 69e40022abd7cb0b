import random
from pathlib import Path

import pytest

from precisionlm.data.prepare import prepare
from precisionlm.data.request import Request
from precisionlm.data.source import Dataset


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
