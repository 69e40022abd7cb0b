"""The losses of every validation sequence, for the runs of a pack at once."""

from collections.abc import Callable, Sequence
from concurrent.futures import Executor, Future
from typing import Any

import jax
import numpy as np

from precisionlm.data.source import Batch
from precisionlm.errors import PreemptedError
from precisionlm.packing.program import PackShape, losses, stacked, with_structure
from precisionlm.precision.binding import Grids, Structure
from precisionlm.ptq.evaluate import grids_within, part_of
from precisionlm.storage.evaluation import Evaluation
from precisionlm.training.step import abstract_state

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
        self._lowered: dict[Structure, Any] = {}
        self._compiled: dict[Structure, Future[Any]] = {}

    def lower(self, structure: Structure, grids: Grids) -> None:
        """Trace for a structure: the program's, or one with less in it. grids: of any run."""
        shape = with_structure(self._shape, structure)
        params = jax.tree.map(
            lambda leaf: jax.ShapeDtypeStruct((shape.runs, *leaf.shape), leaf.dtype, sharding=shape.each),
            abstract_state(shape.program)["params"],
        )
        numbers = stacked(shape, [grids_within(grids, structure)])
        self._lowered[structure] = losses(shape).lower(params, *self._chunks[0], numbers)

    def begin_compiling(self, threads: Executor) -> list[Future[Any]]:
        """Have what was traced compiled in these threads; what is not to be waited for here."""
        self._compiled = {structure: threads.submit(lowered.compile) for structure, lowered in self._lowered.items()}
        return list(self._compiled.values())

    def execute_once(self, params: Any, grids: Grids) -> None:
        """Everything that was compiled, on these parameters [R, ...] and to no effect. Raises what compiling raises."""
        for structure, compiled in self._compiled.items():
            own = part_of(params, abstract_state(with_structure(self._shape, structure).program)["params"])
            numbers = stacked(self._shape, [grids_within(grids, structure)])
            jax.block_until_ready(compiled.result()(own, *self._chunks[0], numbers))

    def evaluate(
        self,
        params: Any,
        grids: Sequence[Grids],
        structure: Structure,
        interrupted: Callable[[], bool] = lambda: False,
    ) -> list[Evaluation]:
        """One evaluation a member of `grids`, the runs' own, at a structure that was compiled; params [R, ...] fill the
        slots from the first on. Raises PreemptedError as soon as `interrupted` says so."""
        step = self._compiled[structure].result()
        own = part_of(params, abstract_state(with_structure(self._shape, structure).program)["params"])
        numbers = stacked(self._shape, [grids_within(of_run, structure) for of_run in grids])
        results = []
        for chunk in self._chunks:
            if interrupted():
                raise PreemptedError("evaluation was interrupted; the same command does it again")
            results.append(step(own, *chunk, numbers))
        found_NR2B = np.concatenate([np.asarray(result) for result in results])
        found = []
        for r in range(len(grids)):
            sums, counts = np.moveaxis(found_NR2B[:, r], 1, 0).reshape(2, -1)
            used = counts > 0  # the last batches are filled with padding
            found.append(Evaluation(sums[used], counts[used].astype(np.int32), self._documents))
        return found
