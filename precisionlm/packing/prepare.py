"""What packs need before their first step: corpus, batches, and executables, compiled side by side.

On GPUs nothing may compile while a pack trains, nor may an executable run for the first time beside others: cuDNN's
attention records CUDA graphs then, which other threads' work spoils (JAX 0.11.2: internal errors and segmentation
faults), and what is compiled finds worse kernels. So packs that come after each other compile beside each other, before
the first of them trains. Tracing needs no device: that of coming packs is done meanwhile.
"""

import time
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from typing import Any

import jax
import numpy as np
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from precisionlm.packing.corpus import Corpus
from precisionlm.packing.evaluate import Evaluator
from precisionlm.packing.program import RUN, PackShape, abstract_stack, advance, blank_stack, stacked
from precisionlm.precision import marks
from precisionlm.precision.binding import Structure
from precisionlm.precision.recipe import Quantization
from precisionlm.ptq.evaluate import plain_weights
from precisionlm.training.auditing import lower_measure
from precisionlm.training.optimizer import hyperparameters
from precisionlm.training.run import Run


class Prepared:
    """For packs of a shape on the data of a run; made without compiling anything.

    ptq: the formats in which finished runs are evaluated too; products: matrix products of one step that take each
    quantized operand. After `compile`: advance, the step (`program.advance`), measure, of the audit, and seconds, what
    tracing and compiling took.
    """

    def __init__(self, shape: PackShape, run: Run, ptq: Sequence[Quantization] = ()):
        begun = time.monotonic()
        self.shape, self.ptq = shape, tuple(ptq)
        self.corpus = Corpus(shape, run.dataset)
        self.batches_sharding = NamedSharding(shape.devices, P(None, RUN))
        self.evaluator = Evaluator(shape, run.validation_batches())
        self._run, self._compiling, self._compiled = run, list[Future[Any]](), False
        traced = self._traced_step()
        in_dispatch = marks.count_products(traced.jaxpr)
        self.products = Counter({tag: count // shape.steps for tag, count in in_dispatch.items()})
        self._step, self._measure = traced.lower(), lower_measure(run)
        for structure in self._evaluated_at(run, ptq):
            self.evaluator.lower(structure, run.grids)
        self.seconds = time.monotonic() - begun

    def begin_compiling(self, threads: Executor) -> list[Future[Any]]:
        """Have everything compiled in these threads, unless that was begun; what is not to be waited for here."""
        if not self._compiling:
            begun = time.monotonic()
            own = [threads.submit(lowered.compile) for lowered in (self._step, self._measure)]
            self._compiling = [*own, *self.evaluator.begin_compiling(threads)]
            own[0].add_done_callback(lambda _: self._took(begun))
        return self._compiling

    def _took(self, begun: float) -> None:
        self.seconds += time.monotonic() - begun

    def compile(self) -> None:
        """Compile everything and execute it once, on zeros and to no effect, unless that was done. Raises what
        compiling raises."""
        if self._compiled:
            return
        with ThreadPoolExecutor(3, "compile") as threads:
            self.begin_compiling(threads)
        self.advance, self.measure = (compiling.result() for compiling in self._compiling[:2])
        begun = time.monotonic()
        state = blank_stack(self.shape)()
        self.evaluator.execute_once(state["params"], self._run.grids)
        runs = [self._run] * self.shape.runs
        batches = self.place(self.corpus.batches([None] * self.shape.runs))
        arguments = (self.corpus.on_device, batches, *self.numbers(runs), self.counts([0] * self.shape.runs))
        jax.block_until_ready(self.advance(state, *arguments))
        self._took(begun)
        self._compiled = True

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

    def _traced_step(self) -> Any:
        runs = self.shape.runs
        batches = self.place(self.corpus.batches([None] * runs))
        numbers, todo = self.numbers([self._run] * runs), self.counts([0] * runs)
        return advance(self.shape).trace(abstract_stack(self.shape), self.corpus.on_device, batches, *numbers, todo)

    def _evaluated_at(self, run: Run, ptq: Sequence[Quantization]) -> list[Structure]:
        """The structures of evaluations, that of training first."""
        own = self.shape.program.structure
        bare = [Structure()] if run.experiment.training.eval_bf16 and run.recipe.quantized() else []
        rounded = [plain_weights(own)] if ptq else []
        return list(dict.fromkeys([own, *bare, *rounded]))
