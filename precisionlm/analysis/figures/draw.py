"""Figures of a fit, drawn from its data: points, the law's line, the bootstrap's band. SVG and PNG, no pyplot state."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from precisionlm.analysis.fitting.analyze import Analysis
from precisionlm.analysis.laws.base import INF
from precisionlm.analysis.table.derive import gaps
from precisionlm.errors import UserError

# Okabe & Ito 2008: told apart under every common colour blindness; markers repeat the distinction.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#999933")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")
STYLE: Any = {
    "font.size": 9, "axes.titlesize": 9, "axes.grid": True, "grid.alpha": 0.3, "axes.spines.top": False,
    "axes.spines.right": False, "svg.fonttype": "path", "svg.hashsalt": "precisionlm",
}  # fmt: skip


def save(figure: Figure, folder: Path, name: str) -> tuple[Path, Path]:
    """Write `name`.svg and `name`.png (150 dpi) into `folder`; returns both paths."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = folder / f"{name}.svg", folder / f"{name}.png"
    with matplotlib.rc_context(STYLE):
        figure.savefig(paths[0], metadata={"Date": None})
        figure.savefig(paths[1], dpi=150)
    return paths


def canvas(
    columns: int = 1, rows: int = 1, width: float = 3.4, height: float = 3.0, **shared: Any
) -> tuple[Figure, np.ndarray]:
    """A figure with rows x columns axes (always a 2-D array) and room on the right for one legend."""
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(width * columns + 1.6, height * rows), layout="constrained")
        return figure, np.asarray(figure.subplots(rows, columns, squeeze=False, **shared))


def legend(figure: Figure, axes: Sequence[Axes], title: str = "") -> None:
    """One legend for all axes, outside of them."""
    found: dict[str, Any] = {}
    for ax in axes:
        for handle, label in zip(*ax.get_legend_handles_labels(), strict=True):
            found.setdefault(label, handle)
    if found:
        figure.legend(found.values(), found.keys(), loc="outside right upper", title=title, frameon=False, fontsize=8)


def log_axis(ax: Axes) -> None:
    """A logarithmic x axis labelled 1, 2, 5 in k, M, B, T; few enough labels not to run into each other."""
    ax.set_xscale("log")
    low, high = ax.get_xlim()
    decades = np.log10(high / low)
    ax.xaxis.set_major_locator(
        LogLocator(subs=(1.0, 2.0, 5.0) if decades < 1.6 else (1.0,) if decades > 2.5 else (1.0, 3.0))
    )
    ax.xaxis.set_major_formatter(FuncFormatter(lambda x, _: engineering(x)))
    ax.xaxis.set_minor_formatter(NullFormatter())


def engineering(value: float) -> str:
    """30000000 -> 30M."""
    if value >= 1e15:
        return f"{value:.0e}".replace("e+", "e")
    for size, letter in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k")):
        if value >= size:
            return f"{value / size:.3g}{letter}"
    return f"{value:.3g}"


def loss_vs_tokens(analysis: Analysis) -> Figure | None:
    """Loss against training tokens, a panel a model size, a colour a training precision."""
    table = analysis.result.table
    if "N" not in table.columns or "D" not in table.columns or analysis.law.is_gap:
        return None
    trained = ~np.isfinite(table.columns.get("P_post", np.full(len(table), INF)))
    if not trained.any():
        return None
    labels = precision_labels(analysis)
    kinds = sorted(set(labels[trained]), key=lambda k: -float(np.mean(_bits(analysis)[trained & (labels == k)])))[:8]
    sizes = _spread(np.unique(table.columns["N"][trained]), 4)
    figure, axes = canvas(len(sizes), sharey=True)
    for ax, size in zip(axes[0], sizes, strict=True):
        for i, kind in enumerate(kinds):
            rows = trained & (labels == kind) & (table.columns["N"] == size)
            if not rows.any():
                continue
            colour = COLOURS[i % 8]
            tokens = table.columns["D"][rows]
            ax.plot(tokens, table.observed[rows], MARKERS[i % 8], color=colour, label=kind, ms=5)
            grid = np.geomspace(tokens.min() * 0.7, tokens.max() * 1.4, 60)
            first = {k: v[rows][0] for k, v in table.columns.items()}
            _line(ax, analysis, grid, first | {"D": grid}, colour)
        ax.set(title=f"N = {engineering(size)}", xlabel="training tokens D")
        log_axis(ax)
    axes[0, 0].set_ylabel("validation loss (nats/token)")
    legend(figure, axes[0], "training precision")
    return figure


