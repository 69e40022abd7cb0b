"""An experiment made concrete, and what its result says."""

import math
import os
import statistics
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax

from precisionlm.cluster.hardware import model_flops_utilization
from precisionlm.cluster.processes import on_first
from precisionlm.config import Experiment
from precisionlm.data import source
from precisionlm.data.mixture import opened
from precisionlm.errors import UserError
from precisionlm.identity import SCHEMA, former_id, run_id
from precisionlm.model.transformer import axis_sizes, parameter_counts
from precisionlm.precision.binding import Grids, leaks_future
from precisionlm.precision.describe import precision_columns
from precisionlm.precision.recipe import Recipe, parse_recipe
from precisionlm.storage.checkpoint import check_folder
from precisionlm.storage.evaluation import Evaluation
from precisionlm.storage.result import Result
from precisionlm.storage.run_directory import RunDirectory
from precisionlm.training.flops import training_flops_per_token
from precisionlm.training.optimizer import decay_share, final_rate_fraction, hyperparameters
from precisionlm.training.provenance import Segment, distinct
from precisionlm.training.sharding import check_batch, make_mesh
from precisionlm.training.step import Program, abstract_state, bound, program_of
from precisionlm.training.tracking import check_packages
from precisionlm.training.trunk import Trunk, trunk_of


@dataclass(frozen=True)
class Run:
    """An experiment with its sizes resolved, its recipe bound, and its mesh and program chosen."""

    experiment: Experiment
    run_id: str
    former_id: str
    dataset: source.Data
    recipe: Recipe
    program: Program
    grids: Grids
    trunk: Trunk | None

    @property
    def weights_from(self) -> RunDirectory | None:
        """The run whose weights this one begins with."""
        given = self.experiment.training.weights_from
        return None if given is None else RunDirectory.at(Path(given).absolute())

    @property
    def attention(self) -> str:
        """The kernel that computes attention, and why no fused one if none does."""
        return str(self.program.attention(self.experiment.data.sequence_length))

    def train_batches(self) -> source.TrainBatches:
        """This process's share of the run's endless training batches, from the start. Raises UserError for data that
        is not what its record says, checked byte for byte once a machine."""
        e = self.experiment
        self.dataset.verify_once()
        return source.train_batches(
            self.dataset,
            e.data.sequence_length,
            e.training.batch_size,
            e.training.seed,
            jax.process_index(),
            jax.process_count(),
            e.data.unique_tokens,
        )

    def validation_batches(self) -> list[source.Batch]:
        """This process's share of the fixed validation batches, each of as many sequences as training has in memory at
        a time."""
        e = self.experiment
        return source.validation_batches(
            self.dataset,
            e.data.sequence_length,
            e.training.batch_size // e.training.accumulate,
            e.training.eval_tokens,
            jax.process_index(),
            jax.process_count(),
        )


def prepare_run(experiment: Experiment, devices: list[jax.Device] | None = None) -> Run:
    """Resolve an experiment against its data and devices (all of them by default).

    Raises UserError for what does not fit together: vocabulary, batch and mesh, group sizes, tokens.
    """
    experiment, dataset = _with_vocabulary(from_anywhere(experiment))
    check_folder(experiment.checkpoint)
    check_packages(experiment.tracking)
    source.unique_sequences(dataset, experiment.data.sequence_length, experiment.data.unique_tokens)
    mesh = make_mesh(experiment.mesh, devices)
    check_batch(experiment.training, mesh)
    recipe = parse_recipe(experiment.precision.recipe)
    structure, grids = bound(experiment, mesh.devices.flat[0].platform)
    data_hash = _content(dataset)
    program, trunk = program_of(experiment, structure, mesh), trunk_of(experiment, data_hash)
    return Run(
        experiment,
        run_id(experiment, data_hash),
        former_id(experiment, data_hash),
        dataset,
        recipe,
        program,
        grids,
        trunk,
    )


