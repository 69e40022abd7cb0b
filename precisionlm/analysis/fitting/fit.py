"""Law + table -> constants with a status, never a bare number."""

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property, partial

import jax
import jax.numpy as jnp
import numpy as np

from precisionlm.analysis.fitting.findings import FEW_GROUPS, Finding, Status, status_of
from precisionlm.analysis.fitting.float64 import float64
from precisionlm.analysis.fitting.grouping import FEW, Grouping, grouping
from precisionlm.analysis.fitting.minimise import COMPILER
from precisionlm.analysis.fitting.objective import Objective, residual
from precisionlm.analysis.fitting.solve import SAME, Problem, Solution, compiling, solve
from precisionlm.analysis.fitting.starts import starting_points
from precisionlm.analysis.fitting.uncertainty import Uncertainty, interval_of, plausible, uncertainty, unfinished
from precisionlm.analysis.laws.base import Law, Parameter
from precisionlm.analysis.table.read import Table
from precisionlm.errors import UserError

CONDITION_LIMIT = 1e5  # of the Jacobian with unit columns
SETTLED = 0.03  # standard errors that an optimum may still be away


@dataclass(frozen=True)
class FitResult:
    """Constants of a law on a table.

    objective_value: the minimised sum. findings: all that a reader must know, each with its constants. gradient:
    largest cosine between residuals and a column of the Jacobian (0 at an optimum). condition: of the Jacobian in
    search space with unit columns, free parameters. correlation: (k, k) of the free parameters. share: share of starts
    that ended at the best objective. r2: of the loss. rms_log: root mean square of log residuals. residuals: (n,) log
    prediction - log observation. uncertainty: linearised, for rows that share noise as its grouping says. point:
    search-space optimum (p,).
    """

    law: Law
    params: dict[str, float]
    objective: Objective
    objective_value: float
    findings: tuple[Finding, ...]
    gradient: float
    condition: float
    free: tuple[str, ...]
    correlation: np.ndarray
    starts: int
    share: float
    r2: float
    rms_log: float
    residuals: np.ndarray
    uncertainty: Uncertainty = field(repr=False)
    seconds: float
    table: Table = field(repr=False)
    problem: Problem = field(repr=False)
    weights: np.ndarray = field(repr=False)
    point: np.ndarray = field(repr=False)

    @property
    def status(self) -> Status:
        """The gravest finding."""
        return status_of(self.findings)

    @property
    def messages(self) -> tuple[str, ...]:
        """The findings in words."""
        return tuple(f.text for f in self.findings)

    @property
    def identified(self) -> dict[str, bool]:
        """Fitted constant -> whether the data determine it."""
        known = dict(zip(self.law.names, self.uncertainty.identified.tolist(), strict=True))
        return {name: known[name] for name in self.free}

    @property
    def bounds(self) -> dict[str, tuple[float, float]]:
        """Constant -> the values that the fit could reach."""
        return {
            p.name: (_natural(p, self.problem.low[i]), _natural(p, self.problem.high[i]))
            for i, p in enumerate(self.law.parameters)
        }

    @cached_property
    def intervals(self) -> dict[str, tuple[float, float]]:
        """Fitted constant -> linearised 95 % interval within its bounds; the bounds where it is not identified."""
        out = {}
        for i, p in enumerate(self.law.parameters):
            if p.name not in self.free:
                continue
            low, high = self.bounds[p.name]
            if self.uncertainty.identified[i]:
                half = self.uncertainty.quantile * self.uncertainty.errors[i]
                ends = (_natural(p, self.point[i] - half), _natural(p, self.point[i] + half))
                low, high = max(low, ends[0]), min(high, ends[1])
            out[p.name] = (low, high)
        return out

    @property
    def standard_errors(self) -> dict[str, float]:
        """Fitted constant -> linearised standard error in its own units; inf where it is not identified."""
        errors = dict(zip(self.law.names, self.uncertainty.errors.tolist(), strict=True))
        return {n: errors[n] * (self.params[n] if self.law.parameter(n).log else 1.0) for n in self.free}

    def interval_of(self, value: Callable[[Mapping[str, float]], float]) -> tuple[float, float]:
        """Linearised 95 % interval of a number derived from the constants (name -> value), such as a predicted loss or
        an optimum; (-inf, inf) where it rests on constants that the data leave open."""
        return interval_of(value, self.law, self.point, self.uncertainty)

    @property
    def rows_used(self) -> int:
        """Rows in the sum."""
        return len(self.table)

    @property
    def rows_excluded(self) -> int:
        """Rows of the file that are not."""
        return sum(self.table.excluded.values())

    @property
    def predicted(self) -> np.ndarray:
        """(n,) prediction per used row, nats/token."""
        return self.table.observed * np.exp(self.residuals)

    @property
    def warnings(self) -> tuple[str, ...]:
        """Everything a reader should know before using the constants."""
        return (*self.table.warnings, *self.law.notes, *self.messages)


