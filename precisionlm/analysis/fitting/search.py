"""The best optimum of a law on a table: from many starts, on a sample of the rows first where there are very many."""

from dataclasses import dataclass, replace

import numpy as np

from precisionlm.analysis.fitting.solve import SAME, Problem, solve
from precisionlm.analysis.fitting.starts import starting_points
from precisionlm.errors import UserError

SAMPLE = 4096  # rows that the starts are searched on where the table has more than twice as many
RARE = 32  # rows of each kind of run that a sample keeps at least
POLISHED = 4  # distinct optima of the sample that are followed on all rows


@dataclass(frozen=True)
class Optimum:
    """point (p,) in search space and its objective; share of the `tries` starts that came to it."""

    point: np.ndarray
    value: float
    share: float
    tries: int


def search(problem: Problem, weights: np.ndarray, points: np.ndarray) -> Optimum:
    """The lowest optimum on all rows, from starting points (S, p) in search space.

    With very many rows the starts run on a sample of them, and its best distinct optima on all rows. Raises UserError
    if the law is undefined at every start.
    """
    small, rows = sampled(problem)
    solution = solve(small, points, weights[rows])
    share = _share(solution.objective)
    if small is not problem and np.isfinite(solution.objective).any():
        solution = solve(problem, _distinct(solution.point, solution.objective), weights, near=True)
    best = int(np.argmin(solution.objective))
    if not np.isfinite(solution.objective[best]):
        law = problem.law
        raise UserError(f"law {law.name} is undefined on these rows at every start ({law.undefined})")
    return Optimum(solution.point[best], float(solution.objective[best]), share, len(points))


def sampled(problem: Problem) -> tuple[Problem, np.ndarray]:
    """The problem on at most about SAMPLE rows, some of every kind of run, and their positions; itself if small."""
    n = len(problem.observed)
    if n <= 2 * SAMPLE:
        return problem, np.arange(n)
    order = np.random.default_rng(0).permutation(n)
    kind = _kinds(problem)[order]
    counts = np.bincount(kind)
    wanted = np.maximum(SAMPLE * counts // n, RARE)
    by_kind = np.argsort(kind, kind="stable")
    place = np.empty(n, int)
    place[by_kind] = np.arange(n) - np.repeat(np.cumsum(counts) - counts, counts)
    rows = np.sort(order[place < wanted[kind]])
    columns = {name: values[rows] for name, values in problem.columns.items()}
    return replace(problem, columns=columns, observed=problem.observed[rows]), rows


def _kinds(problem: Problem) -> np.ndarray:
    """(n,) number of each row's combination of what is neither size nor tokens; all 0 where there are too many."""
    names = [s.name for s in problem.law.symbols if s.kind != "count"]
    n = len(problem.observed)
    if not names:
        return np.zeros(n, int)
    kinds = np.zeros(n, int)
    for name in names:  # numbered column by column: unique rows of a matrix take far longer
        own = np.unique(problem.columns[name], return_inverse=True)[1].reshape(-1)
        kinds = np.unique(kinds * (own.max() + 1) + own, return_inverse=True)[1].reshape(-1)
    return kinds if (kinds.max() + 1) * RARE <= SAMPLE else np.zeros(n, int)


def _share(objective: np.ndarray) -> float:
    return float(np.mean(objective <= objective.min() * (1 + SAME) + 1e-18))


def _distinct(points: np.ndarray, objective: np.ndarray) -> np.ndarray:
    """The lowest optima that differ in height, at most POLISHED."""
    kept: list[int] = []
    for i in np.argsort(objective):
        if np.isfinite(objective[i]) and (not kept or objective[i] > objective[kept[-1]] * (1 + SAME)):
            kept.append(int(i))
        if len(kept) == POLISHED:
            break
    return points[kept]


def search_starts(problem: Problem, weights: np.ndarray, count: int) -> np.ndarray:
    """(S, p) starting points in search space. Raises UserError if the law is defined at none."""
    law = problem.law
    natural = starting_points(law, problem.columns, problem.observed, weights, count)
    if not len(natural):
        raise UserError(f"law {law.name} is undefined on these rows at every start ({law.undefined})")
    return np.clip(
        np.stack([p.to_search(natural[:, i]) for i, p in enumerate(law.parameters)], 1), problem.low, problem.high
    )
