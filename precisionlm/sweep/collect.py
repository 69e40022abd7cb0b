"""Run directories → one table: a row a (run, evaluation), with the columns that `precisionlm.columns` documents."""

import math
from pathlib import Path
from typing import Any

import pandas as pd

from precisionlm.columns import COLUMNS, NAMES
from precisionlm.errors import UserError
from precisionlm.storage.result import Result
from precisionlm.storage.run_directory import RunDirectory

_DTYPES = {"str": "string", "int": "Int64", "float": "float64", "bool": "boolean"}


def collect(root: Path) -> tuple[pd.DataFrame, list[str]]:
    """The table of all finished runs under a folder, and what was left out: unfinished run directories, and files that
    cannot be read, with the reason.

    Raises UserError where there is no finished run.
    """
    rows: list[dict[str, Any]] = []
    unfinished = []
    for config in sorted(Path(root).rglob("config.yaml")):
        directory = RunDirectory.at(config.parent)
        try:
            result = Result.read(directory)
        except UserError as error:
            unfinished.append(str(error))
            continue
        if result is None:
            unfinished.append(str(directory.path))
            continue
        evaluations = list(result.evaluations)
        for path in sorted((directory.path / "ptq").glob("*.json")):
            try:
                evaluations.append(directory.read_json(f"ptq/{path.name}"))
            except UserError as error:
                unfinished.append(str(error))
        common = {"status": result.status, "schema": 1, "ptq_method": "none"}
        rows += [_with_infinite_groups(common | result.row | evaluation) for evaluation in evaluations]
    if not rows:
        raise UserError(f"{root} holds no finished run (no result.json below it)")
    table = pd.DataFrame([{name: row.get(name) for name in NAMES} for row in rows])
    return table.astype({column.name: _DTYPES[column.dtype] for column in COLUMNS}), unfinished


def _with_infinite_groups(row: dict[str, Any]) -> dict[str, Any]:
    """JSON has no number for a group without end, one scale a channel or tensor: null there."""
    ends = {name: math.inf for name, value in row.items() if name.endswith("_group") and value is None}
    return row | ends


def write(table: pd.DataFrame, out: Path) -> list[Path]:
    """Write `out` (.parquet or .csv) and the other one beside it; returns both paths. UserError on other names."""
    if out.suffix not in (".parquet", ".csv"):
        raise UserError(f"-o {out}: the name must end in .parquet or .csv (the other one is written beside it)")
    out.parent.mkdir(parents=True, exist_ok=True)
    paths = [out.with_suffix(".parquet"), out.with_suffix(".csv")]
    for path in paths:
        partial = path.with_name(f".{path.name}.partial")
        if path.suffix == ".csv":
            table.to_csv(partial, index=False)
        else:
            table.to_parquet(partial, index=False)
        partial.replace(path)
    return paths
