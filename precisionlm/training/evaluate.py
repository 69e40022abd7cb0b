"""Validation loss with its standard error."""

import math
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np

from precisionlm.precision.binding import Grids
from precisionlm.training.sharding import batch_sharding
from precisionlm.training.step import Program, eval_step


@dataclass(frozen=True)
class Evaluation:
    """loss: mean cross entropy (nats/token); standard_error: of that mean, over sequences; tokens: targets counted."""

    loss: float
    standard_error: float
    tokens: int


def place(batch: np.ndarray, program: Program) -> jax.Array:
    """This process's rows of a global batch, as one global array spread over the data-parallel devices."""
    return jax.make_array_from_process_local_data(batch_sharding(program.mesh), batch)


def evaluate(program: Program, params: Any, batches: list[dict[str, np.ndarray]], grids: Grids) -> Evaluation:
    """Loss on fixed validation batches ({"tokens" [B, T + 1], "mask" [B, T]}) at the precision of program and grids.

    Dispatches every batch before it reads the first result.
    """
    step = eval_step(program)
    pending = [step(params, place(b["tokens"], program), place(b["mask"], program), grids) for b in batches]
    sums, counts = np.concatenate([np.asarray(result, np.float64) for result in pending], axis=1)
    used = counts > 0
    means, tokens = sums[used] / counts[used], counts.sum()
    spread = np.std(means, ddof=1) / math.sqrt(used.sum()) if used.sum() > 1 else math.nan
    return Evaluation(float(sums.sum() / tokens), float(spread), int(tokens))
