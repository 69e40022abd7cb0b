"""Several runs tables → one: what was collected in pieces, on machines that leave nothing but their tables behind."""

from collections.abc import Sequence

import numpy as np
import pandas as pd

from precisionlm.analysis.table.files import is_table, located, read
from precisionlm.columns import COLUMNS, NAMES
from precisionlm.errors import UserError
from precisionlm.sweep.collect import DTYPES, SETTINGS, collect

# What makes two rows of one run the same evaluation.
_PTQ = tuple(name for name in NAMES if name.startswith("ptq_") and name != "ptq_fallbacks")
_KEY = ("run_id", *SETTINGS, "intermediate", *_PTQ)


def rows_of(source: str) -> tuple[pd.DataFrame, list[str]]:
    """The rows of a folder of run directories, a table file or a published table, by its name, and what was left out.

    Raises UserError where there are none, or where a file is no table of this project.
    """
    path = located(source)
    if path.is_dir() or not is_table(path):
        return collect(path)
    found = read(path)
    for name in ("run_id", "evaluation"):
        if name not in found or found[name].isna().any():
            raise UserError(f"{source}: every row of a table of runs has its {name}; see precisionlm table --columns")
    if other := [name for name in found if name not in NAMES]:
        raise UserError(f"{source}: column {other[0]} is none of a table of runs; see precisionlm table --columns")
    found = found.reindex(columns=list(NAMES))
    for column in COLUMNS:
        try:
            with np.errstate(invalid="raise"):  # of a float that is no whole number of 64 bits
                found = found.astype({column.name: DTYPES[column.dtype]})
        except (TypeError, ValueError, ArithmeticError) as problem:
            raise UserError(f"{source}: column {column.name} holds what is no {column.dtype}") from problem
    return found, []


def merged(tables: Sequence[pd.DataFrame]) -> tuple[pd.DataFrame, int]:
    """All rows in order, and how many a later table has again: of these the later one's stay."""
    everything = pd.concat(tables, ignore_index=True) if len(tables) > 1 else tables[0]
    key = everything[list(_KEY)].assign(step=everything["steps"].where(everything["intermediate"].fillna(False)))
    again = key.duplicated(keep="last")
    return everything[~again].reset_index(drop=True), int(again.sum())
