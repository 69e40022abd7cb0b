"""What the page's interactive plots show, as plain numbers: runs, the law through them, and the law at every width.

The page only draws: every prediction in it was computed here, so that no law is written a second time.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike

from precisionlm.analysis.decisions.formats import combinations
from precisionlm.analysis.decisions.summary import usual
from precisionlm.analysis.figures.checks import widths
from precisionlm.analysis.figures.curves import GAP, LOSS
from precisionlm.analysis.figures.draw import bins, engineering, span
from precisionlm.analysis.figures.recipes import Recipes
from precisionlm.analysis.fitting.analysis import Analysis
from precisionlm.analysis.laws.base import INF
from precisionlm.analysis.laws.precision import categories, columns_at, label_of, reads_width, unquantized
from precisionlm.analysis.report.residuals import Residuals
from precisionlm.errors import UserError

MOST_RUNS, MOST_GROUPS, MOST_STOPS = 4000, 5, 40
ALONG = 16  # points of a line
WIDTHS = (*np.arange(1.0, 8.5, 0.5), 10.0, 12.0, 14.0, 16.0)  # stops of the slider
SHAPES = 6  # markers that the page has
TITLES = {"D": "training tokens D", "N": "non-embedding parameters N"}
Point = dict[str, float]


def interactive(analysis: Analysis, recipes: Recipes, names: np.ndarray, residuals: Residuals) -> dict[str, Any]:
    """All that the plots of a fit need, ready for JSON.

    names: (n,) of the fitted rows. Of more than 4,000 rows evenly many are shown: `shown` and `total` say so.
    """
    table, law = analysis.result.table, analysis.law
    kept = np.unique(np.linspace(0, len(table) - 1, min(len(table), MOST_RUNS)).round().astype(int))
    columns = {k: v[kept] for k, v in table.columns.items()}
    labels = recipes.of(analysis)[kept]
    known, place = np.unique(names[kept].astype(str), return_inverse=True)
    order = recipes.order(labels)
    low, high = analysis.intervals_of(lambda params: law.predict(params, columns))
    axes = [key for key in ("D", "N") if {"D", "N"} <= set(columns)]
    runs = {"name": place.tolist(), "recipe": [order.index(name) for name in labels.tolist()],
            "loss": numbers(table.observed[kept]), "error": numbers(1.96 * table.error[kept]),
            "law": numbers(analysis.result.predicted[kept]), "low": numbers(low), "high": numbers(high),
            "percent": numbers(100 * analysis.result.residuals[kept], 3), "far": numbers(residuals.far[kept], 3),
            "bits": numbers(widths(analysis)[kept])}  # fmt: skip
    along = {key: _Axis(analysis, columns, key) for key in axes}
    return {
        "law": law.name, "loss": GAP if law.is_gap else LOSS, "log": law.is_gap, "shown": len(kept),
        "total": len(table), "names": known.tolist(),
        "runs": runs | {k: numbers(columns[k]) for k in ("N", "D") if k in columns},
        "recipes": [_look(recipes, name) for name in order],
        "axes": [axis.told(labels, order) for axis in along.values()],
        "knobs": [_knob(title, stops, along) for title, stops in _knobs(analysis) if along],
    }  # fmt: skip


class _Axis:
    """A horizontal axis: its runs in groups of about one value of the other column, and grids of points in each."""

    def __init__(self, analysis: Analysis, columns: dict[str, np.ndarray], key: str):
        self.analysis, self.columns, self.key, self.other = analysis, columns, key, "N" if key == "D" else "D"
        self.groups = bins(columns[self.other], MOST_GROUPS)
        ends = [(columns[key][inside].min() / 1.25, columns[key][inside].max()) for _, inside in self.groups]
        self.x = [np.geomspace(*end, ALONG) for end in ends]

    def told(self, labels: np.ndarray, order: list[str]) -> dict[str, Any]:
        """The axis with a line of the law for each recipe in each group."""
        group = np.zeros(len(labels), int)
        for i, (_, inside) in enumerate(self.groups):
            group[inside] = i
        return {
            "key": self.key, "title": TITLES[self.key], "other": self.other, "group": group.tolist(),
            "groups": [{"label": f"{self.other} = {span(self.columns[self.other][inside])}",
                        "at": f"{self.other} = {engineering(middle)}", "end": engineering(x[-1]),
                        "x": numbers(x)}
                       for (middle, inside), x in zip(self.groups, self.x, strict=True)],
            "lines": self._lines(labels, order),
        }  # fmt: skip

    def _lines(self, labels: np.ndarray, order: list[str]) -> list[dict[str, Any]]:
        """One line for all recipes that the law does not tell apart."""
        found: dict[tuple[Any, ...], dict[str, Any]] = {}
        for g, (_, inside) in enumerate(self.groups):
            for i, name in enumerate(order):
                here = inside & (labels == name)
                if not here.any():
                    continue
                point = {k: float(v[here][0]) for k, v in self.columns.items() if k not in ("N", "D")}
                key = (g, *point.items())
                if key not in found:
                    found[key] = {"group": g, "recipes": [], "alike": not point, "y": numbers(self.law_at(g, point))}
                found[key]["recipes"].append(i)
        return list(found.values())

    def point(self, g: int, point: Mapping[str, float]) -> dict[str, Any]:
        """Columns along the line of a group at a precision."""
        return {**point, self.key: self.x[g], self.other: self.groups[g][0]}

    def law_at(self, g: int, point: Mapping[str, float]) -> np.ndarray:
        return self.analysis.law.predict(self.analysis.result.params, self.point(g, point))


def _knobs(analysis: Analysis) -> list[tuple[str, list[tuple[str, float, Point]]]]:
    """What the slider may move, if the law reads it: the precision of training, and the bits after it. Of each its
    stops: label, width, columns without N and D."""
    law, found = analysis.law, []
    kinds, base = categories(law), usual(analysis)
    stops: list[tuple[str, float, Point]] = []
    try:
        if kinds:
            for codes, width in combinations(law, {}, analysis).items():
                at = {**base, **dict(zip((s.name for s in kinds), codes, strict=True))}
                point = columns_at(law, analysis.result.params, at=at)
                stops.append((label_of(law, point), width if np.isfinite(width) else 16.0, point))
        elif reads_width(law):
            stops = [(_bits(b), b, columns_at(law, analysis.result.params, b, at=base)) for b in WIDTHS]
    except UserError:  # the law reads what neither a width nor the table says
        stops = []
    stops = sorted(stops, key=lambda stop: (stop[1], stop[0]))[:MOST_STOPS]
    if len(stops) > 1:
        found.append(("format" if kinds else "bits of all operands in training", stops))
    post = next((s.name for s in law.symbols if s.kind == "ptq_bits"), None)
    if post is not None:
        before = stops[-1][2] if kinds and stops else {**base, **unquantized(law)}
        if {s.name for s in law.symbols} <= {*before, post, "N", "D"}:
            after = [(_bits(b), float(b), {**before, post: float(b)}) for b in WIDTHS if b >= 2]
            found.append(
                ("bits of the weights after training", [*after, ("not quantized", INF, {**before, post: INF})])
            )
    return found


def _knob(title: str, stops: list[tuple[str, float, Point]], along: Mapping[str, _Axis]) -> dict[str, Any]:
    """Values and intervals of the law at every stop, along every axis: [stop][group][point]. It begins near 4 bits."""
    start = int(np.argmin([abs(min(width, 1e3) - 4.0) for _, width, _ in stops]))
    return {
        "title": title, "stops": [label for label, _, _ in stops], "start": start,
        "axes": {key: _along(axis, [point for _, _, point in stops]) for key, axis in along.items()},
    }  # fmt: skip


def _along(axis: _Axis, points: list[Point]) -> dict[str, Any]:
    shape = len(points), len(axis.groups), ALONG
    where = [axis.point(g, point) for point in points for g in range(len(axis.groups))]
    flat = {k: np.concatenate([np.broadcast_to(np.asarray(w[k], float), ALONG) for w in where]) for k in where[0]}
    law = axis.analysis.law
    value = law.predict(axis.analysis.result.params, flat)
    low, high = axis.analysis.intervals_of(lambda params: law.predict(params, flat))
    ends = {"y": value, "low": low, "high": high}
    return {k: np.reshape(np.array(numbers(v), object), shape).tolist() for k, v in ends.items()}


def _look(recipes: Recipes, name: str) -> dict[str, Any]:
    """Black is drawn in the colour of the text, which is light on a dark page."""
    colour, place = recipes.looks[name].colour, recipes.looks[name].place
    return {"name": name, "colour": "currentColor" if colour == "#000000" else colour,
            "shape": (place % 8 + place // 8) % SHAPES}  # fmt: skip


def numbers(values: ArrayLike, digits: int = 5) -> list[float | int | None]:
    """Rounded to significant digits, whole ones without a point; None for what is not finite."""
    return [_short(float(f"{v:.{digits}g}")) if np.isfinite(v) else None for v in np.asarray(values, float).ravel()]


def _bits(width: float) -> str:
    return "1 bit" if width == 1 else f"{width:g} bits"


def _short(value: float) -> float | int:
    return int(value) if value.is_integer() else value


def names_of(frame: pd.DataFrame) -> np.ndarray:
    """(rows,) what people know each row by: name, run and seed of its columns, else its number in the file."""
    told = [f"row {i}" for i in range(1, len(frame) + 1)]
    known = [c for c in ("name", "run_id") if c in frame.columns]
    if known:
        cells = frame[known].fillna("").astype(str).itertuples(index=False, name=None)
        told = [" ".join(filter(None, cell)) or place for cell, place in zip(cells, told, strict=True)]
    for column in ("ptq_method", "schedule", "seed"):
        if column in frame.columns and frame[column].nunique() > 1:
            word = "seed " if column == "seed" else ""
            told = [f"{name}, {word}{value}" if pd.notna(value) and value != "none" else name
                    for name, value in zip(told, frame[column], strict=True)]  # fmt: skip
    return np.array(told, object)
