"""Profile intervals: how far a constant, or a number derived from them, can move before the best fit gets worse.

With S(c) the lowest objective at which the quantity is c, the 95 % interval is where S(c) - S_min stays below
t²/2 · s. s makes the quadratic around the optimum agree with the errors clustered by shared noise (Chandler & Bate
2007, "Inference for clustered data using the independence loglikelihood"), and is the scatter of residuals where the
optimum is flat. Unlike a linearised interval it follows the law wherever that bends, and is open where the data leave
it open.
"""

import math
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from precisionlm.analysis.fitting.judge import jacobian
from precisionlm.analysis.fitting.objective import residual
from precisionlm.analysis.fitting.result import FitResult, natural
from precisionlm.analysis.fitting.solve import solve
from precisionlm.analysis.fitting.uncertainty import slope_of, smooth_slope
from precisionlm.errors import UserError

Value = Callable[[Mapping[str, float]], float]

TRIES = 40  # points looked at for one end
EXACT = 0.01  # relative distance of the square root of the rise from its limit at which an end is found
CORRECTIONS = 30  # steps back to the constraint for one point of a derived quantity's profile


def profile_intervals(result: FitResult, names: Sequence[str]) -> dict[str, tuple[float, float]]:
    """Constant -> profile 95 % interval; it ends at the constant's bound where the objective never rises enough.

    Raises UserError for a name that is not a fitted constant.
    """
    for name in names:
        if name not in result.free:
            raise UserError(
                f"--profile '{name}' is not a fitted constant of {result.law.name}: {', '.join(result.free)}"
            )
    index = [result.law.names.index(name) for name in names for _ in range(2)]
    side = np.array([-1.0, 1.0] * len(names))
    low, high = result.problem.low, result.problem.high
    points = np.repeat(result.point[None], len(side), 0)  # the last solution of each end: the next begins there
    inverse = _inverse(result, high > low)
    # How the others follow when one constant moves, as long as the objective is quadratic.
    follow = {i: inverse[:, i] / inverse[i, i] if inverse[i, i] > 0 else np.eye(len(low))[i] for i in set(index)}

    def rise(tasks: np.ndarray, at: np.ndarray) -> np.ndarray:
        bounds = tuple(np.repeat(end[None], len(tasks), 0) for end in (low, high))
        starts = np.empty((len(tasks), len(low)))
        for row, (task, z) in enumerate(zip(tasks, at, strict=True)):
            i = index[task]
            bounds[0][row, i] = bounds[1][row, i] = z
            starts[row] = points[task] + follow[i] * (z - points[task, i])
        solution = solve(result.problem, starts, result.weights, (bounds[0], bounds[1]))
        risen = solution.objective - result.objective_value
        inside = risen <= limits[tasks]
        points[tasks[inside]] = solution.point[inside]
        return risen

    errors = np.sqrt(np.diag(result.uncertainty.covariance))[index]
    limits = np.array([_limit(result, np.eye(len(low))[i]) for i in index])
    bound = np.where(side < 0, low[index], high[index])
    step = np.where(errors > 0, errors, 0.1)
    ends = _ends(rise, result.point[index], side, step, bound, limits)
    found = [natural(result.law.parameters[i], z) for i, z in zip(index, ends, strict=True)]
    return {name: (found[2 * k], found[2 * k + 1]) for k, name in enumerate(names)}


