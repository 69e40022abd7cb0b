"""How coarse a number format is: its mean squared error on a Gaussian."""

import re
from functools import cache

import numpy as np

_NAMED = {"bf16": (8.0, 7.0), "bfloat16": (8.0, 7.0), "fp16": (5.0, 10.0), "float16": (5.0, 10.0), "fp4": (2.0, 1.0)}


@cache
def gaussian_error(bits: float, exponent: float = 0.0, mantissa: float = 0.0) -> float:
    """Relative mean squared error of a format on a unit Gaussian at its best scale.

    A float of `exponent` and `mantissa` bits with subnormals and no special codes; without exponent bits a symmetric
    integer of `bits` bits (any real number from 1.5, through its number of levels). Beyond 6 exponent bits, whose
    range no Gaussian needs, and 2^15 values of a sign or of a power of two, the error is that of as many.
    """
    if exponent == 0:
        half = max(1.0, np.floor((2.0 ** min(bits, 17.0) - 2) / 2))
        positive = np.arange(0, min(half, 2.0**15) + 1)
    else:
        exponent, mantissa = min(exponent, 6.0), min(mantissa, 15.0)
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


def exponent_mantissa(name: str | None) -> tuple[float, float]:
    """Exponent and mantissa bits of a format by its name (int4: 0 and 3; e4m3, mxfp4); NaN where it does not say."""
    text = (name or "").lower()
    if found := re.search(r"e(\d+)m(\d+)", text):
        return float(found[1]), float(found[2])
    if found := re.search(r"(?:^|[^a-z])u?int(\d*)", text):
        return 0.0, float(found[1]) - 1.0 if found[1] else np.nan
    return next((parts for known, parts in _NAMED.items() if known in text), (np.nan, np.nan))
