"""Castro et al. 2025 (Quartet), arXiv:2505.14669: forward precision costs parameters, backward precision costs data.

    L = (A / (N eff_N)^α + B / (D eff_D)^β)^γ + E

eff_N applies where the forward product is quantized, eff_D where the backward products are; both are 1 at bf16.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from precisionlm.analysis.laws.base import D, Law, N, Parameter, Stage, Symbol, exponent, published
from precisionlm.analysis.table.derive import backward_quantized, forward_quantized

FORWARD = Symbol("forward", "fwd_quantized", "field", "1 where the forward products are quantized, else 0",
                 derive=forward_quantized)  # fmt: skip
BACKWARD = Symbol("backward", "bwd_quantized", "field", "1 where the backward products are quantized, else 0",
                  derive=backward_quantized)  # fmt: skip


def _quartet(p: Any, c: Any, xp: Any) -> Any:
    log_n = c["log_N"] + c["forward"] * p["log_eff_N"]
    log_d = c["log_D"] + c["backward"] * p["log_eff_D"]
    size = p["log_A"] - p["alpha"] * log_n
    data = p["log_B"] - p["beta"] * log_d
    return xp.exp(p["gamma"] * xp.logaddexp(size, data)) + p["E"]


def _rows(forward: bool, backward: bool) -> Any:
    def where(c: Mapping[str, np.ndarray]) -> np.ndarray:
        return ((c["forward"] > 0) == forward) & ((c["backward"] > 0) == backward)

    return where


def label(columns: Mapping[str, Any]) -> str:
    """Which passes are quantized."""
    passes = [name for name in ("forward", "backward") if columns[name] > 0]
    return f"{' and '.join(passes)} quantized" if passes else "not quantized"


QUARTET = Law(
    name="quartet",
    title="L = (A/(N eff_N)^α + B/(D eff_D)^β)^γ + E",
    parameters=(
        Parameter("A", (1e2, 1e7), (1e-6, 1e15), True, meaning="scale of the model-size term"),
        exponent("alpha", (0.2, 1.2), "power of N"),
        Parameter("B", (1e2, 1e7), (1e-6, 1e15), True, meaning="scale of the data term"),
        exponent("beta", (0.2, 1.2), "power of D"),
        Parameter("gamma", (0.15, 1.0), (0.01, 3.0), True, meaning="outer power"),
        Parameter("E", bounds=(0.0, 50.0), linear=True, meaning="irreducible loss (nats/token)"),
        Parameter("eff_N", (0.3, 1.0), (1e-3, 10.0), True, meaning="multiplier of N with a quantized forward product"),
        Parameter("eff_D", (0.3, 1.0), (1e-3, 10.0), True, meaning="multiplier of D with quantized backward products"),
    ),
    symbols=(N, D, FORWARD, BACKWARD),
    formula=_quartet,
    label=label,
    kept_share=lambda p, c: np.where(np.asarray(c["forward"]) > 0, p["eff_N"], 1.0),
    source="Castro et al. 2025 (Quartet), arXiv:2505.14669",
    published=(
        published("Castro et al. 2025 (Quartet), arXiv:2505.14669, fit of the published runs (MXFP4)", A=152374.8,
                  alpha=0.588576, B=525459.0, beta=0.544039, gamma=0.273929, E=1.348141, eff_N=0.647813,
                  eff_D=0.891765),
    ),
    stages=(
        Stage(("A", "alpha", "B", "beta", "gamma", "E"), "rows with both passes at bf16", _rows(False, False)),
        Stage(("eff_D",), "rows with the backward pass alone quantized", _rows(False, True)),
        Stage(("eff_N",), "rows with the forward pass alone quantized", _rows(True, False)),
    ),
)  # fmt: skip

LAWS = (QUARTET,)