def profile_of(result: FitResult, value: Value) -> tuple[float, float]:
    """Profile 95 % interval of a number derived from the constants (name -> value), such as critical data or an
    optimal width; infinite on a side where the objective never rises enough. Raises UserError where the number is not
    finite at the optimum or does not depend on the constants."""
    centre = float(value(result.params))
    if not math.isfinite(centre):
        raise UserError("this quantity is not finite at the fitted constants, so it has no profile")
    scaled = centre > 0.0  # positive quantities are followed on a logarithmic scale

    def derived(params: Mapping[str, float]) -> float:
        found = float(value(params))
        return (math.log(found) if found > 0.0 else math.nan) if scaled else found

    slope = slope_of(derived, result.law, result.point, result.problem.high > result.problem.low)
    if not np.isfinite(slope).all() or not slope.any():
        raise UserError("this quantity does not depend on the fitted constants, or jumps at them, so it has no profile")
    points, limit = np.repeat(result.point[None], 2, 0), np.full(2, _limit(result, slope))

    def rise(tasks: np.ndarray, at: np.ndarray) -> np.ndarray:
        out = np.empty(len(tasks))
        for row, (task, target) in enumerate(zip(tasks, at, strict=True)):
            point, objective = _constrained(result, derived, float(target), points[task], EXACT * limit[task])
            out[row] = objective - result.objective_value
            points[task] = point if out[row] <= limit[task] else points[task]
        return out

    start = np.full(2, math.log(centre) if scaled else centre)
    error = math.sqrt(max(float(slope @ result.uncertainty.covariance @ slope), 0.0))
    step = np.full(2, error if 0 < error < 1.0 else 0.1 * (1.0 if scaled else max(abs(centre), 1.0)))
    side = np.array([-1.0, 1.0])
    low, high = _ends(rise, start, side, step, side * math.inf, limit)
    return (float(np.exp(low)), float(np.exp(high))) if scaled else (float(low), float(high))


def _limit(result: FitResult, slope: np.ndarray) -> float:
    """The rise of the objective at the ends of an interval of a quantity with this slope (p,) in search space."""
    known, problem = result.uncertainty, result.problem
    at_bound = (result.point <= problem.low) | (result.point >= problem.high)
    moving = (problem.high > problem.low) & ~(at_bound & known.identified & (slope == 0))
    plain = float(slope @ _inverse(result, moving) @ slope)
    clustered = float(slope @ known.covariance @ slope)
    steady = known.quantile * math.sqrt(max(float(slope @ known.steady @ slope), 0.0))
    flat = float(np.linalg.norm(slope @ known.flat)) > steady or not plain > 0
    return 0.5 * known.quantile**2 * (known.scatter if flat else max(clustered / plain, 1e-300))


def _inverse(result: FitResult, moving: np.ndarray) -> np.ndarray:
    """(p, p) inverse of the information at the optimum about the constants that move; 0 for the others."""
    information = _expansion(result, result.point)[2][np.ix_(moving, moving)]
    unit = np.sqrt(np.maximum(np.diag(information), 1e-300))
    inverse = np.zeros((len(moving), len(moving)))
    scaled = np.linalg.pinv(information / np.outer(unit, unit), rcond=1e-12, hermitian=True)
    inverse[np.ix_(moving, moving)] = scaled / np.outer(unit, unit)
    return inverse


def _expansion(result: FitResult, point: np.ndarray) -> tuple[float, np.ndarray, np.ndarray]:
    """Objective, gradient (p,) and information (p, p) at a point of search space."""
    problem, weights = result.problem, result.weights
    threshold, law = problem.objective.threshold, problem.law
    params = {p.name: float(np.exp(z) if p.log else z) for p, z in zip(law.parameters, point, strict=True)}
    with np.errstate(all="ignore"):
        r = residual(problem.objective.scale, law.predict(params, problem.columns), problem.observed)
    if not np.isfinite(r).all():
        return math.inf, np.zeros(len(point)), np.eye(len(point))
    size = np.abs(r)
    outside = size > threshold
    rho = np.where(outside, np.where(outside, threshold, 0.0) * (size - 0.5 * min(threshold, 1e300)), 0.5 * r * r)
    jac = jacobian(problem, point)
    curvature = weights * smooth_slope(r, threshold, len(result.free))
    gradient = jac.T @ (weights * np.clip(r, -threshold, threshold))
    return float(np.sum(weights * rho)), gradient, (jac * curvature[:, None]).T @ jac


