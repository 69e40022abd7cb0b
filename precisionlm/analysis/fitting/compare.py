"""Laws against each other on the same rows, by what they say about runs they have not seen."""

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd

from precisionlm.analysis import laws
from precisionlm.analysis.fitting.analyze import select
from precisionlm.analysis.fitting.choices import Choices
from precisionlm.analysis.fitting.comparison import Comparison, LawScore
from precisionlm.analysis.fitting.fit import FitResult, fit, search_starts
from precisionlm.analysis.fitting.held_out import LEAST_ROWS, Split, errors_of, make_splits, notes
from precisionlm.analysis.fitting.objective import Objective
from precisionlm.analysis.fitting.percentile import percentile_interval
from precisionlm.analysis.fitting.solve import solve
from precisionlm.analysis.table.read import Table
from precisionlm.analysis.table.symbols import symbols_of
from precisionlm.errors import UserError, nearest

RESAMPLES = 4000
UNUSED = "not usable by every law compared"


def compare(
    frame: pd.DataFrame,
    names: Sequence[str],
    columns: Mapping[str, str] | None = None,
    where: str | None = None,
    objective: Objective = Objective(),
    starts: int = 200,
    folds: int = 10,
    seed: int = 0,
    choices: Choices = Choices(),
    least: int = LEAST_ROWS,
    drop_duplicates: bool = False,
    fitted: Mapping[str, FitResult] | None = None,
) -> Comparison:
    """Fit each law on the rows that all of them can use and score it on rows held out.

    columns: symbol -> column; a law takes those of its own symbols, and of choices those of its own constants. folds,
    least: see `make_splits`. fitted: law -> a fit that stands for its own where it is of the same rows. Raises
    UserError for fewer than two laws, for laws of the loss beside laws of the gap, if no row suits them all, or if none
    can be fitted.
    """
    names = list(dict.fromkeys(names))
    if len(names) < 2:
        raise UserError("compare needs at least two different laws, as in --laws chinchilla,kumar")
    if starts < 1:
        raise UserError(f"--starts {starts}: at least one is needed")
    check_symbols(names, columns or {})
    tables = {name: select(name, frame, own_columns(name, columns or {}), where, choices, drop_duplicates)
              for name in names}  # fmt: skip
    choices.check([table.law for table in tables.values()])
    if len({t.law.is_gap for t in tables.values()}) > 1:
        raise UserError("laws of the loss and laws of the gap cannot be compared: they predict different columns")
    common = np.array(sorted(set.intersection(*(set(t.rows.tolist()) for t in tables.values()))), int)
    if not len(common):
        raise UserError("no row can be used by all of these laws")
    warnings = [f"{name} could use {len(t)} rows; {len(common)} suit all laws"
                for name, t in tables.items() if len(t) > len(common)]  # fmt: skip
    tables = {name: table.take(np.isin(table.rows, common), UNUSED) for name, table in tables.items()}
    first = tables[names[0]]
    splits = make_splits(first, folds, seed, least)
    given = fitted or {}
    scores = [_attempt(n, t, objective, starts, splits, choices, given.get(n)) for n, t in tables.items()]
    scores.sort(key=_rank)
    if scores[0].fit is None:
        raise UserError(f"none of these laws can be fitted: {scores[0].problem}")
    differences = {s.name: _difference(s, scores[0], first.cell, seed) for s in scores[1:] if s.fit}
    warnings += notes(splits, least)
    warnings += [f"{s.name}: {w}" for s in scores for w in (s.fit.warnings if s.fit else (f"not fitted: {s.problem}",))]
    return Comparison(
        tuple(scores), splits, differences, len(common), len(frame) - len(common),
        {name: table.excluded for name, table in tables.items()}, tuple(dict.fromkeys(warnings)),
    )  # fmt: skip


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


def _attempt(
    name: str, table: Table, objective: Objective, starts: int, splits: Sequence[Split], choices: Choices,
    given: FitResult | None,
) -> LawScore:  # fmt: skip
    try:
        return score(name, table, objective, starts, splits, choices, given)
    except UserError as problem:  # these rows are beyond this law: the others are compared all the same
        return LawScore(name, None, problem=str(problem))


def score(
    name: str, table: Table, objective: Objective, starts: int, splits: Sequence[Split], choices: Choices = Choices(),
    given: FitResult | None = None,
) -> LawScore:  # fmt: skip
    """Fit on all rows, then once per fold with the held-out rows' weight at zero: all folds and starts side by side.

    given: the fit on all rows, where there is one already.
    """
    same = given is not None and np.array_equal(given.table.rows, table.rows) and given.law == table.law
    result = given if given and same else fit(table, objective, starts, choices.fixed_of(table.law))
    masks = [(split.name, mask) for split in splits for mask in split.masks]
    tries = max(1, min(16, starts))
    weights = np.ones(len(table))
    spread = search_starts(result.problem, weights, tries)
    points = np.concatenate([result.point[None], spread])
    lanes = np.concatenate([points for _ in masks])
    lane_weights = np.concatenate([np.repeat((~mask).astype(float)[None], len(points), 0) for _, mask in masks])
    solution = solve(result.problem, lanes, lane_weights)
    residuals = {split.name: np.full(len(table), np.nan) for split in splits}
    parameters = result.law.parameters
    for i, (split, mask) in enumerate(masks):
        mine = slice(i * len(points), (i + 1) * len(points))
        best = solution.point[mine][np.argmin(solution.objective[mine])]
        params = {p.name: float(np.exp(z) if p.log else z) for p, z in zip(parameters, best, strict=True)}
        held = {k: v[mask] for k, v in table.columns.items()}
        with np.errstate(all="ignore"):
            logs = np.log(result.law.predict(params, held) / table.observed[mask])
        residuals[split][mask] = np.where(np.isfinite(logs), logs, np.inf)
    return LawScore(name, result, {split: errors_of(r) for split, r in residuals.items()}, residuals)


def _rank(score: LawScore) -> tuple[bool, float]:
    """Laws that could not be fitted come last; those undefined on a held-out row before them."""
    return score.fit is None, next((errors.rms for errors in score.held_out.values()), np.inf)


def _difference(other: LawScore, best: LawScore, cell: np.ndarray, seed: int) -> tuple[float, float, float]:
    """Mean squared log residual of `other` minus `best`, with an interval over resampled cells."""
    split = next(iter(best.residuals))
    gap = other.residuals[split] ** 2 - best.residuals[split] ** 2
    if not np.isfinite(gap).all():
        return np.inf, np.inf, np.inf
    total, count = np.bincount(cell, gap), np.bincount(cell)
    draws = np.random.default_rng(seed).multinomial(len(total), np.full(len(total), 1 / len(total)), size=RESAMPLES)
    low, high = percentile_interval((draws @ total) / (draws @ count))
    return float(gap.mean()), float(low), float(high)
