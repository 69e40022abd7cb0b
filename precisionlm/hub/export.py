"""A finished run as a folder that Hugging Face's tools read: safetensors, config.json, tokenizer, model card."""

import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from precisionlm.data.meta import TOKENIZER_FILE
from precisionlm.data.tokenizer import load_tokenizer
from precisionlm.errors import PreemptedError, UserError
from precisionlm.hub import card
from precisionlm.hub.architectures import config_of
from precisionlm.hub.came import Came
from precisionlm.hub.names import linear, others, split
from precisionlm.hub.quantized import (
    Cells,
    Scheme,
    cells_of,
    dynamic_activations,
    packed,
    quantization_config,
    schemes_of,
    trained_weights,
    with_rounded_ends,
)
from precisionlm.hub.tensors import BF16, write_model
from precisionlm.json_text import dumps
from precisionlm.precision.recipe import BLOCK_LINEAR
from precisionlm.ptq import evaluate as ptq
from precisionlm.ptq.blocks import PART
from precisionlm.ptq.calibration import Calibration
from precisionlm.ptq.method import Steps, weight_quantization
from precisionlm.ptq.points import columns, one_before
from precisionlm.storage.checkpoint import DamagedError
from precisionlm.storage.result import Result, finished_at
from precisionlm.training.run import Run
from precisionlm.whole_file import filled

DTYPES = {"float32": np.dtype(np.float32), "bfloat16": BF16}


@dataclass(frozen=True)
class Asked:
    """weights: a format to quantize to, by `method`; the run's own recipe if None. at: precision of all but the
    weights, the run's own if None. step: a checkpoint on the way, the end if None. dtype: of what is not quantized.
    license: an identifier of Hugging Face's list; moved: where data and checkpoints are now, as `ptq` takes it."""

    weights: str | None = None
    method: str = "rtn"
    at: str | None = None
    step: int | None = None
    calibration: Calibration = field(default_factory=Calibration)
    dtype: str = "float32"
    license: str | None = None
    moved: tuple[str, ...] = ()


@dataclass(frozen=True)
class Plan:
    """What an export will be. found: the run's point as `ptq` plans it; schemes: layer, site → how its weights are
    stored; notes: what the files leave to their reader."""

    asked: Asked
    found: ptq.Planned
    came: Came | None
    schemes: dict[tuple[int, str], Scheme]
    config: dict[str, Any]
    notes: list[str]

    @property
    def run(self) -> Run:
        return self.found.evaluated

    @property
    def summary(self) -> dict[str, Any]:
        """For people and scripts."""
        stored = self.config.get("quantization_config", {}).get("format", self.asked.dtype)
        found = {"run_dir": str(self.found.directory.path), "class": self.config["architectures"][0]}
        return found | {"weights": self.asked.weights or str(self.run.recipe), "format": stored, "notes": self.notes}


def plan_export(folder: Path, asked: Asked) -> Plan:
    """Everything checked, no weights loaded. Raises UserError for a model without a class, a format without a layout,
    and all that `ptq.plan_run` refuses."""
    if asked.dtype not in DTYPES:
        raise UserError(f"dtype {asked.dtype}; valid: {', '.join(DTYPES)}")
    if asked.weights is None and (asked.method != "rtn" or asked.at is not None):
        raise UserError("a method and --at are for weights in another format: give --weights, such as W4-g128")
    finished_at(folder)
    quantizations = [weight_quantization(asked.weights)] if asked.weights else []
    steps: Steps = "last" if asked.step is None else (asked.step,)
    options = ptq.Options(steps, asked.at, asked.calibration, asked.moved)
    found = ptq.plan_run(folder, asked.method, quantizations, options)
    run, layers = found.evaluated, found.run.experiment.model.layers
    model, length = run.experiment.model, run.experiment.data.sequence_length
    config = config_of(model, length, run.dataset.meta.eos_id, asked.dtype)
    came = Came.of(found.directory) if asked.weights is None else None
    activations = cells_of(run.recipe, layers, "a")
    weights: Cells = dict.fromkeys(activations, quantizations[0]) if quantizations else {}
    half = asked.dtype == "bfloat16"
    schemes = schemes_of(weights or cells_of(run.recipe, layers, "w"), activations, half)
    if came is not None:
        config |= {"quantization_config": came.quantization_config}
    elif schemes:
        config |= {"quantization_config": quantization_config(model, schemes)}
    return Plan(asked, found, came, schemes, config, _notes(run, activations, schemes))


def export(
    folder: Path,
    out: Path,
    asked: Asked,
    progress: Callable[[str], None] = lambda said: None,
    interrupted: Callable[[], bool] = lambda: False,
) -> dict[str, Any]:
    """Write the folder `out`, complete or not at all; returns the plan's summary. Raises UserError as `plan_export`,
    also where `out` holds something, and PreemptedError as soon as `interrupted` says so. Where the last checkpoint is
    damaged, the one before is exported, and a line on standard error says so."""
    plan = plan_export(folder, asked)
    try:
        params = ptq.params_at(plan.found, plan.found.points[0])
    except DamagedError as error:
        if asked.step is not None or (before := one_before(plan.found.points[0])) is None:
            raise
        print(f"left out: {error}; exported is that of step {before}", file=sys.stderr)
        return export(folder, out, replace(asked, step=before), progress, interrupted)
    with filled(out) as partial:

        def on_layer(layer: int) -> None:
            progress(f"layer {layer + 1} of {plan.run.experiment.model.layers}")
            if interrupted():
                raise PreemptedError("the export was interrupted; nothing was written")

        params, stored, more = _weights(plan, params, on_layer)
        write_model(partial, _tensors(plan, params, stored))
        _write_others(plan, partial, more)
    return plan.summary | {"folder": str(out)}


