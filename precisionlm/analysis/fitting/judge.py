"""From an optimum to a result: how well its constants are determined, and what a reader must know."""

import math
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from precisionlm.analysis.fitting.findings import FEW_GROUPS, Finding
from precisionlm.analysis.fitting.float64 import float64
from precisionlm.analysis.fitting.grouping import FEW, Grouping
from precisionlm.analysis.fitting.minimise import COMPILER
from precisionlm.analysis.fitting.objective import residual
from precisionlm.analysis.fitting.result import FitResult, natural
from precisionlm.analysis.fitting.search import Optimum
from precisionlm.analysis.fitting.solve import Problem
from precisionlm.analysis.fitting.uncertainty import Uncertainty, plausible, uncertainty, unfinished
from precisionlm.analysis.table.read import Table

CONDITION_LIMIT = 1e5  # of the Jacobian with unit columns
SETTLED = 0.03  # standard errors that an optimum may still be away


def judge(
    table: Table, problem: Problem, optimum: Optimum, weights: np.ndarray, groups: Grouping, seconds: float
) -> FitResult:
    """The result that an optimum is: the Jacobian there says what its constants are worth."""
    law, objective = problem.law, problem.objective
    value, point = optimum.value, optimum.point
    params = {p.name: float(np.exp(z) if p.log else z) for p, z in zip(law.parameters, point, strict=True)}
    predicted = law.predict(params, problem.columns)
    logs = np.log(predicted / table.observed)
    r = residual(objective.scale, predicted, table.observed)
    free = problem.high > problem.low
    every = jacobian(problem, point)
    at_bound = free & ((point <= problem.low) | (point >= problem.high))
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
        starts=optimum.tries,
        share=optimum.share,
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
        text = f"{law.names[i]} ends at its bound {side} ({natural(law.parameters[i], at[i]):g})"
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


def jacobian(problem: Problem, point: np.ndarray) -> np.ndarray:
    """(n, p) derivative of the residuals in search space."""
    law, scale = problem.law, problem.objective.scale
    with float64():
        return np.asarray(_jacobian(law, scale, dict(problem.columns), problem.observed, point))


@partial(jax.jit, static_argnames=("law", "scale"), compiler_options=COMPILER)
def _jacobian(law, scale, columns, observed, point):
    return jax.jacfwd(lambda z: residual(scale, law.formula(law.constants_at(z), columns, jnp), observed))(point)
