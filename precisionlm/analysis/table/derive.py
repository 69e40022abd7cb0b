"""Columns that laws need and runs tables imply: the loss gap, which passes are quantized, the format's error."""

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd

from precisionlm.analysis.table.cells import numbers, texts
from precisionlm.analysis.table.formats import exponent_mantissa, gaussian_error
from precisionlm.analysis.table.precision import (
    BACKWARD,
    FORWARD,
    HIGH,
    after_training,
    described,
    is_quantized_format,
    quantized,
)
from precisionlm.errors import UserError

# Beside N, D and seed: what two runs share that differ in their precision alone, where the table has it.
_ARM = ("D_unique", "layers", "width", "vocab_size", "dataset", "validation", "sequence_length", "batch_tokens",
        "learning_rate", "schedule", "final_lr_fraction", "warmup_steps", "weight_decay", "weights_from")  # fmt: skip


def loss_column(frame: pd.DataFrame) -> str:
    """The column of the loss where none is named."""
    return "loss" if "loss" in frame.columns and "val_loss" not in frame.columns else "val_loss"


def gaps(frame: pd.DataFrame, names: Mapping[str, str]) -> np.ndarray:
    """(rows,) loss that quantization added, nats/token; NaN for unquantized rows and where nothing can be compared.

    Of a row quantized after training: above the same run before it (or runs of its N, D, seed and training widths).
    Of a row trained below 16 bits: above the unquantized runs of its N, D and seed, those with the same schedule, data
    and batches if there are any. Where the table says this paired on the same sequences (`delta` with its partner
    `delta_to`), it is that. Rows that do not say how they were trained are neither. Raises UserError if the columns
    that this takes are missing.
    """
    loss_name = names.get("loss", loss_column(frame))
    size, tokens = names.get("N", "N_params"), names.get("D", "D_tokens")
    if lacking := [c for c in (loss_name, size, tokens) if c not in frame.columns]:
        raise UserError(f"no column 'gap', and none can be computed without column {', '.join(lacking)}")
    loss = numbers(frame, loss_name)
    post = after_training(frame, names.get("P_post", "ptq_bits"))
    operands = [x for x in (*FORWARD, *BACKWARD) if described(frame, x)]
    low = quantized(frame, operands) if operands else np.zeros(len(frame))
    own = np.isfinite(loss)
    if "evaluation" in frame.columns:
        own &= ~frame["evaluation"].isin(["bf16", "recipe", "checkpoint"]).to_numpy()
    seed = [c for c in ("seed",) if c in frame.columns]
    cell = [size, tokens, *seed]
    arm = [*cell, *(c for c in _ARM if c in frame.columns and c not in cell)]
    run = [[*keys] for keys in (("run_id", "val_tokens"), ("run_id",)) if set(keys) <= set(frame.columns)]
    widths = [f"{x}_{f}" for x in operands for f in ("bits", "format") if f"{x}_{f}" in frame.columns]
    before = _mean(frame, loss, own & np.isposinf(post), [*run, [*arm, *widths], [*cell, *widths]])
    unquantized = _mean(frame, loss, own & np.isposinf(post) & (low == 0), [arm, cell])
    reference = np.where(np.isfinite(post), before, np.where(low == 1, unquantized, np.nan))
    paired = paired_gaps(frame) if loss_name == "val_loss" else np.full(len(frame), np.nan)
    compared = np.where(intermediate(frame), np.nan, loss - reference)  # with its own unquantized evaluation alone
    return np.where(np.isfinite(paired) & (np.isfinite(post) | (low == 1)), paired, compared)


def intermediate(frame: pd.DataFrame) -> np.ndarray:
    """(rows,) whether a row is of a checkpoint before the end of its run."""
    if "intermediate" not in frame.columns:
        return np.zeros(len(frame), bool)
    return np.isin(frame["intermediate"].astype(str).to_numpy(), ["True", "true", "1", "1.0"])