def _weights(
    plan: Plan, params: Any, on_layer: Callable[[int], None]
) -> tuple[Any, dict[str, np.ndarray], dict[str, Any]]:
    """(parameters, tensors of the quantized linear layers, columns that say how quantization went)."""
    found, model = plan.found, plan.run.experiment.model
    stored = dict[str, np.ndarray]()

    def keep(layer: int, site: str, values: Any, scales: Any) -> None:
        on_layer(layer)
        stored.update(packed(model, layer, site, plan.schemes[layer, site].layout, values, scales))

    more: dict[str, Any] = {}
    if plan.came is not None:
        stored.update(plan.came.tensors(model, params))
    elif found.quantizations:
        (quantization,) = found.quantizations
        params, more = ptq.quantized(found, params, quantization, on_weight=keep)
    else:
        for weight in trained_weights(plan.run, params):
            keep(*weight)
    ends = with_rounded_ends(plan.run.program.structure, plan.run.grids, params, model.tie_embeddings)
    return ends, stored, more


def _tensors(plan: Plan, params: Any, stored: dict[str, np.ndarray]) -> Iterator[tuple[str, np.ndarray]]:
    """All tensors by name."""
    model, dtype = plan.run.experiment.model, DTYPES[plan.asked.dtype]
    yield from ((name, tensor.astype(dtype)) for name, tensor in others(model, params))
    quantized = {name.rpartition(".")[0] for name in stored}
    for layer in range(model.layers):
        for site in BLOCK_LINEAR:
            values = np.asarray(params["blocks"][PART[site]][site]["w"][layer])
            for projection, matrix in split(model, site, values).items():
                if linear(layer, projection) not in quantized:
                    yield f"{linear(layer, projection)}.weight", matrix.astype(dtype)
    yield from sorted(stored.items())


def _write_others(plan: Plan, folder: Path, more: dict[str, Any]) -> None:
    run, meta = plan.run, plan.run.dataset.meta
    length, eos = run.experiment.data.sequence_length, meta.eos_id
    (folder / "config.json").write_text(dumps(plan.config, indent=2) + "\n")
    (folder / "generation_config.json").write_text(dumps({"eos_token_id": eos, "pad_token_id": eos}, indent=2) + "\n")
    (folder / TOKENIZER_FILE).write_bytes(run.dataset.tokenizer())
    words = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "eos_token": load_tokenizer(folder / TOKENIZER_FILE).id_to_token(eos),
        "model_max_length": length,
        "clean_up_tokenization_spaces": False,
    }
    (folder / "tokenizer_config.json").write_text(dumps(words, indent=2) + "\n")
    row, evaluations = _numbers(plan, more)
    quantized = plan.config.get("quantization_config")
    stored = f"Weights of its linear layers are stored as {quantized['format']}" if quantized else "Weights are stored"
    method = f", quantized to {plan.asked.weights} after training ({plan.found.method})" if plan.asked.weights else ""
    said = f"{stored}{method}; all others are {plan.asked.dtype}."
    tags = ["compressed-tensors"] if quantized else []
    (folder / card.FILE).write_text(card.card(run, row, evaluations, said, plan.notes, plan.asked.license, tags))


def _numbers(plan: Plan, more: dict[str, Any]) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """The run's row at its point, and the evaluations of the weights as they are exported."""
    found, point = plan.found, plan.found.points[0]
    result = Result.read(found.directory)
    assert result is not None  # `plan_run` takes finished runs alone
    row = result.row | columns(found.run, found.directory, point)
    if found.quantizations:
        recorded = found.rows()
        return row, [more | {"ptq_method": str(found.method)} | one for one in recorded]
    if not point.end:
        one = found.directory.read_json(f"ptq/checkpoint-step{point.step}.json")
        return row, [one] if one else []
    names = sorted(path.name for path in (found.directory.path / "evaluations").glob("*.json"))
    added = [found.directory.read_json(f"evaluations/{name}") for name in names]
    return row, [one for one in (*result.evaluations, *added) if one and one["evaluation"] == "trained"]


def _notes(run: Run, activations: Cells, schemes: dict[tuple[int, str], Scheme]) -> list[str]:
    """What of the precision that the run is evaluated at is not in the files, in words."""
    left = {str(q) for cell, q in activations.items() if q and (cell not in schemes or not dynamic_activations(q))}
    found = [f"Activations are evaluated here as {', '.join(sorted(left))}; files have no word for it."] if left else []
    if any(scheme.activations for scheme in schemes.values()):
        found.append("8-bit activations are rounded by the reader's own rule, whose scales may differ a little.")
    table = run.recipe.resolve(run.experiment.model.layers)
    attention = {f"{o}: {q}" for o, cells in table["attention"].items() for q in cells if q}
    if attention:
        found.append(f"Attention is evaluated here with {', '.join(sorted(attention))}; files have no word for it.")
    if any(table["embed"]["w"]) or any(table["head"]["w"]):
        found.append("Embedding and head that the recipe quantizes are stored as the values they are rounded to.")
    if any(table["head"]["a"]):
        found.append("The head's input is evaluated here quantized; files have no word for it.")
    return found
