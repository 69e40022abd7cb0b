"""Laws that were compared: errors on rows held out, what the best gains over the others, the same as text and JSON."""

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd

from precisionlm.analysis.fitting.analysis import Analysis
from precisionlm.analysis.fitting.fit import FitResult
from precisionlm.analysis.fitting.held_out import Errors, Split
from precisionlm.json_text import dumps
from precisionlm.terminal import wrapped


@dataclass(frozen=True)
class LawScore:
    """One law. fit: on all rows; None where it could not be fitted, and `problem` says why.

    held_out: split -> errors on the rows left out. residuals: split -> (n,) log residual of each row when it was left
    out, NaN where it never was, inf where the law is undefined.
    """

    name: str
    fit: FitResult | None
    held_out: dict[str, Errors] = field(default_factory=dict)
    residuals: dict[str, np.ndarray] = field(default_factory=dict)
    problem: str = ""


@dataclass(frozen=True)
class Comparison:
    """Laws side by side. `str` is what `precisionlm compare` prints, `to_dict` what it prints with `--json`.

    scores: best first (by k-fold error; laws without an error last), and what the best gains over each other law.

    splits: what was held out. differences: law -> (mean, low, high) of its squared log residual minus the best law's
    over the k-fold's cells, with a paired percentile 95 % interval: above 0 means that the best law is better beyond
    chance. rows: that every law can use. excluded: law -> reason -> rows.
    """

    scores: tuple[LawScore, ...]
    splits: tuple[Split, ...]
    differences: dict[str, tuple[float, float, float]]
    rows: int
    rows_excluded: int
    excluded: dict[str, dict[str, int]]
    warnings: tuple[str, ...]

    @property
    def best(self) -> str:
        """Name of the law with the least error on rows left out."""
        return self.scores[0].name

    @property
    def table(self) -> pd.DataFrame:
        """A row a law, best first: what `precisionlm compare` prints, as text."""
        shown = as_table(self)
        return pd.DataFrame(shown["rows"], columns=shown["head"]).set_index("law")

    def __str__(self) -> str:
        shown = as_table(self)
        rows = [shown["head"], *shown["rows"]]
        widths = [max(len(row[i]) for row in rows if i != 2 or row[1]) for i in range(len(rows[0]))]
        lines = ["  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)).rstrip() for row in rows]
        return "\n".join([wrapped(line, "  ") for line in [shown["caption"], *excluded_lines(self)]] + lines)

    def __repr__(self) -> str:
        return "\n".join([str(self), *(f"warning: {warning}" for warning in self.warnings)])

    def to_dict(self) -> dict[str, Any]:
        """The comparison as plain data; a law that could not be fitted has `problem` alone."""
        laws = [
            (Analysis(s.fit).to_dict() if s.fit else {"problem": s.problem})
            | {"law": s.name, "held_out_rms_log": {k: e.rms for k, e in s.held_out.items()},
               "held_out_relative_error": {
                   k: {"median": e.median, "90%": e.q90, "max": e.worst} for k, e in s.held_out.items()}}
            for s in self.scores
        ]  # fmt: skip
        return {
            "rows_used": self.rows, "rows_excluded": self.rows_excluded, "excluded": self.excluded,
            "held_out": {s.name: {"rows": s.rows, "cells": s.cells, "what": s.what} for s in self.splits},
            "ranking": [s.name for s in self.scores], "laws": laws,
            "squared_error_above_best": {k: list(v) for k, v in self.differences.items()},
            "warnings": list(self.warnings),
        }  # fmt: skip

    def to_json(self) -> str:
        """`to_dict` as JSON; numbers that are not finite become null."""
        return dumps(self.to_dict(), indent=2)


def as_table(comparison: Comparison) -> dict[str, Any]:
    """caption, head and rows for a page or a terminal."""
    names = [split.name for split in comparison.splits]
    head = ["law", "constants", "status", *(f"held out, {n}" for n in names), "rms on all rows", "R²",
            "squared error above the best [95 %]"]  # fmt: skip
    rows = []
    for s in comparison.scores:
        if s.fit is None:
            rows.append([s.name, "", f"not fitted: {s.problem}", *[""] * (len(head) - 3)])
            continue
        gap = comparison.differences.get(s.name)
        behind = "best" if gap is None else f"{gap[0]:.3g} [{gap[1]:.3g}, {gap[2]:.3g}]"
        held_out = [
            f"{e.rms:.4g} ({e.median:.2%}, {e.q90:.2%}, {e.worst:.2%})" for e in map(s.held_out.get, names) if e
        ]
        fitted = [f"{s.fit.rms_log:.4g}", f"{s.fit.r2:.4f}"]
        rows.append([s.name, str(len(s.fit.free)), s.fit.status.value, *held_out, *fitted, behind])
    held = "; ".join(f"{split.name}: {split.what}" for split in comparison.splits)
    caption = (
        f"{comparison.rows} rows that every law can use. Held out of the fit in turn: {held}. Errors on those rows: "
        "root mean square of log predicted/observed (median, 90 % quantile and largest |predicted/observed - 1|); the "
        "last column compares squared errors pairwise over resampled (N, D) cells."
    )
    return {"caption": caption, "head": head, "rows": rows}


def excluded_lines(comparison: Comparison) -> list[str]:
    """The rows left out, a line a reason and the laws it holds for."""
    found: dict[tuple[str, int], list[str]] = {}
    for law, reasons in comparison.excluded.items():
        for reason, count in reasons.items():
            found.setdefault((reason, count), []).append(law)
    every = len(comparison.excluded)
    return [f"excluded for {'all laws' if len(names) == every else ', '.join(names)}: {count} x {reason}"
            for (reason, count), names in found.items()]  # fmt: skip
