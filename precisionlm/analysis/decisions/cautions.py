"""What stands beside a number that a fit advises: how far it reaches beyond the runs, and what the fit does not know."""

import numpy as np

from precisionlm.analysis.fitting.analyze import Analysis
from precisionlm.analysis.laws.precision import categories, width_of

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
    """The status of a fit that did not simply converge, and why."""
    status = analysis.result.status.value
    return [f"the fit is {status}: {'; '.join(analysis.result.messages)}"] if status != "converged" else []
