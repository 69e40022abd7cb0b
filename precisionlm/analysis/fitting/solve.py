"""The minimiser of every fit: damped Newton steps with exact derivatives, all starts side by side in compiled batches.

Why not L-BFGS: the objective is nearly a sum of absolute values (log residuals of 1e-2 against Huber's 1e-3), with
3 to 25 constants whose scaled Hessian is ill-conditioned. Newton steps (`minimise`) reach full float64 precision in 20
to 30 steps, where gradient-only methods take hundreds.

Starts, bootstrap refits, cross-validation folds and points of a profile are all lanes of batches of one shape, so one
executable serves them, whatever their number. Lanes that have finished leave between rounds. Batches run one after the
other: executing from several threads has been seen to deadlock.
"""

from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import NamedTuple

import jax
import numpy as np

from precisionlm.analysis.fitting.float64 import float64
from precisionlm.analysis.fitting.minimise import Lane, advance
from precisionlm.analysis.fitting.objective import Objective
from precisionlm.analysis.laws.base import Law

LANES = (2, 128)  # fewest and most in a batch
WORK = 16_384  # numbers in one array of a batch (lanes x rows): what stays in a core's cache
CHUNK = 8192  # rows whose derivatives are held at once
ROUNDS = (12, 4, 4, 4, 4, 4, 8, 8, 16, 64, 128)
SHORT = (4, 4, *ROUNDS)  # from points near the optimum
EASY = 1e-3
SAME = 1e-4  # objectives within this relative distance count as the same optimum
PATIENCE, NEAR = 40, 1.01  # steps after which a start is given up if it is 1 % above the best finished one

Weights = np.ndarray | Callable[[np.ndarray], np.ndarray]


@dataclass(frozen=True)
class Problem:
    """One law on one table: columns symbol -> (n,), observations (n,), search-space bounds (p,) and the objective."""

    law: Law
    columns: Mapping[str, np.ndarray]
    observed: np.ndarray
    low: np.ndarray
    high: np.ndarray
    objective: Objective


class Solution(NamedTuple):
    """Per lane: search-space point (S, p), objective (S,), gradient (S, p), Hessian (S, p, p), finished (S,)."""

    point: np.ndarray
    objective: np.ndarray
    gradient: np.ndarray
    hessian: np.ndarray
    finished: np.ndarray


def solve(
    problem: Problem,
    starts: np.ndarray,
    weights: Weights,
    bounds: tuple[np.ndarray, np.ndarray] | None = None,
    near: bool = False,
) -> Solution:
    """Minimise from every start; those of one sum end where they have come to the best finished one's height.

    starts: (S, p) in search space. weights: (n,) for all, (S, n), a row's weight in each lane's sum, or a function of
    lanes' numbers (k,) that gives theirs (k, n), for those that together would not fit. bounds: low and high (S, p) of
    each lane, in place of the problem's. near: the starts are near their optima, so that exact second derivatives
    help from the first step.
    A Huber threshold below EASY (nearly absolute deviations) is approached in factors of ten, each from the last
    optimum: the kinks are then crossed by Newton steps instead of by ever shorter reweighted ones.
    """
    thresholds = [problem.objective.threshold]
    while thresholds[0] < EASY:
        thresholds.insert(0, min(thresholds[0] * 10.0, EASY))
    low, high = (np.broadcast_to(side, starts.shape) for side in bounds or (problem.low, problem.high))
    points = np.clip(starts, low, high)
    batches = _Batches(problem, weights, bounds is None and isinstance(weights, np.ndarray) and weights.ndim == 1)
    for stage, threshold in enumerate(thresholds):
        lanes = batches.minimise(_fresh(points, low, high, newton=near or stage > 0), threshold)
        points = lanes.point
    return Solution(lanes.point, lanes.value, lanes.gradient, lanes.hessian, lanes.done)


@contextmanager
def compiling(problem: Problem) -> Iterator[None]:
    """The minimiser is compiled beside what is done within the block."""
    size = _lane_count(len(problem.observed))
    points = np.zeros((size, len(problem.low)))
    lanes = _fresh(points, points + problem.low, points + problem.high, newton=False)
    batches = _Batches(problem, np.ones(len(problem.observed)))
    with ThreadPoolExecutor(1) as beside:
        no_step = beside.submit(batches.advance, lanes, problem.objective.threshold, 0, np.arange(size))
        yield
        no_step.result()


