"""Ouyang et al. 2024, arXiv:2411.17691: post-training damage as a power of the bits, where Kumar has an exponential."""

from typing import Any

from precisionlm.analysis.laws.base import GAP, D, Law, N, coefficient, exponent, published, signed_exponent
from precisionlm.analysis.laws.kumar import AFTER, QUANTIZED_AFTER


def _ouyang(p: Any, c: Any, xp: Any) -> Any:
    quantized = xp.isfinite(c["P_post"])
    log_bits = xp.log(xp.where(quantized, c["P_post"], 1.0))
    gap = xp.exp(p["log_k"] + p["gamma_D"] * c["log_D"] - p["gamma_N"] * c["log_N"] - p["rho"] * log_bits)
    return xp.where(quantized, gap, 0.0)


OUYANG = Law(
    name="ouyang",
    title="δ = k D^γ_D / (N^γ_N P^ρ)",
    parameters=(
        coefficient("k", "scale of the damage"),
        signed_exponent("gamma_D", (0.1, 1.0), "power of D"),
        signed_exponent("gamma_N", (0.1, 1.0), "power of N"),
        exponent("rho", (1.0, 8.0), "power of the bits after quantization"),
    ),
    symbols=(N, D, AFTER),
    formula=_ouyang,
    source="Ouyang et al. 2024, arXiv:2411.17691",
    target=GAP,
    restrictions=(QUANTIZED_AFTER,),
    published=(
        published("Ouyang et al. 2024, arXiv:2411.17691 (GPTQ, Pythia 160M-12B)",
                  k=0.017, gamma_D=0.5251, gamma_N=0.2261, rho=5.4967),
    ),
)  # fmt: skip

LAWS = (OUYANG,)
