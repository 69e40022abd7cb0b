"""What all figures are drawn with: a canvas, one legend, axes in k, M, B, T, files. SVG and PNG, no pyplot state."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import wraps
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from precisionlm.whole_file import written

P = ParamSpec("P")
T = TypeVar("T")

# Okabe & Ito 2008, told apart under every common colour blindness, and darker or lighter than one another in grey.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#999933")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*", "<", ">", "h")
LARGER = {"*": 7.5, "P": 5.5, "X": 5.5, "D": 4.0}  # markers that are thinner or fuller than a circle of their size
DASHES: tuple[Any, ...] = ("-", (0, (5, 1.5)), (0, (1, 1)), (0, (4, 1, 1, 1)), (0, (8, 2)), (0, (3, 1, 1, 1, 1, 1)),
                           (0, (2, 2)))  # fmt: skip

STYLE: Any = {
    "font.size": 9, "axes.titlesize": 9, "axes.grid": True, "grid.alpha": 0.3, "axes.axisbelow": True,
    "axes.spines.top": False, "axes.spines.right": False, "svg.fonttype": "path", "svg.hashsalt": "precisionlm",
}  # fmt: skip
MANY = 3000  # points from which a page embeds them as pixels
LINE, LETTER = 0.17, 0.066  # inches that a line and a letter of the legend take


@dataclass(frozen=True)
class Look:
    """How a recipe or a size is drawn: points by colour and marker, unfilled if `open`, lines by colour and dash.
    place: of a recipe among all, from which its look follows."""

    colour: Any
    marker: str
    dash: Any
    open: bool = False
    place: int = 0

    def points(self) -> dict[str, Any]:
        """Keywords of `plot` for runs."""
        edge = {"mfc": "none", "mew": 1.1} if self.open else {"mec": "white", "mew": 0.4}
        size = LARGER.get(self.marker, 4.5)
        return {"color": self.colour, "marker": self.marker, "ls": "", "ms": size, **edge}

    def line(self) -> dict[str, Any]:
        """Keywords of `plot` for a law."""
        return {"color": self.colour, "ls": self.dash, "lw": 1.2}


def styled(function: Callable[P, T]) -> Callable[P, T]:
    """The same function, drawing with figures in the house style, whatever a user's matplotlibrc says."""

    @wraps(function)
    def run(*arguments: P.args, **named: P.kwargs) -> T:
        with matplotlib.rc_context(STYLE):
            return function(*arguments, **named)

    return run


def size_look(i: int, count: int) -> Look:
    """Open markers and lines from dark to light for the i-th of so many model sizes: no recipe looks like that."""
    colour = matplotlib.colormaps["viridis"](0.85 * i / max(count - 1, 1))
    return Look(colour, ("o", "s", "^", "D", "v", "<", ">", "h")[i % 8], DASHES[i % 7], open=True)


@styled
def save(figure: Figure, folder: Path, name: str) -> tuple[Path, Path]:
    """Write `name`.svg and `name`.png (150 dpi) into `folder`, both or none; returns both paths. Raises UserError."""
    paths = folder / f"{name}.svg", folder / f"{name}.png"
    with written(paths[0]) as svg, written(paths[1]) as png:
        figure.savefig(svg, metadata={"Date": None})
        figure.savefig(png, dpi=150)
    return paths


@styled
def save_as(figure: Figure, path: Path) -> None:
    """Write one file, of the kind that its name ends in (PNG at 150 dpi), whole or not at all. Raises UserError."""
    with written(path) as partial:
        figure.savefig(partial, dpi=150, metadata={"Date": None} if path.suffix == ".svg" else None)


def write_all(figures: dict[str, Figure], folder: Path) -> list[Path]:
    """Save each as SVG and PNG. Raises UserError if the folder cannot be written."""
    return [path for name, figure in figures.items() for path in save(figure, folder, name)]


