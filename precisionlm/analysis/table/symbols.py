"""Which column each symbol of a law reads: one of the table, one computed from others, or a number for all rows."""

from collections.abc import Mapping

import numpy as np
import pandas as pd

from precisionlm.analysis.laws.base import Law, Symbol
from precisionlm.analysis.table.cells import Columns
from precisionlm.analysis.table.derive import loss_column
from precisionlm.errors import UserError, nearest
from precisionlm.expressions import evaluate
from precisionlm.precision.recipe import canonical

SPELLED = dict.fromkeys(("recipe", "eval_recipe"), canonical)
"""Columns whose texts have a canonical spelling: an expression may write them as a configuration does."""


def column_of(symbol: Symbol, frame: pd.DataFrame, columns: Mapping[str, str]) -> str:
    """The column that a symbol reads: the one named for it, its default, or one called as the symbol itself."""
    default = symbol.name if symbol.column not in frame.columns and symbol.name in frame.columns else symbol.column
    return columns.get(symbol.name, default)


def symbols_of(law: Law) -> list[str]:
    """What may be named for a law: its symbols, `loss`, and `gap` where it predicts that."""
    return [s.name for s in law.readable]


def computed(
    law: Law, frame: pd.DataFrame, columns: Mapping[str, str] | None = None
) -> tuple[pd.DataFrame, dict[str, str]]:
    """The frame with every column that `columns` asks to compute, and symbol -> column of it.

    columns: symbol -> the name of a column, an expression over columns, or a number that stands in every row. Raises
    UserError for a symbol that the law does not have and for what is no expression.
    """
    found: dict[str, str] = {}
    for name, text in (columns or {}).items():
        if name not in symbols_of(law):
            raise UserError(f"--columns: law {law.name} has no symbol '{name}'; {nearest(name, symbols_of(law))}")
        found[name] = text[1:-1] if text[1:-1] in frame.columns and text == f"`{text[1:-1]}`" else text
        if found[name] not in frame.columns:
            values = evaluate(text, Columns(frame), f"--columns {name}=", SPELLED)
            frame = frame.assign(**{text: np.broadcast_to(values, (len(frame),))})
    return frame, found


def resolve(
    law: Law, frame: pd.DataFrame, columns: Mapping[str, str] | None = None
) -> tuple[pd.DataFrame, dict[str, str]]:
    """The frame with all columns that are computed, and symbol -> column for every symbol of the law.

    A law of the gap has two names more: `loss` is the raw loss, and `gap` is computed from it where the table has none
    or another loss is named. Raises UserError as `computed` and the derivations do.
    """
    frame, columns = computed(law, frame, columns)
    names = {s.name: column_of(s, frame, columns) for s in law.symbols}
    names["loss"] = columns.get("loss", loss_column(frame))
    if law.is_gap:
        other_loss = "loss" in columns and "gap" not in columns
        names["gap"] = columns.get("gap", f"gap of {columns['loss']}" if other_loss else "gap")
    implied = {s.name: s.derive for s in law.symbols} | ({"gap": law.target.derive} if law.is_gap else {})
    made = {}
    for name, derive in implied.items():
        if derive is not None and names[name] not in frame.columns:
            try:
                made[names[name]] = derive(frame, names)
            except UserError as problem:
                raise UserError(f"law {law.name}: {problem}; {name_it(frame, name, columns)}") from problem
    return frame.assign(**made), names


def name_it(frame: pd.DataFrame, symbol: str, columns: Mapping[str, str], most: int = 12) -> str:
    """How a user names the column that a symbol lacks: the table's columns, without those that `columns` has already
    named or computed."""
    names = [str(c) for c in frame.columns if c not in columns.values()]
    shown = ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")
    also = "also " if columns else ""
    return f"the table {also}has {shown}; --columns {symbol}=COLUMN names another"
