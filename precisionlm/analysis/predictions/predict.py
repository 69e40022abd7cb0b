"""What a fitted law says of cells before they are run: a value and the interval in which 95 % of such runs should lie.

The interval of a run has two parts, taken as independent and added as squares of logarithms on each side: how far the
constants may be off (`Analysis.interval_of`), and the scatter of single runs around the law, which is that of the fit's
own log residuals, sqrt(Σ r² / (n - k)) times Student's t for n rows and k constants.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pandas as pd

from precisionlm.analysis.fitting.analysis import Analysis
from precisionlm.analysis.fitting.uncertainty import t_quantile
from precisionlm.analysis.laws.base import Law
from precisionlm.analysis.table.cells import texts
from precisionlm.analysis.table.exclusions import Exclusions
from precisionlm.analysis.table.precision import BACKWARD, FORWARD, quantized
from precisionlm.analysis.table.read import Table, prepare
from precisionlm.errors import UserError

# Columns of a file of predictions; all others are coordinates of the cell. quantity: val_loss or delta, nats/token.
OWN = ("law", "quantity", "predicted", "lower", "upper", "interval")
# Columns that runs only have when they are done: of cells they say nothing.
RESULTS = ("status", "val_loss", "val_loss_se", "val_loss_se_sequences", "delta", "delta_se", "delta_to", "gap",
           "train_loss", "skipped_steps", "tokens_per_second", "mfu", "wall_seconds", "goodput", "peak_memory",
           "segments", "device", "jax_version", "package_version", "audit_dots", "audit_clipped", "audit_zeros",
           "audit_relative_mse", "ptq_damping", "ptq_fallbacks")  # fmt: skip
_DIGITS = 6  # significant ones in the file
# Of runs, and not read by most laws.
_SAID = ("schedule", "w_exponent", "ptq_method", "ptq_exponent", "ptq_scale", "ptq_group", "optimizer", "dataset",
         "validation")  # fmt: skip


@dataclass(frozen=True)
class Cells:
    """Cells to predict. frame: a row a cell, columns as in a runs table; coordinates: those of them that identify it,
    which stand in the file of predictions."""

    frame: pd.DataFrame
    coordinates: tuple[str, ...]

    @classmethod
    def of(cls, frame: pd.DataFrame) -> "Cells":
        """Cells whose every column identifies them, results left away. Raises UserError for columns of our own."""
        if taken := [name for name in OWN if name in frame.columns]:
            raise UserError(f"column {taken[0]} is one that predictions have themselves; cells must not have it")
        frame = frame.drop(columns=[name for name in RESULTS if name in frame.columns])
        if frame.empty or not len(frame.columns):
            raise UserError("there is no cell with a coordinate, such as N_params and D_tokens")
        return cls(frame.reset_index(drop=True), tuple(map(str, frame.columns)))


@dataclass(frozen=True)
class Predicted:
    """One law's predictions. frame: `OWN` and the coordinates, a row a cell that the law predicts; left_out: reason →
    cells (count); warnings: doubts in plain words."""

    frame: pd.DataFrame
    left_out: dict[str, int]
    warnings: tuple[str, ...]


def predict(analysis: Analysis, cells: Cells, columns: Mapping[str, str] | None = None) -> Predicted:
    """Predictions of a fit for the cells that its law is of; cells are read by the rules by which rows are.

    columns: symbol → column, as the fit had it. Raises UserError where the law predicts none of the cells.
    """
    law, target = analysis.law, "gap" if analysis.law.is_gap else "val_loss"
    renamed = {k: v for k, v in (columns or {}).items() if k in {s.name for s in law.symbols}}
    frame, out = cells.frame.assign(**{target: 1.0}), Exclusions(len(cells.frame))
    out.mark(_beyond(law, analysis.result.table, frame), "trained below 16 bits, which no row of the fit is")
    if not out.keep.any():
        raise UserError(f"law {law.name} predicts none of {len(frame)} cells: {next(iter(out.counts()))}")
    kept = frame[out.keep]
    try:
        table = prepare(law, kept, renamed)
    except UserError as problem:
        raise UserError(f"cells: {problem}") from None
    value = law.predict(analysis.result.params, table.columns)
    ends = np.array([_interval(analysis, table.columns, i, value[i]) for i in range(len(value))]).reshape(-1, 2)
    own = pd.DataFrame({
        "law": law.name, "quantity": "delta" if law.is_gap else "val_loss", "predicted": _rounded(value),
        "lower": _rounded(ends[:, 0]), "upper": _rounded(ends[:, 1]), "interval": meaning(analysis),
    })  # fmt: skip
    cell = kept.iloc[table.rows].reset_index(drop=True)
    doubts = _doubts(analysis, cell, value)
    return Predicted(
        pd.concat([own, cell[list(cells.coordinates)]], axis=1), out.counts() | table.excluded, tuple(doubts)
    )


def meaning(analysis: Analysis) -> str:
    """What the interval of a prediction holds, in a line."""
    noise, t = _noise(analysis)
    return (f"95 % of a run: constants ({analysis.intervals_from}) and noise of a run ({t:.3g} x {noise:.3g}, the "
            f"scatter of the fit's log residuals)")  # fmt: skip


def _interval(analysis: Analysis, columns: Mapping[str, np.ndarray], i: int, value: float) -> tuple[float, float]:
    """Ends for a run at the i-th of the columns; NaN where the constants that the data leave open decide."""
    law, at = analysis.law, {k: v[i : i + 1] for k, v in columns.items()}
    low, high = analysis.interval_of(lambda params: float(law.predict(params, at)[0]))
    if not (math.isfinite(value) and value > 0 and math.isfinite(low) and math.isfinite(high)):
        return math.nan, math.nan
    noise, t = _noise(analysis)
    down = math.log(value / low) if low > 0 else math.inf
    up = math.log(max(high, value) / value)
    return value * math.exp(-math.hypot(max(down, 0.0), t * noise)), value * math.exp(math.hypot(up, t * noise))


def _noise(analysis: Analysis) -> tuple[float, float]:
    """Standard deviation of a run's log residual, and how many of them hold 95 %."""
    residuals = analysis.result.residuals
    left = max(len(residuals) - sum(len(fit.free) for fit in analysis.fits), 1)
    return math.sqrt(float(residuals @ residuals) / left), t_quantile(left)


