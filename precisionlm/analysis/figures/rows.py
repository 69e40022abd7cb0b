"""Figures of the three papers that are drawn from a runs table alone: groups of runs side by side, no law in between.

Each function takes the frame as read and returns None where the table has not what it compares.
"""

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from precisionlm.analysis.figures.draw import COLOURS, MARKERS, canvas, engineering, legend, log_axis, size_look, styled
from precisionlm.analysis.figures.recipes import Recipes, recipes_of
from precisionlm.analysis.table.derive import gaps
from precisionlm.errors import UserError

TARGETS = {"w": "P2", "a": "P1", "dgrad_dy": "P3", "dgrad_w": "P4", "wgrad_dy": "P5", "wgrad_x": "P6"}
COARSE = ("channel", "tensor")


@styled
def draw(frame: pd.DataFrame, looks: Recipes | None = None) -> dict[str, Figure]:
    """Every one that the table's columns and rows allow, by name. looks: of the recipes in other figures of it."""
    if not {"N_params", "D_tokens", "val_loss"} <= set(frame.columns):
        return {}
    looks = recipes_of(frame) if looks is None else looks
    runs = trained(frame.assign(_recipe=looks.labels))
    made = {
        "compute_matched": compute_matched(runs),
        "exponent_mantissa": exponent_mantissa(runs),
        "target_sets": target_sets(runs),
        "scale_sharing": scale_sharing(runs),
        "integer_and_float": integer_and_float(runs),
        "recipes": recipes(runs, looks),
    }
    return {name: figure for name, figure in made.items() if figure is not None}


def trained(frame: pd.DataFrame) -> pd.DataFrame:
    """Finished rows at the precision trained at, with `_gap`: the loss above the unquantized run (NaN if unknown)."""
    keep = pd.to_numeric(frame["val_loss"], errors="coerce") > 0
    if "status" in frame.columns:
        keep &= frame["status"].astype(str) == "done"
    if "evaluation" in frame.columns:
        keep &= frame["evaluation"].astype(str) == "trained"
    if "ptq_bits" in frame.columns:
        keep &= pd.to_numeric(frame["ptq_bits"], errors="coerce").isna()
    runs = frame[keep]
    try:
        return runs.assign(_gap=gaps(runs, {}))
    except UserError:
        return runs.assign(_gap=np.nan)


def compute_matched(runs: pd.DataFrame) -> Figure | None:
    """Kumar et al. 2024, Figures 1 and 6: runs of equal N P (within 15 %) and D, all operands at P bits."""
    if not {"w_bits", "a_bits"} <= set(runs.columns):
        return None
    tied = runs[runs["w_bits"] == runs["a_bits"]]
    if "kv_bits" in tied.columns:
        tied = tied[tied["w_bits"] == tied["kv_bits"]]
    best = tied.iloc[:0]
    for _, same in tied.groupby("D_tokens"):
        cost = np.log(same["N_params"] * same["w_bits"])
        for centre in cost:
            near = same[np.abs(cost - centre) < np.log(1.15)]
            best = near if near["w_bits"].nunique() > best["w_bits"].nunique() else best
    if best["w_bits"].nunique() < 3:
        return None
    mean = best.groupby("w_bits").agg(loss=("val_loss", "mean"), size=("N_params", "mean"))
    labels = [f"{bits:g} bits\n{engineering(size)}" for bits, size in zip(mean.index, mean["size"], strict=True)]
    title = f"equal N P, D = {engineering(float(best['D_tokens'].iloc[0]))} tokens"
    return bars(labels, mean["loss"].to_numpy(), "validation loss (nats/token)", title, zero=False)


