"""Laws against each other on the same rows, by what they say about runs they have not seen."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from precisionlm.analysis import laws
from precisionlm.analysis.fitting.analyze import select
from precisionlm.analysis.fitting.fit import FitResult, fit, search_starts
from precisionlm.analysis.fitting.objective import Objective
from precisionlm.analysis.fitting.solve import solve
from precisionlm.analysis.table.read import Table
from precisionlm.analysis.table.symbols import symbols_of
from precisionlm.errors import UserError, nearest

SPLITS = ("k-fold by cell", "largest N", "largest D")
RESAMPLES = 4000


@dataclass(frozen=True)
class LawScore:
    """One law. held_out: split -> root mean square log residual of the rows left out (NaN where a split is empty).

    residuals: split -> (n,) log residual of each row when it was left out, NaN where it never was.
    """

    fit: FitResult
    held_out: dict[str, float]
    residuals: dict[str, np.ndarray]


@dataclass(frozen=True)
class Comparison:
    """Scores, best first (by k-fold error), and what the best law gains over each other one.

    differences: law -> (mean, low, high) of its squared log residual minus the best law's over the k-fold's cells, with
    a paired percentile 95 % interval: above 0 means that the best law is better beyond chance.
    """

    scores: tuple[LawScore, ...]
    differences: dict[str, tuple[float, float, float]]
    rows: int
    excluded: dict[str, int]
    warnings: tuple[str, ...]


def compare(
    frame: pd.DataFrame,
    names: Sequence[str],
    columns: Mapping[str, str] | None = None,
    where: str | None = None,
    objective: Objective = Objective(),
    starts: int = 200,
    folds: int = 10,
    seed: int = 0,
    drop_duplicates: bool = False,
) -> Comparison:
    """Fit each law on the rows that all of them can use and score it on rows held out.

    columns: symbol -> column; a law takes those of its own symbols. Raises UserError for fewer than two laws, for laws
    of the loss beside laws of the gap, for a symbol of none of them, or if no row suits them all.
    """
    if len(set(names)) < 2:
        raise UserError("compare needs at least two different laws, as in --laws chinchilla,kumar")
    check_symbols(names, columns or {})
    tables = [
        select(name, frame, own_columns(name, columns or {}), where, drop_duplicates) for name in dict.fromkeys(names)
    ]
    if len({t.law.is_gap for t in tables}) > 1:
        raise UserError("laws of the loss and laws of the gap cannot be compared: they predict different columns")
    common = np.array(sorted(set.intersection(*(set(t.rows.tolist()) for t in tables))), int)
    if not len(common):
        raise UserError("no row can be used by all of these laws")
    warnings = [
        f"{t.law.name} could use {len(t)} rows; {len(common)} suit all laws" for t in tables if len(t) > len(common)
    ]
    tables = [t.take(np.isin(t.rows, common), "not usable by every law compared") for t in tables]
    splits = make_splits(tables[0], folds, seed)
    scores = sorted((score(t, objective, starts, splits) for t in tables), key=_rank)
    differences = {s.fit.law.name: _difference(s, scores[0], tables[0].cell, seed) for s in scores[1:]}
    missing = [name for name in SPLITS if name not in splits]
    warnings += [f"no split by {name}: the table has too few of them" for name in missing]
    warnings += [f"{s.fit.law.name}: {w}" for s in scores for w in s.fit.warnings]
    excluded = {"not usable by every law compared": len(frame) - len(common)} if len(common) < len(frame) else {}
    return Comparison(tuple(scores), differences, len(common), excluded, tuple(dict.fromkeys(warnings)))


def own_columns(name: str, columns: Mapping[str, str]) -> dict[str, str]:
    """Those of the renamed columns that the law of that name reads. Raises UserError for an unknown law."""
    known = symbols_of(laws.get(name))
    return {k: v for k, v in columns.items() if k in known}


def check_symbols(names: Sequence[str], columns: Mapping[str, str]) -> None:
    """Every renamed symbol belongs to one of the laws. Raises UserError otherwise."""
    known = sorted({symbol for name in names for symbol in symbols_of(laws.get(name))})
    for symbol in columns:
        if symbol not in known:
            raise UserError(
                f"--columns: none of the laws {', '.join(names)} has a symbol '{symbol}'; {nearest(symbol, known)}"
            )


def make_splits(table: Table, folds: int, seed: int) -> dict[str, list[np.ndarray]]:
    """Split -> list of boolean masks (n,) of the rows left out."""
    splits: dict[str, list[np.ndarray]] = {}
    cells = int(table.cell.max()) + 1
    if cells >= 3:
        order = np.random.default_rng(seed).permutation(cells)
        fold = np.empty(cells, int)
        fold[order] = np.arange(cells) % min(folds, cells)
        splits[SPLITS[0]] = [fold[table.cell] == f for f in range(min(folds, cells))]
    for name, symbol in ((SPLITS[1], "N"), (SPLITS[2], "D")):
        values = table.columns.get(symbol)
        if values is not None and len(np.unique(values)) >= 3:
            splits[name] = [values == values.max()]
    if not splits:
        raise UserError("too few (N, D) pairs to hold any out: a comparison needs three")
    return splits


def score(table: Table, objective: Objective, starts: int, splits: Mapping[str, list[np.ndarray]]) -> LawScore:
    """Fit on all rows, then once per fold with the held-out rows' weight at zero: all folds and starts side by side."""
    result = fit(table, objective, starts)
    masks = [(name, mask) for name, folds in splits.items() for mask in folds]
    tries = max(1, min(16, starts))
    weights = np.ones(len(table))
    spread = search_starts(result.problem, weights, tries)
    points = np.concatenate([result.point[None], spread])
    lanes = np.concatenate([points for _ in masks])
    lane_weights = np.concatenate([np.repeat((~mask).astype(float)[None], len(points), 0) for _, mask in masks])
    solution = solve(result.problem, lanes, lane_weights)
    residuals = {name: np.full(len(table), np.nan) for name in splits}
    parameters = result.law.parameters
    for i, (name, mask) in enumerate(masks):
        mine = slice(i * len(points), (i + 1) * len(points))
        best = solution.point[mine][np.argmin(solution.objective[mine])]
        params = {p.name: float(np.exp(z) if p.log else z) for p, z in zip(parameters, best, strict=True)}
        held = {k: v[mask] for k, v in table.columns.items()}
        with np.errstate(divide="ignore"):
            residuals[name][mask] = np.log(result.law.predict(params, held) / table.observed[mask])
    held_out = {name: float(np.sqrt(np.mean(r[~np.isnan(r)] ** 2))) for name, r in residuals.items()}
    return LawScore(result, held_out, residuals)