def loss_vs_bits(analysis: Analysis) -> Figure | None:
    """Loss against the weights' bits in training, a panel a token budget, a colour a model size."""
    table = analysis.result.table
    if "P_w" not in table.columns or len(np.unique(table.columns["P_w"])) < 2 or analysis.law.is_gap:
        return None
    trained = ~np.isfinite(table.columns.get("P_post", np.full(len(table), INF)))
    low = trained & (table.columns["P_w"] < 16)
    if not low.any():
        return None
    budgets = _spread(np.unique(table.columns["D"][trained]), 4)
    sizes = np.unique(table.columns["N"][trained])[:8]
    others = {k: v[low] for k, v in table.columns.items() if k in ("P_a", "P_kv")}
    usual = {k: np.unique(v)[np.argmax(np.unique(v, return_counts=True)[1])] for k, v in others.items()}
    figure, axes = canvas(len(budgets), sharey=True)
    grid = np.linspace(max(table.columns["P_w"].min() - 0.5, 1.0), 16.0, 120)
    for ax, budget in zip(axes[0], budgets, strict=True):
        for i, size in enumerate(sizes):
            here = trained & (table.columns["N"] == size) & (table.columns["D"] == budget)
            if not here.any():
                continue
            for k, v in usual.items():
                here &= (table.columns[k] == v) | (table.columns["P_w"] >= 16)
            ax.plot(table.columns["P_w"][here], table.observed[here], MARKERS[i % 8], color=COLOURS[i % 8], ms=5,
                    label=f"N = {engineering(size)}")  # fmt: skip
            _line(ax, analysis, grid, {"N": size, "D": budget, "P_w": grid, "P_post": INF, **usual}, COLOURS[i % 8])
        ax.set(title=f"D = {engineering(budget)} tokens", xlabel="weight bits in training $P_w$")
        ax.set_xticks([x for x in (2, 3, 4, 6, 8, 12, 16) if x >= grid[0]])
    top = float(table.observed[trained].max()) + 0.4 * float(np.ptp(table.observed[trained]))
    axes[0, 0].set_ylim(top=top)
    axes[0, 0].set_ylabel("validation loss (nats/token)")
    fixed = ", ".join(f"{k} = {v:g}" for k, v in usual.items())
    legend(figure, axes[0], f"lines: {fixed}" if fixed else "")
    return figure


def ptq_gap(analysis: Analysis) -> Figure | None:
    """Loss added by post-training quantization against tokens per parameter, a panel a width, a colour a size."""
    table = analysis.result.table
    post = table.columns.get("P_post")
    if post is None or not np.isfinite(post).any():
        return None
    gap = observed_gaps(analysis)
    widths = _spread(np.unique(post[np.isfinite(post)]), 4)
    sizes = np.unique(table.columns["N"][np.isfinite(post)])[:8]
    figure, axes = canvas(len(widths), width=2.8, sharey=True)
    for ax, bits in zip(axes[0], widths, strict=True):
        for i, size in enumerate(sizes):
            rows = (post == bits) & (table.columns["N"] == size)
            if not rows.any():
                continue
            shown = rows & np.isfinite(gap) & (gap > 0)
            ratio = table.columns["D"] / size
            ax.plot(ratio[shown], gap[shown], MARKERS[i], color=COLOURS[i], ms=5, label=f"N = {engineering(size)}")
            grid = np.geomspace(ratio[rows].min() * 0.7, ratio[rows].max() * 1.4, 40)
            columns = {k: v[rows][0] for k, v in table.columns.items()} | {"D": grid * size}
            ax.plot(grid, predicted_gap(analysis, columns), color=COLOURS[i], lw=1.2)
            if analysis.bootstrap:
                after = analysis.bootstrap.predictions(columns)
                before = 0.0 if analysis.law.is_gap else analysis.bootstrap.predictions(columns | {"P_post": INF})
                band = np.nanpercentile(after - before, (2.5, 97.5), axis=0)
                ax.fill_between(grid, *band, color=COLOURS[i], alpha=0.15, lw=0)
        here = post == bits
        below = int(np.sum(here & np.isfinite(gap) & (gap <= 0)))
        ax.set(yscale="log", xlabel="tokens per parameter D/N")
        ax.set_title(f"{bits:g} bits" + (f" ({below} points ≤ 0 not shown)" if below else ""), fontsize=9)
        log_axis(ax)
    positive = gap[np.isfinite(gap) & (gap > 0)]
    if len(positive):
        axes[0, 0].set_ylim(positive.min() / 3, positive.max() * 3)
    axes[0, 0].set_ylabel("loss added by quantization (nats/token)")
    legend(figure, axes[0])
    return figure


