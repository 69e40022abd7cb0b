"""A fit's law through its runs: loss against tokens, size and bits, and what quantization after training adds.

Colours, markers and dashes are those of the recipes; model sizes, where they are what differs, go from dark to light.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from precisionlm.analysis.figures.draw import (
    bins,
    bits_axis,
    canvas,
    contain,
    engineering,
    legend,
    log_axis,
    points,
    size_look,
    span,
    spread,
)
from precisionlm.analysis.figures.recipes import Recipes
from precisionlm.analysis.fitting.analysis import Analysis
from precisionlm.analysis.fitting.percentile import percentile_interval
from precisionlm.analysis.laws.base import INF, Symbol
from precisionlm.analysis.table.derive import gaps

TIED = "bits of all operands in training"
LOSS, GAP = "validation loss (nats/token)", "loss above the unquantized run (nats/token)"


def loss_vs_tokens(analysis: Analysis, recipes: Recipes) -> Figure | None:
    """Loss against training tokens, a panel a model size, a look a recipe; None where no size has two budgets."""
    columns = analysis.result.table.columns
    if not {"N", "D"} <= set(columns) or not _varied(columns["N"], columns["D"], _trained(analysis)):
        return None
    return _panels(analysis, recipes, "N", "D", lambda x, middle: {"N": middle, "D": x}, "N = {}", "training tokens D")


def loss_vs_size(analysis: Analysis, recipes: Recipes) -> Figure | None:
    """Loss against model size, a panel a number of tokens per parameter; None where none of those has two sizes."""
    columns = analysis.result.table.columns
    if not {"N", "D"} <= set(columns) or not _varied(columns["D"] / columns["N"], columns["N"], _trained(analysis)):
        return None
    return _panels(analysis, recipes, "D/N", "N", lambda x, middle: {"N": x, "D": middle * x}, "D/N = {}",
                   "non-embedding parameters N")  # fmt: skip


def loss_vs_bits(analysis: Analysis) -> Figure | None:
    """Loss against the bits of each operand in training, a row an operand, a panel a token budget, a look a size."""
    table, law = analysis.result.table, analysis.law
    trained = _trained(analysis)
    swept = [s for s in law.symbols if s.kind == "bits" and len(np.unique(table.columns[s.name][trained])) > 2]
    if law.is_gap or not swept:
        return None
    chosen = {s: _others(analysis, s, trained) for s in swept}
    # Operands that only go along with one another give the same picture each: one of them stands for all.
    alike = [s for s in swept if not any(width is None for width in chosen[s][1].values())] or swept[:1]
    budgets = bins(table.columns["D"][trained], 5)
    sizes = bins(table.columns["N"], 8)
    figure, axes = canvas(len(budgets), len(alike), width=2.3, height=2.5, sharey="row")
    for row, symbol in zip(axes, alike, strict=True):
        alone, others, fixed = chosen[symbol]
        for ax, (budget, inside) in zip(row, budgets, strict=True):
            here = alone.copy()
            here[trained] &= inside
            _bits_panel(ax, analysis, symbol, here, others, budget, sizes)
            ax.set_xlabel(f"{_letter(symbol)} (bits)" if fixed != TIED else TIED)
            bits_axis(ax, np.minimum(table.columns[symbol.name], 16.0))
            ax.set_title(f"D = {span(table.columns['D'][trained][inside])} tokens")
        contain(row[0], table.observed[alone])
        row[0].set_ylabel(f"{LOSS}\n{fixed}" if fixed and fixed != TIED else LOSS)
    legend(figure, axes.ravel().tolist(), "model size N")
    return figure


def _bits_panel(
    ax: Axes, analysis: Analysis, symbol: Symbol, rows: np.ndarray, others: dict[str, float | None], budget: float,
    sizes: list[tuple[float, np.ndarray]],
) -> None:  # fmt: skip
    """Runs (mask) and the law along one operand's bits; others: operand -> its width, None to go along."""
    columns, observed = analysis.result.table.columns, analysis.result.table.observed
    x = np.minimum(columns[symbol.name], 16.0)
    for i, (size, inside) in enumerate(sizes):
        here, look = rows & inside, size_look(i, len(sizes))
        if not here.any():
            continue
        points(ax, x[here], observed[here], look.points(), engineering(size))
        grid = np.linspace(max(x[rows].min() - 0.5, 1.0), 16.0, 120)
        first = {k: v[here][0] for k, v in columns.items()}
        along = {k: grid if width is None else width for k, width in others.items()}
        law_line(ax, analysis, grid, first | along | {"N": size, "D": budget, symbol.name: grid}, look.line())


