"""A fit as its users see it: constants with intervals and doubts, predictions, the same as text and as JSON."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike

from precisionlm.analysis.fitting.bootstrap import Bootstrap
from precisionlm.analysis.fitting.findings import FEW_GROUPS, Finding, Status, concerning
from precisionlm.analysis.fitting.fit import FitResult
from precisionlm.analysis.fitting.percentile import percentile_interval
from precisionlm.analysis.laws.base import Law
from precisionlm.analysis.laws.precision import values_of
from precisionlm.errors import UserError, nearest
from precisionlm.json_text import dumps


@dataclass(frozen=True)
class Analysis:
    """A fit and, if asked for, its bootstrap: constants with intervals, how far to trust them, the rows they rest on.

    `stages`: the earlier fits of a staged one, in order. `source`: what the rows were read from. `str` is what
    `precisionlm fit` prints, `to_dict` what it prints with `--json`.
    """

    result: FitResult
    bootstrap: Bootstrap | None = None
    stages: tuple[FitResult, ...] = ()
    source: str = "a data frame"

    @property
    def law(self) -> Law:
        """The fitted law: of a family, the member that the rows can determine."""
        return self.result.law

    @property
    def params(self) -> dict[str, float]:
        """Constant -> value; those that were held too."""
        return self.result.params

    @property
    def status(self) -> str:
        """The gravest finding: converged, ill-conditioned, at-bound, not-identified or not-converged."""
        return self.result.status.value

    @property
    def rows_used(self) -> int:
        """Rows that the law was fitted on."""
        return self.result.rows_used

    @property
    def excluded(self) -> dict[str, int]:
        """Reason -> how many rows of the table it left out."""
        return self.result.table.excluded

    @property
    def rows(self) -> pd.DataFrame:
        """The rows used, as read, with `measured` and `predicted` (nats/token) and `log_residual`, the logarithm of
        predicted over measured."""
        result = self.result
        return result.table.frame.assign(
            measured=result.table.observed, predicted=result.predicted, log_residual=result.residuals
        )

    @property
    def constants(self) -> pd.DataFrame:
        """A row a constant: value, low and high (95 % interval), identified (None: held at its value), meaning."""
        none = (float("nan"), float("nan"))
        found = [
            (p.name, self.params[p.name], *self.intervals.get(p.name, none), self.identified.get(p.name), p.meaning)
            for p in self.law.parameters
        ]
        return pd.DataFrame(found, columns=["constant", "value", "low", "high", "identified", "meaning"]).set_index(
            "constant"
        )

    def predict(self, **columns: ArrayLike) -> np.ndarray:
        """The law's loss, or gap, in nats/token, of the shape that the values broadcast to; inf where it is undefined.

        columns: values of the law's symbols, as in `predict(N=1e9, D=2e10, P_w=[4, 8])`; of a symbol that is a text
        column, its levels. Raises UserError for a symbol that the law does not have or that is left without a value.
        """
        known = {s.name for s in self.law.symbols}
        for name in columns:
            if name not in known:
                raise UserError(f"predict: law {self.law.name} has no symbol '{name}'; {nearest(name, sorted(known))}")
        for s in self.law.symbols:
            if s.name not in columns and s.default is None:
                raise UserError(f"predict: give a value of {s.name} ({s.meaning})")
        values = {name: values_of(self.law, name, given) for name, given in columns.items()}
        shape = np.broadcast_shapes(*(value.shape for value in values.values()))
        flat = {name: np.broadcast_to(value, shape).ravel() for name, value in values.items()}
        return np.broadcast_to(self.law.predict(self.params, flat), int(np.prod(shape))).reshape(shape)

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

    def __str__(self) -> str:
        result, intervals = self.result, self.intervals
        excluded = "; ".join(f"{count} x {reason}" for reason, count in self.excluded.items())
        lines = [
            f"{self.law.name}: {self.law.title}",
            f"status {self.status}   {result.objective} = {result.objective_value:.10g}   R² {result.r2:.4f}   "
            f"rms log residual {result.rms_log:.4g}   condition {result.condition:.2g}",
            f"{result.share:.0%} of {result.starts} starts reached it in {result.seconds:.1f} s",
            f"rows used {self.rows_used}, excluded {result.rows_excluded}" + (f" ({excluded})" if excluded else ""),
            f"95 % intervals: {self.intervals_from}",
        ]
        for p in self.law.parameters:
            interval = "  [{:.4g}, {:.4g}]".format(*intervals[p.name]) if p.name in intervals else ""
            known = {True: "", False: "  not identified", None: "  held"}[self.identified.get(p.name)]
            lines.append(f"  {p.name:<11} {self.params[p.name]:<12.6g}{interval:<26}{known}  {p.meaning}")
        return "\n".join(lines)

    def __repr__(self) -> str:
        return "\n".join([str(self), *(f"warning: {warning}" for warning in self.warnings)])

    def to_dict(self) -> dict[str, Any]:
        """The fit as plain data; objective is the minimised sum."""
        result = self.result
        out: dict[str, Any] = {
            "law": self.law.name, "formula": self.law.title, "params": self.params,
            "objective": result.objective_value, "objective_name": str(result.objective), "status": self.status,
            "rows_used": self.rows_used, "rows_excluded": result.rows_excluded, "excluded": self.excluded,
            "fitted": list(result.free), "starts": result.starts, "share_at_optimum": result.share,
            "gradient_cosine": result.gradient, "condition": result.condition, "r2": result.r2,
            "rms_log_residual": result.rms_log, "correlation": result.correlation.tolist(),
            "findings": [asdict(finding) for finding in self.findings], "identified": self.identified,
            "intervals": {k: list(v) for k, v in self.intervals.items()}, "intervals_from": self.intervals_from,
            "standard_errors": self.standard_errors, "warnings": list(self.warnings),
            "seconds": result.seconds,
        }  # fmt: skip
        if self.bootstrap:
            boot = self.bootstrap
            out["bootstrap"] = {"resamples": boot.resamples, "finished": len(boot.samples), "over": boot.over,
                                "groups": boot.groups, "seconds": boot.seconds}  # fmt: skip
        if self.stages:
            out["stages"] = [Analysis(stage).to_dict() for stage in self.stages]
        return out

    def to_json(self) -> str:
        """`to_dict` as JSON; numbers that are not finite become null."""
        return dumps(self.to_dict(), indent=2)
