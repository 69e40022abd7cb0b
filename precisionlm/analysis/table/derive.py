"""Columns that laws need and runs tables imply: the loss gap, which passes are quantized, the format's error."""

from collections.abc import Mapping

import numpy as np
import pandas as pd

from precisionlm.analysis.table.formats import gaussian_error
from precisionlm.errors import UserError

HIGH = 16  # bits from which an operand counts as unquantized
FORWARD = ("w", "a", "kv")
BACKWARD = ("dgrad_dy", "dgrad_w", "wgrad_dy", "wgrad_x")


def gaps(frame: pd.DataFrame, names: Mapping[str, str]) -> np.ndarray:
    """(rows,) loss above that of the unquantized runs with the same N, D and seed, nats/token.

    NaN for rows without such a run and for the unquantized runs themselves. Raises UserError if the columns that this
    takes are missing.
    """
    post = names.get("P_post", "ptq_bits")
    keys = [names.get("N", "N_params"), names.get("D", "D_tokens")]
    raw = names.get("loss", "val_loss")
    missing = [c for c in (raw, *keys) if c not in frame.columns]
    if missing:
        raise UserError(f"no column 'gap', and none can be computed without column {', '.join(missing)}")
    loss = pd.to_numeric(frame[raw], errors="coerce")
    quantized = np.zeros(len(frame), bool)
    for column in (f"{x}_bits" for x in (*FORWARD, *BACKWARD)):
        quantized |= _low(frame, column)
    if post in frame.columns:
        quantized |= pd.to_numeric(frame[post], errors="coerce").notna().to_numpy()
    reference = ~quantized & np.isfinite(loss)
    if "evaluation" in frame.columns:
        reference &= ~frame["evaluation"].isin(["bf16", "recipe"]).to_numpy()
    keys += [c for c in ("seed",) if c in frame.columns]
    mean = frame[reference].assign(_loss=loss).groupby(keys, dropna=False)["_loss"].mean().rename("_reference")
    return np.where(quantized, loss - frame.join(mean, on=keys)["_reference"], np.nan)


def forward_quantized(frame: pd.DataFrame, names: Mapping[str, str]) -> np.ndarray:
    """(rows,) 1 where an operand of the forward products is below 16 bits, else 0."""
    return _pass(frame, "fwd_format", FORWARD)


def backward_quantized(frame: pd.DataFrame, names: Mapping[str, str]) -> np.ndarray:
    """(rows,) 1 where output gradients are below 16 bits, else 0: products that take the forward pass's quantized
    operands alone are a straight-through estimator, in high precision."""
    return _pass(frame, "bwd_format", ("dgrad_dy", "wgrad_dy"))


def weight_error(frame: pd.DataFrame, names: Mapping[str, str]) -> np.ndarray:
    """(rows,) mean squared error of the weights' format on a unit Gaussian at its best scale."""
    if "w_bits" not in frame.columns:
        raise UserError("no column 'w_gmse', and none can be computed without column w_bits")
    bits = pd.to_numeric(frame["w_bits"], errors="coerce")
    exponent = pd.to_numeric(frame.get("w_exponent", pd.Series(0.0, frame.index)), errors="coerce").fillna(0.0)
    mantissa = pd.to_numeric(frame.get("w_mantissa", pd.Series(0.0, frame.index)), errors="coerce").fillna(0.0)
    errors = [gaussian_error(float(b), float(e), float(m)) if np.isfinite(b) else np.nan
              for b, e, m in zip(bits, exponent, mantissa, strict=True)]  # fmt: skip
    return np.array(errors)


def _pass(frame: pd.DataFrame, format_column: str, operands: tuple[str, ...]) -> np.ndarray:
    if format_column in frame.columns:
        return (~frame[format_column].astype(str).str.lower().isin(("bf16", "none", "nan"))).to_numpy(float)
    known = [f"{x}_bits" for x in operands if f"{x}_bits" in frame.columns]
    if not known:
        raise UserError(f"no column {format_column} and none of {', '.join(f'{x}_bits' for x in operands)}")
    return np.any([_low(frame, column) for column in known], axis=0).astype(float)


def _low(frame: pd.DataFrame, column: str) -> np.ndarray:
    if column not in frame.columns:
        return np.zeros(len(frame), bool)
    return (pd.to_numeric(frame[column], errors="coerce") < HIGH).to_numpy()