def _rank(score: LawScore) -> float:
    return next(score.held_out[s] for s in SPLITS if s in score.held_out)


def _difference(other: LawScore, best: LawScore, cell: np.ndarray, seed: int) -> tuple[float, float, float]:
    """Mean squared log residual of `other` minus `best`, with an interval over resampled cells."""
    split = next(s for s in SPLITS if s in best.residuals)
    gap = other.residuals[split] ** 2 - best.residuals[split] ** 2
    known = np.isfinite(gap)
    if not known.any():
        return float("inf"), float("inf"), float("inf")
    groups = np.unique(cell[known], return_inverse=True)[1]
    total, count = np.bincount(groups, gap[known]), np.bincount(groups)
    draws = np.random.default_rng(seed).multinomial(len(total), np.full(len(total), 1 / len(total)), size=RESAMPLES)
    means = (draws @ total) / (draws @ count)
    low, high = np.percentile(means, (2.5, 97.5))
    return float(gap[known].mean()), float(low), float(high)


def as_table(comparison: Comparison) -> dict[str, Any]:
    """caption, head and rows for a page or a terminal."""
    names = [s for s in SPLITS if s in comparison.scores[0].held_out]
    head = ["law", "constants", "status", *(f"held-out rms, {n}" for n in names), "rms on all rows", "R²",
            "squared error above the best [95 %]"]  # fmt: skip
    rows = []
    for s in comparison.scores:
        gap = comparison.differences.get(s.fit.law.name)
        behind = "best" if gap is None else f"{gap[0]:.3g} [{gap[1]:.3g}, {gap[2]:.3g}]"
        held_out = [f"{s.held_out[n]:.4g}" for n in names]
        fitted = [f"{s.fit.rms_log:.4g}", f"{s.fit.r2:.4f}"]
        rows.append([s.fit.law.name, str(len(s.fit.free)), s.fit.status.value, *held_out, *fitted, behind])
    caption = (
        f"{comparison.rows} rows that every law can use. Errors are root mean squares of log predicted/observed on "
        "rows left out of the fit; the last column compares squared errors pairwise over resampled (N, D) cells."
    )
    return {"caption": caption, "head": head, "rows": rows}
