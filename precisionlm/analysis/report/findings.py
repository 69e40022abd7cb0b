"""What a fit says, in plain sentences and as a table of constants: no number without how far to trust it."""

import numpy as np

from precisionlm.analysis.figures.effective import interval_of_share, shares
from precisionlm.analysis.fitting.analysis import Analysis
from precisionlm.analysis.laws.base import Parameter
from precisionlm.analysis.laws.precision import categories, label_of, unquantized, width_of


def findings(analysis: Analysis) -> list[str]:
    """Status and rows, the law's shape with intervals, what the coarsest format keeps, warnings."""
    result, table = analysis.result, analysis.result.table
    used = f"{result.rows_used} rows used, {result.rows_excluded} left out" if result.rows_excluded else (
        f"all {result.rows_used} rows used")  # fmt: skip
    lines = [
        f"{analysis.law.name}: {result.status.value} on {int(table.cluster.max()) + 1} runs ({used}); it explains the "
        f"losses to {100 * result.rms_log:.2g} % (rms), R² {result.r2:.3f}."
    ]
    shape = [p for p in analysis.law.parameters if p.name in result.free and (not p.linear or not p.log)]
    if shape:
        told = ", ".join(_constant(analysis, p) for p in shape[:12])
        lines.append(f"Constants with 95 % intervals: {told}{' and more' if len(shape) > 12 else ''}.")
    lines += [kept for kept in (coarsest(analysis),) if kept]
    lines += [f"Warning: {w}." for w in dict.fromkeys(analysis.warnings)]
    return lines


def constants(analysis: Analysis) -> list[dict[str, str]]:
    """A row a constant: value, interval, what a paper printed, meaning. Held, open and bounded ones say so."""
    law, result = analysis.law, analysis.result
    printed = law.published[0].as_dict() if law.published else {}
    bounded = {name for f in analysis.findings if f.kind == "at-bound" for name in f.constants}
    rows = []
    for p in law.parameters:
        free = p.name in result.free
        remarks = ["held"] if not free else ["at its bound"] if p.name in bounded else []
        remarks += ["not identified"] if free and not analysis.identified[p.name] else []
        rows.append({
            "name": p.name, "value": f"{result.params[p.name]:.5g}",
            "interval": "{:.4g} … {:.4g}".format(*analysis.intervals[p.name]) if free else "",
            "remark": ", ".join(remarks), "published": f"{printed[p.name]:g}" if p.name in printed else "",
            "meaning": p.meaning,
        })  # fmt: skip
    return rows


def coarsest(analysis: Analysis) -> str:
    """What the table's narrowest precision keeps of the parameters; '' for a law without such a share."""
    law, columns = analysis.law, analysis.result.table.columns
    if law.kept_share is None:
        return ""
    free = [s.name for s in law.symbols if s.kind == "bits"]
    width = np.asarray(width_of(law, columns), float)
    if (not free and not categories(law)) or not np.isfinite(width).any():
        return ""
    row = int(np.nanargmin(width))
    point = {k: float(v[row]) for k, v in columns.items()}
    alone = {k: v for k, v in unquantized(law).items() if k not in free}
    point |= alone
    share, (low, high) = shares(analysis, point)[0][0], interval_of_share(analysis, point)
    between = f" [{low:.2f}, {high:.2f}]" if np.isfinite(high) else ", which the data do not determine"
    return (f"In {label_of(law, point)} (the narrowest precision here) a model counts as {share:.2f} of its parameters"
            f"{between}.")  # fmt: skip


def _constant(analysis: Analysis, parameter: Parameter) -> str:
    name = parameter.name
    if not analysis.identified[name]:
        return f"{name} not identified"
    low, high = analysis.intervals[name]
    return f"{name} = {analysis.result.params[name]:.3g} [{low:.3g}, {high:.3g}]"
