"""What must stay as it is, so that runs begun before go on: the tokens of a text, the order of batches, run ids."""

import hashlib
from itertools import islice
from pathlib import Path

import numpy as np

from precisionlm.config import Experiment
from precisionlm.data.source import Dataset, train_batches, validation_batches
from precisionlm.training.run import identified

TRAIN, VALIDATION = (
    "5cccdb7e17259a85403b3373090831a71857f90be3778a52bb4eb88731384f71",
    "50823800ff21b0c67ef302a2d6bf6b89e2d0c227f3a0df7d32967db490be44c6",
)
ORDER, LATER, HELD_OUT = "03e7ada98bf3c286", "56d21bf99112fdeb", "9a483ea14792b2ab"
RUN_ID = "426c3dd0ee77"


def digest(arrays: list[np.ndarray]) -> str:
    """Of values, shapes and types."""
    found = hashlib.sha256()
    for array in arrays:
        found.update(f"{array.dtype}{array.shape}".encode() + np.ascontiguousarray(array).tobytes())
    return found.hexdigest()[:16]


def test_a_folder_of_text_gives_the_same_tokens(prepared: Path) -> None:
    for name, golden in (("train.bin", TRAIN), ("val.bin", VALIDATION)):
        assert hashlib.sha256((prepared / name).read_bytes()).hexdigest() == golden, name


def test_batches_come_in_the_same_order(dataset: Dataset) -> None:
    batches = train_batches(dataset, 16, 8, seed=3)
    assert digest([batch["tokens"] for batch in islice(batches, 40)]) == ORDER
    batches.set_state(batches.get_state() | {"next_index": 1000})  # some epochs later
    assert digest([batch["tokens"] for batch in islice(batches, 4)]) == LATER
    assert batches.get_state() == {
        "next_index": 1004,
        "dataset": TRAIN[:12],
        "sequence_length": 16,
        "batch_size": 8,
        "seed": 3,
        "sequences": (dataset.meta.train.tokens - 1) // 16,
    }


def test_validation_comes_in_the_same_batches(dataset: Dataset) -> None:
    found = validation_batches(dataset, 16, 8, 1500, 1, 2)
    assert digest([batch[name] for batch in found for name in ("tokens", "mask", "documents")]) == HELD_OUT


def test_an_experiment_on_a_folder_keeps_its_id(experiment: Experiment) -> None:
    assert identified(experiment)[0] == RUN_ID
