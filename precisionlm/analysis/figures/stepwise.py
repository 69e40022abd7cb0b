"""Sun et al. 2025 (arXiv:2501.02423), Figures 10 to 12: how their law was put together, from anybody's runs.

At every (N, D) the loss is a line in one coordinate, slope * x + intercept: x = 1/(E + ½)^δ (Eq 9), 1/(M + ½)^ν
(Eq 12), log2 B (Eq 14). How slopes and intercepts move with N and D is the law: slope ∝ D^β/N^α, intercept = the
unquantized loss. Each function takes rows of `rows.trained` and returns None where they are too few.
"""

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from precisionlm.analysis.figures.draw import canvas, legend, log_axis
from precisionlm.analysis.figures.rows import by_size, commonest, trained

SHAPES = np.arange(0.1, 8.0, 0.1)  # candidates for δ and ν, then ten times finer around the best


def draw(frame: pd.DataFrame) -> dict[str, Figure]:
    """Those that the table's rows allow, by name."""
    if not {"w_exponent", "w_mantissa", "w_group", "w_scale"} <= set(frame.columns):
        return {}
    runs = trained(frame)
    runs = runs[runs["w_bits"] < 16]
    made = {
        "fig10_exponent_bits": field_bits(runs, "exponent", "mantissa"),
        "fig10_mantissa_bits": field_bits(runs, "mantissa", "exponent"),
        "fig11_block_size": block_size(runs),
        "fig12_tensor_scale": tensor_scale(runs),
    }
    return {name: figure for name, figure in made.items() if figure is not None}


def field_bits(runs: pd.DataFrame, swept: str, kept: str) -> Figure | None:
    """Figure 10: slope γ and intercept ι of the loss against 1/(bits + ½)^δ, with one δ for all (N, D)."""
    runs = commonest(runs, (f"w_{kept}", "w_scale", "w_group"))
    bits = runs[f"w_{swept}"].to_numpy(float) + 0.5

    def squares(shape: float) -> float:
        return float(lines(runs, bits**-shape)["squares"].sum())

    near = min(SHAPES, key=squares)
    shape = min(near + np.arange(-10, 11) / 100, key=squares)
    cells = lines(runs, bits**-shape)
    name = "δ" if swept == "exponent" else "ν"
    return (
        None
        if too_few(cells)
        else panels(cells, "γ", "ι", f"loss = γ / ({swept} bits + ½)^{name} + ι, {name} = {shape:.2f}")
    )


def block_size(runs: pd.DataFrame) -> Figure | None:
    """Figure 11: slope κ and intercept ψ of the loss against log2 of the elements per scale."""
    blocks = blocked(runs)
    cells = lines(blocks, np.log2(blocks["w_group"].to_numpy(float)))
    return None if too_few(cells) else panels(cells, "κ", "ψ", "loss = κ log2 B + ψ")


def tensor_scale(runs: pd.DataFrame) -> Figure | None:
    """Figure 12: the log2 of the block that would lose as much as one scale a tensor does, log2 B = (loss - ψ) / κ."""
    blocks = blocked(runs)
    cells = lines(blocks, np.log2(blocks["w_group"].to_numpy(float)))
    if too_few(cells):
        return None
    same = (runs["w_exponent"] == blocks["w_exponent"].iloc[0]) & (runs["w_mantissa"] == blocks["w_mantissa"].iloc[0])
    tensor = (
        runs[same & (runs["w_scale"] == "tensor")].groupby(["N_params", "D_tokens"], as_index=False)["val_loss"].mean()
    )
    cells = cells.merge(tensor, on=["N_params", "D_tokens"])
    cells = cells.assign(log2_block=(cells["val_loss"] - cells["intercept"]) / cells["slope"])
    if too_few(cells):
        return None
    figure, axes = canvas(1, width=4.4, height=3.2)
    ax = axes[0, 0]
    by_size(ax, cells, "D_tokens", "log2_block")
    ax.set(
        xlabel="training tokens D", ylabel="log2 of the equivalent block", title=f"log2 B {power(cells, 'log2_block')}"
    )
    log_axis(ax)
    legend(figure, [ax])
    return figure


def blocked(runs: pd.DataFrame) -> pd.DataFrame:
    """Rows with a finite block, of the format that was trained with most different blocks."""
    finite = runs[np.isfinite(pd.to_numeric(runs["w_group"], errors="coerce")) & (runs["w_scale"] == "group")]
    if not len(finite):
        return finite
    counts = finite.groupby(["w_exponent", "w_mantissa"])["w_group"].nunique()
    exponent, mantissa = counts.idxmax()
    return finite[(finite["w_exponent"] == exponent) & (finite["w_mantissa"] == mantissa)]


def lines(runs: pd.DataFrame, x: np.ndarray) -> pd.DataFrame:
    """Least-squares line of the loss in x (n,) at every (N, D) with two values of x or more: slope, intercept, squares
    (the sum of squared residuals, nats²)."""
    groups = runs.groupby(["N_params", "D_tokens"])
    cell, loss = groups.ngroup().to_numpy(), runs["val_loss"].to_numpy(float)
    cells = groups.size().index.to_frame(index=False)

    def mean(values: np.ndarray) -> np.ndarray:
        return np.bincount(cell, values, len(cells)) / np.bincount(cell, minlength=len(cells))

    dx, dy = x - mean(x)[cell], loss - mean(loss)[cell]
    spread = mean(dx**2)
    slope = mean(dx * dy) / np.where(spread > 0, spread, 1.0)
    squares = np.bincount(cell, (dy - slope[cell] * dx) ** 2, len(cells))
    found = cells.assign(slope=slope, intercept=mean(loss) - slope * mean(x), squares=squares)
    return found[spread > 1e-12]


def too_few(cells: pd.DataFrame) -> bool:
    """Fewer than two sizes or budgets say nothing about powers of N and D."""
    return min(cells["N_params"].nunique(), cells["D_tokens"].nunique()) < 2


def powers(cells: pd.DataFrame, column: str) -> tuple[float, float]:
    """Least-squares powers (of N, of D) of a positive column; NaN where an entry is not positive."""
    values = cells[column].to_numpy(float)
    if not (values > 0).all():
        return float("nan"), float("nan")
    logs = np.log(cells[["N_params", "D_tokens"]].to_numpy(float))
    solved = np.linalg.lstsq(np.column_stack([logs, np.ones(len(cells))]), np.log(values), rcond=None)[0]
    return float(solved[0]), float(solved[1])


def power(cells: pd.DataFrame, column: str) -> str:
    """The powers in words."""
    of_size, of_data = powers(cells, column)
    return f"∝ $N^{{{of_size:.3f}}} D^{{{of_data:.3f}}}$"


def panels(cells: pd.DataFrame, slope: str, intercept: str, title: str) -> Figure:
    """Slopes and intercepts against tokens, a colour a model size."""
    figure, axes = canvas(2, width=3.4)
    for ax, column, name in zip(axes[0], ("slope", "intercept"), (slope, intercept), strict=True):
        by_size(ax, cells, "D_tokens", column)
        ax.set(xlabel="training tokens D", ylabel=f"{name} (nats/token)")
        log_axis(ax)
    if (cells["slope"] > 0).all():
        axes[0, 0].set(yscale="log", title=f"{slope} {power(cells, 'slope')}")
    figure.suptitle(title, fontsize=9)
    legend(figure, axes[0])
    return figure
