"""Intervals: refit on resampled runs. Percentile intervals of constants and bands of predictions."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from precisionlm.analysis.fitting.fit import FitResult
from precisionlm.analysis.fitting.grouping import grouping
from precisionlm.analysis.fitting.percentile import percentile_interval
from precisionlm.analysis.fitting.solve import solve
from precisionlm.analysis.laws.base import Law
from precisionlm.analysis.table.read import Table
from precisionlm.errors import UserError


@dataclass(frozen=True)
class Bootstrap:
    """Refits on resampled runs.

    samples: (R, p) natural values in the law's order, finished refits only. resamples: how many were asked for.
    over: what was resampled, row, run, seed or cell. groups: how many of those there are. why: what was chosen, in a
    line.
    """

    law: Law
    samples: np.ndarray
    resamples: int
    over: str
    groups: int
    why: str
    seconds: float

    @property
    def intervals(self) -> dict[str, tuple[float, float]]:
        """Name -> percentile 95 % interval."""
        low, high = percentile_interval(self.samples)
        return {n: (float(a), float(b)) for n, a, b in zip(self.law.names, low, high, strict=True)}

    @property
    def errors(self) -> dict[str, float]:
        """Name -> standard deviation over refits."""
        deviation = self.samples.std(axis=0, ddof=1)
        return {n: float(s) for n, s in zip(self.law.names, deviation, strict=True)}

    def predictions(self, columns: Mapping[str, ArrayLike]) -> np.ndarray:
        """(R, rows) predictions of every refit."""
        return self.law.evaluate(list(self.samples.T[:, :, None]), self.law.complete(columns))

    def band(self, columns: Mapping[str, ArrayLike]) -> tuple[np.ndarray, np.ndarray]:
        """Percentile 95 % band of the law (not of a new run, which adds its own noise): two (rows,) arrays."""
        return percentile_interval(self.predictions(columns))


def bootstrap(result: FitResult, resamples: int = 1000, over: str = "auto", seed: int = 0) -> Bootstrap:
    """Refit from the optimum on `resamples` draws with replacement of groups of rows that share their noise.

    over: row, run, seed or cell, or auto: what the data say, see `grouping`. Raises UserError for another unit or
    fewer than two groups of it.
    """
    return bootstrap_staged((result,), result.table, resamples, over, seed)


def bootstrap_staged(
    stages: Sequence[FitResult], table: Table, resamples: int = 1000, over: str = "auto", seed: int = 0
) -> Bootstrap:
    """The same for a fit in stages: each draw of the whole table's groups refits every stage upon its own earlier ones,
    so that the base's uncertainty is part of the later constants'."""
    began = time.perf_counter()
    if resamples < 2:
        raise UserError(f"--bootstrap {resamples}: at least 2 resamples are needed")
    groups = grouping(table, over)
    if groups.count < 2:
        raise UserError(f"bootstrap over {groups.over}s needs at least two; the table has {groups.count}")
    even = np.full(groups.count, 1 / groups.count)
    draws = np.random.default_rng(seed).multinomial(groups.count, even, size=resamples)
    law = stages[-1].law
    points, known = np.repeat(stages[0].point[None], resamples, axis=0), np.zeros(len(law.names), bool)
    usable = np.ones(resamples, bool)
    for stage in stages:
        group = groups.group[np.searchsorted(table.rows, stage.table.rows)]
        points = np.where(known, points, stage.point)
        low, high = (np.where(known, points, side) for side in (stage.problem.low, stage.problem.high))

        def weights_of(lanes: np.ndarray, group: np.ndarray = group, stage: FitResult = stage) -> np.ndarray:
            return draws[lanes][:, group] * stage.weights

        solution = solve(stage.problem, points, weights_of, (low, high), near=True)
        points, usable = solution.point, usable & np.isfinite(solution.objective)
        known |= np.isin(law.names, stage.free)
    found = points[usable].T
    samples = np.stack([np.exp(z) if p.log else z for p, z in zip(law.parameters, found, strict=True)], axis=1)
    return Bootstrap(law, samples, resamples, groups.over, groups.count, groups.why, time.perf_counter() - began)