def exponent_mantissa(runs: pd.DataFrame) -> Figure | None:
    """Kumar Figure 17, Sun Figure 9: loss against exponent bits at the commonest mantissa and the reverse."""
    if not {"w_exponent", "w_mantissa", "w_bits"} <= set(runs.columns):
        return None
    floats = runs[(runs["w_bits"] < 16) & (runs["w_exponent"] > 0)]
    if not len(floats):
        return None
    floats = commonest(floats, ("D_tokens", "w_group", "w_scale", "a_bits"))
    tokens = floats["D_tokens"].iloc[0]
    figure, axes = canvas(2, width=3.2, sharey=True)
    shown = False
    for ax, (swept, kept) in zip(axes[0], (("exponent", "mantissa"), ("mantissa", "exponent")), strict=True):
        widest = floats.groupby(f"w_{kept}")[f"w_{swept}"].nunique()
        value = widest.idxmax()
        shown |= bool(widest.max() > 1)
        here = floats[floats[f"w_{kept}"] == value]
        by_size(ax, here, f"w_{swept}", "val_loss")
        ax.set(xlabel=f"{swept} bits ({kept} bits {value:g})")
    axes[0, 0].set(ylabel="validation loss (nats/token)")
    figure.suptitle(f"D = {engineering(float(tokens))} tokens", fontsize=9)
    legend(figure, axes[0])
    return figure if shown else None


def target_sets(runs: pd.DataFrame) -> Figure | None:
    """Sun et al. 2025, Figure 2b: mean loss gap of every set of quantized operands P1 to P6, at one (N, D)."""
    known = {f"{k}_bits": v for k, v in TARGETS.items() if f"{k}_bits" in runs.columns}
    low = runs[list(known)].apply(pd.to_numeric, errors="coerce") < 16
    names = ["+".join(sorted(v for k, v in known.items() if row[k])) for _, row in low.iterrows()]
    quantized = runs.assign(_set=names)[(np.array(names, str) != "") & np.isfinite(runs["_gap"])]
    if not len(quantized):
        return None
    cell = busiest(quantized, "_set")
    gap = cell.groupby("_set")["_gap"].mean().sort_values()
    title = f"quantized operands, {size_and_tokens(cell)}"
    return bars(list(gap.index), gap.to_numpy(), "mean loss gap (nats/token)", title) if len(gap) > 1 else None


def scale_sharing(runs: pd.DataFrame) -> Figure | None:
    """Kumar Figure 13, Sun Figure 13: loss gap against tokens, a panel a way of sharing the scale, a colour a size."""
    if "w_scale" not in runs.columns:
        return None
    coarse = runs[runs["w_scale"].isin(COARSE) & np.isfinite(runs["_gap"])]
    coarse = commonest(coarse, ("w_bits", "w_exponent"))
    kinds = [k for k in COARSE if (coarse["w_scale"] == k).any()]
    if not kinds:
        return None
    figure, axes = canvas(len(kinds), width=3.2, sharey=True)
    for ax, kind in zip(axes[0], kinds, strict=True):
        by_size(ax, coarse[coarse["w_scale"] == kind], "D_tokens", "_gap")
        ax.set(title=f"one weight scale a {kind}", xlabel="training tokens D")
        log_axis(ax)
    axes[0, 0].set_ylabel("loss gap (nats/token)")
    legend(figure, axes[0])
    return figure


def integer_and_float(runs: pd.DataFrame) -> Figure | None:
    """Chen et al. 2025, Figure 2: mean gap of integer and float weights of equal width by elements per scale."""
    if not {"w_bits", "w_exponent", "w_group"} <= set(runs.columns):
        return None
    low = runs[(runs["w_bits"] < 16) & np.isfinite(runs["_gap"])]
    kind = np.where(low["w_exponent"] > 0, "float", "integer")
    both = [b for b, part in low.assign(_kind=kind).groupby("w_bits") if part["_kind"].nunique() == 2]
    if not both:
        return None
    low = busiest(low[low["w_bits"].isin(both)], "w_group")
    kind = np.where(low["w_exponent"] > 0, "float", "integer")
    figure, axes = canvas(len(both), width=3.0, sharey=True)
    for ax, bits in zip(axes[0], both, strict=True):
        for i, name in enumerate(("integer", "float")):
            gap = low[(low["w_bits"] == bits) & (kind == name)].groupby("w_group")["_gap"].mean()
            labels = [f"{float(g):g}" if np.isfinite(g) else "all" for g in gap.index]
            ax.plot(labels, gap.to_numpy(), MARKERS[i] + "-", color=COLOURS[i], label=name)
        ax.set(title=f"{bits:g} bits", xlabel="elements per scale G")
    axes[0, 0].set_ylabel("mean loss gap (nats/token)")
    legend(figure, axes[0])
    return figure


