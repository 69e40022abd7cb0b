"""What a row says about its precision. What it does not say is NaN, never "unquantized"."""

import re
from collections.abc import Sequence

import numpy as np
import pandas as pd

from precisionlm.analysis.table.cells import numbers, texts

HIGH = 16.0  # bits from which an operand counts as unquantized
FORWARD = ("w", "a", "kv")
BACKWARD = ("dgrad_dy", "dgrad_w", "wgrad_dy", "wgrad_x")
UNQUANTIZED = ("16", "32", "bf16", "bfloat16", "fp16", "float16", "f16", "fp32", "float32", "f32", "none")
_DESCRIBED = re.compile(r"(.+)_(?:bits|exponent|mantissa|group|format)")


def quantized(frame: pd.DataFrame, operands: Sequence[str]) -> np.ndarray:
    """(rows,) 1 where one of the operands is below 16 bits, 0 where all that the table describes are not, else NaN.

    An operand is described by its columns X_bits, X_format or X_scale, the first that says something in a row.
    """
    known = [_low(frame, operand) for operand in operands if described(frame, operand)]
    if not known:
        return np.full(len(frame), np.nan)
    low = np.stack(known)
    return np.where((low == 1).any(0), 1.0, np.where(np.isnan(low).any(0), np.nan, 0.0))


def described(frame: pd.DataFrame, operand: str) -> bool:
    """Whether the table has a column that says something about an operand."""
    columns = [f"{operand}_{field}" for field in ("bits", "format", "scale")]
    return any(c in frame.columns and frame[c].notna().any() for c in columns)


def after_training(frame: pd.DataFrame, column: str = "ptq_bits") -> np.ndarray:
    """(rows,) bits of the weights after post-training quantization: inf where there was none, NaN where it is unknown.

    An empty cell means "none" in the column `ptq_bits` alone, and there only if neither `evaluation` nor `ptq_method`
    says otherwise; 16 bits and more mean "none" too, unless they do.
    """
    done = np.zeros(len(frame), bool)
    if "evaluation" in frame.columns:
        done |= (texts(frame, "evaluation") == "ptq").astype(bool)
    if "ptq_method" in frame.columns:
        method = texts(frame, "ptq_method")
        done |= ~np.isin(method.astype(str), ("None", "none"))
    bits = numbers(frame, column) if column in frame.columns else np.full(len(frame), np.nan)
    own = column == "ptq_bits" or column not in frame.columns
    none = ~done & ((bits >= HIGH) | (np.isnan(bits) & own))
    return np.where(none, np.inf, bits)


def scale_elements(frame: pd.DataFrame, column: str) -> tuple[np.ndarray, np.ndarray]:
    """(rows,) elements that share a scale, and (rows,) whether another operand's would be right.

    1 where nothing is quantized, whatever the column says; inf: one scale a channel or tensor; NaN where missing. An
    operand at 16 bits has no scale: where others are quantized, `inf` in its column describes nothing.
    """
    whole = quantized(frame, (*FORWARD, *BACKWARD))
    values = np.where(whole == 0, 1.0, numbers(frame, column))
    operand = operand_of(column)
    idle = quantized(frame, (operand,)) == 0 if operand else np.zeros(len(frame), bool)
    return values, idle & np.isinf(values)


def mixture(frame: pd.DataFrame, column: str) -> np.ndarray:
    """(rows,) whether a column describes only a share of its operand's values: layers or sites differ.

    Told by the operand's share (w_share below 1); without that column by a recipe that makes exceptions
    (W4A4@down:A8).
    """
    operand = operand_of(column)
    if f"{operand}_share" in frame.columns:
        return numbers(frame, f"{operand}_share") < 1.0
    if operand and operand != "ptq" and "recipe" in frame.columns:
        return frame["recipe"].astype(str).str.contains("@", regex=False).to_numpy()
    return np.zeros(len(frame), bool)


def operand_of(column: str) -> str:
    """`w` of `w_group`; '' for a column that describes no operand."""
    found = _DESCRIBED.fullmatch(column)
    return found[1] if found else ""


def is_quantized_format(names: np.ndarray) -> np.ndarray:
    """(rows,) 1 for the name of a format below 16 bits, 0 for bf16 and the like, NaN where missing (None)."""
    lost = np.array([name is None for name in names], bool)
    plain = np.isin(np.array([str(name).lower() for name in names]), UNQUANTIZED)
    return np.where(lost, np.nan, np.where(plain, 0.0, 1.0))


def _low(frame: pd.DataFrame, operand: str) -> np.ndarray:
    """(rows,) 1 below 16 bits, 0 from there, NaN where no column says."""
    low = np.full(len(frame), np.nan)
    if (column := f"{operand}_bits") in frame.columns:
        bits = numbers(frame, column)
        low = np.where(bits > 0, (bits < HIGH).astype(float), np.nan)
    if np.isnan(low).any() and (column := f"{operand}_format") in frame.columns:
        low = np.where(np.isnan(low), is_quantized_format(texts(frame, column)), low)
    if np.isnan(low).any() and (column := f"{operand}_scale") in frame.columns:
        none = np.array([scale == "none" for scale in texts(frame, column)], bool)
        low = np.where(np.isnan(low) & none, 0.0, low)
    return low