def residuals(analysis: Analysis) -> Figure:
    """Predicted against observed, and log residuals against the prediction."""
    result = analysis.result
    labels = precision_labels(analysis)
    kinds = sorted(set(labels))
    kinds = kinds if len(kinds) <= 8 else []
    figure, axes = canvas(2)
    left, right = axes[0]
    for i, kind in enumerate(kinds or [""]):
        rows = labels == kind if kinds else np.ones(len(labels), bool)
        style = {"color": COLOURS[i], "marker": MARKERS[i], "ls": "", "ms": 4, "alpha": 0.8, "label": kind or None}
        left.plot(result.predicted[rows], result.table.observed[rows], **style)
        right.plot(result.predicted[rows], 100 * result.residuals[rows], **style)
    ends = [float(f([*result.predicted, *result.table.observed])) for f in (min, max)]
    left.plot(ends, ends, color="0.5", lw=1)
    right.axhline(0, color="0.5", lw=1)
    unit = "loss gap" if analysis.law.is_gap else "loss"
    left.set(xlabel=f"predicted {unit} (nats/token)", ylabel=f"observed {unit} (nats/token)")
    right.set(xlabel=f"predicted {unit} (nats/token)", ylabel="log predicted/observed (%)")
    if analysis.law.is_gap:
        left.set(xscale="log", yscale="log")
        right.set(xscale="log")
    legend(figure, [left])
    return figure


def effective_parameters(analysis: Analysis) -> Figure | None:
    """Share of the parameters that each operand's bits keep: f(P) of Kumar's law with its band."""
    operands = [x for x in ("w", "a", "kv") if f"gamma_{x}" in analysis.law.names]
    if not operands:
        return None
    figure, axes = canvas(1, width=4.2)
    ax = axes[0, 0]
    grid = np.linspace(1, 16, 200)
    names = {"w": "weights", "a": "activations", "kv": "keys and values"}
    for i, x in enumerate(operands):

        def share(gamma: Any, n: Any, s: Any = 1.0) -> Any:
            f = 1 - np.exp(-grid / gamma + n)
            return np.where(f > 0, np.abs(f) ** s, np.nan)

        p = analysis.result.params
        ax.plot(
            grid, share(p[f"gamma_{x}"], p.get(f"n_{x}", 0.0), p.get(f"s_{x}", 1.0)), color=COLOURS[i], label=names[x]
        )
        if analysis.bootstrap:
            column = {n: analysis.bootstrap.samples[:, j, None] for j, n in enumerate(analysis.law.names)}
            draws = 1 - np.exp(-grid / column[f"gamma_{x}"] + column.get(f"n_{x}", 0.0))
            draws = np.where(draws > 0, np.abs(draws) ** column.get(f"s_{x}", 1.0), 0.0)
            ax.fill_between(grid, *np.percentile(draws, (2.5, 97.5), axis=0), color=COLOURS[i], alpha=0.15, lw=0)
        for bits in np.unique(analysis.result.table.columns[f"P_{x}"]):
            ax.axvline(bits, color=COLOURS[i], lw=0.6, ls=":", alpha=0.7)
    ax.set(xlabel="bits in training (dotted: widths in the table)", ylabel="$N_{eff}/N$", ylim=(0, 1.05))
    legend(figure, [ax])
    return figure


