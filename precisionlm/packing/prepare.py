"""What a pack needs before its first step, made in threads while another pack trains: corpus, batches, executables."""

from collections import Counter
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from typing import Any

import jax
import numpy as np
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from precisionlm.packing.corpus import Corpus
from precisionlm.packing.evaluate import Evaluator
from precisionlm.packing.program import RUN, PackShape, abstract_stack, advance, stacked
from precisionlm.precision import marks
from precisionlm.training.optimizer import hyperparameters
from precisionlm.training.run import Run


class Prepared:
    """For packs of a shape on the data of a run. advance: the compiled step; products: matrix products of one step of
    it that take each quantized operand."""

    def __init__(self, shape: PackShape, run: Run):
        self.shape = shape
        self.corpus = Corpus(shape, run.dataset)
        self.batches_sharding = NamedSharding(shape.devices, P(None, RUN))
        self._threads = ThreadPoolExecutor(1, "compile")  # in the order in which they are needed
        self.products: Future[Counter[str]] = Future()
        self.advance: Future[Any] = self._threads.submit(self._compile_advance, run)
        self.evaluator = Evaluator(shape, run.validation_batches())
        self._threads.submit(partial(self.evaluator.compile, run.grids))
        self._threads.shutdown(wait=False)

    def numbers(self, runs: list[Run]) -> tuple[Any, Any, jax.Array]:
        """What differs between the members, one a slot: grids, hyperparameters and seeds."""
        grids = stacked(self.shape, [run.grids for run in runs])
        hyper = stacked(self.shape, [hyperparameters(run.experiment) for run in runs])
        return grids, hyper, stacked(self.shape, [run.experiment.training.seed for run in runs])

    def place(self, batches: np.ndarray) -> jax.Array:
        """What the members train on in a dispatch, each on its device."""
        return jax.device_put(batches, self.batches_sharding)

    def counts(self, todo: list[int]) -> jax.Array:
        """One number a slot, each on its device."""
        return jax.device_put(np.asarray(todo, np.int32), self.shape.each)

    def _compile_advance(self, run: Run) -> Any:
        runs = self.shape.runs
        batches = self.place(self.corpus.batches([None] * runs))
        numbers, todo = self.numbers([run] * runs), self.counts([0] * runs)
        try:
            traced = advance(self.shape).trace(
                abstract_stack(self.shape), self.corpus.on_device, batches, *numbers, todo
            )
            in_dispatch = marks.count_products(traced.jaxpr)
            self.products.set_result(Counter({tag: n // self.shape.steps for tag, n in in_dispatch.items()}))
        except Exception as error:
            self.products.set_exception(error)
            raise
        return traced.lower().compile()