def from_anywhere(experiment: Experiment) -> Experiment:
    """The experiment with its paths from the root: relative ones are from the working directory, and the config.yaml of
    a run is read from others."""

    def full(path: str | None) -> str | None:
        return path if path is None or "://" in path else os.path.abspath(path)

    data, mixture = experiment.data, experiment.data.mixture
    parts = mixture and tuple(part.model_copy(update={"path": full(part.path)}) for part in mixture)
    cache = None if data.cache is None else os.path.abspath(os.path.expanduser(data.cache))
    data = data.model_copy(update={"path": full(data.path), "mixture": parts, "cache": cache})
    checkpoint = experiment.checkpoint.model_copy(update={"folder": full(experiment.checkpoint.folder)})
    training = experiment.training.model_copy(update={"weights_from": full(experiment.training.weights_from)})
    return experiment.model_copy(update={"data": data, "checkpoint": checkpoint, "training": training})


def identified(experiment: Experiment) -> tuple[str, Experiment]:
    """Its run id, and the experiment with the size of its vocabulary resolved; asks no device. Raises UserError."""
    experiment, dataset = _with_vocabulary(experiment)
    return run_id(experiment, _content(dataset)), experiment


def _with_vocabulary(experiment: Experiment) -> tuple[Experiment, source.Data]:
    dataset = opened(experiment.data)
    vocab_size = experiment.model.vocab_size or dataset.meta.vocab_size
    if vocab_size < dataset.meta.vocab_size:
        raise UserError(f"model.vocab_size {vocab_size} is less than the tokenizer's {dataset.meta.vocab_size} entries")
    model = experiment.model.model_copy(update={"vocab_size": vocab_size})
    return experiment.model_copy(update={"model": model}), dataset


def check_schema(run: Run, folder: Path) -> None:
    """Raises UserError where a folder holds this experiment as an earlier schema trained it (docs/identity.md)."""
    if (folder / run.former_id / "config.yaml").exists():
        raise UserError(
            f"{folder / run.former_id} is this experiment as schema 1 trained it, by other numerics than those of "
            f"schema {SCHEMA}; move it away to train anew (docs/identity.md)"
        )


def check_is_run(folder: Path, experiment: Experiment, dataset: source.Data) -> None:
    """Raises UserError where a run directory is not of this experiment on this data, by its name."""
    if folder.name == former_id(experiment, _content(dataset)):
        raise UserError(
            f"{folder} was trained by schema 1, by other numerics than those of schema {SCHEMA}: its rows can be "
            "collected, but it is not evaluated anew (docs/identity.md)"
        )
    if folder.name != run_id(experiment, _content(dataset)):
        raise UserError(f"{folder}: the data at {dataset.path} is not what this run was trained on")


def _content(dataset: source.Data) -> str:
    return dataset.meta.train.sha256 + dataset.meta.validation.sha256


def check_weights_from(run: Run) -> None:
    """Raises UserError where `training.weights_from` is no finished run with this run's tokenizer."""
    source = run.weights_from
    if source is None:
        return
    result = Result.read(source)
    if result is None or result.status != "done":
        raise UserError(f"training.weights_from: {source.path} is not the directory of a finished run")
    if (held := result.row.get("run_id")) != source.path.name:
        raise UserError(f"training.weights_from: {source.path} holds run {held}; keep that name")
    theirs, ours = result.row.get("tokenizer"), run.dataset.meta.tokenizer_sha256[:12]
    if theirs != ours:
        raise UserError(f"training.weights_from: {source.path} was trained with tokenizer {theirs}, not {ours}")


def non_embedding_of(run: Run) -> int:
    """N: weights of the blocks' linear layers (count)."""
    return parameter_counts(abstract_state(run.program)["params"])[0]