def precision_labels(analysis: Analysis) -> np.ndarray:
    """(n,) a short text per row: its recipe and post-training width, or its bits."""
    table = analysis.result.table
    post = table.columns.get("P_post", np.full(len(table), INF))
    if "recipe" in table.frame.columns:
        base = [plain(str(r)) for r in table.frame["recipe"]]
    else:
        keys = [k for k in ("P_w", "P_a", "P_kv") if k in table.columns]
        base = ["".join(f"{k[2:].upper()}{table.columns[k][i]:g}" for k in keys) for i in range(len(table))]
    return np.array([f"{b} PTQ{p:g}" if np.isfinite(p) else b for b, p in zip(base, post, strict=True)])


def plain(text: str) -> str:
    """Text from a table as a label: no markup, nothing a font lacks, at most 24 characters."""
    shown = "".join(c if c.isascii() and c.isprintable() else "?" for c in text[:24])
    return shown.replace("$", r"\$").lstrip("_") or "?"


def observed_gaps(analysis: Analysis) -> np.ndarray:
    """(n,) observed loss minus that of the same run before quantization; NaN where it is not in the table."""
    table = analysis.result.table
    if analysis.law.is_gap:
        return table.observed
    return np.where(np.isfinite(table.columns["P_post"]), gaps(table.frame, table.names), np.nan)


def predicted_gap(analysis: Analysis, columns: dict[str, Any]) -> np.ndarray:
    """The law's loss at P_post minus its loss without post-training quantization."""
    predict = analysis.law.predict
    after = predict(analysis.result.params, columns)
    return after if analysis.law.is_gap else after - predict(analysis.result.params, columns | {"P_post": INF})


def of_fit(analysis: Analysis) -> dict[str, Figure]:
    """Every figure that this fit's law and rows allow, by name."""
    made = {
        "loss_vs_tokens": loss_vs_tokens(analysis),
        "loss_vs_bits": loss_vs_bits(analysis),
        "effective_parameters": effective_parameters(analysis),
        "ptq_gap": ptq_gap(analysis),
        "residuals": residuals(analysis),
    }
    return {name: figure for name, figure in made.items() if figure is not None}


def write_all(figures: dict[str, Figure], folder: Path) -> list[Path]:
    """Save each as SVG and PNG. Raises UserError if the folder cannot be written."""
    try:
        return [path for name, figure in figures.items() for path in save(figure, folder, name)]
    except OSError as problem:
        raise UserError(f"{folder}: cannot write figures ({problem.strerror})") from problem


def _line(ax: Axes, analysis: Analysis, x: np.ndarray, columns: dict[str, Any], colour: str) -> None:
    wanted = {s.name: columns[s.name] for s in analysis.law.symbols if s.name in columns}
    y = analysis.law.predict(analysis.result.params, wanted)
    ax.plot(x, np.where(np.isfinite(y), y, np.nan), color=colour, lw=1.2)
    if analysis.bootstrap:
        low, high = analysis.bootstrap.band(wanted)
        shown = np.isfinite(low) & np.isfinite(high)
        ax.fill_between(x, low, high, where=shown, color=colour, alpha=0.15, lw=0)


def _bits(analysis: Analysis) -> np.ndarray:
    columns = analysis.result.table.columns
    keys = [k for k in ("P_w", "P_a", "P_kv") if k in columns]
    return np.sum([columns[k] for k in keys], axis=0) if keys else np.full(len(analysis.result.table), 16.0)


def _spread(values: np.ndarray, most: int) -> np.ndarray:
    """At most `most` of the values, first and last among them."""
    return values[np.unique(np.linspace(0, len(values) - 1, min(most, len(values))).round().astype(int))]
