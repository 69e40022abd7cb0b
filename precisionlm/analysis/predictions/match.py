"""Which rows of a runs table a prediction is about: those that have all coordinates that it names."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from precisionlm.analysis.predictions.predict import OWN
from precisionlm.analysis.table.cells import as_numbers, texts
from precisionlm.analysis.table.derive import intermediate
from precisionlm.analysis.table.precision import after_training
from precisionlm.analysis.table.read import on_fewer_tokens
from precisionlm.analysis.table.symbols import SPELLED
from precisionlm.errors import UserError, nearest

_CLOSE = 1e-6  # of numbers that went through text
# What may tell rows apart that one prediction fits.
_APART = ("evaluation", "eval_recipe", "intermediate", "recipe", "precision_hash", "execution", "ptq_method",
          "ptq_format", "ptq_scale", "ptq_group", "ptq_clip", "ptq_rotation", "ptq_calibration_sequences",
          "ptq_calibration_seed", "schedule", "decay_share", "learning_rate", "batch_tokens", "sequence_length",
          "warmup_steps", "weight_decay", "D_tokens", "D_unique", "N_params", "layers", "width", "dataset", "schema",
          "name", "run_id")  # fmt: skip


@dataclass(frozen=True)
class Found:
    """rows: positions in the runs table, one of every seed that ended; problem: missing, ambiguous or failed (some or
    all seeds), '' if none; why: in words."""

    rows: tuple[int, ...]
    problem: str = ""
    why: str = ""


class Runs:
    """A runs table to look rows up in.

    Where a prediction names no `evaluation`, that of the precision trained at is meant, or, where it names a column of
    ptq, that after quantization; where it does not name `intermediate`, the end of the run. Of a run that was
    evaluated more than once, the evaluation on most tokens. A run that diverged has fewer tokens than it was to have:
    where no other row has those that a prediction names, it is the one meant.
    """

    def __init__(self, frame: pd.DataFrame):
        self.frame = frame
        self._columns: dict[str, np.ndarray] = {}
        self._after = texts(frame, "evaluation") == "ptq" if "evaluation" in frame.columns else (
            ~np.isposinf(after_training(frame)))  # fmt: skip
        self._trained = texts(frame, "evaluation") == "trained" if "evaluation" in frame.columns else ~self._after
        self._end = ~intermediate(frame)
        self._current = ~on_fewer_tokens(frame, self._trained.astype(bool))
        self._status = texts(frame, "status") if "status" in frame.columns else np.full(len(frame), "done", object)

    def find(self, cell: Mapping[str, Any]) -> Found:
        """The rows that a cell (coordinate → value, without those it leaves open) is about."""
        left = self._current.copy()
        for name, value in cell.items():
            left &= self._has(name, value)
            if not left.any():
                if count := len(self._diverged(cell)):
                    return Found((), "failed", f"{count} of {count} runs: diverged")
                return Found((), "missing", f"no row has {name} {shown(value)} with what is named before it")
        after = any(k.startswith("ptq_") and shown(v).lower() != "none" for k, v in cell.items())
        left &= (self._after if after else self._trained).astype(bool) | ("evaluation" in cell)
        left &= self._end | ("intermediate" in cell)
        rows = np.flatnonzero(left)
        if not len(rows):
            kind = "quantized after training" if after else "evaluated as it was trained"
            return Found((), "missing", f"no such row is {kind} at the end of its run")
        ended = [int(i) for i in rows if self._status[i] == "done"]
        lost = sorted({str(self._status[i]) for i in rows} - {"done"})
        seeds = texts(self.frame, "seed")[ended] if "seed" in self.frame.columns else np.zeros(len(ended))
        if len(set(seeds)) < len(ended):
            return Found((), "ambiguous", self._apart(ended))
        if lost:
            return Found(tuple(ended), "failed", f"{len(rows) - len(ended)} of {len(rows)} runs: {', '.join(lost)}")
        return Found(tuple(ended))

    def _diverged(self, cell: Mapping[str, Any]) -> np.ndarray:
        """Positions of runs that diverged before the tokens that a cell names, and have all else."""
        if "D_tokens" not in cell or "D_tokens" not in self.frame.columns:
            return np.zeros(0, int)
        left = self._current & (self._status == "diverged") & self._trained.astype(bool)
        left &= self.frame["D_tokens"].to_numpy(float, na_value=np.nan) < float(cell["D_tokens"])
        for name in cell.keys() - {"D_tokens"}:
            left &= self._has(name, cell[name])
        return np.flatnonzero(left)

    def _has(self, name: str, value: Any) -> np.ndarray:
        """(rows,) whether a column has a value; of D_tokens, that of the same number of whole steps."""
        if name not in self._columns:
            if name not in self.frame.columns:
                valid = [str(c) for c in self.frame.columns]
                raise UserError(
                    f"predictions name {name}, which the runs table has no column of; {nearest(name, valid)}"
                )
            numeric = as_numbers(self.frame[name])
            if numeric is None or np.isnan(numeric).all():  # "none" in every row is a word, too
                numeric = texts(self.frame, name)
            self._columns[name] = numeric
        column = self._columns[name]
        if column.dtype == object:
            wanted = texts(pd.DataFrame({name: [value]}), name)[0]
            spelled = SPELLED[name](str(wanted)) if name in SPELLED else wanted
            return np.asarray((column == wanted) | (column == spelled))
        try:
            number = float(value)
        except ValueError:
            return np.zeros(len(column), bool)
        if name == "D_tokens" and "batch_tokens" in self.frame.columns:
            half = self.frame["batch_tokens"].to_numpy(float, na_value=np.nan) / 2
            return np.abs(column - number) <= np.fmax(half, _CLOSE * abs(number))
        return np.isclose(column, number, rtol=_CLOSE, atol=0.0)

    def _apart(self, rows: list[int]) -> str:
        differ = [c for c in _APART if c in self.frame.columns and len(set(texts(self.frame, c)[rows])) > 1]
        differ = [c for c in differ if c != "run_id"] or differ
        told = f"they differ in {', '.join(differ[:4])}" if differ else "nothing that identifies runs tells them apart"
        return f"{len(rows)} rows fit: {told}"


def cell_of(predictions: pd.DataFrame, i: int) -> dict[str, Any]:
    """The coordinates that the i-th prediction names."""
    row = predictions.iloc[i]
    return {str(k): v for k, v in row.items() if k not in OWN and pd.notna(v) and str(v).strip() != ""}


def shown(value: Any) -> str:
    """A coordinate as people write it."""
    number = isinstance(value, int | float | np.number) and not isinstance(value, bool | np.bool_)
    return f"{float(value):.10g}" if number else str(value)