def canvas(
    columns: int = 1, rows: int = 1, width: float = 3.4, height: float = 3.0, **shared: Any
) -> tuple[Figure, np.ndarray]:
    """A figure with rows x columns axes (always a 2-D array), each of width x height inches."""
    figure = Figure(figsize=(width * columns + 0.4, height * rows), layout="constrained")
    return figure, np.asarray(figure.subplots(rows, columns, squeeze=False, **shared))


def legend(figure: Figure, axes: Sequence[Axes], title: str = "") -> None:
    """One legend for all axes, outside of them: the figure grows by the room it takes."""
    found: dict[str, Any] = {}
    for ax in axes:
        for handle, label in zip(*ax.get_legend_handles_labels(), strict=True):
            found.setdefault(label, handle)
    if not found:
        return
    width, height = figure.get_size_inches()
    columns = int(np.ceil(len(found) / max(1, int(height / LINE) - (2 if title else 1))))
    longest = max(max(map(len, found)), len(title) // columns)
    figure.set_size_inches(width + columns * (0.55 + LETTER * longest), height)
    figure.legend(found.values(), found.keys(), loc="outside right upper", title=title, frameon=False, fontsize=8,
                  title_fontsize=8, ncols=columns, columnspacing=1.0)  # fmt: skip


def bits_axis(ax: Axes, values: np.ndarray) -> None:
    """An x axis of widths, labelled at powers of two and what lies between the narrowest ones."""
    ax.set_xticks([tick for tick in (1, 2, 3, 4, 6, 8, 12, 16) if values.min() - 1 <= tick <= values.max() + 1])


def log_axis(ax: Axes) -> None:
    """A logarithmic x axis labelled 1, 2, 5 in k, M, B, T; few enough labels not to run into each other."""
    ax.set_xscale("log")
    low, high = ax.get_xlim()
    decades = np.log10(high / low)
    if decades < 0.35:
        ax.set_xlim(low / 1.3, high * 1.3)
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


def contain(ax: Axes, values: np.ndarray, axis: str = "y", share: float = 0.06) -> None:
    """Limits that hold all finite values with a margin, whatever lines do beyond them; on a log axis in decades."""
    values = values[np.isfinite(values)]
    log = (ax.get_yscale() if axis == "y" else ax.get_xscale()) == "log"
    values = np.log(values[values > 0]) if log else values
    if not len(values):
        return
    margin = share * float(np.ptp(values)) or abs(float(values[0])) * share or share
    ends = np.array([values.min() - margin, values.max() + margin])
    (ax.set_ylim if axis == "y" else ax.set_xlim)(*(np.exp(ends) if log else ends))


def points(ax: Axes, x: np.ndarray, y: np.ndarray, style: dict[str, Any], label: str = "") -> None:
    """Runs as points; as pixels where they are too many for a page."""
    ax.plot(x, y, label=label or None, rasterized=len(x) > MANY, **style)


def spread(values: np.ndarray, most: int) -> np.ndarray:
    """At most `most` of the values, first and last among them."""
    return values[np.unique(np.linspace(0, len(values) - 1, min(most, len(values))).round().astype(int))]


def bins(values: np.ndarray, most: int = 4) -> list[tuple[float, np.ndarray]]:
    """At most `most` groups of near positive values: (the value in the middle, mask (n,)), ascending.

    Values within 5 % are the same; of too many, neighbours in equal numbers of rows stand together.
    """
    order = np.unique(values)
    starts = np.concatenate([[True], np.diff(np.log(order)) > 0.05])
    group = (np.cumsum(starts) - 1)[np.searchsorted(order, values)]
    if group.max() + 1 > most:
        edges = np.unique(np.quantile(values, np.linspace(0, 1, most + 1)[1:-1]))
        group = np.searchsorted(edges, values, side="left")
    masks = [group == g for g in np.unique(group)]
    return [(float(np.median(values[mask])), mask) for mask in masks]


def span(values: np.ndarray) -> str:
    """`30M`, or `30M to 60M` where they differ by more than 5 %."""
    low, high = float(values.min()), float(values.max())
    return engineering(low) if high <= low * 1.05 else f"{engineering(low)} to {engineering(high)}"
