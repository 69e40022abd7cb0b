"""Sun et al. 2025, "Scaling Laws for Floating-Point Quantization Training", arXiv:2501.02423, Eq 1.

    L = n/N^α + d/D^β + ε + (D^β/N^α) log2(B) / (γ (E + ½)^δ (M + ½)^ν)

E, M: exponent and mantissa bits; B: elements that share a scale (no scale: log2 B = 0; one per channel counts as
log2 B = 13.1567). Fitted in K = 1/γ, in which the law is linear. δ and ν may have either sign: where a shared
scale spans the range, a further exponent bit can cost (block formats).
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from precisionlm.analysis.laws.base import (
    D,
    Fields,
    Law,
    N,
    Parameter,
    Published,
    Symbol,
    coefficient,
    exponent,
    signed_exponent,
)

SOURCE = "Sun et al. 2025, arXiv:2501.02423"

EXPONENT = Symbol("E", "w_exponent", "field", "exponent bits of the quantized operands")
MANTISSA = Symbol("M", "w_mantissa", "field", "mantissa bits of the quantized operands")
BLOCK = Symbol("log2B", "w_group", "block", "log2 of the elements that share a scale")

TABLE_2 = {
    "n": 69.2343, "alpha": 0.2368, "d": 68973.0621, "beta": 0.5162, "epsilon": 1.9061,
    "K": 1 / 11334.5197, "delta": 3.1926, "nu": 2.9543,
}  # fmt: skip


def _sun(p: Any, c: Any, xp: Any) -> Any:
    size = p["alpha"] * c["log_N"]
    data = p["beta"] * c["log_D"]
    coarseness = p["log_K"] - p["delta"] * xp.log(c["E"] + 0.5) - p["nu"] * xp.log(c["M"] + 0.5)
    return (xp.exp(p["log_n"] - size) + xp.exp(p["log_d"] - data) + p["epsilon"]
            + c["log2B"] * xp.exp(data - size + coarseness))  # fmt: skip


def best_split(p: Any, bits: Any, fields: Fields) -> dict[str, Any]:
    """The exponent and mantissa bits of a format, or the best real-valued ones of a width: E + ½ = P δ/(δ + ν).

    Neither is less than the half bit that survives without any; a power that is not positive gets no more."""
    if fields is not None:
        return {"E": fields[0], "M": fields[1]}
    of_exponent, of_mantissa = np.maximum(p["delta"], 1e-9), np.maximum(p["nu"], 1e-9)
    width = np.maximum(np.asarray(bits, float), 1.0)
    exponent = np.clip(of_exponent / (of_exponent + of_mantissa) * width, 0.5, width - 0.5) - 0.5
    return {"E": exponent, "M": width - 1.0 - exponent}


def label(columns: Mapping[str, Any]) -> str:
    """E4M3, 128 elements per scale."""
    shared = 2.0 ** columns["log2B"]
    return f"E{columns['E']:.3g}M{columns['M']:.3g}" + (f", {shared:.4g} elements per scale" if shared > 1 else "")


def kept_share(p: Any, c: Any) -> Any:
    """The share of the parameters that would lose as much without quantization, from n/(N eff)^α = n/N^α + δ."""
    gap = _sun(p, c, np) - _sun(p, {**c, "log2B": np.zeros_like(c["log2B"])}, np)
    size = np.exp(p["log_n"] - p["alpha"] * c["log_N"])
    return (size / (size + gap)) ** (1 / p["alpha"])


SUN = Law(
    name="sun",
    title="L = n/N^α + d/D^β + ε + (D^β/N^α) log2(B) K / ((E+½)^δ (M+½)^ν), K = 1/γ",
    parameters=(
        coefficient("n", "scale of the model-size term"),
        exponent("alpha", (0.05, 1.0), "power of N"),
        coefficient("d", "scale of the data term"),
        exponent("beta", (0.05, 1.0), "power of D"),
        Parameter("epsilon", bounds=(0.0, 50.0), linear=True, meaning="irreducible loss (nats/token)"),
        coefficient("K", "scale of the precision term (1/γ)"),
        signed_exponent("delta", (-1.0, 5.0), "power of the exponent bits"),
        signed_exponent("nu", (-1.0, 5.0), "power of the mantissa bits"),
    ),
    symbols=(N, D, EXPONENT, MANTISSA, BLOCK),
    formula=_sun,
    source=SOURCE + ", Eq 1",
    published=(Published(tuple(TABLE_2.items()), SOURCE + ", Table 2", "B = 1/scale elements; γ = 11334.5197"),),
    label=label,
    at_bits=best_split,
    kept_share=kept_share,
    arms=tuple(
        {"E": e, "M": m, "log2B": b} for e, m in ((1, 1), (2, 1), (2, 3), (4, 3), (8, 7)) for b in (5, 7, 13.1567)
    ),
    figures="precisionlm.analysis.figures.sun",
    undefined="nowhere; but beyond its critical D the loss rises with more tokens",
)

LAWS = (SUN,)
