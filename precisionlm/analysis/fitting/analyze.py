"""One call from a runs table and the name of a law to constants, status and intervals."""

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import pandas as pd

from precisionlm.analysis import laws
from precisionlm.analysis.fitting.analysis import Analysis
from precisionlm.analysis.fitting.bootstrap import bootstrap_staged
from precisionlm.analysis.fitting.choices import Choices
from precisionlm.analysis.fitting.fit import error_weights, fit, fit_staged
from precisionlm.analysis.fitting.objective import Objective
from precisionlm.analysis.laws.base import Law, Symbol
from precisionlm.analysis.table.cells import texts
from precisionlm.analysis.table.read import Table, prepare
from precisionlm.analysis.table.symbols import column_of, computed, name_it
from precisionlm.errors import UserError


def select(
    name: str,
    frame: pd.DataFrame,
    columns: Mapping[str, str] | None = None,
    where: str | None = None,
    choices: Choices = Choices(),
    drop_duplicates: bool = False,
) -> Table:
    """The rows for the law of that name, adapted to what they can determine and to the user's choices.

    Raises UserError as `prepare` does, and for a reference level that no row has.
    """
    law = laws.get(name)
    frame, columns = computed(law, frame, columns)
    if law.adapt is None:
        return prepare(choices.applied(law), frame, columns, where, drop_duplicates)
    seen = _usable(law, frame, columns, where, drop_duplicates)
    categories = {s.name: column_of(s, frame, columns) for s in law.symbols if s.kind == "category"}
    levels = {symbol: texts(frame, column)[seen.rows] for symbol, column in categories.items()}
    known = np.all([[text is not None for text in found] for found in levels.values()] or [[True] * len(seen)], axis=0)
    if not known.any():
        raise UserError(f"law {name}: no row has a value in {', '.join(categories.values())}")
    member = law.adapt({k: v[known] for k, v in (seen.columns | levels).items()}, choices.references_of(law))
    member = replace(member, adapt=None)
    kept = {k: v for k, v in columns.items() if k in {s.name for s in member.readable}}
    table = prepare(choices.applied(member), frame, kept, where, drop_duplicates)
    # What the whole family cannot use stays out, also where this member does not read the column that says so.
    table = table.take(np.isin(table.rows, seen.rows[known]))
    further = {
        f"{', '.join(categories.values())} is missing": len(seen) - int(known.sum()),
        "; ".join(restriction.reason for restriction in member.restrictions): int(known.sum()) - len(table),
    }
    return replace(table, excluded=seen.excluded | {reason: count for reason, count in further.items() if count})


def _usable(
    law: Law, frame: pd.DataFrame, columns: Mapping[str, str], where: str | None, drop_duplicates: bool
) -> Table:
    """The rows that have all of the law's numbers that the table has; restrictions are the member's own."""
    for symbol in law.symbols:
        if symbol.kind == "category" and (column := column_of(symbol, frame, columns)) not in frame.columns:
            named = name_it(frame, symbol.name, columns)
            raise UserError(f"law {law.name} needs column {column} ({symbol.name}); {named}")
    numbers = tuple(s for s in law.symbols if s.kind != "category" and _there(s, frame, columns))
    present = replace(law, symbols=numbers, restrictions=())
    names = {s.name for s in present.readable}
    return prepare(present, frame, {k: v for k, v in columns.items() if k in names}, where, drop_duplicates)


def _there(symbol: Symbol, frame: pd.DataFrame, columns: Mapping[str, str]) -> bool:
    """Whether a law can read a symbol from this table: it must read counts and the width after training, and may do
    without the others."""
    if symbol.kind in ("count", "ptq_bits") or symbol.default is not None or symbol.name in columns:
        return True
    column = column_of(symbol, frame, columns)
    if column in frame.columns:
        return bool(frame[column].notna().any())
    try:
        return symbol.derive is not None and bool(len(symbol.derive(frame, columns)))
    except UserError:
        return False


def analyze(
    frame: pd.DataFrame,
    name: str,
    columns: Mapping[str, str] | None = None,
    where: str | None = None,
    objective: Objective = Objective(),
    starts: int = 500,
    resamples: int = 0,
    over: str = "auto",
    choices: Choices = Choices(),
    staged: bool = False,
    weighted: bool = False,
    drop_duplicates: bool = False,
) -> Analysis:
    """Fit the law `name` on a runs table.

    columns: symbol -> column or expression. where: boolean column or expression. resamples: bootstrap refits, 0 for
    none. over: what they draw, see `grouping`. choices: bounds, starts, fixed values, reference levels. staged: base
    first, precision terms after. weighted: by the loss's standard error. drop_duplicates: leave out rows that repeat an
    earlier one. Raises UserError for bad input.
    """
    table = select(name, frame, columns, where, choices, drop_duplicates)
    choices.check([table.law])
    weights = error_weights(table) if weighted else None
    if staged:
        stages = fit_staged(table, objective, starts, over, choices.fixed, weights)
    else:
        stages = (fit(table, objective, starts, choices.fixed, weights, over=over),)
    drawn = bootstrap_staged(stages, table, resamples, over) if resamples else None
    return Analysis(stages[-1], drawn, stages[:-1])
