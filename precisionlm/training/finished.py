"""Further evaluations of finished runs: at another recipe or on more tokens, without training again."""

import hashlib
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import jax

from precisionlm.config import DataConfig, Experiment, load
from precisionlm.data.mixture import opened
from precisionlm.errors import UserError, nearest
from precisionlm.model.transformer import axis_sizes
from precisionlm.precision.binding import bind
from precisionlm.precision.recipe import parse_recipe
from precisionlm.storage.checkpoint import folder_of, restore_params
from precisionlm.storage.result import Result
from precisionlm.storage.run_directory import RunDirectory
from precisionlm.training.evaluate import evaluate
from precisionlm.training.run import Run, check_is_run, prepare_run, record_evaluation
from precisionlm.training.step import abstract_state

# What decides an evaluation, and where and in how much memory it runs.
KEYS = (
    "training.eval_tokens",
    "precision.recipe",
    "precision.execution",
    "data.path",
    "data.mixture",
    "data.cache",
    "data.cache_gib",
    "checkpoint.folder",
    "training.accumulate",
    "training.loss_chunks",
    "training.remat",
    "training.unroll",
    "mesh.replica",
    "mesh.fsdp",
    "mesh.tensor",
)


@dataclass(frozen=True)
class Request:
    """One evaluation of a finished run. run: the run as it is to be evaluated; evaluation: `trained` at the precision
    trained at, else `recipe`; recorded: the columns of an equal evaluation whose sequences were kept, if there is one.
    """

    directory: RunDirectory
    run: Run
    evaluation: str
    recorded: dict[str, Any] | None

    @property
    def settings(self) -> dict[str, Any]:
        """The columns of the runs table that say which evaluation it is."""
        e, recipe = self.run.experiment, self.run.recipe
        execution = e.precision.execution if recipe.quantized() or self.evaluation == "trained" else "simulated"
        return {"evaluation": self.evaluation, "eval_recipe": str(recipe), "eval_execution": execution}

    @property
    def name(self) -> str:
        """Of its files in the run directory, without their ending; equal for equal evaluations."""
        return f"evaluations/{_slug(self.settings['eval_recipe'], self.settings['eval_execution'], _tokens(self.run))}"


def check_overrides(overrides: Sequence[str]) -> None:
    """Raises UserError for a key that says nothing of the evaluation of a finished run."""
    for word in overrides:
        key = word.removeprefix("--").split("=", 1)[0]
        if word.startswith("--") and key not in KEYS:
            raise UserError(f"evaluate: --{key} decides no evaluation of a finished run; {nearest(key, list(KEYS))}")


def request(folder: Path, overrides: Sequence[str], devices: list[jax.Device] | None = None) -> Request:
    """What `overrides` (`--section.key value`) ask of the finished run in a folder. Reads no weights. devices: of the
    mesh, all by default.

    Raises UserError for other keys than `KEYS`, other data than the run's, and learned scales that it has not.
    """
    check_overrides(overrides)
    directory = RunDirectory.at(folder)
    own, asked = load(folder / "config.yaml"), load(folder / "config.yaml", list(overrides))
    check_is_there(folder, asked.data)
    data = opened(asked.data)
    check_is_run(folder, own, data)
    run = prepare_run(asked, devices)
    _check_learned_scales(folder, run, own)
    same_execution = asked.precision.execution == own.precision.execution or not run.recipe.quantized()
    trained = asked.precision.recipe == own.precision.recipe and same_execution
    found = Request(directory, run, "trained" if trained else "recipe", None)
    return replace(found, recorded=_recorded(found))


def check_is_there(folder: Path, data: DataConfig) -> None:
    """Raises UserError where a run's data is not where it was, with what to say then."""
    paths = [part.path for part in data.mixture] if data.mixture else [str(data.path)]
    key = "data.mixture" if data.mixture else "data.path"
    for path in paths:
        if "://" not in path and not Path(path).exists():
            raise UserError(f"{folder}: {path} holds no prepared data any more; --{key} says where it is now")


def evaluate_finished(asked: Request, interrupted: Callable[[], bool] = lambda: False) -> dict[str, Any]:
    """The columns of one evaluation: those recorded, or else of the newest checkpoint, recorded in the run directory.
    Raises UserError, and PreemptedError as soon as `interrupted` says so."""
    if asked.recorded is not None:
        return asked.recorded
    run, directory = asked.run, asked.directory
    folder = folder_of(directory, run.experiment.checkpoint)
    _, params = restore_params(folder, abstract_state(run.program)["params"])  # the learned scales that it names alone
    measured = evaluate(run.program, params, run.validation_batches(), run.grids, interrupted)
    row = record_evaluation(directory, asked.evaluation, f"{asked.name}.npz", measured) | asked.settings
    directory.write_json(f"{asked.name}.json", row)
    return row


def _recorded(asked: Request) -> dict[str, Any] | None:
    """An equal evaluation, added before or made at the end of training, if the losses of its sequences were kept."""
    added, result = asked.directory.read_json(f"{asked.name}.json"), Result.read(asked.directory)
    equal = {"trained"} if asked.evaluation == "trained" else set() if asked.run.recipe.quantized() else {"bf16"}
    of_training = [
        row
        for row in (result.evaluations if result else ())
        if row.get("evaluation") in equal and row.get("val_tokens") == _tokens(asked.run)
    ]
    found = [row for row in (added, *of_training) if isinstance(row, dict) and isinstance(row.get("sequences"), str)]
    return next((row for row in found if (asked.directory.path / row["sequences"]).exists()), None)


def _check_learned_scales(folder: Path, run: Run, own: Experiment) -> None:
    """Raises UserError where the recipe of `run` has learned scales that the run in the folder did not train."""
    model = run.experiment.model
    sizes = axis_sizes(model, own.data.sequence_length)
    structure, _ = bind(parse_recipe(own.precision.recipe), model.layers, sizes, own.precision.backward)

    def shapes(params: Any) -> dict[str, tuple[int, ...]]:
        leaves = jax.tree_util.tree_leaves_with_path(params)
        return {jax.tree_util.keystr(path, simple=True, separator="/"): leaf.shape for path, leaf in leaves}

    there = shapes(abstract_state(replace(run.program, structure=structure))["params"])
    needed = shapes(abstract_state(run.program)["params"])
    missing = [name for name, shape in needed.items() if there.get(name) != shape]
    if missing:
        raise UserError(
            f"{folder}: recipe '{run.recipe}' needs learned scales ({', '.join(missing[:2])}, …) that this run, "
            f"trained at '{own.precision.recipe}', does not have"
        )


def _tokens(run: Run) -> int:
    """Targets that are evaluated (count)."""
    return min(run.experiment.training.eval_tokens, run.dataset.meta.validation.tokens - 1)


def _slug(recipe: str, execution: str, tokens: int) -> str:
    plain = re.sub(r"[^A-Za-z0-9]+", "-", recipe).strip("-")[:40]
    told_apart = "" if plain == recipe else f"-{hashlib.sha256(recipe.encode()).hexdigest()[:6]}"
    return f"{plain}{told_apart}{'-native' if execution == 'native' else ''}-{tokens}"
