"""How fast training batches come from a prepared folder, on a disk or in a bucket."""

import time
from pathlib import Path
from typing import Any

from precisionlm.data.dataset import GIB, Dataset
from precisionlm.data.places import Place
from precisionlm.data.source import train_batches


def measure(
    place: Place, sequence_length: int, batch_size: int, batches: int, cache: str | None, cache_gib: float
) -> dict[str, Any]:
    """Tokens per second of so many batches in the order of training, the first included, and the seconds until the
    first was there. cache, cache_gib: as in `config.DataConfig`. Raises UserError, PreemptedError."""
    dataset = Dataset.open(place, Path(cache).expanduser() if cache else None, int(cache_gib * GIB))
    begun = time.monotonic()
    loader = train_batches(dataset, sequence_length, batch_size, seed=0)
    next(loader)
    first = time.monotonic() - begun
    for _ in range(batches - 1):
        next(loader)
    seconds = time.monotonic() - begun
    return {
        "path": str(place),
        "tokens": batches * batch_size * sequence_length,
        "seconds": seconds,
        "first_batch_seconds": first,
        "tokens_per_second": batches * batch_size * sequence_length / seconds,
    }
