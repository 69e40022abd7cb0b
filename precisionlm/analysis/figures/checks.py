"""How far a fit may be trusted, drawn: residuals, correlations of constants, predictions of runs left out."""

from collections.abc import Sequence

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from precisionlm.analysis.figures.draw import MARKERS, bins, canvas, contain, legend, log_axis, points, styled
from precisionlm.analysis.figures.recipes import Recipes, plain
from precisionlm.analysis.fitting.analysis import Analysis
from precisionlm.analysis.fitting.comparison import LawScore
from precisionlm.analysis.fitting.held_out import Split
from precisionlm.analysis.laws.precision import width_of

WIDTHS = ("w_bits", "a_bits", "kv_bits")


def residuals(analysis: Analysis, recipes: Recipes) -> Figure:
    """Observed against predicted, and log residuals against mean width, N and D with their means."""
    result, labels = analysis.result, recipes.of(analysis)
    panels = {"mean bits of the operands in training": widths(analysis), "parameters N": result.table.columns.get("N"),
              "training tokens D": result.table.columns.get("D")}  # fmt: skip
    kept = {name: x for name, x in panels.items() if x is not None and np.ptp(x[np.isfinite(x)]) > 0}
    figure, axes = canvas(1 + len(kept), width=2.9, height=3.0)
    unit = "loss above the unquantized run" if analysis.law.is_gap else "loss"
    first = axes[0, 0]
    for name in recipes.order(labels):
        here, look = labels == name, recipes.looks[name]
        points(first, result.predicted[here], result.table.observed[here], look.points(), name)
        for ax, x in zip(axes[0, 1:], kept.values(), strict=True):
            points(ax, x[here], 100 * result.residuals[here], look.points())
    _same(first, np.concatenate([result.predicted, result.table.observed]), analysis.law.is_gap)
    first.set(xlabel=f"predicted {unit} (nats/token)", ylabel=f"observed {unit} (nats/token)")
    for ax, (name, x) in zip(axes[0, 1:], kept.items(), strict=True):
        ax.axhline(0, color="0.5", lw=1)
        _means(ax, x, 100 * result.residuals)
        ax.set(xlabel=name, ylabel="log predicted/observed (%)")
        if name.startswith("mean bits"):
            contain(ax, x, "x")
        else:
            log_axis(ax)
    legend(figure, axes[0])
    return figure


def widths(analysis: Analysis) -> np.ndarray:
    """(n,) mean bits of the operands in training: of the table's columns, else as the law reads them."""
    frame = analysis.result.table.frame
    known = [c for c in WIDTHS if c in frame.columns]
    if known:
        bits = frame[known].apply(pd.to_numeric, errors="coerce").to_numpy(float)
        return np.nanmean(np.where(np.isnan(bits).all(1, keepdims=True), 16.0, np.minimum(bits, 16.0)), axis=1)
    return np.broadcast_to(np.asarray(width_of(analysis.law, analysis.result.table.columns), float), len(frame))


def correlations(analysis: Analysis) -> Figure | None:
    """Correlation of every two fitted constants: near ±1 the data hold one combination of them only."""
    names, matrix = list(analysis.result.free), analysis.result.correlation
    if len(names) < 2 or len(names) > 40:
        return None
    names = [plain(name) for name in names]  # some have levels of a table's column in them
    side = max(3.0, 0.32 * len(names)) + 0.075 * max(map(len, names))
    figure, axes = canvas(1, width=side + 0.9, height=side)
    ax = axes[0, 0]
    image = ax.imshow(matrix, cmap="RdBu_r", vmin=-1, vmax=1, aspect="auto")
    ax.grid(False)
    ax.set_xticks(range(len(names)), names, rotation=90, fontsize=7)
    ax.set_yticks(range(len(names)), names, fontsize=7)
    size = 6 if len(names) <= 20 else 4
    for (i, j), value in np.ndenumerate(matrix):
        if i != j:
            ax.text(j, i, f"{value:.2f}".replace("0.", ".", 1), ha="center", va="center", fontsize=size,
                    color="white" if abs(value) > 0.6 else "black")  # fmt: skip
    figure.colorbar(image, ax=ax, label="correlation", shrink=0.8)
    return figure


@styled
def held_out(score: LawScore, splits: Sequence[Split]) -> Figure | None:
    """Observed against predicted for rows that the fit had not seen, a panel a split, a colour and marker a fold."""
    if score.fit is None:
        return None
    observed, law = score.fit.table.observed, score.fit.law
    figure, axes = canvas(len(splits), width=3.1)
    for ax, split in zip(axes[0], splits, strict=True):
        predicted = observed * np.exp(score.residuals[split.name])
        known = np.isfinite(predicted)
        for i, fold in enumerate(split.masks):
            colour = matplotlib.colormaps["plasma"](0.9 * i / max(len(split.masks) - 1, 1))
            style = {"color": colour, "marker": MARKERS[i % 11], "ls": "", "ms": 4, "mec": "white", "mew": 0.3}
            label = f"fold {i + 1}" if len(split.masks) > 1 else ""
            points(ax, predicted[fold & known], observed[fold & known], style, label)
        _same(ax, np.concatenate([predicted[known], observed[known]]), law.is_gap)
        errors, lost = score.held_out[split.name], split.rows - int(known.sum())
        ax.set(xlabel="predicted without them (nats/token)", ylabel="observed (nats/token)")
        errors_told = f"rms {100 * errors.rms:.2g} %, median {errors.median:.2%}"
        ax.set_title(f"{split.name}: {split.rows} rows\n" + (f"{lost} undefined" if lost else errors_told))
    legend(figure, axes[0])
    return figure


def _same(ax: Axes, values: np.ndarray, log: bool) -> None:
    """Equal ranges on both axes and the line on which prediction and observation agree."""
    if log:
        ax.set(xscale="log", yscale="log")
    for axis in ("x", "y"):
        contain(ax, values, axis)
    ends = ax.get_xlim()
    ax.plot(ends, ends, color="0.5", lw=1, zorder=0.5)
    ax.set_xlim(*ends)
    ax.set_ylim(*ends)


def _means(ax: Axes, x: np.ndarray, y: np.ndarray) -> None:
    """Mean and its standard error in at most eight groups along x: what the law leaves there on average."""
    known = np.isfinite(x) & (x > 0)
    for _, inside in bins(x[known], 8):
        group = y[known][inside]
        error = group.std(ddof=1) / np.sqrt(len(group)) if len(group) > 1 else 0.0
        ax.errorbar(float(np.median(x[known][inside])), group.mean(), error, fmt="_", color="black", ms=12, mew=1.6,
                    capsize=3, elinewidth=1.0, zorder=5)  # fmt: skip
