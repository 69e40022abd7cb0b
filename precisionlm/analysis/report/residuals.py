"""The runs that a fit explains worst, by name: residuals in units of what is to be expected of each."""

from dataclasses import dataclass
from math import erfc, sqrt
from typing import Any

import numpy as np

from precisionlm.analysis.figures.recipes import Recipes
from precisionlm.analysis.fitting.analysis import Analysis
from precisionlm.analysis.fitting.fit import jacobian

FAR, NAMED = 3.0, 10  # standard deviations from which a run is called far; how many are named at most


@dataclass(frozen=True)
class Residuals:
    """far: (n,) log residuals (predicted over observed) in standard deviations, a row each; NaN where nothing but the
    row itself determines a constant. scatter: their standard deviation before division, of log loss."""

    far: np.ndarray
    scatter: float


def standardised(analysis: Analysis) -> Residuals:
    """Internally studentized: r / (s sqrt(1 - h)), h the leverage of the row among the constants of the last stage.

    A row that pulls the law to itself leaves a small residual; the division undoes that. Source: Cook & Weisberg 1982,
    section 2.2.
    """
    result = analysis.result
    free = result.problem.high > result.problem.low
    root = np.sqrt(result.weights)
    design = jacobian(result.problem, result.point)[:, free] * root[:, None]
    norms = np.linalg.norm(design, axis=0)
    left, size, _ = np.linalg.svd(design / np.where(norms > 0, norms, 1.0), full_matrices=False)
    leverage = np.sum(left[:, size > 1e-9 * size.max(initial=0.0)] ** 2, axis=1)
    spare = max(len(root) - sum(len(fit.free) for fit in analysis.fits), 1)
    weighted = root * result.residuals
    scatter = sqrt(float(weighted @ weighted) / spare)
    remaining = np.where(leverage < 1 - 1e-6, 1 - leverage, np.nan)
    return Residuals(weighted / (max(scatter, 1e-300) * np.sqrt(remaining)), scatter)


def farthest(analysis: Analysis, found: Residuals, recipes: Recipes, names: np.ndarray) -> dict[str, Any]:
    """The sentence and the rows of the page's table: the runs farthest from the law, at most ten.

    names: (n,) of the fitted rows.
    """
    table, labels, size = analysis.result.table, recipes.of(analysis), np.abs(np.nan_to_num(found.far))
    order = np.argsort(-size, kind="stable")[:NAMED]
    count, expected = int((size > FAR).sum()), len(size) * erfc(FAR / sqrt(2))
    columns = {k: table.columns[k] for k in ("N", "D") if k in table.columns}
    rows = [
        [str(names[i]), *(f"{v[i]:.4g}" for v in columns.values()), str(labels[i]), f"{table.observed[i]:.4g}",
         f"{analysis.result.predicted[i]:.4g}", f"{100 * analysis.result.residuals[i]:+.3g}", f"{found.far[i]:+.1f}"]
        for i in order
    ]  # fmt: skip
    return {
        "told": f"{count} of {len(size)} rows lie more than {FAR:g} standard deviations from the law; of a normal "
        f"scatter it would be {expected:.2g}. One standard deviation is {100 * found.scatter:.2g} % of the "
        f"{'gap' if analysis.law.is_gap else 'loss'}.",
        "head": ["run", *columns, "recipe", "observed", "the law", "off by (%)", "standard deviations"],
        "rows": rows,
    }  # fmt: skip