def _natural(parameter: Parameter, z: float) -> float:
    """Search coordinate -> natural value; the ends of the search are exactly the bounds."""
    for end, bound in zip(parameter.search_bounds(), parameter.bounds, strict=True):
        if z == end:
            return bound
    return float(np.exp(z)) if parameter.log else float(z)


def error_weights(table: Table) -> np.ndarray:
    """(n,) weights with mean 1 from the loss's standard error: 1 / (relative error² + median²), 1 where unknown.

    The median keeps one run with a tiny printed error from owning the fit. Raises UserError if no row has one.
    """
    relative = table.error / table.observed
    known = np.isfinite(relative) & (relative > 0)
    if not known.any():
        raise UserError(f"--weights needs the column {table.law.target.column}_se; no row has it")
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


def search_starts(problem: Problem, weights: np.ndarray, count: int) -> np.ndarray:
    """(S, p) starting points in search space. Raises UserError if the law is defined at none."""
    law = problem.law
    natural = starting_points(law, problem.columns, problem.observed, weights, count)
    if not len(natural):
        raise UserError(f"law {law.name} is undefined on these rows at every start ({law.undefined})")
    return np.clip(
        np.stack([p.to_search(natural[:, i]) for i, p in enumerate(law.parameters)], 1), problem.low, problem.high
    )


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
    weights = np.ones(len(table)) if weights is None else np.asarray(weights, float)
    if not (np.isfinite(table.observed).all() and (table.observed > 0).all()):
        raise UserError(f"law {table.law.name}: observed values must be finite and positive")
    if starts < 1:
        raise UserError(f"--starts {starts}: at least one is needed")
    problem = make_problem(table, objective, fixed or {})
    with compiling(problem):
        points = search_starts(problem, weights, starts)
    if first:
        given = np.array([float(p.to_search(first[p.name])) for p in problem.law.parameters])
        points = np.concatenate([np.clip(given, problem.low, problem.high)[None], points])
    solution = solve(problem, points, weights)
    if not np.isfinite(solution.objective).any():
        raise UserError(f"law {table.law.name} is undefined on these rows at every start ({table.law.undefined})")
    return _result(table, problem, solution, weights, grouping(table, over), time.perf_counter() - began)


def fit_staged(table: Table, objective: Objective = Objective(), starts: int = 500) -> tuple[FitResult, ...]:
    """Fit a law stage by stage (base on unquantized runs, then the precision terms); the last result has them all."""
    law = table.law
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
        results.append(fit(part, objective, starts, fixed=neutral | known))
        known |= {name: results[-1].params[name] for name in stage.free}
    return tuple(results)


def jacobian(problem: Problem, point: np.ndarray) -> np.ndarray:
    """(n, p) derivative of the residuals in search space."""
    law, scale = problem.law, problem.objective.scale
    with float64():
        return np.asarray(_jacobian(law, scale, dict(problem.columns), problem.observed, point))


@partial(jax.jit, static_argnames=("law", "scale"), compiler_options=COMPILER)
def _jacobian(law, scale, columns, observed, point):
    return jax.jacfwd(lambda z: residual(scale, law.formula(law.constants_at(z), columns, jnp), observed))(point)


