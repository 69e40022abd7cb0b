"""Decisions: the best N, D and precision under a budget, critical data, equal-loss sets.

Everything is found numerically from the law itself. The printed corollaries of the papers are not used: some drop a
factor (Kumar et al. 2024 drop the 1/P of D = C/(NP)), and their optimum 7-8 bits holds only with the offsets n_x.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from precisionlm.analysis.decisions.cost import Cost
from precisionlm.analysis.fitting.percentile import percentile_interval
from precisionlm.analysis.laws.base import INF, Law
from precisionlm.analysis.laws.precision import columns_at, reads_width, too_coarse
from precisionlm.errors import UserError

BITS = (1.0, 32.0)
SIZES = (1e3, 1e24)
TOKENS = (1e3, 1e30)


@dataclass(frozen=True)
class Optimum:
    """The cheapest way to a loss, or the lowest loss for a cost.

    N, D (counts), P (bits), loss (nats/token), compute (16-bit-equivalent FLOPs). columns: what the law reads there.
    notes: what to know about it.
    """

    N: float
    D: float
    P: float
    loss: float
    compute: float
    columns: dict[str, float]
    notes: tuple[str, ...] = ()


def compute_optimal(
    law: Law,
    params: Mapping[str, Any],
    compute: float,
    cost: Cost = Cost(),
    n: float | None = None,
    d: float | None = None,
    bits: float | None = None,
    at: Mapping[str, float] | None = None,
) -> Optimum:
    """Lowest loss for `compute` 16-bit-equivalent FLOPs; n, d and bits are kept where given.

    at: values of symbols that are neither N, D nor a width, such as a format's fields or its level. Raises UserError
    if the budget buys nothing, if the law is undefined at the width, or if n, d and bits are all given.
    """
    sets = {k: np.atleast_1d(np.asarray(v, float))[:1, None] for k, v in params.items()}
    sizes, tokens, widths = _search(law, sets, compute, cost, n, d, bits, at or {})
    return _optimum(law, params, float(sizes[0]), float(tokens[0]), float(widths[0]), cost, at or {})


def optimum_interval(
    law: Law, samples: np.ndarray, compute: float, cost: Cost = Cost(), n: float | None = None, d: float | None = None,
    bits: float | None = None, at: Mapping[str, float] | None = None,
) -> dict[str, tuple[float, float]]:  # fmt: skip
    """Percentile 95 % intervals of N, D and P over refits: samples (R, p) in the law's order. A refit under which
    nothing is bought counts as infinite."""
    sets = {name: samples[:, i, None] for i, name in enumerate(law.names)}
    found = _search(law, sets, compute, cost, n, d, bits, at or {})
    ends = {name: percentile_interval(v) for name, v in zip(("N", "D", "P"), found, strict=True)}
    return {name: (float(low), float(high)) for name, (low, high) in ends.items()}


def critical_data(law: Law, params: Mapping[str, float], columns: Mapping[str, float]) -> float:
    """Training tokens at which the loss is lowest and beyond which more tokens hurt; inf if they never do.

    columns: every symbol but D: N and the precision (P_post for a post-training law, E, M, log2B for a float law).
    A gap law alone has no critical data: give the whole law.
    """
    if law.is_gap:
        raise UserError(f"law {law.name} describes the gap alone; critical data needs the whole loss")

    def loss(x: np.ndarray) -> np.ndarray:
        return _evaluate(law, params, {**columns, "D": np.exp(x[..., 0])})

    low, high = np.log(TOKENS)
    point, _ = minimise(loss, np.array([[low, high]]), 1)
    at_edge = point[0, 0] > high - 1e-3
    return INF if at_edge else float(np.exp(point[0, 0]))


def iso_loss_size(law: Law, params: Mapping[str, float], loss: float, columns: Mapping[str, Any]) -> np.ndarray:
    """N (count) at which the law gives `loss`, a value a row of `columns` (all symbols but N); NaN where none does."""
    rows = max(np.size(v) for v in columns.values())
    low, high = np.full(rows, np.log(SIZES[0])), np.full(rows, np.log(SIZES[1]))
    for _ in range(60):
        middle = (low + high) / 2
        above = law.predict(params, {**columns, "N": np.exp(middle)}) > loss
        low, high = np.where(above, middle, low), np.where(above, high, middle)
    size = np.exp((low + high) / 2)
    reached = law.predict(params, {**columns, "N": size})
    return np.where(np.abs(reached - loss) < 1e-6 * loss, size, np.nan)


def minimise(
    function: Callable[[np.ndarray], np.ndarray], box: np.ndarray, sets: int, rounds: int = 16, points: int = 33
) -> tuple[np.ndarray, np.ndarray]:
    """Lowest point of `sets` functions at once by shrinking grids: no gradient, no start, +inf allowed.

    function: (S, G, k) -> (S, G). box: (k, 2). Returns (S, k) and (S,). The first grid is the finest so that the
    basin of the minimum is not missed; each round keeps two steps on either side of the lowest point.
    """
    k = len(box)
    low, high = np.repeat(box[None, :, 0], sets, 0), np.repeat(box[None, :, 1], sets, 0)
    for turn in range(rounds):
        count = points * (4 if k == 1 and turn == 0 else 1)
        unit = np.stack(np.meshgrid(*[np.linspace(0, 1, count)] * k, indexing="ij"), -1).reshape(-1, k)
        grid = low[:, None, :] + unit[None] * (high - low)[:, None, :]
        values = function(grid)
        values = np.where(np.isfinite(values), values, np.inf)
        best = np.argmin(values, axis=1)
        point = grid[np.arange(sets), best]
        step = (high - low) / (count - 1)
        low, high = np.maximum(point - 2 * step, box[:, 0]), np.minimum(point + 2 * step, box[:, 1])
    return point, values[np.arange(sets), best]


def _search(
    law: Law, sets: dict[str, np.ndarray], compute: float, cost: Cost, n: float | None, d: float | None,
    bits: float | None, at: Mapping[str, float],
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:  # fmt: skip
    """(S,) sizes, tokens and widths of least loss for S sets of parameters; NaN for a set that buys nothing, if others
    do."""
    if law.is_gap:
        raise UserError(f"law {law.name} describes the gap alone; a budget needs the whole loss")
    for name, given in (("--compute", compute), ("--size", n), ("--tokens", d), ("--bits", bits)):
        if given is not None and not 0 < given < INF:
            raise UserError(f"{name} {given:g}: must be a positive number")
    if n is not None and d is not None and bits is not None:
        raise UserError("size, tokens and bits are all fixed: nothing is left to choose")
    if not reads_width(law) and bits is None:
        bits = 16.0
    if n is not None and d is not None:
        if cost.bits:
            raise UserError("with size and tokens fixed the width is what the cost says; fix one of them only")
        bits = float(compute / cost.total(n, d, 16.0 - cost.offset) * 16 - cost.offset)
        if not bits > 0:
            raise UserError(f"--compute {compute:g} does not pay for --size {n:g} and --tokens {d:g} at any width")
    free_width, free_size = bits is None, n is None and d is None
    box = ([np.log(SIZES)] if free_size else []) + ([BITS] if free_width else [])

    def split(x: np.ndarray) -> tuple[Any, Any, Any]:
        width = x[..., -1] if free_width else np.full(x.shape[:-1], bits)
        if d is not None and n is None:
            size: Any = cost.size(compute, d, width)
        else:
            size = np.exp(x[..., 0]) if free_size else np.full(x.shape[:-1], n)
        tokens = np.full(x.shape[:-1], d) if d is not None else cost.tokens(compute, size, width)
        return size, tokens, width

    def loss(x: np.ndarray) -> np.ndarray:
        size, tokens, width = split(x)
        affordable = tokens >= 1.0
        columns = _columns(law, sets, width, at) | {"N": size, "D": np.where(affordable, tokens, 1.0)}
        return np.where(affordable, _evaluate(law, sets, columns), np.inf)

    count = _count(sets)
    if box:
        point, value = minimise(loss, np.array(box, float), count)
    else:
        point = np.zeros((count, 1))
        value = loss(point[:, None, :])[:, 0]
    bought = np.isfinite(value)
    if not bought.any():
        raise UserError(_why_nothing(law, sets, compute, cost, n, bits, at))
    sizes, tokens, widths = (np.where(bought, v, np.nan) for v in split(point))
    return sizes, tokens, widths


def _columns(law: Law, params: Mapping[str, Any], bits: Any, at: Mapping[str, float]) -> dict[str, Any]:
    """The law's columns at a width, which only says what training costs where the law reads none."""
    return columns_at(law, params, bits if reads_width(law) else None, at=at)


