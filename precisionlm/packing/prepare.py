"""What packs need before their first step: corpus, batches, and executables, compiled side by side.

On GPUs nothing may compile while a pack trains, nor may an executable run for the first time beside others: cuDNN's
attention records CUDA graphs then, which other threads' work spoils (JAX 0.11.2: internal errors and segmentation
faults). So all that packs need is compiled first, and executed once, before any of them trains.
"""

from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
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
from precisionlm.training.auditing import Measure, compile_measure
from precisionlm.training.optimizer import hyperparameters
from precisionlm.training.run import Run
from precisionlm.training.step import State


class Prepared:
    """For packs of a shape on the data of a run.

    advance: the compiled step (`program.advance`); products: matrix products of one step of it that take each quantized
    operand; measure: of the audit; ptq: the formats in which finished runs are evaluated too. Raises what compiling
    raises.
    """

    def __init__(self, shape: PackShape, run: Run, ptq: Sequence[Quantization] = ()):
        self.shape, self.ptq = shape, tuple(ptq)
        self.corpus = Corpus(shape, run.dataset)
        self.batches_sharding = NamedSharding(shape.devices, P(None, RUN))
        self.evaluator = Evaluator(shape, run.validation_batches())
        self._run, evaluations = run, []
        with ThreadPoolExecutor(3, "compile") as threads:
            step, measure = threads.submit(self._compile_step), threads.submit(compile_measure, run)
            for structure in (shape.program.structure, *self._evaluated_at(run, ptq)):
                evaluations.append(threads.submit(self.evaluator.compile, structure, run.grids))
        self.products, self.advance = step.result()
        self.measure: Measure = measure.result()
        for evaluation in evaluations:
            evaluation.result()
        self._executed = False

    def execute_once(self) -> None:
        """Everything that was compiled, on zeros and to no effect, unless it was done."""
        if self._executed:
            return
        state: State = blank_stack(self.shape)()
        self.evaluator.execute_once(state["params"], self._run.grids)
        runs = [self._run] * self.shape.runs
        batches = self.place(self.corpus.batches([None] * self.shape.runs))
        arguments = (self.corpus.on_device, batches, *self.numbers(runs), self.counts([0] * self.shape.runs))
        jax.block_until_ready(self.advance(state, *arguments))
        self._executed = True

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

    def _compile_step(self) -> tuple[Counter[str], Any]:
        runs = self.shape.runs
        batches = self.place(self.corpus.batches([None] * runs))
        numbers, todo = self.numbers([self._run] * runs), self.counts([0] * runs)
        traced = advance(self.shape).trace(abstract_stack(self.shape), self.corpus.on_device, batches, *numbers, todo)
        in_dispatch = marks.count_products(traced.jaxpr)
        products = Counter({tag: count // self.shape.steps for tag, count in in_dispatch.items()})
        return products, traced.lower().compile()

    def _evaluated_at(self, run: Run, ptq: Sequence[Quantization]) -> list[Structure]:
        """The structures of evaluations beside the own one."""
        own = self.shape.program.structure
        bare = [Structure()] if run.experiment.training.eval_bf16 and run.recipe.quantized() else []
        rounded = [plain_weights(own)] if ptq else []
        return [structure for structure in dict.fromkeys([*bare, *rounded]) if structure != own]


def prepare(shapes: Sequence[tuple[PackShape, Run]], ptq: Sequence[Quantization]) -> list[Prepared | Exception]:
    """For several packs side by side; what could not be compiled is its error."""

    def one(pair: tuple[PackShape, Run]) -> Prepared | Exception:
        try:
            return Prepared(*pair, ptq)
        except Exception as error:
            return error

    with ThreadPoolExecutor(max(1, len(shapes)), "prepare") as threads:
        return list(threads.map(one, shapes))
