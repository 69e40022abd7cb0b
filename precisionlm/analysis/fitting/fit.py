"""Law + table -> constants with a status, never a bare number."""

import time
from collections.abc import Mapping

import numpy as np

from precisionlm.analysis.fitting.findings import Status as Status
from precisionlm.analysis.fitting.grouping import grouping
from precisionlm.analysis.fitting.judge import jacobian as jacobian
from precisionlm.analysis.fitting.judge import judge
from precisionlm.analysis.fitting.objective import Objective
from precisionlm.analysis.fitting.result import FitResult as FitResult
from precisionlm.analysis.fitting.search import sampled, search, search_starts
from precisionlm.analysis.fitting.solve import Problem, compiling
from precisionlm.analysis.table.read import Table
from precisionlm.errors import UserError


def error_weights(table: Table) -> np.ndarray:
    """(n,) weights with mean 1 from the loss's standard error: 1 / (relative error² + median²), 1 where unknown.

    The median keeps one run with a tiny printed error from owning the fit. Raises UserError if no row has one.
    """
    relative = table.error / table.observed
    known = np.isfinite(relative) & (relative > 0)
    if not known.any():
        raise UserError(f"--weights needs the column {table.target}_se; no row has it")
    relative = np.where(known, relative, np.median(relative[known]))
    raw = 1.0 / (relative**2 + np.median(relative) ** 2)
    return raw / raw.mean()


def make_problem(table: Table, objective: Objective, fixed: Mapping[str, float]) -> Problem:
    """The minimisation of a law on a table with some parameters fixed (by bounds that meet, so nothing recompiles)."""
    law = table.law
    unknown = [name for name in fixed if name not in law.names]
    if unknown:
        raise UserError(f"law {law.name} has no parameter '{unknown[0]}'; it has {', '.join(law.names)}")
    low, high = (np.array(side, float) for side in zip(*(p.search_bounds() for p in law.parameters), strict=True))
    held = {p.name: p.held for p in law.parameters if p.held is not None} | dict(fixed)
    for i, p in enumerate(law.parameters):
        if p.name in held:
            low[i] = high[i] = np.clip(p.to_search(held[p.name]), -80.0, 80.0) if p.log else held[p.name]
    return Problem(law, law.with_logs(table.columns), table.observed, low, high, objective)


def fit(
    table: Table,
    objective: Objective = Objective(),
    starts: int = 500,
    fixed: Mapping[str, float] | None = None,
    weights: np.ndarray | None = None,
    first: Mapping[str, float] | None = None,
    over: str = "auto",
) -> FitResult:
    """Fit the table's law.

    fixed: parameters kept at given values. weights: (n,) of the rows, default 1. first: one more starting point. over:
    which rows share their noise, see `grouping`. Raises UserError for non-finite input or if the law is undefined
    everywhere.
    """
    began = time.perf_counter()
    if table.law.adapt is not None:
        raise UserError(
            f"law {table.law.name} is a family: its rows decide which member is fitted, so select them with "
            "analyze.select, or fit with analyze.analyze"
        )
    weights = np.ones(len(table)) if weights is None else np.asarray(weights, float)
    if not (np.isfinite(table.observed).all() and (table.observed > 0).all()):
        raise UserError(f"law {table.law.name}: observed values must be finite and positive")
    if starts < 1:
        raise UserError(f"--starts {starts}: at least one is needed")
    problem = make_problem(table, objective, fixed or {})
    small, rows = sampled(problem)
    with compiling(small):
        points = search_starts(small, weights[rows], starts)
    if first:
        given = np.array([float(p.to_search(first[p.name])) for p in problem.law.parameters])
        points = np.concatenate([np.clip(given, problem.low, problem.high)[None], points])
    optimum = search(problem, weights, points)
    return judge(table, problem, optimum, weights, grouping(table, over), time.perf_counter() - began)


def fit_staged(
    table: Table,
    objective: Objective = Objective(),
    starts: int = 500,
    over: str = "auto",
    fixed: Mapping[str, float] | None = None,
    weights: np.ndarray | None = None,
) -> tuple[FitResult, ...]:
    """Fit a law stage by stage (base on unquantized runs, then the precision terms); the last result has them all.

    fixed, weights: as for `fit`; a fixed constant is fixed in every stage. Raises UserError as `fit` does, for a law
    without stages and for a stage without rows.
    """
    law, fixed = table.law, dict(fixed or {})
    weights = np.ones(len(table)) if weights is None else weights
    if not law.stages:
        raise UserError(f"law {law.name} has no stages; fit it jointly")
    known: dict[str, float] = {}
    results = []
    for stage in law.stages:
        rows = stage.where(table.columns)
        if not rows.any():
            raise UserError(f"law {law.name}: no rows for its stage on {stage.rows}")
        neutral = {p.name: p.start[0] for p in law.parameters if p.name not in stage.free and p.held is None}
        part = table.take(rows, f"not in this stage ({stage.rows})")
        results.append(fit(part, objective, starts, neutral | known | fixed, weights[rows], over=over))
        known |= {name: results[-1].params[name] for name in stage.free}
    return tuple(results)