def _beyond(law: Law, fitted: Table, cells: pd.DataFrame) -> np.ndarray:
    """(cells,) whether one is trained below 16 bits where the law reads no precision and was fitted without any."""
    reads = any(s.kind in ("bits", "field", "block", "group", "category") for s in law.symbols)
    operands = (*FORWARD, *BACKWARD)
    seen = quantized(fitted.frame, operands)
    return np.zeros(len(cells), bool) if reads or (seen == 1).any() else quantized(cells, operands) == 1


def _doubts(analysis: Analysis, cells: pd.DataFrame, value: np.ndarray) -> list[str]:
    """What cells have that no row of the fit has, though the law does not read it; and values that are none."""
    law, seen = analysis.law, analysis.result.table.frame
    read = {analysis.result.table.names.get(s.name) for s in law.symbols}
    doubts = []
    for column in (c for c in _SAID if c in cells.columns and c in seen.columns and c not in read):
        strange = sorted({str(t) for t in set(texts(cells, column)) - set(texts(seen, column)) - {None}})
        if strange:
            doubts.append(f"law {law.name}: cells of {column} {', '.join(strange)}, which no row of the fit has")
    if undefined := int((~np.isfinite(value)).sum()):
        doubts.append(f"law {law.name} is undefined at {undefined} cells ({law.undefined}): predicted inf")
    return doubts


def _rounded(values: np.ndarray) -> np.ndarray:
    return np.array([float(f"{v:.{_DIGITS}g}") for v in values])
