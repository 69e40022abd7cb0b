"""One look a recipe: the colour, marker and dash by which every figure of a report shows the runs of one precision."""

import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from precisionlm.analysis.figures.draw import COLOURS, DASHES, MARKERS, Look
from precisionlm.analysis.fitting.analysis import Analysis
from precisionlm.analysis.laws.precision import categories, label_of, width_named

_WORDS = re.compile(r"([A-Z]+[0-9]*=[^/,@]+)(/[^,@]+)$")  # an operand's format, and how it is scaled and rounded


@dataclass(frozen=True)
class Recipes:
    """labels: (rows,) the recipe of each row of a table. looks: recipe -> its look, the widest first."""

    labels: np.ndarray
    looks: dict[str, Look]

    def of(self, analysis: Analysis) -> np.ndarray:
        """(n,) recipes of the rows of a fit."""
        return self.labels[analysis.result.table.rows]

    def order(self, labels: np.ndarray) -> list[str]:
        """The recipes among these labels, in the order of the looks."""
        there = set(labels.tolist())
        return [name for name in self.looks if name in there]


def recipes_of(frame: pd.DataFrame, fits: Sequence[Analysis] = ()) -> Recipes:
    """The recipes of a table as read, and one look for each, the same in all figures of these fits on it. Those that
    the fits are of come first in colours, so that of a table of many recipes eight at least look alike in nothing.

    A row is named by the column that a law of formats was fitted on, else by `recipe`, else by its operands' formats
    and widths, else by what a law reads of its precision; then by its width after training.
    """
    names = np.full(len(frame), "", object)
    for found in (_by_category(frame, fits), _column(frame, "recipe"), _by_operands(frame), _by_law(frame, fits)):
        names = np.where(names == "", found, names)
    names = np.where(names == "", "all runs", names)
    after = _widths(frame, "ptq_bits")
    names = np.array([f"{n} PTQ{b:g}" if np.isfinite(b) else n for n, b in zip(names, after, strict=True)], object)
    full = sorted(set(names.tolist()), key=lambda name: (-_width(frame, names == name, name), name))
    short = _distinct([plain(name) for name in _without_common_words(full)])
    of = dict(zip(full, short, strict=True))
    fitted = {of[name] for fit in fits for name in names[fit.result.table.rows]}
    place = {name: i for i, name in enumerate(sorted(short, key=lambda name: name not in fitted))}
    looks = {name: _look(place[name]) for name in short}
    return Recipes(np.array([of[name] for name in names]), looks)


def _look(i: int) -> Look:
    return Look(COLOURS[i % 8], MARKERS[(i + i // 8) % 11], DASHES[i % 7], place=i)


def plain(text: str, most: int = 28) -> str:
    """Text from a table as a label: no markup, nothing a font lacks, not too long."""
    shown = "".join(c if c.isascii() and c.isprintable() else "?" for c in text)
    shown = shown if len(shown) <= most else shown[: most - 9] + ".." + shown[-7:]
    return shown.replace("$", r"\$").lstrip("_") or "?"


def _by_category(frame: pd.DataFrame, fits: Sequence[Analysis]) -> np.ndarray:
    names = np.full(len(frame), "", object)
    for analysis in fits:
        kinds, table = categories(analysis.law), analysis.result.table
        if kinds:
            texts = [np.array(s.levels, object)[table.columns[s.name].astype(int)] for s in kinds]
            names[table.rows] = [", ".join(row) for row in zip(*texts, strict=True)]
            break
    return names


def _column(frame: pd.DataFrame, column: str) -> np.ndarray:
    if column not in frame.columns:
        return np.full(len(frame), "", object)
    return frame[column].fillna("").astype(str).to_numpy(object)


def _by_operands(frame: pd.DataFrame) -> np.ndarray:
    """`W int4, A bf16` or `W4A16` from columns of formats and widths, whichever are there."""
    texts = np.full(len(frame), "", object)
    for prefix, letter in (("fwd", "fwd"), ("bwd", "bwd"), ("w", "W"), ("a", "A"), ("kv", "KV")):
        formats, widths = _column(frame, f"{prefix}_format"), _widths(frame, f"{prefix}_bits")
        for i, (name, bits) in enumerate(zip(formats, widths, strict=True)):
            digits = "" if any(c.isdigit() for c in name) or not np.isfinite(bits) else f"{bits:g}"
            if name or digits:
                texts[i] += (" " if texts[i] and name else "") + letter + (f" {name}{digits}" if name else digits)
    return texts


def _by_law(frame: pd.DataFrame, fits: Sequence[Analysis]) -> np.ndarray:
    names = np.full(len(frame), "", object)
    for analysis in fits:
        table = analysis.result.table
        inside = {k: v for k, v in table.columns.items() if k not in ("N", "D")}
        for i, row in enumerate(table.rows):
            names[row] = names[row] or label_of(analysis.law, {k: v[i] for k, v in inside.items()})
    return names


def _widths(frame: pd.DataFrame, column: str) -> np.ndarray:
    if column not in frame.columns:
        return np.full(len(frame), np.nan)
    return pd.to_numeric(frame[column], errors="coerce").to_numpy(float)


def _width(frame: pd.DataFrame, rows: np.ndarray, name: str) -> float:
    """Bits by which recipes are ordered: those of the columns, else of the name."""
    columns = [c for c in ("w_bits", "a_bits", "kv_bits", "ptq_bits") if c in frame.columns]
    known = [float(np.nanmean(v)) for c in columns if np.isfinite(v := _widths(frame, c)[rows]).any()]
    width = sum(known) / len(known) if known else width_named(name)
    return width if np.isfinite(width) else 16.0


def _without_common_words(names: list[str]) -> list[str]:
    """`W4,A=int8/tensor` as `W4,A=int8` where activations have these words wherever they are named: in a label they
    tell nothing apart."""
    for operand in {found for name in names for found in re.findall(r"([A-Z]+[0-9]*)=", name)}:
        words = [_WORDS.match(part) for name in names for part in re.findall(rf"(?<![A-Z]){operand}[=0-9][^,@]*", name)]
        if len({found[2] for found in words if found}) == 1 and all(words):
            names = [re.sub(rf"(?<![A-Z])({operand}=[^/,@]+)/[^,@]+", r"\1", name) for name in names]
    return names


def _distinct(names: list[str]) -> list[str]:
    """The names with a number after those that stood there before."""
    seen: dict[str, int] = {}
    for i, name in enumerate(names):
        seen[name] = seen.get(name, 0) + 1
        names[i] = name if seen[name] == 1 else f"{name} ({seen[name]})"
    return names
