"""What a precision leaves of the parameters, N_eff/N, as a fit says it: along the bits of an operand, and by recipe."""

from typing import Any

import numpy as np
from matplotlib.figure import Figure

from precisionlm.analysis.figures.draw import DASHES, bits_axis, canvas, engineering, legend
from precisionlm.analysis.figures.recipes import Recipes
from precisionlm.analysis.fitting.analysis import Analysis
from precisionlm.analysis.fitting.percentile import percentile_interval
from precisionlm.analysis.laws.precision import share_of, unquantized


def shares(analysis: Analysis, columns: dict[str, Any]) -> tuple[np.ndarray, np.ndarray | None]:
    """N_eff/N (m,) at columns (m,) and its 95 % band (2, m) over refits, None without any. A share where the law is
    undefined is NaN, and counts as 0 in the band."""
    law, size = analysis.law, max(np.size(v) for v in columns.values())
    columns = {k: np.broadcast_to(np.asarray(v, float), (size,)) for k, v in columns.items()}
    share = np.broadcast_to(share_of(law, analysis.result.params, columns), (size,))
    if analysis.bootstrap is None:
        return share, None
    samples = analysis.bootstrap.samples
    draws = share_of(law, {name: samples[:, i, None] for i, name in enumerate(law.names)}, columns)
    draws = np.broadcast_to(draws, (len(samples), size))
    return share, np.stack(percentile_interval(np.where(np.isnan(draws), 0.0, draws)))


def along_bits(analysis: Analysis) -> Figure | None:
    """The share that the bits of each operand keep, the others unquantized, with its band."""
    law, columns = analysis.law, analysis.result.table.columns
    operands = [s for s in law.symbols if s.kind == "bits"]
    if law.kept_share is None or not operands:
        return None
    figure, axes = canvas(1, width=4.2)
    ax, grid = axes[0, 0], np.linspace(1, 16, 200)
    full: dict[str, Any] = {k: float(v[0]) for k, v in columns.items()} | unquantized(law)
    for i, symbol in enumerate(operands):
        share, band = shares(analysis, {**full, symbol.name: grid})
        grey = str(0.25 * (i % 3))
        ax.plot(grid, share, color=grey, ls=DASHES[i % 7], label=symbol.meaning)
        if band is not None:
            ax.fill_between(grid, *band, color=grey, alpha=0.15, lw=0)
        for bits in np.unique(np.minimum(columns[symbol.name], 16.0)):
            ax.axvline(bits, color=grey, lw=0.6, ls=":", alpha=0.7)
    ax.set(xlabel="bits (dotted: widths in the table)", ylabel="$N_{eff}/N$", ylim=(0, 1.05), xlim=(1, 16.2))
    bits_axis(ax, grid)
    legend(figure, [ax])
    return figure


def interval_of_share(analysis: Analysis, point: dict[str, float]) -> tuple[float, float]:
    """95 % interval of N_eff/N at a point: over refits where there are some, else linearised; (0, inf) where it rests
    on constants that the data leave open."""
    law, columns = analysis.law, {k: np.array([v]) for k, v in point.items()}
    low, high = analysis.result.interval_of(lambda params: float(share_of(law, params, columns).reshape(-1)[0]))
    if not np.isfinite([low, high]).all():
        return 0.0, np.inf
    _, band = shares(analysis, columns)
    return (max(low, 0.0), high) if band is None else (float(band[0][0]), float(band[1][0]))


def by_recipe(analysis: Analysis, recipes: Recipes) -> Figure | None:
    """The share that every recipe in the table keeps, a bar each with its 95 % interval, the widest first.

    Where it depends on N and D it is that of the commonest pair of the table. Hatched: the data do not determine it.
    """
    law, table = analysis.law, analysis.result.table
    if law.kept_share is None:
        return None
    labels = recipes.of(analysis)
    after = [s.name for s in law.symbols if s.kind == "ptq_bits"]
    cell = int(np.flatnonzero(table.cell == np.bincount(table.cell).argmax())[0])
    n, d = (float(table.columns[k][cell]) for k in ("N", "D"))
    first = {name: int(np.flatnonzero(labels == name)[0]) for name in recipes.order(labels)}
    points = {name: {k: float(v[row]) for k, v in table.columns.items()} | {"N": n, "D": d}
              for name, row in first.items() if not any(np.isfinite(table.columns[k][row]) for k in after)}  # fmt: skip
    if len(points) < 2:
        return None
    there = {k: np.array([point[k] for point in points.values()]) for k in table.columns}
    share = shares(analysis, there)[0]
    figure, axes = canvas(1, width=5.0, height=max(2.0, 0.19 * len(points) + 0.9))
    ax, right = axes[0, 0], 1.0
    for i, (name, point) in enumerate(points.items()):
        low, high = interval_of_share(analysis, point)
        value, known = float(np.nan_to_num(share[i])), np.isfinite(high)
        ax.barh(i, value, color=recipes.looks[name].colour, height=0.7, alpha=0.85, edgecolor="0.2", lw=0.4,
                hatch="" if known else "////")  # fmt: skip
        end = max(value, min(high, 2.0)) if known else value
        if known:
            ends = [[abs(value - low)], [abs(high - value)]]
            ax.errorbar(value, i, xerr=ends, fmt="none", ecolor="black", elinewidth=1, capsize=2)
        text = ("" if known else "not identified, ") + (f"{share[i]:.3f}" if np.isfinite(share[i]) else "undefined")
        ax.annotate(text, (end, i), textcoords="offset points", xytext=(4, 0), va="center", fontsize=7)
        right = max(right, end)
    ax.set_yticks(np.arange(len(points)), list(points), fontsize=8)
    ax.set(xlabel="$N_{eff}/N$", xlim=(0, right * 1.14), ylim=(len(points) - 0.4, -0.6))
    elsewhere = shares(analysis, there | {"N": np.array(2 * n), "D": np.array(3 * d)})
    if not np.allclose(share, elsewhere[0], equal_nan=True):
        ax.set_title(f"at N = {engineering(n)}, D = {engineering(d)} tokens")
    ax.axvline(1.0, color="0.5", lw=0.8, ls=":")
    return figure
