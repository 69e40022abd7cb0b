"""How coarse a number format is: its mean squared error on a Gaussian."""

from functools import cache

import numpy as np


@cache
def gaussian_error(bits: float, exponent: float = 0.0, mantissa: float = 0.0) -> float:
    """Relative mean squared error of a format on a unit Gaussian at its best scale.

    A float of `exponent` and `mantissa` bits with subnormals and no special codes; without exponent bits a symmetric
    integer of `bits` bits (any real number from 1.5, through its number of levels).
    """
    if exponent == 0:
        half = max(1.0, np.floor((2.0**bits - 2) / 2))
        positive = np.arange(0, min(half, 2.0**15) + 1)
    else:
        codes = np.arange(2 ** int(exponent + mantissa))
        power, fraction = codes >> int(mantissa), codes & (2 ** int(mantissa) - 1)
        unit = fraction / 2.0 ** int(mantissa)
        positive = np.where(power == 0, 2 * unit, (1 + unit) * 2.0 ** np.minimum(power, 60))
    positive = np.sort(positive / positive.max())
    x = np.linspace(0, 7, 20001)
    density = np.exp(-(x**2) / 2)
    density /= density.sum()
    middle = (positive[1:] + positive[:-1]) / 2

    def error(scale: float) -> float:
        return float(np.sum(density * (x - positive[np.searchsorted(middle, x / scale)] * scale) ** 2))

    scales = np.geomspace(0.3, 30, 160)
    best = scales[int(np.argmin([error(s) for s in scales]))]
    return min(error(s) for s in np.linspace(best * 0.95, best * 1.05, 41))
