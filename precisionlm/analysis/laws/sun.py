"""Sun et al. 2025, "Scaling Laws for Floating-Point Quantization Training", arXiv:2501.02423, Eq 1.

    L = n/N^α + d/D^β + ε + (D^β/N^α) log2(B) / (γ (E + ½)^δ (M + ½)^ν)

E, M: exponent and mantissa bits; B: elements that share a scale (no scale: log2 B = 0; one per channel counts as
log2 B = 13.1567). Fitted in K = 1/γ, in which the law is linear. δ and ν may have either sign: where a shared
scale spans the range, a further exponent bit can cost (block formats).
"""

from typing import Any

from precisionlm.analysis.laws.base import (
    D,
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
    undefined="nowhere; but beyond its critical D the loss rises with more tokens",
)

LAWS = (SUN,)
