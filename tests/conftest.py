"""Eight fake CPU devices for every test; shared tiny experiment and data."""

import os

from .compiled_fast import COMPILED_FAST

os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=8 {COMPILED_FAST}"
os.environ["JAX_PLATFORMS"] = "cpu"

import json
from pathlib import Path

import numpy as np
import pytest

from precisionlm.config import Experiment, build

from .runs_tables import kumar_runs, public, tiny_runs  # noqa: F401


@pytest.fixture(scope="session")
def tokens_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Prepared data: 60 000 tokens of an order-1 Markov chain over 97 entries, so that a loss can fall."""
    return chain(tmp_path_factory.mktemp("tokens"))


def chain(folder: Path) -> Path:
    """The prepared data of `tokens_folder`, under a folder."""
    from tokenizers import Tokenizer
    from tokenizers.models import BPE

    from precisionlm.data.prepare import prepare
    from precisionlm.data.request import Request

    vocabulary = {"<|endoftext|>": 0} | {chr(0x100 + i): i for i in range(1, 97)}
    Tokenizer(BPE(vocabulary, [])).save(str(folder / "tokenizer.json"))
    rng = np.random.default_rng(7)
    following = rng.integers(1, 97, (97, 4))
    documents, state = [], 1
    for _ in range(300):
        for _ in range(199):
            state = following[state, rng.integers(4)]
            documents.append(state)
        documents.append(0)
    np.array(documents, np.uint16).tofile(folder / "chain.u16")
    out = folder / "data"
    prepare(Request(folder / "chain.u16", tokenizer=folder / "tokenizer.json", eos_id=0, validation_every=16), out)
    return out


@pytest.fixture
def experiment(tokens_folder: Path) -> Experiment:
    """A model of two layers on the chain, W4A8, twelve steps."""
    return build(json.loads(json.dumps(tiny_tree(tokens_folder))), "test")


def tiny_tree(tokens_folder: Path) -> dict:
    """The tree of the tiny experiment."""
    return {
        "name": "tiny",
        "model": {"layers": 2, "width": 32, "heads": 4, "kv_heads": 2, "mlp_width": 64},
        "data": {"path": str(tokens_folder), "sequence_length": 32},
        "optimizer": {"learning_rate": 3e-3},
        "precision": {"recipe": "W4A8"},
        "training": {"steps": 12, "batch_size": 8, "dtype": "float32", "remat": "none", "eval_tokens": 2000},
    }


class StopAt:
    """Asks for an interruption once the loop has polled `count` times."""

    def __init__(self, count):
        self.left = count + 2  # the polls before the first step

    def __call__(self):
        self.left -= 1
        return self.left < 0