def _constrained(
    result: FitResult, value: Value, target: float, point: np.ndarray, fine: float
) -> tuple[np.ndarray, float]:
    """The point of lowest objective at which `value` is `target`, and its objective, to within `fine`; inf if it is
    not reached."""
    low, high = result.problem.low, result.problem.high
    free = high > low
    objective, gradient, information = _expansion(result, point)
    now = _at(value, result, point)
    for _ in range(CORRECTIONS):
        moving = free & ~(((point <= low) & (gradient > 0)) | ((point >= high) & (gradient < 0)))
        slope = slope_of(value, result.law, point, moving)[moving]
        if not np.isfinite(slope).all() or not slope.any():
            return point, math.inf
        step = np.zeros(len(point))
        held = np.ix_(moving, moving)
        step[moving], force = _towards(information[held], gradient[moving], slope, target - now)
        price = 2.0 * abs(force)  # above the multiplier, so that the constraint is worth its cost
        merit, size = objective + price * abs(target - now), 1.0
        while size > 1e-4:
            trial = np.clip(point + size * step, low, high)
            there, then = _expansion(result, trial), _at(value, result, trial)
            if there[0] + price * abs(target - then) < merit:
                break
            size /= 2
        else:
            break
        gained = merit - there[0] - price * abs(target - then)
        point, (objective, gradient, information), now = trial, there, then
        if gained < fine:
            break
    scale = max(abs(target), 1e-3)
    return point, objective if abs(target - now) < 1e-3 * scale else math.inf


def _towards(information: np.ndarray, gradient: np.ndarray, slope: np.ndarray, lack: float) -> tuple[np.ndarray, float]:
    """The step that lowers the quadratic most while the linearised quantity moves by `lack`, and its multiplier."""
    k = len(slope)
    diagonal = np.diag(information)
    unit = np.sqrt(np.maximum(diagonal, 1e-12 * diagonal.max()) + 1e-300)
    system = np.zeros((k + 1, k + 1))
    system[:k, :k] = information / np.outer(unit, unit) + 1e-9 * np.eye(k)
    length = float(np.linalg.norm(slope / unit))
    system[:k, k] = system[k, :k] = slope / unit / length
    found = np.linalg.lstsq(system, np.append(-gradient / unit, lack / length), rcond=None)[0]
    return found[:k] / unit, float(found[k]) / length


def _at(value: Value, result: FitResult, point: np.ndarray) -> float:
    return float(
        value({p.name: float(np.exp(z) if p.log else z) for p, z in zip(result.law.parameters, point, strict=True)})
    )


def _ends(
    rise: Callable[[np.ndarray, np.ndarray], np.ndarray],
    start: np.ndarray,
    side: np.ndarray,
    step: np.ndarray,
    bound: np.ndarray,
    limit: np.ndarray,
) -> np.ndarray:
    """(m,) where `rise` reaches `limit` on each side of `start`, or the bound; all ends are looked for side by side.

    Steps double until the limit is passed; then the square root of the rise, nearly a straight line, is interpolated.
    """
    inside, height = start.astype(float), np.zeros(len(start))
    outside, above = np.full(len(start), np.nan), np.full(len(start), np.nan)
    done, step = np.zeros(len(start), bool), step.copy()
    goal = np.sqrt(limit)
    for _ in range(TRIES):
        tasks = np.flatnonzero(~done)
        if not len(tasks):
            break
        bracketed = ~np.isnan(outside[tasks])
        share = np.clip((goal - height)[tasks] / np.where(bracketed, (above - height)[tasks], 1.0), 0.1, 0.9)
        between = inside[tasks] + np.where(np.isfinite(share), share, 0.5) * (outside - inside)[tasks]
        onward = inside[tasks] + side[tasks] * step[tasks]
        at = np.where(bracketed, between, onward)
        beyond = (at - bound[tasks]) * side[tasks] >= 0
        at = np.where(beyond, bound[tasks], at)
        found = np.sqrt(np.maximum(np.nan_to_num(rise(tasks, at), nan=math.inf), 0.0))
        over = found > goal[tasks]
        inside[tasks] = np.where(over, inside[tasks], at)
        height[tasks] = np.where(over, height[tasks], found)
        outside[tasks], above[tasks] = np.where(over, at, outside[tasks]), np.where(over, found, above[tasks])
        step[tasks] *= 2.0
        near = np.abs(found - goal[tasks]) < EXACT * goal[tasks]
        narrow = np.abs(outside - inside)[tasks] <= 1e-4 * np.abs(outside - start)[tasks]
        done[tasks] = (~over & beyond) | near | narrow
        inside[tasks] = np.where(near, at, inside[tasks])
    never = ~done & np.isnan(outside)
    return np.where(never, bound, inside)
