"""The losses of every validation sequence, for the runs of a pack at once."""

from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import Any

import jax
import numpy as np

from precisionlm.data.source import Batch
from precisionlm.errors import PreemptedError
from precisionlm.packing.program import PackShape, abstract_stack, losses, stacked, with_structure
from precisionlm.precision.binding import Grids, Structure
from precisionlm.storage.evaluation import Evaluation

_CHUNK = 8  # batches of a dispatch: a stop is not far


class Evaluator:
    """Evaluates stacks of parameters on fixed validation batches (`source.validation_batches`)."""

    def __init__(self, shape: PackShape, batches: Sequence[Batch]):
        self._shape = shape
        self._documents = np.concatenate([batch["documents"] for batch in batches])
        size = min(_CHUNK, len(batches))
        blank = {name: np.zeros_like(batches[0][name]) for name in ("tokens", "mask")}
        padded = [*batches, *[blank] * (-len(batches) % size)]
        arrays = {name: np.stack([batch[name] for batch in padded]) for name in ("tokens", "mask")}
        self._chunks = [
            tuple(jax.device_put(arrays[name][i : i + size], shape.shared) for name in ("tokens", "mask"))
            for i in range(0, len(padded), size)
        ]
        self._compiled: Future[Any] = Future()

    def compile(self, grids: Grids) -> None:
        """Compile for the program's own structure; `evaluate` waits for it. grids: of any run."""
        self._compiled.set_running_or_notify_cancel()
        try:
            params = abstract_stack(self._shape)["params"]
            lowered = losses(self._shape).lower(params, *self._chunks[0], stacked(self._shape, [grids]))
            self._compiled.set_result(lowered.compile())
        except BaseException as error:
            self._compiled.set_exception(error)

    def evaluate(
        self,
        params: Any,
        grids: Sequence[Grids],
        structure: Structure | None = None,
        interrupted: Callable[[], bool] = lambda: False,
    ) -> list[Evaluation]:
        """One evaluation a member of `grids`; params [R, ...] fill the slots from the first on. structure: another one
        than the program's. Raises PreemptedError as soon as `interrupted` says so."""
        shape = self._shape
        if structure is None or structure == shape.program.structure:
            step = self._compiled.result()
        else:
            step = losses(with_structure(shape, structure))
        grids_R = stacked(shape, list(grids))
        results = []
        for chunk in self._chunks:
            if interrupted():
                raise PreemptedError("evaluation was interrupted; the same command does it again")
            results.append(step(params, *chunk, grids_R))
        found_NR2B = np.concatenate([np.asarray(result) for result in results])
        found = []
        for r in range(len(grids)):
            sums, counts = np.moveaxis(found_NR2B[:, r], 1, 0).reshape(2, -1)
            used = counts > 0  # the last batches are filled with padding
            found.append(Evaluation(sums[used], counts[used].astype(np.int32), self._documents))
        return found
