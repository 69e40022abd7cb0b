"""What a fit gives: constants with findings, intervals and the rows they rest on, never a bare number."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np

from precisionlm.analysis.fitting.findings import Finding, Status, status_of
from precisionlm.analysis.fitting.objective import Objective
from precisionlm.analysis.fitting.solve import Problem
from precisionlm.analysis.fitting.uncertainty import Uncertainty, interval_of, intervals_of
from precisionlm.analysis.laws.base import Law, Parameter
from precisionlm.analysis.table.read import Table


@dataclass(frozen=True)
class FitResult:
    """Constants of a law on a table.

    objective_value: the minimised sum. findings: all that a reader must know, each with its constants. gradient:
    largest cosine between residuals and a column of the Jacobian (0 at an optimum). condition: of the Jacobian in
    search space with unit columns, free parameters. correlation: (k, k) of the free parameters. share: share of starts
    that ended at the best objective. r2: of the loss. rms_log: root mean square of log residuals. residuals: (n,) log
    prediction - log observation. uncertainty: linearised, for rows that share noise as its grouping says. point:
    search-space optimum (p,).
    """

    law: Law
    params: dict[str, float]
    objective: Objective
    objective_value: float
    findings: tuple[Finding, ...]
    gradient: float
    condition: float
    free: tuple[str, ...]
    correlation: np.ndarray
    starts: int
    share: float
    r2: float
    rms_log: float
    residuals: np.ndarray
    uncertainty: Uncertainty = field(repr=False)
    seconds: float
    table: Table = field(repr=False)
    problem: Problem = field(repr=False)
    weights: np.ndarray = field(repr=False)
    point: np.ndarray = field(repr=False)

    @property
    def status(self) -> Status:
        """The gravest finding."""
        return status_of(self.findings)

    @property
    def messages(self) -> tuple[str, ...]:
        """The findings in words."""
        return tuple(f.text for f in self.findings)

    @property
    def identified(self) -> dict[str, bool]:
        """Fitted constant -> whether the data determine it."""
        known = dict(zip(self.law.names, self.uncertainty.identified.tolist(), strict=True))
        return {name: known[name] for name in self.free}

    @property
    def bounds(self) -> dict[str, tuple[float, float]]:
        """Constant -> the values that the fit could reach."""
        return {
            p.name: (natural(p, self.problem.low[i]), natural(p, self.problem.high[i]))
            for i, p in enumerate(self.law.parameters)
        }

    @cached_property
    def intervals(self) -> dict[str, tuple[float, float]]:
        """Fitted constant -> linearised 95 % interval within its bounds; the bounds where it is not identified."""
        out = {}
        for i, p in enumerate(self.law.parameters):
            if p.name not in self.free:
                continue
            low, high = self.bounds[p.name]
            if self.uncertainty.identified[i]:
                half = self.uncertainty.quantile * self.uncertainty.errors[i]
                ends = (natural(p, self.point[i] - half), natural(p, self.point[i] + half))
                low, high = max(low, ends[0]), min(high, ends[1])
            out[p.name] = (low, high)
        return out

    @property
    def standard_errors(self) -> dict[str, float]:
        """Fitted constant -> linearised standard error in its own units; inf where it is not identified."""
        errors = dict(zip(self.law.names, self.uncertainty.errors.tolist(), strict=True))
        return {n: errors[n] * (self.params[n] if self.law.parameter(n).log else 1.0) for n in self.free}

    def interval_of(self, value: Callable[[Mapping[str, float]], float]) -> tuple[float, float]:
        """Linearised 95 % interval of a number derived from the constants (name -> value), such as a predicted loss or
        an optimum; (-inf, inf) where it rests on constants that the data leave open."""
        return interval_of(value, self.law, self.point, self.uncertainty)

    def intervals_of(self, values: Callable[[Mapping[str, float]], np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
        """The same of numbers (m,), such as a law along a line: lower and upper ends."""
        return intervals_of(values, self.law, self.point, self.uncertainty)

    @property
    def rows_used(self) -> int:
        """Rows in the sum."""
        return len(self.table)

    @property
    def rows_excluded(self) -> int:
        """Rows of the file that are not."""
        return sum(self.table.excluded.values())

    @property
    def predicted(self) -> np.ndarray:
        """(n,) prediction per used row, nats/token."""
        return self.table.observed * np.exp(self.residuals)

    @property
    def warnings(self) -> tuple[str, ...]:
        """Everything a reader should know before using the constants."""
        return (*self.table.warnings, *self.law.notes, *self.messages)


def natural(parameter: Parameter, z: float) -> float:
    """Search coordinate -> natural value; the ends of the search are exactly the bounds."""
    for end, bound in zip(parameter.search_bounds(), parameter.bounds, strict=True):
        if z == end:
            return bound
    return float(np.exp(z)) if parameter.log else float(z)
