"""How often 95 % intervals hold the truth, on simulated tables whose arms share the noise of their (N, D) or do not."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd

from precisionlm.analysis import laws
from precisionlm.analysis.fitting.analysis import Analysis
from precisionlm.analysis.fitting.bootstrap import bootstrap
from precisionlm.analysis.fitting.fit import fit
from precisionlm.analysis.fitting.objective import Objective
from precisionlm.analysis.table.read import Table

SIZES, BUDGETS = (30e6, 60e6, 110e6, 220e6, 430e6), (1.5e9, 3e9, 6e9, 13e9, 26e9)


@dataclass(frozen=True)
class Noise:
    """Standard deviations of the logarithm of the loss: `cell` is shared by all runs of one (N, D), `own` is not."""

    name: str
    cell: float
    own: float


NOISES = (Noise("cell 0.3 % + own 0.1 %", 0.003, 0.001), Noise("independent 0.3 %", 0.0, 0.003))


def simulate(name: str, noise: Noise, seed: int) -> tuple[Table, dict[str, float]]:
    """A table of the law's grid with its published constants, and those constants; for laws that have `arms`."""
    law = replace(laws.get(name), adapt=None)  # the table has what tells all of its constants
    truth = {k: v for k, v in law.published[0].as_dict().items() if k in law.names}
    grid = pd.DataFrame([{"N": n, "D": d, **arm} for n in SIZES for d in BUDGETS for arm in law.arms])
    columns = {s.name: grid[s.name].to_numpy(float) for s in law.symbols}
    cell = np.repeat(np.arange(len(SIZES) * len(BUDGETS)), len(law.arms))
    rng = np.random.default_rng(seed)
    scatter = noise.cell * rng.normal(size=cell.max() + 1)[cell] + noise.own * rng.normal(size=len(cell))
    observed = law.predict(truth, columns) * np.exp(scatter)
    rows = np.arange(len(cell))
    table = Table(law, columns, observed, np.full(len(rows), np.nan), rows, cell, rows, {}, (), grid)
    return table, truth


def bench_coverage(
    names: Sequence[str],
    tables: int = 100,
    resamples: int = 200,
    over: Sequence[str] = ("auto", "run"),
    objective: Objective = Objective(),
    noises: Sequence[Noise] = NOISES,
    say: Callable[[str], None] = lambda _: None,
) -> list[dict[str, Any]]:
    """Rows {law, noise, over, bootstrap, linearised, constants}: share of (table, constant) pairs whose interval holds
    the constant that the table was made with, for bootstrap intervals and linearised ones, and the bootstrap's by
    constant. The fit starts from the truth: it is intervals that are measured, not the search."""
    rows = []
    for name in names:
        for noise in noises:
            for unit in over:
                hits = [_hits(*simulate(name, noise, seed), resamples, unit, objective, seed) for seed in range(tables)]
                by_constant = {k: float(np.mean([h[0][k] for h in hits])) for k in hits[0][0]}
                linear = float(np.mean([list(h[1].values()) for h in hits]))
                rows.append({"law": name, "noise": noise.name, "over": unit, "groups": hits[0][2], "tables": tables,
                             "bootstrap": float(np.mean(list(by_constant.values()))), "linearised": linear,
                             "constants": by_constant})  # fmt: skip
                say(as_line(rows[-1]))
    return rows


def _hits(
    table: Table, truth: dict[str, float], resamples: int, over: str, objective: Objective, seed: int
) -> tuple[dict[str, bool], dict[str, bool], str]:
    result = fit(table, objective, 1, first=truth, over=over)
    drawn = Analysis(result, bootstrap(result, resamples, over, seed))

    def inside(intervals: dict[str, tuple[float, float]]) -> dict[str, bool]:
        return {k: low <= truth[k] <= high for k, (low, high) in intervals.items()}

    groups = result.uncertainty.grouping
    return inside(drawn.intervals), inside(result.intervals), f"{groups.count} {groups.over}s"


def as_line(row: dict[str, Any]) -> str:
    """One row in words."""
    each = " ".join(f"{k} {share:.0%}" for k, share in row["constants"].items())
    return (
        f"{row['law']:<11} {row['noise']:<23} over {row['over']:<4} ({row['groups']}): "
        f"bootstrap {row['bootstrap']:.1%}, linearised {row['linearised']:.1%} of {row['tables']} tables  {each}"
    )
