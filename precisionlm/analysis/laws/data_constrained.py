"""Muennighoff et al. 2023, "Scaling Data-Constrained Language Models", arXiv:2305.16264: repeated tokens.

    L  = A / N'^α + B / D'^β + E
    D' = U_D + U_D R*_D (1 - exp(-R_D / R*_D)),   U_D = min(U, D),       R_D = D / U_D - 1                       (Eq 5)
    N' = U_N + U_N R*_N (1 - exp(-R_N / R*_N)),   U_N = min(N, N_opt),   R_N = N / U_N - 1                       (Eq 6)

U: distinct tokens. N_opt: the size that the base law would train on U_D tokens at least compute, from A, B, α and β
(Hoffmann et al. 2022, Eq 4): N_opt = G (G U_D)^(β/α), G = (αA / βB)^(1/(α+β)). Parameters beyond it repeat as tokens
beyond U do. With U = D and N ≤ N_opt this is the Chinchilla law. The paper ties β to α.
"""

from dataclasses import dataclass
from typing import Any

from precisionlm.analysis.laws.base import D, Law, N, Parameter, Symbol, published
from precisionlm.analysis.laws.chinchilla import base_loss, base_parameters

SOURCE = "Muennighoff et al. 2023, arXiv:2305.16264"
UNIQUE = Symbol("U", "D_unique", meaning="distinct training tokens (count)")


def _log_effective(log_total: Any, log_unique: Any, log_star: Any, xp: Any) -> Any:
    """log of U + U R* (1 - exp(-R/R*)) with R = total/U - 1."""
    repeats = xp.expm1(log_total - log_unique)
    return log_unique + xp.log1p(-xp.exp(log_star) * xp.expm1(-repeats * xp.exp(-log_star)))


@dataclass(frozen=True)
class DataConstrained:
    """The base at N' and D'; β = α where tied."""

    tied: bool

    def __call__(self, p: Any, c: Any, xp: Any) -> Any:
        """Loss per row."""
        alpha, beta = p["alpha"], p["alpha"] if self.tied else p["beta"]
        log_unique = xp.minimum(c["log_U"], c["log_D"])
        log_g = (p["log_A"] + xp.log(alpha) - p["log_B"] - xp.log(beta)) / (alpha + beta)
        log_best = log_g + (log_g + log_unique) * beta / alpha
        log_n = _log_effective(c["log_N"], xp.minimum(c["log_N"], log_best), p["log_R_N"], xp)
        log_d = _log_effective(c["log_D"], log_unique, p["log_R_D"], xp)
        return base_loss(p, log_n, log_d, alpha, beta, xp)


def _law(tied: bool) -> Law:
    base = []
    for p in base_parameters(tied):
        # Not linear here: A and B also set N_opt.
        scale = Parameter(p.name, (50.0, 5e4), (1e-6, 1e15), True, meaning=p.meaning) if p.name in ("A", "B") else p
        power = Parameter(p.name, (0.15, 0.8), (1e-3, 20.0), meaning=p.meaning)
        base.append(power if p.name in ("alpha", "beta") else scale)
    return Law(
        name="data_constrained" if tied else "data_constrained_beta",
        title=f"L = A N'^-α + B D'^-{'α' if tied else 'β'} + E, repetition saturating over R_D and R_N",
        parameters=(
            *base,
            Parameter("R_D", (2.0, 40.0), (0.05, 1e4), True, meaning="repetitions over which tokens lose their worth"),
            Parameter("R_N", (1.0, 20.0), (0.05, 1e4), True, meaning="excess over N_opt at which parameters lose it"),
        ),
        symbols=(N, D, UNIQUE),
        formula=DataConstrained(tied),
        source=SOURCE,
        published=(
            (published(SOURCE + ", §6 and appendix A", A=521.0, alpha=0.353, B=1488.0, E=1.87, R_D=15.4, R_N=5.3),)
            if tied else ()
        ),
    )  # fmt: skip


LAWS = (_law(tied=True), _law(tied=False))
