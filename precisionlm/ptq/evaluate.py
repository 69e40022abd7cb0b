"""Quantize finished runs after training and record the loss beside the run, as rows of the same table."""

import hashlib
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from precisionlm.config import Experiment, load
from precisionlm.errors import PreemptedError, UserError
from precisionlm.precision.binding import Grids, Structure
from precisionlm.precision.describe import format_columns
from precisionlm.precision.recipe import BLOCK_LINEAR, Quantization
from precisionlm.ptq.calibration import Calibration
from precisionlm.ptq.method import Method, Steps, parse_method
from precisionlm.ptq.points import Point, columns, one_before, points
from precisionlm.ptq.rtn import round_to_nearest, weights_and_scales
from precisionlm.ptq.walk import OnWeight, quantize_blocks
from precisionlm.storage.checkpoint import DamagedError, restore_params
from precisionlm.storage.evaluation import Evaluation
from precisionlm.storage.run_directory import RunDirectory
from precisionlm.training.evaluate import evaluate
from precisionlm.training.finished import request
from precisionlm.training.run import Run, record_evaluation
from precisionlm.training.step import Program, abstract_state, bound


def bound_to(experiment: Experiment, quantization: Quantization) -> tuple[Structure, Grids]:
    """The quantization of every weight of the blocks' linear layers, bound to a model. Raises UserError, as training
    would, where it does not fit."""
    precision = experiment.precision.model_copy(update={"recipe": f"W={quantization}", "execution": "simulated"})
    return bound(experiment.model_copy(update={"precision": precision}), "cpu")


@dataclass(frozen=True)
class Options:
    """steps: at which points of each run (`points`); recipe: of everything but the weights, the run's own if None;
    calibration: for methods that see inputs; overrides: where data and devices are now (`--data.path`, `--mesh.…`)."""

    steps: Steps = "last"
    recipe: str | None = None
    calibration: Calibration = field(default_factory=Calibration)
    overrides: tuple[str, ...] = ()


@dataclass(frozen=True)
class Planned:
    """What is asked of one run. run: as it was trained; evaluated: as it is evaluated, but for its weights."""

    directory: RunDirectory
    run: Run
    evaluated: Run
    method: Method
    calibration: Calibration
    points: list[Point]
    quantizations: dict[Quantization, tuple[Structure, Grids]]

    @property
    def settings(self) -> dict[str, Any]:
        """The columns that say at what else than its own precision a run is evaluated."""
        recipe = str(self.evaluated.recipe)
        return {} if recipe == str(self.run.recipe) else {"eval_recipe": recipe, "eval_execution": "simulated"}

    def more(self, point: Point) -> str:
        """What else tells a row from others of its run, method and format, for its name."""
        words = [] if point.end else [after(point.step)]
        if self.settings:
            words.append(f"-at-{_short_hash(self.settings['eval_recipe'])}")
        if self.method.calibrates:
            words.append(f"-{self.calibration.sequences}x{self.calibration.seed}")
        return "".join(words)

    def missing(self) -> list[tuple[Point, Quantization]]:
        """What is not recorded yet."""
        return [
            (point, quantization)
            for point in self.points
            for quantization in self.quantizations
            if recorded(self.directory, str(self.method), quantization, self.more(point)) is None
        ]

    def rows(self) -> list[dict[str, Any]]:
        """The columns of everything that is recorded."""
        found = [
            recorded(self.directory, str(self.method), quantization, self.more(point))
            for point in self.points
            for quantization in self.quantizations
        ]
        return [row for row in found if row is not None]


def plan_run(folder: Path, method: str, quantizations: Sequence[Quantization], options: Options = Options()) -> Planned:
    """Everything about one run checked, nothing of its weights loaded. Raises UserError where a format does not fit the
    model or the method, where the recipe does not fit the run, where the calibration asks for too much, and for steps
    that were not kept."""
    chosen, experiment = parse_method(method), load(folder / "config.yaml")
    for quantization in quantizations:
        chosen.check_fits(quantization)
    fitted = {quantization: bound_to(experiment, quantization) for quantization in quantizations}
    own = request(folder, options.overrides)
    evaluated = own.run
    if options.recipe is not None:
        evaluated = request(
            folder, [*options.overrides, "--precision.recipe", options.recipe, "--precision.execution", "simulated"]
        ).run
        sites = evaluated.recipe.resolve(experiment.model.layers)
        if any(any(sites[site]["w"]) for site in BLOCK_LINEAR):
            raise UserError(
                f"'{options.recipe}' quantizes weights too; here it is for all other operands, such as A8KV8"
            )
    if chosen.calibrates:
        options.calibration.batch_size(evaluated)
    at = points(own.run, own.directory, options.steps)
    return Planned(own.directory, own.run, evaluated, chosen, options.calibration, at, fitted)


def quantize_run(
    folder: Path,
    method: str,
    quantizations: Sequence[Quantization],
    progress: Callable[[str], None],
    interrupted: Callable[[], bool] = lambda: False,
    options: Options = Options(),
) -> list[dict[str, Any]]:
    """Quantize one run's weights in several formats and evaluate each at the run's own training precision, or another
    one, for everything but the weights of the blocks' linear layers, which are quantized here and nowhere else. Writes
    ptq/*.json in the run directory and returns their contents; what is there already is not done again. Where the last
    checkpoint is damaged, the rows are of the one before, and a line on standard error says so.

    Raises UserError as `plan_run` does, and PreemptedError as soon as `interrupted` says so.
    """
    planned = plan_run(folder, method, quantizations, options)
    for point in planned.points:
        missing = [quantization for at, quantization in planned.missing() if at == point]
        if not missing:
            continue
        try:
            params = params_at(planned, point)
        except DamagedError as error:
            if options.steps != "last" or (before := one_before(point)) is None:
                raise
            print(f"left out: {error}; quantized is that of step {before}", file=sys.stderr)
            earlier = replace(options, steps=(before,))  # whose rows say so
            return quantize_run(folder, method, quantizations, progress, interrupted, earlier)
        _quantize_point(planned, point, params, missing, progress, interrupted)
    return planned.rows()


