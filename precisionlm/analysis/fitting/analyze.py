"""One call from a runs table and the name of a law to constants, status and intervals."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd

from precisionlm.analysis import laws
from precisionlm.analysis.fitting.bootstrap import Bootstrap, bootstrap_staged
from precisionlm.analysis.fitting.choices import Choices
from precisionlm.analysis.fitting.findings import FEW_GROUPS, Finding, Status, concerning
from precisionlm.analysis.fitting.fit import FitResult, error_weights, fit, fit_staged
from precisionlm.analysis.fitting.objective import Objective
from precisionlm.analysis.fitting.percentile import percentile_interval
from precisionlm.analysis.laws.base import Law, Symbol
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
    def fits(self) -> tuple[FitResult, ...]:
        """Every stage, the last one at the end; the fit alone where there are none."""
        return (*self.stages, self.result)

    @property
    def findings(self) -> tuple[Finding, ...]:
        """All that a reader must know, each with the constants it concerns."""
        return tuple(dict.fromkeys(f for fit in self.fits for f in fit.findings))

    @property
    def identified(self) -> dict[str, bool]:
        """Fitted constant -> whether the data determine it."""
        return {name: known for fit in self.fits for name, known in fit.identified.items()}

    @property
    def intervals(self) -> dict[str, tuple[float, float]]:
        """Fitted constant -> 95 % interval: of the bootstrap where there is one, linearised otherwise. A constant that
        is not identified has the interval of its bounds."""
        linear = {name: ends for fit in self.fits for name, ends in fit.intervals.items()}
        if not self.bootstrap:
            return linear
        drawn = self.bootstrap.intervals
        rough = any(f.kind == FEW_GROUPS for f in self.findings)

        def ends(name: str) -> tuple[float, float]:
            low, high = drawn[name]
            # Refits of few groups, or all on one bound, say too little of how far a constant may be away.
            if rough or not low < high:
                return min(low, linear[name][0]), max(high, linear[name][1])
            return low, high

        return {n: ends(n) if self.identified[n] else linear[n] for n in linear}

    @property
    def intervals_from(self) -> str:
        """Where the intervals come from and which rows share their noise, in one line."""
        if self.bootstrap:
            return f"{self.bootstrap.resamples} bootstrap refits, {self.bootstrap.groups} {self.bootstrap.why}"
        groups = self.result.uncertainty.grouping
        staged = "; each stage takes the earlier ones as exact" if self.stages else ""
        return f"linearised, {groups.count} {groups.why}{staged}"

    @property
    def standard_errors(self) -> dict[str, float]:
        """Fitted constant -> standard error, of the bootstrap where there is one; inf where it is not identified."""
        linear = {name: error for fit in self.fits for name, error in fit.standard_errors.items()}
        drawn = self.bootstrap.errors if self.bootstrap else linear
        return {n: drawn[n] if self.identified[n] else linear[n] for n in linear}

    def interval_of(self, value: Callable[[Mapping[str, float]], float]) -> tuple[float, float]:
        """95 % interval of a number derived from the constants (name -> value), such as a loss, an optimum or critical
        data; (-inf, inf) where it rests on constants that the data leave open."""
        low, high = self.intervals_of(lambda params: np.array([float(value(params))]))
        return float(low[0]), float(high[0])

    def intervals_of(self, values: Callable[[Mapping[str, float]], np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
        """The same of numbers (m,), such as a law along a line: lower and upper ends."""
        linear = self.result.intervals_of(values)
        if not self.bootstrap or not np.isfinite(linear).any():
            return linear
        names = self.law.names
        low, high = percentile_interval([values(dict(zip(names, s, strict=True))) for s in self.bootstrap.samples])
        if any(f.kind in (FEW_GROUPS, Status.NOT_IDENTIFIED.value) for f in self.findings):
            low, high = np.minimum(low, linear[0]), np.maximum(high, linear[1])
        known = np.isfinite(linear).all(axis=0)
        return np.where(known, low, linear[0]), np.where(known, high, linear[1])

    def caution(self, constants: Iterable[str] | None = None) -> tuple[str, ...]:
        """What to say beside a number that rests on these constants (all fitted ones by default): plain sentences."""
        return tuple(f.text for f in concerning(self.findings, self.identified if constants is None else constants))

    @property
    def warnings(self) -> tuple[str, ...]:
        """The fit's warnings and those that the intervals add, in plain words."""
        earlier = (text for fit in self.stages for text in fit.messages)
        return tuple(dict.fromkeys((*self.result.warnings, *earlier, *self._wide())))

    def _wide(self) -> tuple[str, ...]:
        """Constants whose interval spans a factor of three or crosses zero's neighbourhood."""
        runs = int(self.result.table.cluster.max()) + 1
        wide, intervals = {}, self.intervals
        for name, (low, high) in intervals.items():
            shape = not self.law.parameter(name).linear and self.identified[name]
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
