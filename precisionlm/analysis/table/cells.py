"""The cells of a table's column as numbers or as text, with what counts as missing."""

import re
from collections.abc import Iterator, Mapping

import numpy as np
import pandas as pd

from precisionlm.errors import UserError

BLANK = ("", "nan", "none", "null", "na", "n/a", "<na>", "-")  # of a number, in lower case
_THOUSANDS = re.compile(r"[+-]?\d{1,3}(,\d{3})+(\.\d+)?")
_UNITS = {"k": "e3", "m": "e6", "b": "e9", "g": "e9", "t": "e12"}


class Columns(Mapping[str, np.ndarray]):
    """A frame as name -> (rows,) array, converted when first asked for: what an expression reads."""

    def __init__(self, frame: pd.DataFrame) -> None:
        self.frame = frame
        self.found: dict[str, np.ndarray] = {}

    def __getitem__(self, name: str) -> np.ndarray:
        if name not in self.found:
            self.found[name] = _array(self.frame[name])
        return self.found[name]

    def __iter__(self) -> Iterator[str]:
        return iter(str(name) for name in self.frame.columns)

    def __len__(self) -> int:
        return self.frame.shape[1]


def _array(column: pd.Series) -> np.ndarray:
    """Numbers, booleans or text (object) as they are; booleans with missing ones among them as 0, 1 and NaN."""
    if isinstance(column.dtype, np.dtype) and column.dtype.kind in "biuf":
        return column.to_numpy()
    if pd.api.types.is_numeric_dtype(column):  # those of pandas that hold missing values beside integers
        return column.to_numpy(float, na_value=np.nan)
    if column.dtype != object:
        return column.astype(str).where(column.notna(), None).to_numpy(object)
    if pd.api.types.infer_dtype(column, skipna=True) == "boolean":
        return column.map({True: 1.0, False: 0.0}).to_numpy(float)
    return column.to_numpy(object)


def numbers(frame: pd.DataFrame, column: str) -> np.ndarray:
    """(rows,) float64, NaN where missing. Raises UserError naming the first row that holds something else."""
    values = frame[column]
    if pd.api.types.is_numeric_dtype(values):
        return values.to_numpy(float, na_value=np.nan)
    found = as_numbers(values)
    if found is None:
        row, cell = next((i, v) for i, v in enumerate(values) if _number(v) is None)
        raise UserError(f"column {column}, row {row + 1}: '{cell}' is not a number{_hint(str(cell).strip())}")
    return found


def as_numbers(values: pd.Series) -> np.ndarray | None:
    """A column of text as (rows,) float64; None if a cell is no number. Thousands may be grouped: 1,000,000."""
    known = values.notna().to_numpy()
    if known.any() and _number(values.iloc[int(known.argmax())]) is None:
        return None  # most columns of text end here
    codes, levels = pd.factorize(values)
    converted = []
    for level in levels:
        number = _number(level)
        if number is None:
            return None
        converted.append(number)
    return np.array([*converted, np.nan])[codes]


def texts(frame: pd.DataFrame, column: str) -> np.ndarray:
    """(rows,) text without blanks around it, None where missing. 16.0 and '16' are the same text."""
    codes, levels = pd.factorize(frame[column])
    named = [_level(value) for value in levels]
    return np.array([*named, None], dtype=object)[codes]


def _level(value: object) -> str | None:
    text = str(value).strip()
    return (text[:-2] if text.endswith(".0") else text) if text and text.lower() not in ("nan", "<na>") else None


def _number(value: object) -> float | None:
    text = str(value).strip()
    if text.lower() in BLANK:
        return np.nan
    if _THOUSANDS.fullmatch(text):
        text = text.replace(",", "")
    try:
        return None if "_" in text else float(text)
    except ValueError:
        return None


def _hint(cell: str) -> str:
    if unit := re.fullmatch(r"([\d.]+)\s*([kKmMbBgGtT])", cell):
        return f"; write {unit[1]}{_UNITS[unit[2].lower()]}"
    if re.fullmatch(r"[+-]?\d+,\d+", cell):
        return f"; is that a decimal comma? write {cell.replace(',', '.')}"
    if re.fullmatch(r"\d{1,3}([ _'.\u00a0\u202f]\d{3})+", cell):
        return f"; write {re.sub(r'[^0-9]', '', cell)}"
    return ""
