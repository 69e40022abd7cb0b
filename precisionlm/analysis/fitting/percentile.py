"""The one percentile interval of all samples: constants, predictions and decisions over refits."""

import numpy as np
from numpy.typing import ArrayLike

LEVELS = (2.5, 97.5)


def percentile_interval(samples: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
    """(low, high) of the middle 95 % along the first axis of samples (R, ...); scalars' arrays for (R,).

    The ends are the p (R + 1)-th of the sorted samples, between which a further one falls with the right probability
    however few there are (Davison & Hinkley 1997, section 5.3); the outermost below 39. A sample that is not a number
    (the law is undefined there) counts as +inf. Next to infinite samples the nearest sample stands in for
    interpolation, which would give no number there.
    """
    values = np.asarray(samples, float)
    values = np.where(np.isnan(values), np.inf, values)
    ends = []
    for level in LEVELS:
        nearest = np.percentile(values, level, axis=0, method="nearest")
        finite = np.isfinite(values).all(axis=0)
        between = np.percentile(np.where(finite, values, 0.0), level, axis=0, method="weibull")
        ends.append(np.where(finite, between, nearest))
    return ends[0], ends[1]
