"""What finished members of a pack are evaluated at, together, and their rows of the runs table."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import jax

from precisionlm.packing.evaluate import Evaluator
from precisionlm.packing.program import PackShape, blank_stack, put
from precisionlm.precision.binding import Structure
from precisionlm.precision.recipe import Quantization
from precisionlm.ptq.evaluate import after, bound_to, plain_weights, record, record_unquantized
from precisionlm.ptq.points import Point, columns
from precisionlm.ptq.rtn import round_to_nearest
from precisionlm.storage.checkpoint import folder_of
from precisionlm.storage.evaluation import Evaluation
from precisionlm.storage.run_directory import RunDirectory
from precisionlm.training.run import Run, record_evaluation


@dataclass(frozen=True)
class Evaluated:
    """Of one member: evaluations by their name in the table (`trained`, `bf16`), and those after quantization."""

    own: Mapping[str, Evaluation]
    rounded: Mapping[Quantization, Evaluation]

    def write(self, directory: RunDirectory) -> list[dict[str, Any]]:
        """Everything on disk; the columns of the run's own evaluations."""
        for quantization, found in self.rounded.items():
            record(directory, "rtn", quantization, found)
        return [record_evaluation(directory, name, f"evaluations/{name}.npz", e) for name, e in self.own.items()]

    def write_intermediate(self, run: Run, directory: RunDirectory, step: int) -> None:
        """Everything on disk, as of a checkpoint after so many steps of a run that goes on."""
        of_point = columns(run, directory, Point(folder_of(directory, run.experiment.checkpoint, "trunk"), step, False))
        record_unquantized(directory, step, self.own["trained"], of_point)
        for quantization, found in self.rounded.items():
            record(directory, "rtn", quantization, found, after(step), of_point)


def evaluate_members(
    shape: PackShape,
    evaluator: Evaluator,
    members: Sequence[tuple[Run, Any]],
    quantizations: Sequence[Quantization],
    interrupted: Callable[[], bool],
) -> list[Evaluated]:
    """Evaluate runs with their weights, at most as many as a pack has slots: at their own precision, without
    quantization where they ask for it, and with weights rounded to nearest in each format that is not recorded yet.
    Raises PreemptedError as soon as `interrupted` says so, and UserError where a format does not fit the model."""
    params, runs = blank_stack(shape)()["params"], [run for run, _ in members]
    for slot, (_, weights) in enumerate(members):
        params = put(shape.alone())(params, jax.device_put(weights, shape.shared), slot)
    grids, structure = [run.grids for run in runs], shape.program.structure
    own: list[dict[str, Evaluation]] = [
        {"trained": found} for found in evaluator.evaluate(params, grids, structure, interrupted)
    ]
    plain = [run.experiment.training.eval_bf16 and run.recipe.quantized() for run in runs]
    if any(plain):
        for r, found in enumerate(evaluator.evaluate(params, grids, Structure(), interrupted)):
            own[r] |= {"bf16": found} if plain[r] else {}
    rounded: list[dict[Quantization, Evaluation]] = [{} for _ in runs]
    for quantization in quantizations:
        ptq_structure, ptq_grids = bound_to(runs[0].experiment, quantization)
        weights = _rounding(ptq_structure)(params, ptq_grids)
        for r, found in enumerate(evaluator.evaluate(weights, grids, plain_weights(structure), interrupted)):
            rounded[r][quantization] = found
    return [Evaluated(*pair) for pair in zip(own, rounded, strict=True)]


@cache
def _rounding(structure: Structure) -> Any:
    """Jitted (params [R, ...], grids) → the params of every run rounded to nearest."""
    return jax.jit(jax.vmap(lambda params, grids: round_to_nearest(params, structure, grids), in_axes=(0, None)))