def _result(
    table: Table, problem: Problem, solution: Solution, weights: np.ndarray, groups: Grouping, seconds: float
) -> FitResult:
    law, objective = problem.law, problem.objective
    best = int(np.argmin(solution.objective))
    value, point = float(solution.objective[best]), solution.point[best]
    params = {p.name: float(np.exp(z) if p.log else z) for p, z in zip(law.parameters, point, strict=True)}
    predicted = law.predict(params, problem.columns)
    logs = np.log(predicted / table.observed)
    r = residual(objective.scale, predicted, table.observed)
    free = problem.high > problem.low
    every = jacobian(problem, point)
    at_bound = free & ((point <= problem.low) | (point >= problem.high))
    share = float(np.mean(solution.objective <= value * (1 + SAME) + 1e-18))
    known = uncertainty(every, r, weights, objective.threshold, groups, plausible(law, table.observed), free, at_bound)
    inside = free & ~at_bound
    away = unfinished(every[:, inside], r, weights, objective.threshold) if value > 1e-20 else 0.0
    jac = every[:, free] * np.sqrt(weights)[:, None]
    norms = np.linalg.norm(jac, axis=0)
    condition = _condition(jac, norms)
    slope = np.clip(r, -objective.threshold, objective.threshold) * np.sqrt(weights)
    cosine = np.abs(slope @ jac) / np.maximum(norms * np.linalg.norm(slope), 1e-300)
    observed = table.observed
    total = float(np.sum((observed - observed.mean()) ** 2))
    return FitResult(
        law=law,
        params=params,
        objective=objective,
        objective_value=value,
        findings=_findings(table, problem, point, known, free, away, condition),
        gradient=float(cosine[inside[free]].max(initial=0.0)) if value > 1e-20 else 0.0,
        condition=condition,
        free=tuple(n for n, f in zip(law.names, free, strict=True) if f),
        correlation=_correlation(jac),
        starts=len(solution.objective),
        share=share,
        r2=1.0 - float(np.sum((observed * np.expm1(logs)) ** 2)) / total if total > 0 else float("nan"),
        rms_log=float(np.sqrt(np.mean(logs**2))),
        residuals=logs,
        uncertainty=known,
        seconds=seconds,
        table=table,
        problem=problem,
        weights=weights,
        point=point,
    )


def _findings(
    table: Table,
    problem: Problem,
    point: np.ndarray,
    known: Uncertainty,
    free: np.ndarray,
    away: float,
    condition: float,
) -> tuple[Finding, ...]:
    """Everything that is doubtful about an optimum, the gravest first."""
    law, found = problem.law, []

    def names(mask: np.ndarray) -> tuple[str, ...]:
        return tuple(n for n, chosen in zip(law.names, mask, strict=True) if chosen)

    fitted = names(free)
    if away > SETTLED:
        text = f"the search did not settle: the constants may be {away:.2g} standard errors away from the optimum"
        found.append(Finding("not-converged", fitted, text))
    lost = names(free & ~known.identified)
    if lost:
        designs = len(np.unique(np.stack([table.columns[s.name] for s in law.symbols], 1), axis=0))
        rows = f"{designs} distinct points for {len(fitted)} constants" if designs <= len(fitted) else (
            f"the losses hardly change over {'its' if len(lost) == 1 else 'their'} plausible values")  # fmt: skip
        found.append(Finding("not-identified", lost, f"not identified: {', '.join(lost)} ({rows})"))
    for i in np.flatnonzero(free & ((point <= problem.low) | (point >= problem.high))):
        side, at = ("low", problem.low) if point[i] <= problem.low[i] else ("high", problem.high)
        text = f"{law.names[i]} ends at its bound {side} ({_natural(law.parameters[i], at[i]):g})"
        found.append(Finding("at-bound", (law.names[i],), text))
    if condition > CONDITION_LIMIT and not lost:
        text = (
            f"the constants hang together: condition number {condition:.1e}; each depends on the values of the others"
        )
        found.append(Finding("ill-conditioned", fitted, text))
    groups = known.grouping
    if groups.count < max(FEW, len(fitted) + 2) and groups.over in ("seed", "cell"):
        text = f"too few {groups.over}s to resample: {groups.count} for {len(fitted)} constants; intervals are rough"
        found.append(Finding(FEW_GROUPS, fitted, text))
    return tuple(found)


def _condition(jac: np.ndarray, norms: np.ndarray) -> float:
    """Of the Jacobian (n, k) with unit columns; inf for a column of zeros or fewer rows than columns."""
    if not jac.shape[1]:
        return 1.0
    return float(np.linalg.cond(jac / norms)) if len(jac) >= jac.shape[1] and (norms > 0).all() else math.inf


def _correlation(jac: np.ndarray) -> np.ndarray:
    """(k, k) correlation of estimates, from the Gauss-Newton information; directions without information count as 0."""
    covariance = np.linalg.pinv(jac.T @ jac, rcond=1e-14, hermitian=True)
    deviation = np.sqrt(np.maximum(np.diag(covariance), 1e-300))
    return np.clip(covariance / np.outer(deviation, deviation), -1.0, 1.0)
