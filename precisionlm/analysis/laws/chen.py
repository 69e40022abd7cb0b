"""Chen et al. 2025, "Scaling Law for Quantization-Aware Training", arXiv:2505.14302, Eq 4 and 5.

    L = A N^-α + B D^-α + E + δ_p,   δ_p = k D^γ_D (log2 G)^γ_G / N^γ_N

G: elements that share a scale; G = 1 (no quantization) gives δ_p = 0. One set of constants per setting (W4A4, W4A16,
W16A4, and those with an 8-bit input of the MLP's down-projection). The powers may have either sign: published fits to
other formats have both.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from precisionlm.analysis.laws.base import (
    GAP,
    D,
    Law,
    N,
    Parameter,
    Published,
    Restriction,
    Symbol,
    coefficient,
    signed_exponent,
)
from precisionlm.analysis.laws.chinchilla import base_loss, base_parameters

SOURCE = "Chen et al. 2025, arXiv:2505.14302"
FIGURES = "precisionlm.analysis.figures.chen"
GROUP = Symbol("G", "w_group", "group", "elements that share a scale; 1 where nothing is quantized")
BASE = {"A": 237.7042, "alpha": 0.3022, "B": 596.2490, "E": 1.9279}
SETTINGS = {
    "W4A4": (0.1582, 0.2186, 0.0745, 0.7779),
    "W4A16": (0.2522, 0.3589, 0.1610, 0.3533),
    "W16A4": (0.1004, 0.1816, 0.0331, 0.9812),
    "W4A4, FC2 input 8-bit": (0.3519, 0.2637, 0.0964, 0.3407),
    "W16A4, FC2 input 8-bit": (0.1273, 0.2347, 0.0827, 0.4491),
}
ADDITIVITY = 0.906  # δ_W4A4 ≈ 0.906 (δ_W4A16 + δ_W16A4), their §4


def _gap(p: Any, c: Any, xp: Any) -> Any:
    grouped = c["G"] > 1.0
    log_log = xp.log(xp.log2(xp.where(grouped, c["G"], 2.0)))
    exponent_ = p["log_k"] + p["gamma_D"] * c["log_D"] - p["gamma_N"] * c["log_N"] + p["gamma_G"] * log_log
    return xp.where(grouped, xp.exp(exponent_), 0.0)


def _loss(p: Any, c: Any, xp: Any) -> Any:
    return base_loss(p, c["log_N"], c["log_D"], p["alpha"], p["alpha"], xp) + _gap(p, c, xp)


_GAP_PARAMETERS: tuple[Parameter, ...] = (
    coefficient("k", "scale of the quantization error"),
    signed_exponent("gamma_N", (-0.1, 0.8), "power of N in the quantization error"),
    signed_exponent("gamma_D", (-0.2, 0.5), "power of D in the quantization error"),
    signed_exponent("gamma_G", (-0.2, 1.5), "power of log2 G in the quantization error"),
)


def _published(base: dict[str, float]) -> tuple[Published, ...]:
    return tuple(
        Published(
            (*base.items(), *zip(("k", "gamma_N", "gamma_D", "gamma_G"), v, strict=True)), SOURCE + ", Table 1", s
        )
        for s, v in SETTINGS.items()
    )


CHEN = Law(
    name="chen",
    title="L = A N^-α + B D^-α + E + k D^γ_D (log2 G)^γ_G / N^γ_N",
    parameters=(*base_parameters(tied=True), *_GAP_PARAMETERS),
    symbols=(N, D, GROUP),
    formula=_loss,
    source=SOURCE + ", Eq 4",
    kept_share=lambda p, c: effective_multiplier(p, c["N"], c["D"], c["G"]),
    arms=tuple({"G": g} for g in (1, 32, 64, 128, 256, 1024)),
    figures=FIGURES,
    published=_published(BASE),
)
CHEN_GAP = Law(
    name="chen_gap",
    title="δ = k D^γ_D (log2 G)^γ_G / N^γ_N",
    parameters=_GAP_PARAMETERS,
    symbols=(N, D, GROUP),
    formula=_gap,
    source=SOURCE + ", Eq 5",
    target=GAP,
    figures=FIGURES,
    restrictions=(
        Restriction("no scale shared (G = 1): nothing is quantized, there is no gap", lambda c: c["G"] <= 1),
    ),
    published=_published({}),
)

LAWS = (CHEN, CHEN_GAP)


def effective_multiplier(params: Mapping[str, Any], n: Any, d: Any, group: Any) -> Any:
    """eff with A (N eff)^-α = A N^-α + δ_p (their Eq 11-13): share of the parameters left after quantization."""
    n, d, group = (np.asarray(x, float) for x in (n, d, group))
    gap = _gap({**params, "log_k": np.log(params["k"])}, {"log_N": np.log(n), "log_D": np.log(d), "G": group}, np)
    base = params["A"] * n ** -params["alpha"]
    return (base / (base + gap)) ** (1 / params["alpha"])
