"""What stands beside a number that a fit advises: its interval, how far it is from the runs, what is not known."""

from collections.abc import Callable, Mapping

import numpy as np

from precisionlm.analysis.decisions.cost import Cost
from precisionlm.analysis.decisions.optimum import compute_optimal, optimum_interval
from precisionlm.analysis.fitting.analysis import Analysis
from precisionlm.analysis.fitting.findings import FEW_GROUPS, Status
from precisionlm.analysis.fitting.percentile import percentile_interval
from precisionlm.analysis.laws.precision import categories, reads_width, width_of

Between = tuple[float, float]
FAR = 3.0  # times beyond the largest or below the smallest that is called an extrapolation


def beyond_the_runs(analysis: Analysis, n: float, d: float, bits: float | None = None) -> list[str]:
    """Where size, tokens, tokens per parameter or bits lie outside of what was run, a sentence each."""
    columns = analysis.result.table.columns
    ratio = columns["D"] / columns["N"]
    told = [
        _outside(name, value, float(seen.min()), float(seen.max()))
        for name, value, seen in (("N", n, columns["N"]), ("D", d, columns["D"]), ("D/N", d / n, ratio))
    ]
    widths = np.asarray(width_of(analysis.law, columns), float)
    if bits is not None and not categories(analysis.law):
        low, high = float(np.nanmin(widths)), float(np.nanmax(widths))
        if not low - 0.5 <= bits <= high + 0.5:
            told.append(f"P = {bits:.3g} lies outside of the widths that were run, {low:g} to {high:g}")
    return [text for text in told if text]


def _outside(name: str, value: float, low: float, high: float) -> str:
    if value > FAR * high:
        return f"{name} = {value:.3g} is {value / high:.3g} times the largest in the table: an extrapolation"
    if value < low / FAR:
        return f"{name} = {value:.3g} is {low / value:.3g} times below the smallest in the table: an extrapolation"
    return ""


def of_the_fit(analysis: Analysis) -> list[str]:
    """The status of a fit that did not simply converge, and everything that it says is doubtful."""
    status, told = analysis.result.status.value, "; ".join(analysis.result.messages)
    return [f"the fit is {status}: {told}"] if status != "converged" else [told] if told else []


def positive_interval(analysis: Analysis, value: Callable[[Mapping[str, float]], float]) -> Between:
    """95 % interval of a positive number derived from the constants: over refits, or linearised in its logarithm; (0,
    inf) where it rests on constants that the data leave open."""
    linear = _linearised(analysis, value)
    if not analysis.bootstrap or np.isinf(linear[1]):
        return linear
    names = analysis.law.names
    drawn = percentile_interval([value(dict(zip(names, s, strict=True))) for s in analysis.bootstrap.samples])
    return _told_by_both(analysis, linear, (float(drawn[0]), float(drawn[1])))


def optimum_intervals(
    analysis: Analysis, compute: float, cost: Cost = Cost(), n: float | None = None, d: float | None = None,
    bits: float | None = None, at: Mapping[str, float] | None = None,
) -> dict[str, Between]:  # fmt: skip
    """95 % intervals of N, D and P of least loss, those that are free, as `positive_interval`."""
    law = analysis.law

    def best(name: str) -> Callable[[Mapping[str, float]], float]:
        return lambda params: float(getattr(compute_optimal(law, params, compute, cost, n, d, bits, at), name))

    free = [name for name, kept in (("N", n), ("D", d)) if kept is None]
    free += ["P"] if bits is None and reads_width(law) else []
    linear = {name: _linearised(analysis, best(name)) for name in free}
    if not analysis.bootstrap or np.isinf([high for _, high in linear.values()]).any():
        return linear
    drawn = optimum_interval(law, analysis.bootstrap.samples, compute, cost, n, d, bits, at)
    return {name: _told_by_both(analysis, linear[name], drawn[name]) for name in free}


def _linearised(analysis: Analysis, value: Callable[[Mapping[str, float]], float]) -> Between:
    low, high = analysis.result.interval_of(value)
    centre = (low + high) / 2
    if not np.isfinite([low, high]).all() or (high - low) / 2 > np.log(np.finfo(float).max) * centre:
        return 0.0, np.inf
    factor = float(np.exp((high - low) / 2 / centre))
    return centre / factor, centre * factor


def _told_by_both(analysis: Analysis, linear: Between, drawn: Between) -> Between:
    """Refits of few groups, or of constants that the data leave open, say too little alone: then the wider ends."""
    if any(finding.kind in (FEW_GROUPS, Status.NOT_IDENTIFIED.value) for finding in analysis.findings):
        return min(linear[0], drawn[0]), max(linear[1], drawn[1])
    return drawn


def left_open(between: Mapping[str, Between]) -> list[str]:
    """Which of these numbers the data do not determine, in one sentence."""
    lost = [name for name, (_, high) in between.items() if np.isinf(high)]
    return [f"the data do not determine {', '.join(lost)}: any value is compatible with them"] if lost else []
