"""The cells that predictions are asked for: rows of a table, of a YAML list, or the runs of a sweep file."""

import itertools
import math
from pathlib import Path
from typing import Any

import pandas as pd

from precisionlm.analysis.predictions.predict import Cells
from precisionlm.analysis.table import read as tables
from precisionlm.config import Experiment
from precisionlm.errors import UserError
from precisionlm.yaml_text import read_yaml

_MOST = 100_000  # cells of a file
# Of a sweep's runs, what identifies them; laws read more.
_OF_SWEEPS = ("N_params", "D_tokens", "schedule", "learning_rate", "batch_tokens", "seed", "recipe", "ptq_method",
              "ptq_format", "ptq_scale", "ptq_group")  # fmt: skip


def read_cells(path: Path) -> Cells:
    """Cells from a table (.csv, .parquet, …: a row a cell) or a YAML file: a sweep, or `cells:` with a list of mappings
    column → value or list of values, every combination of which is a cell. Raises UserError."""
    if path.suffix.lower() not in (".yaml", ".yml"):
        return Cells.of(tables.read(path))
    tree = read_yaml(path)
    if "experiment" in tree:
        return _of_sweep(path)
    entries = tree.get("cells")
    if set(tree) != {"cells"} or not isinstance(entries, list) or not entries:
        raise UserError(f"{path}: must be a sweep file, or 'cells:' with a list of mappings such as "
                        "{N_params: 14155776, D_tokens: [5.4e7, 1.62e8]}")  # fmt: skip
    cells = [cell for entry in entries for cell in _combinations(entry, path)]
    if len(cells) > _MOST:
        raise UserError(f"{path}: {len(cells):,} cells; at most {_MOST:,} are possible")
    return Cells.of(pd.DataFrame(cells))


def _combinations(entry: Any, path: Path) -> list[dict[str, Any]]:
    if not isinstance(entry, dict) or not entry:
        raise UserError(f"{path}: cells: '{entry}' is no mapping of columns to values")
    axes = [value if isinstance(value, list) else [value] for value in entry.values()]
    for column, values in zip(entry, axes, strict=True):
        if not values or any(isinstance(value, list | dict) for value in values):
            raise UserError(f"{path}: cells: {column} must be a value or a list of values")
    if math.prod(map(len, axes)) > _MOST:
        raise UserError(f"{path}: cells: one entry makes more than {_MOST:,} cells")
    return [dict(zip(entry, values, strict=True)) for values in itertools.product(*axes)]


def _of_sweep(path: Path) -> Cells:
    """Every run of a sweep as it will be evaluated at its end: as trained, and rounded to the formats of `evaluate`."""
    from precisionlm.precision.describe import format_columns
    from precisionlm.sweep.grid import read_sweep

    sweep = read_sweep(path)
    if len(sweep.experiments) * (1 + len(sweep.ptq)) > _MOST:
        raise UserError(f"{path}: more than {_MOST:,} cells")
    after = [{"evaluation": "ptq", "ptq_method": "rtn", **format_columns("ptq", q)} for q in sweep.ptq]
    cells = []
    for run in map(_columns, sweep.experiments):
        cells += [run | {"evaluation": "trained", "ptq_method": "none"}, *(run | row for row in after)]
    frame = pd.DataFrame(cells)
    return Cells(frame, tuple(c for c in _OF_SWEEPS if c in frame.columns))


def _columns(experiment: Experiment) -> dict[str, Any]:
    """What is known of a run before it is trained, under the names of the runs table."""
    from precisionlm.columns import NAMES
    from precisionlm.precision.recipe import parse_recipe
    from precisionlm.sweep.where import Names
    from precisionlm.training.optimizer import decay_share, final_rate_fraction, hyperparameters

    hyper, known = hyperparameters(experiment), dict(Names(experiment))
    found = {name: known[name] for name in NAMES if name in known}
    return found | {
        "recipe": str(parse_recipe(experiment.precision.recipe)),
        "schedule": experiment.optimizer.schedule,
        "learning_rate": hyper["learning_rate"],
        "decay_share": decay_share(hyper),
        "final_lr_fraction": final_rate_fraction(experiment.training.steps, hyper),
    }
