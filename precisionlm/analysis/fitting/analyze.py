"""One call from a runs table and the name of a law to constants, status and intervals."""

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd

from precisionlm.analysis import laws
from precisionlm.analysis.fitting.bootstrap import Bootstrap, bootstrap
from precisionlm.analysis.fitting.choices import Choices
from precisionlm.analysis.fitting.fit import FitResult, error_weights, fit, fit_staged
from precisionlm.analysis.fitting.objective import Objective
from precisionlm.analysis.laws.base import Law, Symbol
from precisionlm.analysis.table.read import Table, level, prepare
from precisionlm.errors import UserError


@dataclass(frozen=True)
class Analysis:
    """A fit and, if asked for, its bootstrap. `stages`: the earlier fits of a staged one, in order."""

    result: FitResult
    bootstrap: Bootstrap | None = None
    stages: tuple[FitResult, ...] = ()

    @property
    def law(self) -> Law:
        """The fitted law."""
        return self.result.law

    @property
    def intervals(self) -> dict[str, tuple[float, float]]:
        """Name -> percentile 95 % interval; empty without a bootstrap."""
        return self.bootstrap.intervals if self.bootstrap else {}

    @property
    def warnings(self) -> tuple[str, ...]:
        """The fit's warnings and those that the intervals add, in plain words."""
        return (*self.result.warnings, *self._wide())

    def _wide(self) -> tuple[str, ...]:
        """Constants whose interval spans a factor of three or crosses zero's neighbourhood."""
        runs = int(self.result.table.cluster.max()) + 1
        wide = {}
        for name in self.result.free:
            low, high = self.intervals.get(name, (1.0, 1.0))
            shape = not self.law.parameter(name).linear
            if shape and (high - low) > abs(self.result.params[name]) and high > low:
                wide[name] = f"{name} {low:.3g} to {high:.3g}"
        if not wide:
            return ()
        return (f"{runs} runs are too few to trust: 95 % intervals span " + ", ".join(wide.values()),)


def select(
    name: str, frame: pd.DataFrame, columns: Mapping[str, str] | None = None, where: str | None = None,
    choices: Choices = Choices(),
) -> Table:  # fmt: skip
    """The rows for the law of that name, adapted to what they can determine and to the user's choices.

    Raises UserError as `prepare` does, and for a reference level that no row has.
    """
    law, columns = laws.get(name), dict(columns or {})
    unknown = [symbol for symbol in columns if symbol not in {s.name for s in law.readable}]
    if law.adapt and not unknown:
        law = law.adapt(_seen(law, frame, columns, where), choices.references_of(law))
        columns = {k: v for k, v in columns.items() if k in {s.name for s in law.readable}}
    return prepare(choices.applied(law), frame, columns, where)


def _seen(
    law: Law, frame: pd.DataFrame, columns: Mapping[str, str], where: str | None
) -> dict[str, np.ndarray]:  # fmt: skip
    """Symbol -> (rows,) values of the rows that a law can use, text for a category, of the symbols that are there."""
    categories = {s.name: _column(s, frame, columns) for s in law.symbols if s.kind == "category"}
    for symbol, column in categories.items():
        if column not in frame.columns:
            raise UserError(f"law {law.name} needs column {column} ({symbol}); rename one with --columns")
    numbers = tuple(s for s in law.symbols if s.name not in categories and _there(s, frame, columns))
    present = replace(law, symbols=numbers)
    names = {s.name for s in present.readable}
    rows = prepare(present, frame, {k: v for k, v in columns.items() if k in names}, where)
    texts = {symbol: rows.frame[column] for symbol, column in categories.items()}
    missing = {symbol: text.isna() | (text.astype(str).str.strip() == "") for symbol, text in texts.items()}
    known = ~np.any([m.to_numpy() for m in missing.values()], axis=0) if missing else slice(None)
    text = {symbol: text.map(level).to_numpy(object)[known] for symbol, text in texts.items()}
    return {symbol: values[known] for symbol, values in rows.columns.items()} | text


def _column(symbol: Symbol, frame: pd.DataFrame, columns: Mapping[str, str]) -> str:
    own = symbol.column in frame.columns or symbol.name not in frame.columns
    return columns.get(symbol.name, symbol.column if own else symbol.name)


def _there(symbol: Symbol, frame: pd.DataFrame, columns: Mapping[str, str]) -> bool:
    """Whether a law can read a symbol from this table: it must read counts, and may do without the others."""
    if symbol.kind == "count" or symbol.default is not None or symbol.name in columns:
        return True
    if _column(symbol, frame, columns) in frame.columns:
        return True
    try:
        return symbol.derive is not None and bool(len(symbol.derive(frame, dict(columns))))
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
    over: str = "run",
    choices: Choices = Choices(),
    staged: bool = False,
    weighted: bool = False,
) -> Analysis:
    """Fit the law `name` on a runs table.

    columns: symbol -> column. where: boolean column or expression. resamples: bootstrap refits, 0 for none. over: what
    they draw, row, run or cell. choices: bounds, starts, fixed values, reference levels. staged: base first, precision
    terms after. weighted: by the loss's standard error. Raises UserError for bad input.
    """
    table = select(name, frame, columns, where, choices)
    choices.check([table.law])
    if staged:
        if choices.fixed or weighted:
            raise UserError("a staged fit takes neither fixed parameters nor weights")
        stages = fit_staged(table, objective, starts)
        result = stages[-1]
    else:
        weights = error_weights(table) if weighted else None
        stages, result = (), fit(table, objective, starts, choices.fixed, weights)
    return Analysis(result, bootstrap(result, resamples, over) if resamples else None, stages[:-1])