def _others(
    analysis: Analysis, symbol: Symbol, trained: np.ndarray
) -> tuple[np.ndarray, dict[str, float | None], str]:  # fmt: skip
    """Rows (mask) along which an operand's bits vary most while the others stand or go along with it; where those
    stand (None: along); that in words."""
    columns = analysis.result.table.columns
    others = [s for s in analysis.law.symbols if s.kind == "bits" and s is not symbol]
    names = [s.name for s in others]
    x = columns[symbol.name]
    tied = trained & np.all([columns[k] == x for k in names] or [trained], axis=0)
    found = [(tied, dict[str, float | None](dict.fromkeys(names)), TIED if names else "")]
    for combination in np.unique(np.stack([columns[k][trained] for k in names], 1), axis=0) if names else ():
        rows = trained & np.all([columns[k] == v for k, v in zip(names, combination, strict=True)], axis=0)
        fixed = ", ".join(f"{_letter(s)} = {min(v, 16):g}" for s, v in zip(others, combination, strict=True))
        found.append((rows, dict(zip(names, combination.tolist(), strict=True)), fixed))
    return max(found, key=lambda f: (len(np.unique(x[f[0]])), int(f[0].sum())))


def _letter(symbol: Symbol) -> str:
    """P_kv with its index set low."""
    letter, _, index = symbol.name.partition("_")
    return f"${letter}_{{{index}}}$" if index else letter


def ptq_gap(analysis: Analysis) -> Figure | None:
    """Loss added by quantizing weights after training against tokens per parameter, a panel a width, a look a size."""
    table = analysis.result.table
    symbol = next((s.name for s in analysis.law.symbols if s.kind == "ptq_bits"), None)
    if symbol is None or not np.isfinite(table.columns[symbol]).any():
        return None
    post, gap = table.columns[symbol], observed_gaps(analysis, symbol)
    widths = spread(np.unique(post[np.isfinite(post)]), 4)
    sizes = bins(table.columns["N"], 8)
    figure, axes = canvas(len(widths), width=2.8, sharey=True)
    for ax, bits in zip(axes[0], widths, strict=True):
        for i, (size, inside) in enumerate(sizes):
            rows = (post == bits) & inside
            if not rows.any():
                continue
            style, shown = size_look(i, len(sizes)), rows & np.isfinite(gap) & (gap > 0)
            ratio = table.columns["D"] / table.columns["N"]
            points(ax, ratio[shown], gap[shown], style.points(), engineering(size))
            grid = np.geomspace(ratio[rows].min() * 0.7, ratio[rows].max() * 1.4, 40)
            columns = {k: v[rows][0] for k, v in table.columns.items()} | {"N": size, "D": grid * size}
            _gap_line(ax, analysis, grid, columns, symbol, style.line())
        below = int(np.sum((post == bits) & (gap <= 0)))
        ax.set(yscale="log", xlabel="tokens per parameter D/N")
        ax.set_title(f"{bits:g} bits" + (f" ({below} points ≤ 0 not shown)" if below else ""), fontsize=9)
        log_axis(ax)
    contain(axes[0, 0], gap[np.isfinite(post)], share=0.15)
    axes[0, 0].set_ylabel("loss added by quantization (nats/token)")
    legend(figure, axes[0], "model size N")
    return figure


def observed_gaps(analysis: Analysis, symbol: str) -> np.ndarray:
    """(n,) observed loss above that before quantization, of rows quantized after training; NaN for others.

    symbol: the law's width after training."""
    table = analysis.result.table
    if analysis.law.is_gap:
        return table.observed
    return np.where(np.isfinite(table.columns[symbol]), gaps(table.frame, table.names), np.nan)


