"""Forms of a law fitted on the same rows, predicted against observed, side by side."""

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from precisionlm.analysis.figures.draw import COLOURS, canvas
from precisionlm.analysis.fitting.analyze import select
from precisionlm.analysis.fitting.fit import fit
from precisionlm.errors import UserError

STARTS = 64


def side_by_side(frame: pd.DataFrame, names: tuple[str, ...], where: str) -> Figure | None:
    """A panel a law, on the rows that all of them can use; None where they lack columns or share too few rows."""
    try:
        tables = [select(name, frame, None, where) for name in names]
    except UserError:
        return None
    common = set.intersection(*(set(t.rows.tolist()) for t in tables))
    if len(common) < 12 or int(tables[0].cell.max()) < 3:
        return None
    tables = [t.take(np.isin(t.rows, list(common))) for t in tables]
    figure, axes = canvas(len(names), width=3.2, sharex=True, sharey=True)
    for i, (ax, table) in enumerate(zip(axes[0], tables, strict=True)):
        result = fit(table, starts=STARTS)
        ends = [float(table.observed.min()), float(table.observed.max())]
        ax.plot(ends, ends, color="0.5", lw=1)
        ax.plot(table.observed, result.predicted, "o", color=COLOURS[i], ms=4, alpha=0.7)
        title = f"{table.law.name}: rms log residual {100 * result.rms_log:.2g} %\n({result.status.value})"
        ax.set(title=title, xlabel="observed loss (nats/token)")
    axes[0, 0].set_ylabel("predicted loss (nats/token)")
    return figure
