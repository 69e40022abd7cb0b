"""Quantize finished runs after training and record the loss beside the run, as rows of the same table."""

import hashlib
import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from precisionlm.config import Experiment, load
from precisionlm.errors import UserError
from precisionlm.precision.binding import Grids, Structure
from precisionlm.precision.describe import format_columns
from precisionlm.precision.modifiers import slot_of
from precisionlm.precision.recipe import BLOCK_LINEAR, Quantization, parse_recipe
from precisionlm.precision.scaling import LEARNED
from precisionlm.ptq.rtn import round_to_nearest
from precisionlm.storage.checkpoint import folder_of, restore_params
from precisionlm.storage.evaluation import Evaluation
from precisionlm.storage.run_directory import RunDirectory
from precisionlm.training.evaluate import evaluate
from precisionlm.training.run import check_is_run, prepare_run, record_evaluation
from precisionlm.training.step import abstract_state, bound

_OF_TRAINING = ("clipping", "rounding", "rotation")
METHODS: dict[str, Callable[[Any, Structure, Grids], Any]] = {"rtn": round_to_nearest}


def weight_quantization(text: str) -> Quantization:
    """`4`, `int4`, `int4/g128`, `mxfp4`, … as a recipe writes a weight's format, or `W4`, `W4-g128` as it writes one
    of weights alone. Raises UserError, also for what only training has: rotated operands, stochastic rounding, trained
    scales."""
    if short := re.fullmatch(r"W(\d+)(-g\d+)?", text):
        return weight_quantization(f"int{short[1]}{(short[2] or '').replace('-', '/')}")
    if alien := re.search(r"[@:,=-]", text):
        raise UserError(f"'{text}': '{alien[0]}' is for recipes; give bits such as 4 or a format such as int4/g128")
    word = f"int{text}" if text.isdigit() else text
    quantization = parse_recipe(f"W={word}").commonest("w")
    if quantization is None:
        raise UserError(f"'{text}' leaves the weights unquantized; give bits such as 4 or a format such as int4/g128")
    scaling = quantization.scaling
    if scaling.rotate or scaling.stochastic or scaling.clip in LEARNED:
        raise UserError(
            f"'{text}': weights are rounded to nearest under fixed scales after training; leave away "
            f"{', '.join(word for word in quantization.words() if slot_of(word).name in _OF_TRAINING)}"
        )
    return quantization


def bound_to(experiment: Experiment, quantization: Quantization) -> tuple[Structure, Grids]:
    """The quantization of every weight of the blocks' linear layers, bound to a model. Raises UserError, as training
    would, where it does not fit."""
    precision = experiment.precision.model_copy(update={"recipe": f"W={quantization}", "execution": "simulated"})
    return bound(experiment.model_copy(update={"precision": precision}), "cpu")


def quantize_run(
    folder: Path,
    method: str,
    quantizations: Sequence[Quantization],
    progress: Callable[[str], None],
    interrupted: Callable[[], bool] = lambda: False,
) -> list[dict[str, Any]]:
    """Quantize one run's newest checkpoint in several formats and evaluate each at the run's own training precision for
    everything but the weights of the blocks' linear layers, which are rounded here and nowhere else. Writes ptq/*.json
    in the run directory and returns their contents; what is there already is not done again.

    Raises UserError where a format does not fit the model, before anything is loaded, and PreemptedError as soon as
    `interrupted` says so.
    """
    directory = RunDirectory.at(folder)
    missing = [q for q in quantizations if recorded(directory, method, q) is None]
    if missing:
        experiment = load(folder / "config.yaml")
        fitted = {quantization: bound_to(experiment, quantization) for quantization in missing}
        run = prepare_run(experiment)
        check_is_run(folder, run.experiment, run.dataset)
        _, params = restore_params(
            folder_of(directory, run.experiment.checkpoint), abstract_state(run.program)["params"]
        )
        batches = run.validation_batches()
        program = replace(run.program, structure=plain_weights(run.program.structure))
        needed = abstract_state(program)["params"]
        for quantization in missing:
            progress(f"{run.recipe} → {quantization}")
            rounded = part_of(METHODS[method](params, *fitted[quantization]), needed)
            grids = grids_within(run.grids, program.structure)
            found = evaluate(program, rounded, batches, grids, interrupted)
            record(directory, method, quantization, found)
    rows = [recorded(directory, method, quantization) for quantization in quantizations]
    return [row for row in rows if row is not None]


def recorded(directory: RunDirectory, method: str, quantization: Quantization) -> dict[str, Any] | None:
    """The columns of an evaluation after quantization, if it was made."""
    return directory.read_json(f"{_name(method, quantization)}.json")


def record(directory: RunDirectory, method: str, quantization: Quantization, found: Evaluation) -> None:
    """Write an evaluation after quantization into the run directory. Raises UserError."""
    name = _name(method, quantization)
    row = record_evaluation(directory, "ptq", f"{name}.npz", found)
    directory.write_json(f"{name}.json", row | {"ptq_method": method} | format_columns("ptq", quantization))


def grids_within(grids: Grids, structure: Structure) -> Grids:
    """The part of a run's grids that a structure asks for."""
    return {site: {o: grids[site][o] for o in structure.site(site)} for site in grids}


def plain_weights(structure: Structure) -> Structure:
    """The structure of a forward pass that takes the weights of the blocks' linear layers as they are."""
    kept = [
        (site, tuple((o, s) for o, s in operands if site not in BLOCK_LINEAR or o != "w"))
        for site, operands in structure.sites
    ]
    return replace(structure, sites=tuple((site, operands) for site, operands in kept if operands))


def part_of(params: Any, wanted: Any) -> Any:
    """The part of a tree of parameters that another one has."""
    return {name: part_of(params[name], wanted[name]) for name in wanted} if isinstance(wanted, dict) else params


def _name(method: str, quantization: Quantization) -> str:
    """Of its files in the run directory, without their ending."""
    text = str(quantization)
    told_apart = f"{quantization.format.name}-{hashlib.sha256(text.encode()).hexdigest()[:6]}"
    return f"ptq/{method}-{text if text.isalnum() else told_apart}"