def _quantize_point(
    planned: Planned,
    point: Point,
    params: Any,
    quantizations: Sequence[Quantization],
    progress: Callable[[str], None],
    interrupted: Callable[[], bool],
) -> None:
    run, evaluated, directory = planned.run, planned.evaluated, planned.directory
    of_point, batches = columns(run, directory, point), run.validation_batches()
    where = f"{run.recipe}" + ("" if point.end else f" after {point.step} steps")
    if not point.end:
        _evaluate_unquantized(planned, point, params, of_point, interrupted)
    program, grids = without_weights(evaluated)

    def on_layer(said: str, layer: int) -> None:
        progress(f"{said}, layer {layer + 1} of {program.model.layers}")
        if interrupted():
            raise PreemptedError("quantization was interrupted; the same command does it again")

    for quantization in quantizations:
        said = f"{where} → {planned.method} {quantization}"
        progress(said)
        rounded, more = quantized(planned, params, quantization, partial(on_layer, said))
        more = of_point | planned.settings | more
        measured = evaluate(program, rounded, batches, grids, interrupted)
        record(directory, str(planned.method), quantization, measured, planned.more(point), more)


def params_at(planned: Planned, point: Point) -> Any:
    """The weights of a run's point, as they were trained. Raises UserError."""
    needed = abstract_state(planned.run.program)["params"]
    return restore_params(point.folder, needed, None if point.end else point.step)[1]


def without_weights(run: Run) -> tuple[Program, Grids]:
    """A run's program and grids for weights of the blocks' linear layers that come quantized."""
    program = replace(run.program, structure=plain_weights(run.program.structure))
    return program, grids_within(run.grids, program.structure)


def quantized(
    planned: Planned,
    params: Any,
    quantization: Quantization,
    on_layer: Callable[[int], None] = lambda layer: None,
    on_weight: OnWeight | None = None,
) -> tuple[Any, dict[str, Any]]:
    """Weights after quantization, for `without_weights`' program, and the columns that say how it went. on_weight is
    told of every weight (`walk.OnWeight`)."""
    program, grids = without_weights(planned.evaluated)
    params, bound_here = part_of(params, abstract_state(program)["params"]), planned.quantizations[quantization]
    if planned.method.calibrates:
        text = planned.calibration.batches(planned.evaluated)
        found = quantize_blocks(program, params, text, grids, *bound_here, planned.method, on_layer, on_weight)
        went = {"ptq_damping": found.damping, "ptq_fallbacks": " ".join(found.fallbacks)}
        return found.params, planned.calibration.columns(planned.evaluated) | went
    if on_weight:
        for weight in weights_and_scales(params, *bound_here, planned.method.searched):
            on_weight(*weight)
    return round_to_nearest(params, *bound_here, planned.method.searched), {}


def _evaluate_unquantized(
    planned: Planned, point: Point, params: Any, of_point: dict[str, Any], interrupted: Callable[[], bool]
) -> None:
    """The evaluation that those after quantization of an intermediate checkpoint are compared with."""
    run = planned.run
    if not unquantized_recorded(planned.directory, point.step):
        found = evaluate(run.program, params, run.validation_batches(), run.grids, interrupted)
        record_unquantized(planned.directory, point.step, found, of_point)


def unquantized_recorded(directory: RunDirectory, step: int) -> bool:
    """Whether the evaluation of an intermediate checkpoint at the run's own precision was made."""
    return directory.read_json(f"ptq/checkpoint{after(step)}.json") is not None


def record_unquantized(directory: RunDirectory, step: int, found: Evaluation, of_point: Mapping[str, Any]) -> None:
    """Write it. of_point: the columns of the checkpoint (`points.columns`). Raises UserError."""
    name = f"ptq/checkpoint{after(step)}"
    row = record_evaluation(directory, "checkpoint", f"{name}.npz", found)
    directory.write_json(f"{name}.json", row | dict(of_point))


def after(step: int) -> str:
    """What names evaluations of an intermediate checkpoint (`more` of `record`)."""
    return f"-step{step}"


def recorded(directory: RunDirectory, method: str, quantization: Quantization, more: str = "") -> dict[str, Any] | None:
    """The columns of an evaluation after quantization, if it was made. more: as `record` has it."""
    return directory.read_json(f"{_name(method, quantization)}{more}.json")


def record(
    directory: RunDirectory,
    method: str,
    quantization: Quantization,
    found: Evaluation,
    more: str = "",
    of_row: Mapping[str, Any] | None = None,
) -> None:
    """Write an evaluation after quantization into the run directory. more: what tells it from others of its method and
    format; of_row: further columns. Raises UserError."""
    name = f"{_name(method, quantization)}{more}"
    row = record_evaluation(directory, "ptq", f"{name}.npz", found)
    directory.write_json(
        f"{name}.json", row | {"ptq_method": method} | format_columns("ptq", quantization) | dict(of_row or {})
    )


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
    return f"ptq/{method}-{text if text.isalnum() else f'{quantization.format.name}-{_short_hash(text)}'}"


def _short_hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:6]
