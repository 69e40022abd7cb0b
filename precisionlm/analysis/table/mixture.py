"""Rows whose precision is a mixture: what a column says of an operand then holds for part of its values."""

import numpy as np
import pandas as pd

WHOLE = 1.0 - 1e-9
FIELDS = ("bits", "exponent", "mantissa", "group", "format")  # of an operand: w_bits, a_exponent, ...


def mixed(frame: pd.DataFrame, column: str) -> np.ndarray:
    """(rows,) whether `column`, which describes an operand (w_bits), does so for a part of the operand's values.

    Told by the operand's share (w_share below 1), as `precisionlm table` writes it; without that column by a recipe
    that makes exceptions (W4A4@down:A8). Columns of another name or kind are never a mixture.
    """
    operand, _, field = column.rpartition("_")
    if not operand or field not in FIELDS or operand == "ptq":
        return np.zeros(len(frame), bool)
    share = f"{operand}_share"
    if share in frame.columns:
        return (pd.to_numeric(frame[share], errors="coerce") < WHOLE).to_numpy()
    if "recipe" in frame.columns:
        return frame["recipe"].astype(str).str.contains("@", regex=False).to_numpy()
    return np.zeros(len(frame), bool)