def _why_nothing(
    law: Law, sets: dict[str, np.ndarray], compute: float, cost: Cost, n: float | None, bits: float | None,
    at: Mapping[str, float],
) -> str:  # fmt: skip
    """Which input is at fault where no run is found: the width, serving, or the budget."""
    if bits is not None:
        first = {k: float(v[0, 0]) for k, v in sets.items()}
        there = {k: float(np.asarray(v)) for k, v in _columns(law, first, bits, at).items()} | {"N": 1e12, "D": 1e14}
        if not np.isfinite(law.predict(first, there)).all():
            return too_coarse(law, first, there)
    width = BITS[0] if bits is None else bits
    if n is not None and cost.inference_tokens and cost.total(n, 0.0, width) >= compute:
        return (f"--inference-tokens {cost.inference_tokens:g}: serving them at {n:g} parameters takes "
                f"{cost.total(n, 0.0, width):.3g} FLOPs, the budget is {compute:.3g}")  # fmt: skip
    return f"--compute {compute:g} buys no run for which law {law.name} is defined"


def _optimum(
    law: Law, params: Mapping[str, Any], n: float, d: float, p: float, cost: Cost, at: Mapping[str, float]
) -> Optimum:
    columns = {k: float(np.asarray(v).reshape(-1)[0]) for k, v in _columns(law, params, p, at).items()}
    loss = float(law.predict(params, columns | {"N": n, "D": d})[0])
    notes = [f"{name} is at the edge of the search ({value:.4g})"
             for name, value, edges in (("N", n, SIZES), ("P", p, BITS))
             if value <= edges[0] * 1.001 or value >= edges[1] * 0.999]  # fmt: skip
    return Optimum(n, d, p, loss, float(cost.total(n, d, p)), columns, notes=tuple(notes))


def _count(params: Mapping[str, Any]) -> int:
    return max((np.shape(v)[0] if np.ndim(v) else 1) for v in params.values())


def _evaluate(law: Law, params: Mapping[str, Any], columns: Mapping[str, Any]) -> np.ndarray:
    return law.evaluate([np.asarray(params[k], float) for k in law.names], law.complete(columns))
