"""The forms that Kumar et al. 2024 (arXiv:2411.04330, appendix C) compare N_eff with and reject, for weight bits.

The paper prints names and held-out R², not every formula; where a form is our reading of the name, the law says so.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np

from precisionlm.analysis.laws.base import D, Law, N, Parameter, coefficient, exponent
from precisionlm.analysis.laws.chinchilla import base_loss, base_parameters
from precisionlm.analysis.laws.kumar import SOURCE, P, label, saturation

_GAMMA = Parameter("gamma", (0.5, 4.0), (0.05, 100.0), True, meaning="bits until the factor saturates")
_OFFSET = Parameter("n", (-1.0, 1.0), (-20.0, 20.0), meaning="offset of the factor")
_GAMMA_D = Parameter("gamma_data", (0.5, 4.0), (0.05, 100.0), True, meaning="bits until the data factor saturates")
_OFFSET_D = Parameter("n_data", (-1.0, 1.0), (-20.0, 20.0), meaning="offset of the data factor")
_SCALE = coefficient("C", "scale of the precision term")
# Not linear: it multiplies A.
_FACTOR = Parameter("C", (0.1, 100.0), (1e-12, 1e12), True, meaning="scale of the precision factor")
_POWER = exponent("rho", (0.5, 5.0), "power of P")


@dataclass(frozen=True)
class Effective:
    """1 - exp(-P/γ + n) multiplies N, D or both; `free` gives D constants of its own."""

    size: bool
    data: bool
    free: bool = False

    def __call__(self, p: Any, c: Any, xp: Any) -> Any:
        """Loss per row; +inf where a factor is not positive."""
        f = saturation(c["P_w"], p["gamma"], p["n"], xp)
        g = saturation(c["P_w"], p["gamma_data"], p["n_data"], xp) if self.free else f
        defined = (f > 0) & (g > 0)
        log_n = c["log_N"] + (xp.log(xp.where(f > 0, f, 1.0)) if self.size else 0.0)
        log_d = c["log_D"] + (xp.log(xp.where(g > 0, g, 1.0)) if self.data else 0.0)
        return xp.where(defined, base_loss(p, log_n, log_d, p["alpha"], p["alpha"], xp), xp.inf)

    def kept_share(self, p: Any, c: Any) -> Any:
        """N_eff/N where the factor is one of N; NaN where it is not positive."""
        f = saturation(c["P_w"], p["gamma"], p["n"], np)
        return np.where(f > 0, f, np.nan)


@dataclass(frozen=True)
class PowerOfBits:
    """C P^-rho is added to the loss, or multiplies the model-size term as 1 + C P^-rho."""

    multiplies: bool

    def __call__(self, p: Any, c: Any, xp: Any) -> Any:
        """Loss per row."""
        term = xp.exp(p["log_C"] - p["rho"] * xp.log(c["P_w"]))
        if self.multiplies:
            log_n = c["log_N"] - xp.log1p(term) / p["alpha"]
            return base_loss(p, log_n, c["log_D"], p["alpha"], p["alpha"], xp)
        return base_loss(p, c["log_N"], c["log_D"], p["alpha"], p["alpha"], xp) + term


def _law(name: str, title: str, formula: Any, extra: tuple[Parameter, ...], note: str) -> Law:
    base = tuple(base_parameters(tied=True))
    share = formula.kept_share if isinstance(formula, Effective) and formula.size else None
    return Law(name, title, base + extra, (N, D, P["w"]), formula, SOURCE + ", appendix C. " + note,
               label=label, kept_share=share,
               undefined="+inf where a factor 1 - exp(-P/γ + n) is not positive")  # fmt: skip


LAWS = (
    _law("kumar_additive", "L = A N^-α + B D^-α + E + C P^-ρ", PowerOfBits(False), (_SCALE, _POWER),
         "Held-out R² 0.71."),
    _law("kumar_deff", "L = A N^-α + B D_eff^-α + E, D_eff = D f(P)", Effective(False, True), (_GAMMA, _OFFSET),
         "Held-out R² 0.74."),
    _law("kumar_tied", "L = A (N f(P))^-α + B (D f(P))^-α + E", Effective(True, True), (_GAMMA, _OFFSET),
         "Held-out R² 0.79."),
    _law("kumar_untied", "L = A (N f(P))^-α + B (D g(P))^-α + E", Effective(True, True, free=True),
         (_GAMMA, _OFFSET, _GAMMA_D, _OFFSET_D), "Held-out R² 0.84."),
    _law("kumar_multiplicative", "L = A N^-α (1 + C P^-ρ) + B D^-α + E", PowerOfBits(True), (_FACTOR, _POWER),
         "Our reading of 'multiplicative power law, N, P'. Held-out R² 0.75."),
)  # fmt: skip
