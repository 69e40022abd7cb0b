"""A runs table as it may leave the machine that made it: documented types, no paths of that machine."""

import re
from typing import Any

import numpy as np
import pandas as pd

from precisionlm.columns import COLUMNS

_TYPES: dict[str, Any] = {"str": "string", "int": "Int64", "float": "float64", "bool": "boolean"}
# /home/me/x, ~/x, C:\\x, file:///x; not int4/had32, not ../x, not the path in gs://bucket/x.
_PATH = re.compile(
    r"(?<![\w/:.~<\\])(?:file://)?(?:[A-Za-z]:[\\/]|~?/)(?:[^\s,;:'\"()<>|]*[\\/])?(?=[^\s,;:'\"()<>|\\/])"
)


def without_paths(text: str) -> str:
    """A text in which every absolute path is its last component alone."""
    return _PATH.sub("", text)


def typed(frame: pd.DataFrame) -> pd.DataFrame:
    """The same rows with the types that `columns` documents, whatever file they came from; a column that holds
    something else stays as it is."""
    found = {}
    for column in (c for c in COLUMNS if c.name in frame.columns):
        try:
            with np.errstate(invalid="raise"):  # else NumPy warns of a float beyond 64 bits, and makes a number of it
                found[column.name] = frame[column.name].astype(_TYPES[column.dtype])
        except (TypeError, ValueError, ArithmeticError):  # the last: no whole number is infinite, nor of 100 bits
            continue
    return frame.assign(**found)


def cleaned(frame: pd.DataFrame) -> tuple[pd.DataFrame, dict[str, int]]:
    """The frame without paths of the machine in its text cells, and column → cells (count) that had one."""
    changed: dict[str, int] = {}
    columns: dict[str, pd.Series] = {}
    for name in map(str, frame.columns):
        if pd.api.types.is_numeric_dtype(frame[name]):
            continue
        levels = {v: without_paths(v) for v in frame[name].dropna().unique() if isinstance(v, str)}
        renamed = {old: new for old, new in levels.items() if old != new}
        if renamed:
            changed[name] = int(frame[name].isin(list(renamed)).sum())
            columns[name] = frame[name].replace(renamed)
    return frame.assign(**columns), changed
