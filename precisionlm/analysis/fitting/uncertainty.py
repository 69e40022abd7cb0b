"""How far constants may be off, linearised at the optimum: standard errors and which constants the data determine.

With J the Jacobian of the residuals in search space, w the weights and psi the slope of the objective, the sandwich
B (Σ_g u_g u_gᵀ) B with B = (Jᵀ w b J)⁻¹ and u_g = (1 - J_gᵀ w b J_g B)⁻¹ J_gᵀ w psi_g is the one-step jackknife over
groups of rows with shared noise (CR3: Bell & McCaffrey 2002). b is psi' of each row, smoothed: 1 for squares.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from precisionlm.analysis.fitting.grouping import Grouping
from precisionlm.analysis.laws.base import Law

RANK = 1e-9  # singular values below this share of the largest count as a direction without any data
COEFFICIENT = math.log(1e6)  # a scale known no better than to this factor is not known
STEP = 1e-4  # of the differences that give the slope of a derived quantity, in search space
CORRECTED = 10_000_000  # numbers held for the correction of each group's leverage; beyond, groups are many and it is 1
LOGISTIC = math.pi / math.sqrt(3)  # standard deviation of the logistic distribution
PRINTED = 1e-7  # residuals cannot be smaller than the digits of printed losses
ALONE = 1e-6  # a group within this of determining a direction alone hides its own noise there


@dataclass(frozen=True)
class Uncertainty:
    """Linearised uncertainty of a fit's constants.

    covariance: (p, p) in search space, 0 for held constants. identified: (p,) false where the 95 % interval is wider
    than the range of plausible values, or infinite. steady: the covariance without the directions that the data
    determine no better than that range. flat: (p, q) those directions, as long as a plausible change. quantile: half
    the width of a 95 % interval in standard errors. grouping: which rows share their noise. scatter: variance of a
    row's slope of the objective in units of its curvature (of its residual, for squares).
    """

    covariance: np.ndarray
    steady: np.ndarray
    identified: np.ndarray
    flat: np.ndarray
    quantile: float
    scatter: float
    grouping: Grouping = field(repr=False)

    @property
    def errors(self) -> np.ndarray:
        """(p,) standard errors in search space; inf where the constant is not identified."""
        return np.where(self.identified, np.sqrt(np.diag(self.covariance)), np.inf)


def plausible(law: Law, observed: np.ndarray) -> np.ndarray:
    """(p,) width of the range in which a constant is to be expected, in search space: that of its starts; a factor of
    a million for scales, the mean observation for an additive constant."""
    widths = []
    for p in law.parameters:
        if p.linear:
            widths.append(COEFFICIENT if p.log else float(np.mean(observed)))
        else:
            low, high = (float(p.to_search(v)) for v in p.start)
            widths.append(max(high - low, 1e-3))
    return np.array(widths)


def uncertainty(
    jacobian: np.ndarray,
    residuals: np.ndarray,
    weights: np.ndarray,
    threshold: float,
    grouping: Grouping,
    width: np.ndarray,
    free: np.ndarray,
    at_bound: np.ndarray,
) -> Uncertainty:
    """jacobian (n, p) and residuals (n,) of the objective's kind, weights (n,), threshold of the objective.

    width: (p,) plausible range. free, at_bound: (p,) masks. A constant that the data press to its bound does not move
    the others; its own error is that of a fit in which it moves too.
    """
    p = len(width)
    covariance, steady, identified = np.zeros((p, p)), np.zeros((p, p)), np.ones(p, bool)

    def place(mask: np.ndarray) -> np.ndarray:
        """Fill in what a fit that moves the constants of `mask` says of them; returns the directions it leaves open."""
        found = _sandwich(jacobian[:, mask] * width[mask], residuals, weights, threshold, grouping)
        here, units = np.ix_(mask, mask), np.outer(width[mask], width[mask])
        covariance[here], steady[here], identified[mask] = found[0] * units, found[1] * units, found[2]
        directions = np.zeros((p, found[3].shape[1]))
        directions[mask] = found[3] * width[mask][:, None]
        return directions

    flat = place(free) if free.any() else np.zeros((p, 0))
    pressed = at_bound & identified
    if pressed.any() and not (free <= pressed).all():
        for matrix in (covariance, steady):
            matrix[:] = np.diag(np.where(pressed, np.diag(matrix), 0.0))
        flat = place(free & ~pressed)
    left = len(residuals) - int(free.sum())
    scatter = _scatter(residuals, weights, threshold, int(free.sum()), left)
    quantile = t_quantile(max(min(grouping.count - 1, left), 1))
    return Uncertainty(covariance, steady, identified, flat, quantile, scatter, grouping)


def smooth_slope(residuals: np.ndarray, threshold: float, constants: int) -> np.ndarray:
    """(n,) psi' of each residual, averaged over logistic noise of half the median residual: 1 for squares.

    Thresholds far below the noise would otherwise rest on the few rows inside (Koenker 2005, section 3.4.2). One
    residual a constant is left out of the median: an optimum puts as many at 0.
    """
    if math.isinf(threshold):
        return np.ones(len(residuals))
    size = np.sort(np.abs(residuals))[min(constants, len(residuals) - 1) :]
    window = max(float(np.median(size)) / 2 / LOGISTIC, 1e-3 * threshold)
    upper, lower = ((residuals + side * threshold) / window for side in (1.0, -1.0))
    return np.maximum((np.tanh(upper / 2) - np.tanh(lower / 2)) / 2, 1e-9)


def t_quantile(dof: int) -> float:
    """97.5 % point of Student's t (Abramowitz & Stegun 26.7.5, within 1 % from 3 degrees of freedom)."""
    if dof <= 2:
        return (12.706, 4.303)[dof - 1]
    z = 1.959964
    terms = (
        (z**3 + z) / 4,
        (5 * z**5 + 16 * z**3 + 3 * z) / 96,
        (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384,
    )
    return z + sum(term / dof ** (i + 1) for i, term in enumerate(terms))


def interval_of(
    value: Callable[[Mapping[str, float]], float], law: Law, point: np.ndarray, known: Uncertainty
) -> tuple[float, float]:
    """Linearised 95 % interval of a number that is derived from the constants, as `intervals_of`."""
    low, high = intervals_of(lambda params: np.array([float(value(params))]), law, point, known)
    return float(low[0]), float(high[0])


def intervals_of(
    values: Callable[[Mapping[str, float]], np.ndarray], law: Law, point: np.ndarray, known: Uncertainty
) -> tuple[np.ndarray, np.ndarray]:
    """Linearised 95 % intervals of numbers (m,) that are derived from the constants: lower and upper ends.

    Constants that the data leave open move them within their plausible range. Infinite where that is most of an
    interval, and moves the number by more than half of its value.
    """
    moves = (np.diag(known.steady) > 0) | known.flat.any(axis=1)
    with np.errstate(invalid="ignore"):  # a number that is infinite has no slope
        centre, slope = values(_params(law, point)), slope_of(values, law, point, moves)
        steady = known.quantile * np.sqrt(np.maximum(np.sum(slope * (known.steady @ slope), axis=0), 0.0))
        open_ = np.linalg.norm(known.flat.T @ slope, axis=0)
        lost = ~np.isfinite(slope).all(axis=0) | ((open_ > 3 * steady) & (open_ > 0.5 * np.abs(centre)))
        half = np.where(lost, math.inf, np.hypot(steady, open_))
        return np.where(lost, -math.inf, centre - half), np.where(lost, math.inf, centre + half)


def slope_of(value: Callable[[Mapping[str, float]], Any], law: Law, point: np.ndarray, moves: np.ndarray) -> np.ndarray:
    """Derivative in search space of a number (p,) or numbers (p, m) derived from the constants, 0 for those that do
    not move."""
    slope = np.zeros((len(point), *np.shape(value(_params(law, point)))))
    for i in np.flatnonzero(moves):
        step = np.zeros(len(point))
        step[i] = STEP
        slope[i] = value(_params(law, point + step)) - value(_params(law, point - step))
    return slope / (2 * STEP)


def _params(law: Law, point: np.ndarray) -> dict[str, float]:
    return {p.name: float(np.exp(z) if p.log else z) for p, z in zip(law.parameters, point, strict=True)}


def unfinished(jacobian: np.ndarray, residuals: np.ndarray, weights: np.ndarray, threshold: float) -> float:
    """Standard errors between a point and the optimum that the Jacobian (n, k) there promises: 0 at an optimum."""
    n, k = jacobian.shape
    psi = np.sqrt(weights) * np.clip(residuals, -threshold, threshold)
    length = float(np.linalg.norm(psi))
    if not k or length == 0.0:
        return 0.0
    norms = np.linalg.norm(jacobian * np.sqrt(weights)[:, None], axis=0)
    unit = jacobian * np.sqrt(weights)[:, None] / np.where(norms > 0, norms, 1.0)
    step = np.linalg.lstsq(unit, psi, rcond=1e-7)[0]
    return float(np.linalg.norm(unit @ step)) / length * math.sqrt(max(n - k, 1))


def _sandwich(
    scaled: np.ndarray, residuals: np.ndarray, weights: np.ndarray, threshold: float, grouping: Grouping
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Covariance and steady covariance (k, k), identified (k,) and open directions (k, q); `scaled`: Jacobian (n, k) in
    plausible widths."""
    n, k = scaled.shape
    b = smooth_slope(residuals, threshold, k)
    psi = np.clip(residuals, -threshold, threshold)
    rho = np.sqrt(weights / b) * psi
    design = np.sqrt(weights * b)[:, None] * scaled
    nothing = np.zeros((k, k)), np.zeros((k, k)), np.zeros(k, bool), np.eye(k)
    if not np.isfinite(design).all():
        return nothing
    size, vectors = _principal(design)
    present = size > RANK * size.max()
    dof = n - int(present.sum())
    if dof < 1 or not present.any():
        return nothing
    lost = (np.abs(vectors[:, ~present]) > 1e-4).any(axis=1)
    scatter = _scatter(residuals, weights, threshold, k, dof)
    inverse = vectors[:, present] / size[present]
    meat = _meat(design @ inverse, rho, scatter, grouping)
    covariance = inverse @ meat @ inverse.T
    limit = t_quantile(dof) * math.sqrt(scatter)  # of what a plausible change does, for the data to determine it
    firm = (size > limit)[present].astype(float)
    steady = (inverse * firm) @ meat @ (inverse * firm).T
    variance = np.maximum(scatter * np.sum(inverse**2, axis=1), np.diag(covariance))
    identified = ~lost & (t_quantile(dof) * np.sqrt(variance) < 1.0)
    return covariance, steady, identified, vectors[:, size <= limit]


def _scatter(residuals: np.ndarray, weights: np.ndarray, threshold: float, constants: int, dof: int) -> float:
    """Variance of psi over mean psi': of the residuals for squares; inf without rows left after the constants."""
    if dof < 1:
        return math.inf
    psi = np.clip(residuals, -threshold, threshold)
    b = smooth_slope(residuals, threshold, constants)
    return max(float(np.sum(weights * psi**2) / np.sum(weights * b)) * len(psi) / dof, PRINTED**2)


def _principal(design: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Singular values (k,) and right singular vectors (k, k) of (n, k), those without rows at 0."""
    triangle = np.linalg.qr(design, mode="r")
    _, size, vectors = np.linalg.svd(triangle, full_matrices=True)
    return np.pad(size, (0, design.shape[1] - len(size))), vectors.T


def _meat(white: np.ndarray, rho: np.ndarray, scatter: float, grouping: Grouping) -> np.ndarray:
    """(k, k) sum over groups of their jackknifed scores, in coordinates in which the information is 1."""
    count, (n, k) = grouping.count, white.shape
    scores = np.stack([np.bincount(grouping.group, rho * white[:, j], count) for j in range(k)], 1)
    if count < 2:
        return np.eye(k) * scatter * n
    total = np.zeros((k, k))
    if count * k * k <= CORRECTED:
        order = np.argsort(grouping.group, kind="stable")
        begins = np.searchsorted(grouping.group[order], np.arange(count))
        rows = white[order]
        leverage = np.add.reduceat(rows[:, :, None] * rows[:, None, :], begins, axis=0)
        values, vectors = np.linalg.eigh(leverage)
        alone = values > 1.0 - ALONE
        turned = np.einsum("gij,gi->gj", vectors, scores) / np.where(alone, np.inf, 1.0 - values)
        scores = np.einsum("gij,gj->gi", vectors, turned)
        # All of the noise may be shared within the group: then its rows count as one.
        total += scatter * n / count * np.einsum("gij,gj,gkj->ik", vectors, alone.astype(float), vectors)
    total += (count - 1) / count * scores.T @ scores
    # A few groups may agree by chance: the scatter of single rows has the weight of one more group.
    spare = max(count - k, 0)
    return (spare * total + scatter * np.eye(k)) / (spare + 1) if spare else total + scatter * np.eye(k)