def law_line(ax: Axes, analysis: Analysis, x: np.ndarray, columns: dict[str, Any], style: dict[str, Any]) -> None:
    """The law along x with its 95 % band; gaps where it is undefined."""
    wanted = {s.name: columns[s.name] for s in analysis.law.symbols if s.name in columns}
    y = analysis.law.predict(analysis.result.params, wanted)
    ax.plot(x, np.where(np.isfinite(y), y, np.nan), **style)
    if analysis.bootstrap:
        low, high = analysis.bootstrap.band(wanted)
        shown = np.isfinite(low) & np.isfinite(high)
        ax.fill_between(x, low, high, where=shown, color=style["color"], alpha=0.15, lw=0)


def _gap_line(
    ax: Axes, analysis: Analysis, x: np.ndarray, columns: dict[str, Any], symbol: str, style: dict[str, Any]
) -> None:
    law, exact = analysis.law, columns | {symbol: INF}
    after = law.predict(analysis.result.params, columns)
    ax.plot(x, after if law.is_gap else after - law.predict(analysis.result.params, exact), **style)
    if analysis.bootstrap:
        before = 0.0 if law.is_gap else analysis.bootstrap.predictions(exact)
        band = percentile_interval(analysis.bootstrap.predictions(columns) - before)
        ax.fill_between(x, *band, color=style["color"], alpha=0.15, lw=0)


def _panels(
    analysis: Analysis, recipes: Recipes, panel: str, along: str, point: Callable[[np.ndarray, float], dict[str, Any]],
    title: str, label: str,
) -> Figure | None:  # fmt: skip
    """Trained runs and the law's line of every recipe along a column, in panels of another."""
    table = analysis.result.table
    rows = np.flatnonzero(_trained(analysis))
    columns = {k: v[rows] for k, v in table.columns.items()}
    groups = columns["D"] / columns["N"] if panel == "D/N" else columns[panel]
    labels, observed, x = recipes.of(analysis)[rows], table.observed[rows], columns[along]
    panels = bins(groups, 6)
    names = recipes.order(labels)
    across = len(panels) if len(panels) <= 4 else 3
    down = -(-len(panels) // across)
    figure, axes = canvas(across, down, height=2.7 if len(names) <= 16 * down else 4.0, sharey=True)
    for ax in axes.ravel()[len(panels) :]:
        ax.set_axis_off()
    for name in names:
        look = recipes.looks[name]
        axes[0, 0].plot(
            [], [], **look.line() | look.points() | {"ls": look.dash if len(columns) > 2 else ""}, label=name
        )
    for ax, (middle, inside) in zip(axes.ravel(), panels, strict=False):
        wider = 1.25 if x[inside].max() > 1.5 * x[inside].min() else 2.0
        grid = np.geomspace(x[inside].min() / wider, x[inside].max() * wider, 60)
        drawn = set()
        for name in recipes.order(labels[inside]):
            here, look = inside & (labels == name), recipes.looks[name]
            points(ax, x[here], observed[here], look.points())
            fixed = {k: v[here][0] for k, v in columns.items() if k not in ("N", "D")}
            if (key := tuple(fixed.items())) not in drawn:  # a law that does not tell recipes apart has one line
                style = look.line() if fixed else {"color": "0.35", "ls": "-", "lw": 1.2}
                law_line(ax, analysis, grid, fixed | point(grid, middle), style)
            drawn.add(key)
        named = span(groups[inside])
        ax.set_title(title.format(named + (f", line at {engineering(middle)}" if " to " in named else "")))
        ax.set_xlabel(label)
        log_axis(ax)
    contain(axes[0, 0], observed)
    for row in axes:
        row[0].set_ylabel(GAP if analysis.law.is_gap else LOSS)
    legend(figure, axes[0], "points: runs; lines: the law")
    return figure


def _trained(analysis: Analysis) -> np.ndarray:
    """(n,) rows that were not quantized after training; all rows of a law of what that adds."""
    columns = analysis.result.table.columns
    post = [columns[s.name] for s in analysis.law.symbols if s.kind == "ptq_bits"]
    kept = ~np.isfinite(post[0]) if post else np.ones(len(analysis.result.table), bool)
    return kept if kept.any() else ~kept


def _varied(groups: np.ndarray, values: np.ndarray, rows: np.ndarray) -> bool:
    """True if rows of about one value of a column have two of the other."""
    return any(np.ptp(np.log(values[rows][inside])) > 0.05 for _, inside in bins(groups[rows]))
