"""Run directories → one table: a row a (run, evaluation), with the columns that `precisionlm.columns` documents."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import pandas as pd

from precisionlm.columns import COLUMNS
from precisionlm.errors import UserError
from precisionlm.storage.evaluation import Evaluation
from precisionlm.storage.result import Result
from precisionlm.storage.run_directory import RunDirectory
from precisionlm.sweep.pairs import Measured, with_differences
from precisionlm.terminal import harmless
from precisionlm.whole_file import written

T = TypeVar("T")

SETTINGS = ("evaluation", "eval_recipe", "eval_execution", "val_tokens")
_TYPES: dict[str, tuple[type, ...]] = {"str": (str,), "int": (int,), "float": (int, float), "bool": (bool,)}
_BITS = {"int": 63, "float": 1023}  # of a whole number that a column of the type holds
_FORMULA = ("=", "+", "-", "@", "\t", "\r", "\n")  # what a cell begins with that spreadsheets compute
DTYPES: dict[str, Any] = {"str": "string", "int": "Int64", "float": "float64", "bool": "boolean"}


def collect(root: Path) -> tuple[pd.DataFrame, list[str]]:
    """The table of all finished runs under a folder, and what was left out: unfinished run directories, and files that
    cannot be read, with the reason.

    Raises UserError where there is no finished run.
    """
    measured: list[Measured] = []
    unfinished: list[str] = []

    def readable(read: Callable[..., T], *what: Any) -> T | None:
        try:
            return read(*what)
        except UserError as error:
            unfinished.append(str(error))
            return None

    def contents(directory: RunDirectory, folder: str) -> list[dict[str, Any]]:
        names = sorted(f"{folder}/{path.name}" for path in (directory.path / folder).glob("[!.]*.json"))
        return [found for name in names if (found := readable(_evaluation, directory, name)) is not None]

    for directory in _run_directories(root):
        known = len(unfinished)
        result = readable(Result.read, directory)
        if result is None:
            unfinished += [str(directory.path)] if len(unfinished) == known else []
            continue
        if readable(_checked, directory, result) is None:
            continue
        run = {"status": result.status, "schema": 1, "ptq_method": "none", "intermediate": False} | result.row
        rows = [_evaluated(run, found) for found in [*result.evaluations, *contents(directory, "evaluations")]]
        # An evaluation done again, for the losses of its sequences, stands for the one of before.
        rows = list({tuple(row.get(name) for name in SETTINGS): row for row in rows}.values())
        for row in [*rows, *(_evaluated(run, found) for found in contents(directory, "ptq"))]:
            name = row.get("sequences")
            measured.append(Measured(row, readable(Evaluation.read, directory, name) if name else None))
    if not measured:
        raise UserError(f"{root} holds no finished run (no result.json below it)")
    found = with_differences(measured)
    # Each column has its type from the start: whole numbers beside missing ones would be floats on the way.
    typed = {c.name: pd.Series([row.get(c.name) for row in found], dtype=DTYPES[c.dtype]) for c in COLUMNS}
    return pd.DataFrame(typed), unfinished


def _run_directories(root: Path) -> list[RunDirectory]:
    """By path; what lies in one of them, such as the config.yaml of Weights & Biases, is none."""
    found: list[Path] = []
    for config in sorted(Path(root).rglob("config.yaml"), key=lambda path: path.parent.parts):
        if not (found and config.is_relative_to(found[-1])):
            found.append(config.parent)
    return [RunDirectory.at(path) for path in found]


def _checked(directory: RunDirectory, result: Result) -> Result:
    """A result whose values are of the columns' types, in its own folder. Raises UserError."""
    if (own := result.row.get("run_id", directory.path.name)) != directory.path.name:
        raise UserError(f"{directory.path}: a copy of run {own}; its rows are those of the folder of that name")
    where = f"{directory.path / 'result.json'}"
    for name in ("run_id", "recipe"):
        if not isinstance(result.row.get(name), str):
            raise UserError(f"{where}: '{name}' of its row must be a text; restore or remove it")
    for row in [result.row, *result.evaluations]:
        _check_types(row, where)
    for evaluation in result.evaluations:
        _check_named(evaluation, where)
    return result


def _evaluation(directory: RunDirectory, name: str) -> dict[str, Any] | None:
    """The columns of one evaluation; None if its file is gone. Raises UserError where they are none."""
    found: Any = directory.read_json(name)
    if found is not None:
        where = f"{directory.path / name}"
        if not isinstance(found, dict):
            raise UserError(f"{where}: no columns of an evaluation; restore or remove it")
        _check_named(found, where)
        _check_types(found, where)
    return found


def _check_named(evaluation: dict[str, Any], where: str) -> None:
    for name in ("evaluation", "sequences"):
        if not isinstance(evaluation.get(name, "" if name == "sequences" else None), str):
            raise UserError(f"{where}: '{name}' must be a name; restore or remove it")
    if ".." in (parts := Path(evaluation.get("sequences", "")).parts) or parts[:1] == ("/",):
        raise UserError(f"{where}: 'sequences' names a file outside the run; restore or remove it")


def _check_types(row: dict[str, Any], where: str) -> None:
    for column in COLUMNS:
        value = row.get(column.name)
        if value is None:
            continue
        too_large = type(value) is int and value.bit_length() > _BITS.get(column.dtype, 0)
        if too_large or type(value) not in _TYPES[column.dtype]:
            raise UserError(f"{where}: {column.name} is {str(value)[:40]!r}, no {column.dtype}; restore or remove it")


def _evaluated(run: dict[str, Any], evaluation: dict[str, Any]) -> dict[str, Any]:
    """A row of the table. What most evaluations leave out: that they are at the run's own precision. JSON has no number
    for a group without end, one scale a channel or tensor: null there."""
    own = ("bf16", "simulated") if evaluation["evaluation"] == "bf16" else (run.get("recipe"), run.get("execution"))
    row = run | dict(zip(("eval_recipe", "eval_execution"), own, strict=True)) | evaluation
    return row | {name: math.inf for name, value in row.items() if name.endswith("_group") and value is None}


def write(table: pd.DataFrame, out: Path) -> list[Path]:
    """Write `out` (.parquet or .csv) and the other one beside it; returns both paths. Raises UserError on other names
    and where they cannot be written."""
    if out.suffix not in (".parquet", ".csv"):
        raise UserError(f"-o {out}: the name must end in .parquet or .csv (the other one is written beside it)")
    paths = [out.with_suffix(".parquet"), out.with_suffix(".csv")]
    with written(paths[0]) as parquet, written(paths[1]) as csv:  # both or none
        table.to_parquet(parquet, index=False)
        _harmless(table).to_csv(csv, index=False)
    return paths


def _harmless(table: pd.DataFrame) -> pd.DataFrame:
    """Texts that a spreadsheet would take for a formula and compute, behind an apostrophe; Parquet has them as they
    are. https://owasp.org/www-community/attacks/CSV_Injection"""

    def shown(text: Any) -> Any:
        if not isinstance(text, str):
            return text
        plain = harmless(text)  # a carriage return would begin another row
        return f"'{plain}" if text.startswith(_FORMULA) else plain

    texts = [column.name for column in COLUMNS if column.dtype == "str" and column.name in table]
    return table.assign(**{name: table[name].map(shown) for name in texts})
