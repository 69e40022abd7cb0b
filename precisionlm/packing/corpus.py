"""Training tokens for the runs of a pack: whole in device memory where they fit, else gathered on the host."""

from functools import lru_cache
from typing import Any

import jax
import numpy as np
from jax.sharding import NamedSharding

from precisionlm.data.dataset import Dataset
from precisionlm.data.meta import DTYPES
from precisionlm.data.places import Place
from precisionlm.data.source import Data, TrainBatches
from precisionlm.data.tokens import Tokens
from precisionlm.packing.program import PackShape

_SHARE = 0.25  # of a device's memory, which the corpus may take
_REMEMBERED = 4096  # batches of an order


class Corpus:
    """The training split of a dataset, as `program.advance` takes it."""

    def __init__(self, shape: PackShape, dataset: Data):
        fit = isinstance(dataset, Dataset) and fits(shape.devices.devices.flat[0], dataset.tokens("train"))
        self.on_device = _placed(dataset.path, dataset.meta.train.sha256, shape.shared) if fit else None
        self._shape, self._dtype = shape, DTYPES[dataset.meta.dtype]

    def batches(self, wanted: list[tuple["Order", int] | None]) -> np.ndarray:
        """What the runs train on in their next K steps, [K, R, B] windows or [K, R, B, T + 1] tokens: of each run its
        order and the steps it has made, None for a slot that stands still."""
        s = self._shape
        indices = np.zeros((s.steps, s.runs, s.sequences), np.int32)
        tokens = None if self.on_device is not None else np.zeros((*indices.shape, s.length + 1), self._dtype)
        for r, run in enumerate(wanted):
            if run is None:
                continue
            order, done = run
            for k in range(s.steps):
                windows = order.windows(done + k)
                if tokens is None:
                    indices[k, r] = windows
                else:
                    tokens[k, r] = order.batches.batch_of(windows)["tokens"]
        return indices if tokens is None else tokens


@lru_cache(1)
def _placed(path: Place, sha256: str, sharding: NamedSharding) -> jax.Array:
    """The tokens, once for all packs that train on them."""
    return jax.device_put(np.asarray(Dataset.open(path).tokens("train")), sharding)


class Order:
    """The order of a run's batches. Runs of one order (equal seeds, batches and data) draw it once between them."""

    def __init__(self, batches: TrainBatches):
        self.batches = batches
        self.windows = lru_cache(_REMEMBERED)(batches.windows_of)

    def position(self, steps: int) -> dict[str, Any]:
        """That of a run after so many steps, as `TrainBatches.set_state` takes it."""
        return self.batches.get_state() | {"next_index": steps}


def fits(device: jax.Device, tokens: np.ndarray | Tokens) -> bool:
    """Whether a device holds the tokens beside a pack; windows are found by int32 positions."""
    stats = device.memory_stats() or {}
    limit = stats.get("bytes_limit", tokens.nbytes / _SHARE)  # a CPU's memory holds them anyway
    return len(tokens) < 2**31 and tokens.nbytes <= _SHARE * limit
