"""One call from a runs table and the name of a law to constants, status and intervals."""

from collections.abc import Mapping
from dataclasses import dataclass, replace

import pandas as pd

from precisionlm.analysis import laws
from precisionlm.analysis.fitting.bootstrap import Bootstrap, bootstrap
from precisionlm.analysis.fitting.fit import FitResult, error_weights, fit, fit_staged
from precisionlm.analysis.fitting.objective import Objective
from precisionlm.analysis.laws import frantar
from precisionlm.analysis.laws.base import Law
from precisionlm.analysis.table.cells import texts
from precisionlm.analysis.table.read import Table, prepare
from precisionlm.analysis.table.symbols import column_of, computed, name_it
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
    name: str,
    frame: pd.DataFrame,
    columns: Mapping[str, str] | None = None,
    where: str | None = None,
    drop_duplicates: bool = False,
) -> Table:
    """The rows for the law of that name, adapted to what they can determine. Raises UserError as `prepare` does."""
    law = laws.get(name)
    frame, columns = computed(law, frame, columns)
    for symbol in (s for s in law.symbols if s.kind == "category"):  # its levels are whatever the usable rows have
        column = column_of(symbol, frame, columns)
        if column not in frame.columns:
            raise UserError(f"law {name} needs column {column} ({symbol.name}); {name_it(frame, symbol.name)}")
        others = {k: v for k, v in columns.items() if k != symbol.name}
        usable = prepare(replace(law, symbols=tuple(s for s in law.symbols if s != symbol)), frame, others, where)
        found = texts(frame, column)[usable.rows]
        law = frantar.eff_table(frantar.levels_of(found[[level is not None for level in found]]))
    if name in laws.ADAPTIVE:
        there = {s.name for s in law.symbols if column_of(s, frame, columns) in frame.columns}
        if not any(s.name in there for s in law.symbols if s.kind != "count"):
            wanted = {s.name: f"{s.column} ({s.name})" for s in law.symbols if s.kind != "count"}
            raise UserError(
                f"law {name} needs one column of {', '.join(wanted.values())}; {name_it(frame, next(iter(wanted)))}"
            )
        present = replace(law, symbols=tuple(s for s in law.symbols if s.name in there or s.kind == "count"))
        kept = {s.name for s in present.symbols} | {"loss"}
        rows = prepare(present, frame, {k: v for k, v in columns.items() if k in kept}, where)
        law = laws.adapt(law, rows.columns)
        kept = {s.name for s in law.symbols} | {"loss"}
        columns = {k: v for k, v in columns.items() if k in kept}
    return prepare(law, frame, columns, where, drop_duplicates)


def analyze(
    frame: pd.DataFrame,
    name: str,
    columns: Mapping[str, str] | None = None,
    where: str | None = None,
    objective: Objective = Objective(),
    starts: int = 500,
    resamples: int = 0,
    over: str = "run",
    fixed: Mapping[str, float] | None = None,
    staged: bool = False,
    weighted: bool = False,
    drop_duplicates: bool = False,
) -> Analysis:
    """Fit the law `name` on a runs table.

    columns: symbol -> column or expression. where: boolean column or expression. resamples: bootstrap refits, 0 for
    none. over: what they draw, row, run or cell. fixed: parameters kept. staged: base first, precision terms after.
    weighted: by the loss's standard error. drop_duplicates: leave out rows that repeat an earlier one. Raises UserError
    for bad input.
    """
    table = select(name, frame, columns, where, drop_duplicates)
    if staged:
        if fixed or weighted:
            raise UserError("a staged fit takes neither fixed parameters nor weights")
        stages = fit_staged(table, objective, starts)
        result = stages[-1]
    else:
        weights = error_weights(table) if weighted else None
        stages, result = (), fit(table, objective, starts, fixed, weights)
    return Analysis(result, bootstrap(result, resamples, over) if resamples else None, stages[:-1])
