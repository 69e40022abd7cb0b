"""Run directories → one table: a row a (run, evaluation), with the columns that `precisionlm.columns` documents."""

import json
import math
from pathlib import Path
from typing import Any

import pandas as pd

from precisionlm.columns import COLUMNS, NAMES
from precisionlm.errors import UserError

_DTYPES = {"str": "string", "int": "Int64", "float": "float64", "bool": "boolean"}


def collect(root: Path) -> tuple[pd.DataFrame, list[str]]:
    """The table of all finished runs under a folder, and the unfinished run directories left out.

    Raises UserError where there is no finished run.
    """
    rows: list[dict[str, Any]] = []
    unfinished = []
    for config in sorted(Path(root).rglob("config.yaml")):
        folder = config.parent
        if not (folder / "result.json").exists():
            unfinished.append(str(folder))
            continue
        result = json.loads((folder / "result.json").read_text())
        common = {"status": result["status"], "ptq_method": "none", "ptq_bits": math.nan, "ptq_group": math.nan}
        evaluations = list(result["evaluations"])
        evaluations += [json.loads(path.read_text()) for path in sorted((folder / "ptq").glob("*.json"))]
        rows += [common | result["row"] | evaluation for evaluation in evaluations]
    if not rows:
        raise UserError(f"{root} holds no finished run (no result.json below it)")
    table = pd.DataFrame([{name: row.get(name) for name in NAMES} for row in rows])
    return table.astype({column.name: _DTYPES[column.dtype] for column in COLUMNS}), unfinished


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
