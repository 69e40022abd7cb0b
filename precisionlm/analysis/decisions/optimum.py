"""Decisions: the best N, D and precision under a budget, critical data, equal-loss sets.

Everything is found numerically from the law itself. The printed corollaries of the papers are not used: some drop a
factor (Kumar et al. 2024 drop the 1/P of D = C/(NP)), and their optimum 7-8 bits holds only with the offsets n_x.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from precisionlm.analysis.decisions.cost import Cost
from precisionlm.analysis.laws.base import INF, Law
from precisionlm.errors import UserError

BITS = (1.0, 32.0)
SIZES = (1e3, 1e24)
TOKENS = (1e3, 1e30)


@dataclass(frozen=True)
class Optimum:
    """The cheapest way to a loss, or the lowest loss for a cost.

    N, D (counts), P (bits), loss (nats/token), compute (16-bit-equivalent FLOPs). columns: what the law reads there.
    intervals: name -> percentile 95 % interval over the bootstrap. notes: what to know about it.
    """

    N: float
    D: float
    P: float
    loss: float
    compute: float
    columns: dict[str, float]
    intervals: dict[str, tuple[float, float]] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


def precision_columns(law: Law, params: Mapping[str, Any], bits: Any, at: Mapping[str, float]) -> dict[str, Any]:
    """Columns of the law at `bits` everywhere: P_w = P_a = P_kv = bits, or the best split into exponent and mantissa.

    at: values of other symbols, which win over `bits`. Raises UserError if a symbol has no value.
    """
    columns: dict[str, Any] = {}
    symbols = {s.name: s for s in law.symbols}
    for name in ("P_w", "P_a", "P_kv"):
        if name in symbols:
            columns[name] = bits
    if "E" in symbols and "M" in symbols and "E" not in at:
        share = best_exponent_share(law, params)
        # never less than the half bit that survives without any exponent or mantissa bit
        width = np.maximum(np.asarray(bits, float), 1.0)
        columns["E"] = np.clip(share * width, 0.5, width - 0.5) - 0.5
        columns["M"] = width - 1.0 - columns["E"]
    for symbol in law.symbols:
        if symbol.name in at:
            columns[symbol.name] = at[symbol.name]
        elif symbol.name not in ("N", "D", *columns):
            if symbol.default is None:
                raise UserError(
                    f"law {law.name}: give a value of {symbol.name} ({symbol.meaning}), as in --at {symbol.name}=128"
                )
            columns[symbol.name] = symbol.default
    return columns


def best_exponent_share(law: Law, params: Mapping[str, Any]) -> Any:
    """Share s of P bits with E + ½ = s P at the lowest loss of a float law, found on the law itself.

    A scalar, or (S, 1) for S sets of parameters given as (S, 1) arrays.
    """
    reference = {"N": 1e9, "D": 1e11, "log2B": 7.0}

    def loss(share: np.ndarray) -> np.ndarray:
        columns = {"E": share[..., 0] * 8 - 0.5, "M": (1 - share[..., 0]) * 8 - 0.5, **reference}
        return _evaluate(law, params, columns)

    found = minimise(loss, np.array([[0.07, 0.93]]), _count(params))[0]
    return found if _count(params) > 1 else float(found[0, 0])


def has_precision(law: Law) -> bool:
    """True if the law reads the bits of training."""
    return bool({"P_w", "P_a", "P_kv", "E"} & {s.name for s in law.symbols})


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

    Raises UserError if the budget buys nothing, or if n, d and bits are all given.
    """
    sets = {k: np.atleast_1d(np.asarray(v, float))[:1, None] for k, v in params.items()}
    sizes, tokens, widths = _search(law, sets, compute, cost, n, d, bits, at or {})
    return _optimum(law, params, float(sizes[0]), float(tokens[0]), float(widths[0]), cost, at or {})


def optimum_interval(
    law: Law, samples: np.ndarray, compute: float, cost: Cost = Cost(), n: float | None = None, d: float | None = None,
    bits: float | None = None, at: Mapping[str, float] | None = None,
) -> dict[str, tuple[float, float]]:  # fmt: skip
    """Percentile 95 % intervals of N, D and P over refits: samples (R, p) in the law's order."""
    sets = {name: samples[:, i, None] for i, name in enumerate(law.names)}
    found = _search(law, sets, compute, cost, n, d, bits, at or {})
    return {name: (float(np.percentile(v, 2.5)), float(np.percentile(v, 97.5)))
            for name, v in zip(("N", "D", "P"), found, strict=True)}  # fmt: skip


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
    """(S,) sizes, tokens and widths of least loss for S sets of parameters."""
    if not compute > 0 or not np.isfinite(compute):
        raise UserError(f"--compute {compute:g}: must be a positive number of FLOPs")
    if n is not None and d is not None and bits is not None:
        raise UserError("size, tokens and bits are all fixed: nothing is left to choose")
    if not has_precision(law) and bits is None:
        bits = 16.0
    if n is not None and d is not None:
        if cost.bits:
            raise UserError("with size and tokens fixed the width is what the cost says; fix one of them only")
        bits = float(compute / (6 * n * d + 2 * n * cost.inference_tokens) * 16 - cost.offset)
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
        columns = precision_columns(law, sets, width, at) | {"N": size, "D": np.where(affordable, tokens, 1.0)}
        return np.where(affordable, _evaluate(law, sets, columns), np.inf)

    count = _count(sets)
    if box:
        point, value = minimise(loss, np.array(box, float), count)
    else:
        point = np.zeros((count, 1))
        value = loss(point[:, None, :])[:, 0]
    if not np.isfinite(value).all():
        raise UserError(f"--compute {compute:g} buys no run for which law {law.name} is defined")
    sizes, tokens, widths = split(point)
    return np.asarray(sizes), np.asarray(tokens), np.asarray(widths)


def _optimum(
    law: Law, params: Mapping[str, Any], n: float, d: float, p: float, cost: Cost, at: Mapping[str, float]
) -> Optimum:
    columns = {k: float(np.asarray(v).reshape(-1)[0]) for k, v in precision_columns(law, params, p, at).items()}
    loss = float(law.predict(params, columns | {"N": n, "D": d})[0])
    notes = [f"{name} is at the edge of the search ({value:.4g})"
             for name, value, edges in (("N", n, SIZES), ("P", p, BITS))
             if value <= edges[0] * 1.001 or value >= edges[1] * 0.999]  # fmt: skip
    return Optimum(n, d, p, loss, float(cost.total(n, d, p)), columns, notes=tuple(notes))


def with_intervals(optimum: Optimum, intervals: dict[str, tuple[float, float]], *notes: str) -> Optimum:
    """The same optimum with intervals and further notes."""
    return replace(optimum, intervals=intervals, notes=(*optimum.notes, *notes))


def _count(params: Mapping[str, Any]) -> int:
    return max((np.shape(v)[0] if np.ndim(v) else 1) for v in params.values())


def _evaluate(law: Law, params: Mapping[str, Any], columns: Mapping[str, Any]) -> np.ndarray:
    return law.evaluate([np.asarray(params[k], float) for k in law.names], law.complete(columns))
