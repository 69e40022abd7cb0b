"""Which runs to add: local optimal design from the Jacobian of a fit.

The variance of a quantity g of the constants is g' M⁻¹ g with M = J' W J / σ² the information of the runs at hand. A
further run with row j adds j j'/σ²; the greedy choice takes the run that lowers the variance most per FLOP, again and
again. Local: it believes the present constants, so fit again when the new runs are in.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import product
from operator import itemgetter

import numpy as np

from precisionlm.analysis.decisions.cost import Cost
from precisionlm.analysis.fitting.fit import FitResult, jacobian
from precisionlm.analysis.laws.precision import width_of
from precisionlm.errors import UserError


@dataclass(frozen=True)
class NextRun:
    """columns: symbol -> value of the run to add. flops: its cost. error: standard error once it is in."""

    columns: dict[str, float]
    flops: float
    error: float


@dataclass(frozen=True)
class Plan:
    """quantity and its standard error now (linearised), and the runs in the order to add them."""

    quantity: str
    value: float
    error: float
    runs: tuple[NextRun, ...]
    notes: tuple[str, ...] = ()


def next_runs(
    result: FitResult,
    count: int,
    quantity: str,
    candidates: dict[str, np.ndarray] | None = None,
    cost: Cost = Cost(),
    value: Callable[[dict[str, float]], float] | None = None,
) -> Plan:
    """The `count` runs that shrink the standard error of a quantity most per FLOP; a run may be named twice.

    quantity: a parameter's name, or any text with `value`, a function params -> number (the optimal bits, say).
    candidates: symbol -> (m,) columns of runs to choose from; by default every combination of the table's sizes,
    budgets and precisions, and sizes and budgets twice the largest. Raises UserError for an unknown quantity.
    """
    if count < 1:
        raise UserError(f"--next {count}: at least one run")
    law = result.law
    if value is None:
        if quantity not in result.free:
            raise UserError(f"quantity '{quantity}' is not a fitted constant of {law.name}: {', '.join(result.free)}")
        value = itemgetter(quantity)
    columns = default_candidates(result) if candidates is None else candidates
    m = len(next(iter(columns.values())))
    bits = np.asarray(width_of(law, columns), float)
    unknown = bool(np.isnan(bits).any())
    price = cost.total(columns["N"], columns["D"], np.where(np.isnan(bits), 16.0, bits))
    free = result.problem.high > result.problem.low
    noise = max(result.rms_log, 1e-6)
    rows = jacobian(result.problem, result.point)[:, free] * np.sqrt(result.weights)[:, None] / noise
    fresh = replace(result.problem, columns=law.with_logs(columns), observed=np.ones(m))
    offers = jacobian(fresh, result.point)[:, free] / noise
    gradient = _gradient(result, value, free)
    usable = np.isfinite(offers).all(axis=1) & np.isfinite(price) & (price > 0)
    if not usable.any():
        raise UserError("no candidate run is defined for this law and cost")
    information = rows.T @ rows
    # A weak prior (a standard deviation of 10 in search space) keeps directions without any data finite.
    covariance = np.linalg.inv(information + 1e-2 * np.eye(len(information)))
    before = float(np.sqrt(gradient @ covariance @ gradient))
    chosen = []
    for _ in range(count):
        spread = offers @ covariance
        gain = (spread @ gradient) ** 2 / (1.0 + np.sum(spread * offers, axis=1))
        best = int(np.argmax(np.where(usable, gain / price, -np.inf)))
        covariance = covariance - np.outer(spread[best], spread[best]) / (1.0 + spread[best] @ offers[best])
        error = float(np.sqrt(max(gradient @ covariance @ gradient, 0.0)))
        chosen.append(NextRun({k: float(v[best]) for k, v in columns.items()}, float(price[best]), error))
    notes = ["errors are linearised at the present constants and at the present scatter of the losses"]
    if unknown:
        notes.append("formats whose width their name does not say are reckoned at the cost of 16 bits")
    return Plan(quantity, float(value(result.params)), before, tuple(chosen), tuple(notes))


def default_candidates(result: FitResult) -> dict[str, np.ndarray]:
    """Every combination of the table's sizes, budgets and precisions, with twice the largest size and budget."""
    columns = result.table.columns
    if "N" not in columns or "D" not in columns:
        raise UserError(f"law {result.law.name} has no N and D to plan runs over")
    sizes, budgets = (np.unique(columns[k]) for k in ("N", "D"))
    sizes, budgets = (np.append(v, 2 * v.max()) for v in (sizes, budgets))
    others = [k for k in columns if k not in ("N", "D")]
    kinds = np.unique(np.stack([columns[k] for k in others], 1), axis=0).tolist() if others else [[]]
    rows = np.array([(n, d, *kind) for n, d, kind in product(sizes, budgets, kinds)])
    return {k: rows[:, i] for i, k in enumerate(["N", "D", *others])}


def _gradient(result: FitResult, value: Callable[[dict[str, float]], float], free: np.ndarray) -> np.ndarray:
    """(k,) derivative of the quantity in search space, by central differences."""
    parameters = result.law.parameters

    def at(point: np.ndarray) -> float:
        return float(value({p.name: float(np.exp(z) if p.log else z) for p, z in zip(parameters, point, strict=True)}))

    slopes = []
    for i in np.flatnonzero(free):
        step = np.zeros(len(result.point))
        step[i] = 1e-4
        slopes.append((at(result.point + step) - at(result.point - step)) / 2e-4)
    gradient = np.array(slopes)
    if not np.isfinite(gradient).all() or not gradient.any():
        raise UserError("this quantity does not depend on the fitted constants, or is not finite there")
    return gradient
