"""The loss of every validation sequence, at the precision of a program."""

from collections import deque
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from precisionlm.errors import PreemptedError
from precisionlm.precision.binding import Grids
from precisionlm.storage.evaluation import Evaluation
from precisionlm.training.sharding import batch_sharding
from precisionlm.training.step import Program, eval_step

_AHEAD = 4  # batches dispatched before a result is read: the device stays busy, and a stop is not far


def place(batch: np.ndarray, program: Program) -> jax.Array:
    """This process's rows of a global batch, as one global array spread over the data-parallel devices."""
    return jax.make_array_from_process_local_data(batch_sharding(program.mesh), batch)


def evaluate(
    program: Program,
    params: Any,
    batches: list[dict[str, np.ndarray]],
    grids: Grids,
    interrupted: Callable[[], bool] = lambda: False,
) -> Evaluation:
    """Loss on fixed validation batches (of `source.validation_batches`) at the precision of program and grids.

    Equal on all processes. Raises PreemptedError as soon as `interrupted`, asked before every batch, says so.
    """
    step = eval_step(program)
    pending: deque[jax.Array] = deque()
    results = []
    for batch in batches:
        if interrupted():
            raise PreemptedError("evaluation was interrupted; the same command does it again")
        pending.append(step(params, place(batch["tokens"], program), place(batch["mask"], program), grids))
        if len(pending) > _AHEAD:
            results.append(np.asarray(pending.popleft()))
    results += [np.asarray(result) for result in pending]
    sums, counts = np.concatenate(results, axis=1)
    used = counts > 0  # the last batch is filled with padding
    documents = np.concatenate([batch["documents"] for batch in batches])
    return Evaluation(sums[used], counts[used].astype(np.int32), documents)