def paired_gaps(frame: pd.DataFrame, column: str = "delta") -> np.ndarray:
    """(rows,) `delta`, or another column about it, where its partner is named; NaN elsewhere and without it."""
    if not {column, "delta_to"} <= set(frame.columns):
        return np.full(len(frame), np.nan)
    return np.where(texts(frame, "delta_to").astype(bool), numbers(frame, column), np.nan)


def forward_quantized(frame: pd.DataFrame, names: Mapping[str, str]) -> np.ndarray:
    """(rows,) 1 where an operand of the forward products is below 16 bits, else 0; NaN where the table does not say."""
    return _pass(frame, "fwd_format", FORWARD)


def backward_quantized(frame: pd.DataFrame, names: Mapping[str, str]) -> np.ndarray:
    """(rows,) 1 where output gradients are below 16 bits, else 0: products that take the forward pass's quantized
    operands alone are a straight-through estimator, in high precision. NaN where the table does not say."""
    return _pass(frame, "bwd_format", ("dgrad_dy", "wgrad_dy"))


def weight_error(frame: pd.DataFrame, names: Mapping[str, str]) -> np.ndarray:
    """(rows,) mean squared error of the weights' format on a unit Gaussian at its best scale; NaN where unknown.

    Exponent and mantissa bits come from their columns or else from the format's name; a table with neither has
    integers.
    """
    if "w_bits" not in frame.columns:
        raise UserError("no column 'w_gmse', and none can be computed without column w_bits")
    bits = numbers(frame, "w_bits")
    unknown = np.full(len(frame), np.nan)
    exponent = numbers(frame, "w_exponent") if "w_exponent" in frame.columns else unknown
    mantissa = numbers(frame, "w_mantissa") if "w_mantissa" in frame.columns else unknown
    if "w_format" in frame.columns:
        named = {name: exponent_mantissa(name) for name in set(texts(frame, "w_format"))}
        parts = np.array([named[name] for name in texts(frame, "w_format")], float).reshape(-1, 2)
        exponent = np.where(np.isnan(exponent), parts[:, 0], exponent)
        mantissa = np.where(np.isnan(mantissa), parts[:, 1], mantissa)
    elif "w_exponent" not in frame.columns:
        exponent = np.zeros(len(frame))
    exponent = np.where(np.isnan(exponent) & (bits >= HIGH), 0.0, exponent)
    mantissa = np.where(np.isnan(mantissa), np.where(exponent == 0, 0.0, bits - 1 - exponent), mantissa)
    whole = np.isfinite(exponent + mantissa) & (exponent == np.rint(exponent)) & (mantissa == np.rint(mantissa))
    known = (bits > 0) & ((exponent == 0) | (whole & (exponent > 0) & (mantissa >= 0)))
    keys, back = np.unique(np.stack([bits, exponent, mantissa], 1)[known], axis=0, return_inverse=True)
    errors = unknown.copy()
    errors[known] = np.array([gaussian_error(*map(float, key)) for key in keys])[back.reshape(-1)] if len(keys) else 0.0
    return errors


def _mean(frame: pd.DataFrame, loss: np.ndarray, rows: np.ndarray, keys: Sequence[list[str]]) -> np.ndarray:
    """(rows,) mean loss of those of `rows` that agree with a row in the first set of columns that finds any."""
    found = np.full(len(frame), np.nan)
    marked = pd.Series(np.where(rows, loss, np.nan))
    for columns in keys:
        if np.isnan(found).any():
            mean = marked.groupby([pd.factorize(frame[c])[0] for c in columns]).transform("mean").to_numpy()
            found = np.where(np.isnan(found), mean, found)
    return found


def _pass(frame: pd.DataFrame, format_column: str, operands: tuple[str, ...]) -> np.ndarray:
    if format_column in frame.columns:
        return is_quantized_format(texts(frame, format_column))
    known = [x for x in operands if described(frame, x)]
    if not known:
        raise UserError(f"no column {format_column} and none of {', '.join(f'{x}_bits' for x in operands)}")
    return quantized(frame, known)
