"""Law + table -> constants with a status, never a bare number."""

import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from enum import Enum
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from precisionlm.analysis.fitting.float64 import float64
from precisionlm.analysis.fitting.objective import Objective, residual
from precisionlm.analysis.fitting.solve import COMPILER, Problem, Solution, compiling, solve
from precisionlm.analysis.fitting.starts import starting_points
from precisionlm.analysis.laws.base import Law
from precisionlm.analysis.table.read import Table
from precisionlm.errors import UserError

SAME = 1e-4  # objectives within this relative distance count as the same optimum
CONDITION_LIMIT = 1e5  # of the Jacobian with unit columns
GRADIENT_LIMIT = 1e-4  # cosine between the residuals and any one column of the Jacobian


class Status(Enum):
    """How far a fit may be trusted. Only non-finite input raises; everything else returns with one of these."""

    CONVERGED = "converged"
    AT_BOUND = "at-bound"
    ILL_CONDITIONED = "ill-conditioned"
    NOT_CONVERGED = "not-converged"


@dataclass(frozen=True)
class FitResult:
    """Constants of a law on a table.

    objective_value: the minimised sum. gradient: largest cosine between residuals and a column of the Jacobian (0 at an
    optimum). condition: of the Jacobian in search space with unit columns, free parameters. correlation: (k, k) of the
    free parameters. share: share of starts that ended at the best objective. r2: of the loss. rms_log: root mean
    square of log residuals. residuals: (n,) log prediction - log observation. point: search-space optimum (p,).
    """

    law: Law
    params: dict[str, float]
    objective: Objective
    objective_value: float
    status: Status
    messages: tuple[str, ...]
    gradient: float
    condition: float
    free: tuple[str, ...]
    correlation: np.ndarray
    starts: int
    share: float
    r2: float
    rms_log: float
    residuals: np.ndarray
    seconds: float
    table: Table = field(repr=False)
    problem: Problem = field(repr=False)
    weights: np.ndarray = field(repr=False)
    point: np.ndarray = field(repr=False)

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
) -> FitResult:
    """Fit the table's law.

    fixed: parameters kept at given values. weights: (n,) of the rows, default 1. first: one more starting point.
    Raises UserError for non-finite input or if the law is undefined everywhere.
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
    return _result(table, problem, solution, weights, time.perf_counter() - began)


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
    law, logarithmic = problem.law, problem.objective.logarithmic
    with float64():
        return np.asarray(_jacobian(law, logarithmic, dict(problem.columns), problem.observed, point))


@partial(jax.jit, static_argnames=("law", "logarithmic"), compiler_options=COMPILER)
def _jacobian(law, logarithmic, columns, observed, point):
    return jax.jacfwd(lambda z: residual(logarithmic, law.formula(law.constants_at(z), columns, jnp), observed))(point)


def with_status(result: FitResult, status: Status, *messages: str) -> FitResult:
    """The same fit with another status and further messages."""
    return replace(result, status=status, messages=(*result.messages, *messages))


def _result(table: Table, problem: Problem, solution: Solution, weights: np.ndarray, seconds: float) -> FitResult:
    law, objective = problem.law, problem.objective
    best = int(np.argmin(solution.objective))
    value, point = float(solution.objective[best]), solution.point[best]
    params = {p.name: float(np.exp(z) if p.log else z) for p, z in zip(law.parameters, point, strict=True)}
    logs = np.log(law.predict(params, problem.columns) / table.observed)
    r = logs if objective.logarithmic else np.expm1(logs)
    free = problem.high > problem.low
    jac = jacobian(problem, point)[:, free] * np.sqrt(weights)[:, None]
    on_low, on_high = (point <= problem.low) & free, (point >= problem.high) & free
    norms = np.linalg.norm(jac, axis=0)
    scaled = jac / np.where(norms > 0, norms, 1.0)
    condition = 1.0 if not free.any() else float(np.linalg.cond(scaled)) if (norms > 0).all() else np.inf
    if len(jac) < free.sum():
        condition = np.inf
    inside = ~(on_low | on_high)[free]
    slope = np.clip(r, -objective.threshold, objective.threshold) * np.sqrt(weights)
    cosine = np.abs(slope @ jac) / np.maximum(norms * np.linalg.norm(slope), 1e-300)
    gradient = float(cosine[inside].max(initial=0.0)) if value > 1e-20 else 0.0
    names = tuple(n for n, f in zip(law.names, free, strict=True) if f)
    status, messages = Status.CONVERGED, []
    if not solution.finished[best] or gradient > GRADIENT_LIMIT:
        status = Status.NOT_CONVERGED
        messages.append(f"no start settled: the gradient's cosine is still {gradient:.1e}")
    elif (on_low | on_high).any():
        status = Status.AT_BOUND
        messages += [f"{law.names[i]} ends at its bound {'low' if on_low[i] else 'high'} ({params[law.names[i]]:g})"
                     for i in np.flatnonzero(on_low | on_high)]  # fmt: skip
    if condition > CONDITION_LIMIT:
        messages.append(f"the data cannot tell all {len(names)} constants apart (condition number {condition:.1e})")
        if status is Status.CONVERGED:
            status = Status.ILL_CONDITIONED
    observed = table.observed
    total = float(np.sum((observed - observed.mean()) ** 2))
    r2 = 1.0 - float(np.sum((observed * np.expm1(logs)) ** 2)) / total if total > 0 else float("nan")
    return FitResult(
        law=law,
        params=params,
        objective=objective,
        objective_value=value,
        status=status,
        messages=tuple(messages),
        gradient=gradient,
        condition=condition,
        free=names,
        correlation=_correlation(jac),
        starts=len(solution.objective),
        share=float(np.mean(solution.objective <= value * (1 + SAME) + 1e-18)),
        r2=r2,
        rms_log=float(np.sqrt(np.mean(logs**2))),
        residuals=logs,
        seconds=seconds,
        table=table,
        problem=problem,
        weights=weights,
        point=point,
    )


def _correlation(jac: np.ndarray) -> np.ndarray:
    """(k, k) correlation of estimates, from the Gauss-Newton information; directions without information count as 0."""
    covariance = np.linalg.pinv(jac.T @ jac, rcond=1e-14, hermitian=True)
    deviation = np.sqrt(np.maximum(np.diag(covariance), 1e-300))
    return np.clip(covariance / np.outer(deviation, deviation), -1.0, 1.0)