def result_row(
    run: Run,
    audit: dict[str, Any],
    metrics: list[dict[str, Any]],
    wall_seconds: float,
    branch: dict[str, Any],
    skipped_steps: int,
    segments: list[Segment],
) -> dict[str, Any]:
    """Everything of a finished run that the runs table has a column for, but its evaluations (see `columns`)."""
    e = run.experiment
    non_embedding, total = parameter_counts(abstract_state(run.program)["params"])
    losses = [line["loss"] for line in metrics if "loss" in line]
    steps = len(losses)
    tokens = steps * e.batch_tokens
    rate, goodput = pace([line["seconds"] for line in metrics if "seconds" in line], e.batch_tokens, wall_seconds)
    per_token = training_flops_per_token(e.model, non_embedding, e.data.sequence_length)
    devices = run.program.mesh.devices
    kind = devices.flat[0].device_kind
    operands = audit["operands"]
    hyper = hyperparameters(e)
    unique = e.data.unique_tokens
    sizes = axis_sizes(e.model, e.data.sequence_length)
    row = {
        "run_id": run.run_id,
        "schema": SCHEMA,
        "name": e.name,
        "N_params": non_embedding,
        "N_total": total,
        "D_tokens": tokens,
        "D_unique": source.distinct_tokens(run.dataset, e.data.sequence_length, tokens, unique),
        "epochs": source.epochs(run.dataset, e.data.sequence_length, tokens, unique),
        "train_loss": _mean(losses[-max(1, steps // 20) :]),
        "recipe": str(run.recipe),
        "execution": e.precision.execution,
        "leaks_future": leaks_future(run.program.structure),
        **precision_columns(run.recipe, run.program.structure, sizes, e.model.layers),
        "schedule": e.optimizer.schedule,
        "learning_rate": hyper["learning_rate"],
        "final_lr_fraction": final_rate_fraction(steps, hyper),
        "decay_share": decay_share(hyper),
        "warmup_steps": int(hyper["warmup"]),
        "weight_decay": e.optimizer.weight_decay,
        "batch_tokens": e.batch_tokens,
        "sequence_length": e.data.sequence_length,
        "steps": steps,
        "skipped_steps": skipped_steps,
        "weights_from": run.weights_from.path.name if run.weights_from else "",
        "branch_from": branch.get("run_id", ""),
        "branch_steps": branch.get("steps", 0),
        "seed": e.training.seed,
        "layers": e.model.layers,
        "width": e.model.width,
        "vocab_size": e.model.vocab_size,
        "dataset": run.dataset.meta.train.sha256[:12],
        "mixture": source.described(run.dataset, e.data.sequence_length, tokens, unique),
        "validation": run.dataset.meta.validation.sha256[:12],
        "tokenizer": run.dataset.meta.tokenizer_sha256[:12],
        "flops": tokens * per_token,
        "tokens_per_second": rate,
        "mfu": model_flops_utilization(kind, rate * per_token / devices.size),
        "wall_seconds": wall_seconds,
        "goodput": goodput,
        "peak_memory": _peak_memory(devices),
        "segments": len(segments),
        **{key: distinct(segments, key) for key in ("device", "jax_version", "package_version")},
        "audit_dots": audit["products"],
    }
    worst = {"audit_clipped": "clipped", "audit_zeros": "zeros", "audit_relative_mse": "relative_mse"}
    return row | {column: max((o[key] for o in operands), default=0.0) for column, key in worst.items()}


def pace(seconds: list[float], batch_tokens: int, wall_seconds: float) -> tuple[float, float]:
    """(tokens/s, goodput) of a run from the times of its steps (s) and its wall time: batch_tokens / median over the
    steps after the first ten, or over all where there are no more (NaN without any); share of the wall time in steps.
    """
    rate = batch_tokens / statistics.median(seconds[10:] or seconds) if seconds else math.nan
    return rate, sum(seconds) / wall_seconds if wall_seconds else math.nan


def _peak_memory(devices: Any) -> float | None:
    """Bytes of the fullest device of this process since it started; None where the platform does not count."""
    here = [d.memory_stats() for d in devices.flat if d.process_index == jax.process_index()]
    return max((float(s["peak_bytes_in_use"]) for s in here if s and "peak_bytes_in_use" in s), default=None)


def record_evaluation(directory: RunDirectory, name: str, file: str, evaluation: Evaluation) -> dict[str, Any]:
    """An evaluation's own columns. What it measured of every sequence is in `file`, a .npz of the run directory that
    they name and that is complete before they are returned, written by process 0. Raises UserError."""
    on_first(lambda: evaluation.write(directory, file))
    return {
        "evaluation": name,
        "val_loss": evaluation.loss,
        "val_loss_se": evaluation.standard_error,
        "val_loss_se_sequences": evaluation.standard_error_sequences,
        "val_tokens": evaluation.tokens,
        "sequences": file,
    }


def diverged_evaluation() -> dict[str, Any]:
    """The columns of the evaluation that a diverged run never had."""
    errors = {"val_loss_se": math.nan, "val_loss_se_sequences": math.nan}
    return {"evaluation": "trained", "val_loss": math.nan, **errors, "val_tokens": 0}


def _mean(losses: list[float | None]) -> float:
    finite = [loss for loss in losses if loss is not None]
    return statistics.fmean(finite) if finite else math.nan