def _lane_count(rows: int) -> int:
    fitting = 2 ** int(np.log2(max(WORK // rows, 1)))
    return int(np.clip(fitting, *LANES))


def _fresh(starts: np.ndarray, low: np.ndarray, high: np.ndarray, newton: bool) -> Lane:
    size, p = starts.shape
    return Lane(
        np.array(low), np.array(high), np.zeros(size, np.int32), starts, starts.copy(), np.full(size, np.inf),
        np.zeros((size, p)), np.zeros((size, p, p)), np.full(size, 1e-2), np.full(size, newton), np.zeros(size, bool),
    )  # fmt: skip


class _Batches:
    """The rows of one problem in chunks, and what runs batches of lanes over them.

    one_problem: all lanes minimise the same sum, so that those far above the best may be given up.
    """

    def __init__(self, problem: Problem, weights: Weights, one_problem: bool = True):
        self.problem, self.weights, self.one_problem = problem, weights, one_problem
        self.rows = len(problem.observed)
        self.size = _lane_count(self.rows)
        self.chunks = -(-self.rows // CHUNK)
        with float64():
            columns = {k: self._cut(v) for k, v in problem.columns.items()}
            self.columns, self.observed = jax.device_put((columns, self._cut(problem.observed)))

    def minimise(self, lanes: Lane, threshold: float) -> Lane:
        active, until = np.arange(len(lanes.done)), 0
        for steps in SHORT if lanes.newton.all() else ROUNDS:
            until += steps
            padded = np.concatenate([active, np.repeat(active[:1], -len(active) % self.size)])
            outputs = [self.advance(lanes, threshold, until, batch) for batch in padded.reshape(-1, self.size)]
            for array, parts in zip(lanes, zip(*outputs, strict=True), strict=True):
                array[active] = np.concatenate(parts)[: len(active)]
            active = self._worth_going_on(lanes, until)
            # Lanes at the same height come near, and finish, at about the same step: such batches waste the least.
            active = active[np.argsort(lanes.value[active], kind="stable")]
            if not len(active):
                break
        return lanes

    def _worth_going_on(self, lanes: Lane, until: int) -> np.ndarray:
        """Lanes that are not done; of one sum, those that may still tell something beside the best finished one."""
        undone = np.flatnonzero(~lanes.done)
        if not self.one_problem or not lanes.done.any():
            return undone
        height, best = lanes.value[undone], lanes.value[lanes.done].min()
        arrived = (height >= best) & (height < best * (1.0 + SAME))
        hopeless = (height > best * NEAR) & (until >= PATIENCE)
        return undone[~(arrived | hopeless)]

    def advance(self, lanes: Lane, threshold: float, until: int, index: np.ndarray) -> list[np.ndarray]:
        problem, batch = self.problem, Lane(*(array[index] for array in lanes))
        with float64():
            out = advance(problem.law, problem.objective.scale, self.columns, self.observed, threshold, batch,
                          self._cut(self._weights_of(index), pad=0.0), until)  # fmt: skip
            return [np.asarray(a) for a in out]

    def _weights_of(self, index: np.ndarray) -> np.ndarray:
        if callable(self.weights):
            return self.weights(index)
        return self.weights[index] if self.weights.ndim == 2 else np.broadcast_to(self.weights, (len(index), self.rows))

    def _cut(self, values: np.ndarray, pad: float | None = None) -> np.ndarray:
        """(..., n) -> (..., chunks, rows), filled up with `pad` or with the last value."""
        per_chunk = -(-self.rows // self.chunks)
        lack = self.chunks * per_chunk - self.rows
        if lack:
            widths = [(0, 0)] * (values.ndim - 1) + [(0, lack)]
            values = np.pad(values, widths, mode="edge") if pad is None else np.pad(values, widths, constant_values=pad)
        return values.reshape(*values.shape[:-1], self.chunks, per_chunk)


def compile_count() -> int:
    """How many executables of the minimiser this process holds."""
    return int(getattr(advance, "_cache_size")())  # noqa: B009 (untyped in jax)
