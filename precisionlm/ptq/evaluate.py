"""Quantize finished runs after training and record the loss beside the run, as rows of the same table."""

import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from precisionlm.config import load
from precisionlm.errors import UserError
from precisionlm.precision.recipe import Quantization, parse_recipe
from precisionlm.ptq.rtn import round_to_nearest
from precisionlm.storage.checkpoint import folder_of, restore_params
from precisionlm.storage.run_directory import RunDirectory
from precisionlm.training.evaluate import evaluate
from precisionlm.training.run import prepare_run, record_evaluation
from precisionlm.training.step import abstract_state

METHODS: dict[str, Callable[[Any, Quantization], Any]] = {"rtn": round_to_nearest}


def weight_quantization(text: str) -> Quantization:
    """`4`, `int4`, `int4/g128`, `mxfp4`, … as a recipe writes a weight's format. Raises UserError."""
    word = f"int{text}" if text.isdigit() else text
    quantization = parse_recipe(f"W={word}").commonest("w")
    if quantization is None:
        raise UserError(f"'{text}' leaves the weights unquantized; give bits such as 4 or a format such as int4/g128")
    return quantization


def quantize_run(
    folder: Path,
    method: str,
    quantizations: Sequence[Quantization],
    progress: Callable[[str], None],
    interrupted: Callable[[], bool] = lambda: False,
) -> list[dict[str, Any]]:
    """Quantize one run's newest checkpoint in several formats and evaluate each at the run's own training precision for
    everything but the weights. Writes ptq/*.json in the run directory and returns their contents; what is there already
    is not done again. Raises PreemptedError as soon as `interrupted` says so.
    """
    directory = RunDirectory.at(folder)
    names = [f"ptq/{method}-{_slug(quantization)}" for quantization in quantizations]
    missing = [
        pair for pair in zip(names, quantizations, strict=True) if directory.read_json(f"{pair[0]}.json") is None
    ]
    if missing:
        run = prepare_run(load(folder / "config.yaml"))
        if run.run_id != folder.name:
            raise UserError(f"{folder}: the data at {run.experiment.data.path} is not what this run was trained on")
        _, params = restore_params(
            folder_of(directory, run.experiment.checkpoint), abstract_state(run.program)["params"]
        )
        batches = run.validation_batches()
        for name, quantization in missing:
            progress(f"{run.recipe} → {quantization}")
            found = evaluate(run.program, METHODS[method](params, quantization), batches, run.grids, interrupted)
            shared = quantization.scaling
            directory.write_json(
                f"{name}.json",
                record_evaluation(directory, "ptq", f"{name}.npz", found)
                | {
                    "ptq_method": method,
                    "ptq_bits": float(quantization.format.bits),
                    "ptq_group": float(shared.group) if shared.sharing == "group" else float("inf"),
                },
            )
    return [directory.read_json(f"{name}.json") for name in names]


def _slug(quantization: Quantization) -> str:
    text = str(quantization)
    return text if text.isalnum() else f"{quantization.format.name}-{hashlib.sha256(text.encode()).hexdigest()[:6]}"