def recipes(runs: pd.DataFrame, looks: Recipes) -> Figure | None:
    """Chen et al. 2025, Figure 14: loss gap of every recipe (quantizer) at the (N, D) that has most of them."""
    known = runs[np.isfinite(runs["_gap"])]
    if not len(known):
        return None
    cell = busiest(known, "_recipe")
    gap = cell.groupby("_recipe")["_gap"].mean().sort_values()
    if len(gap) < 2:
        return None
    colours = [looks.looks[name].colour for name in gap.index]
    return bars(list(gap.index), gap.to_numpy(), "loss gap (nats/token)", size_and_tokens(cell), colours=colours)


def busiest(runs: pd.DataFrame, column: str) -> pd.DataFrame:
    """The rows of the (N, D) pair with most different values of a column: like is then compared with like."""
    counts = runs.groupby(["N_params", "D_tokens"])[column].nunique()
    n, d = counts.index[int(np.argmax(counts.to_numpy()))]
    return runs[(runs["N_params"] == n) & (runs["D_tokens"] == d)]


def commonest(runs: pd.DataFrame, columns: tuple[str, ...]) -> pd.DataFrame:
    """The rows with the commonest value of each of these columns in turn."""
    for column in columns:
        if column in runs.columns and runs[column].notna().any():
            runs = runs[runs[column] == runs[column].mode().iloc[0]]
    return runs


def size_and_tokens(cell: pd.DataFrame) -> str:
    """The (N, D) of rows that share them."""
    n, d = (float(cell[c].iloc[0]) for c in ("N_params", "D_tokens"))
    return f"N = {engineering(n)}, D = {engineering(d)} tokens"


def by_size(ax: Axes, runs: pd.DataFrame, x: str, y: str) -> None:
    """Mean of y against x, a look a model size."""
    sizes = sorted(runs["N_params"].unique())
    for i, size in enumerate(sizes):
        mean = runs[runs["N_params"] == size].groupby(x)[y].mean()
        look = size_look(i, len(sizes))
        ax.plot(mean.index, mean.to_numpy(), **{**look.points(), "ls": look.dash}, lw=0.8,
                label=f"N = {engineering(float(size))}")  # fmt: skip


def bars(
    labels: list[str], values: np.ndarray, axis: str, title: str, zero: bool = True, colours: list[str] | None = None
) -> Figure:
    """Labelled bars, lying down where they are many; their scale starts at 0 or just below the lowest."""
    lying = len(labels) > 8
    size = (4.6, 0.19 * len(labels) + 0.9) if lying else (max(3.6, 0.6 * len(labels) + 1.5), 3.4)
    figure, axes = canvas(1, width=size[0], height=size[1])
    ax, place, style = (
        axes[0, 0],
        np.arange(len(labels)),
        {"color": colours or COLOURS[0], "edgecolor": "0.2", "lw": 0.4},
    )
    if lying:
        ax.barh(place, values, height=0.7, **style)
        ax.set_yticks(place, labels, fontsize=8)
        ax.set(ylim=(len(labels) - 0.4, -0.6), xlabel=axis, title=title)
    else:
        ax.bar(place, values, width=0.7, **style)
        turned = max(map(len, labels)) > 9
        ax.set_xticks(place, labels, rotation=45 if turned else 0, ha="right" if turned else "center", fontsize=8)
        ax.set(ylabel=axis, title=title)
    for i, value in enumerate(values):
        where, (dx, dy) = ((value, i), (3, 0)) if lying else ((i, value), (0, 1))
        ax.annotate(f"{value:.3g}" if zero else f"{value:.3f}", where, textcoords="offset points", xytext=(dx, dy),
                    ha="left" if lying else "center", va="center" if lying else "bottom", fontsize=7)  # fmt: skip
    known = values[np.isfinite(values)]
    reach = float(np.ptp(known)) if len(known) else 0.0
    low, high = (min(0.0, float(known.min())), float(known.max())) if len(known) else (0.0, 1.0)
    if not zero:
        low = float(known.min()) - 0.5 * (reach or 0.1)
    ends = (low - (0.08 * (high - low) if low < 0 else 0.0), high + 0.14 * (high - low))
    (ax.set_xlim if lying else ax.set_ylim)(*ends)
    return figure
