"""Hoffmann et al. 2022 (arXiv:2203.15556) and Kaplan et al. 2020 (arXiv:2001.08361): loss without precision."""

from dataclasses import dataclass
from typing import Any

from precisionlm.analysis.laws.base import D, Law, N, Parameter, coefficient, exponent, published

E_FLOOR = Parameter("E", bounds=(0.0, 50.0), linear=True, meaning="irreducible loss (nats/token)")


def base_loss(p: Any, log_n: Any, log_d: Any, alpha: Any, beta: Any, xp: Any) -> Any:
    """A N^-alpha + B D^-beta + E, each power through one exponential of logarithms."""
    return xp.exp(p["log_A"] - alpha * log_n) + xp.exp(p["log_B"] - beta * log_d) + p["E"]


@dataclass(frozen=True)
class Chinchilla:
    """L = A N^-alpha + B D^-beta + E; beta = alpha where tied."""

    tied: bool

    def __call__(self, p: Any, c: Any, xp: Any) -> Any:
        """Loss per row."""
        beta = p["alpha"] if self.tied else p["beta"]
        return base_loss(p, c["log_N"], c["log_D"], p["alpha"], beta, xp)


def base_parameters(tied: bool) -> tuple[Parameter, ...]:
    """The constants of the Chinchilla base that the precision laws share."""
    alpha = exponent("alpha", (0.05, 1.8), "power of N" + (" and of D" if tied else ""))
    beta = () if tied else (exponent("beta", (0.05, 1.8), "power of D"),)
    return (coefficient("A", "scale of the model-size term"), alpha, coefficient("B", "scale of the data term"), *beta,
            E_FLOOR)  # fmt: skip


HOFFMANN = "Hoffmann et al. 2022, arXiv:2203.15556"

CHINCHILLA = Law(
    name="chinchilla",
    title="L = A N^-α + B D^-β + E",
    parameters=base_parameters(tied=False),
    symbols=(N, D),
    formula=Chinchilla(tied=False),
    source=HOFFMANN + ", Eq 2",
    arms=({},) * 6,
    published=(
        published(
            "Besiroglu et al. 2024, arXiv:2404.10102 (runs of Hoffmann et al.); Huber 1e-3, 240 runs",
            A=477.84, B=2143.86, E=1.81724, alpha=0.347313, beta=0.367183,
        ),
        published(
            "Besiroglu et al. 2024, arXiv:2404.10102, as printed",
            note="another objective: a scaled Huber likelihood whose scale is fitted too",
            A=482.01, B=2085.43, E=1.81686, alpha=0.34781, beta=0.36585,
        ),
        published(HOFFMANN + ", approach 3", A=406.4, B=410.7, E=1.69, alpha=0.34, beta=0.28),
    ),
)  # fmt: skip

CHINCHILLA_TIED = Law(
    name="chinchilla_tied",
    title="L = A N^-α + B D^-α + E",
    parameters=base_parameters(tied=True),
    symbols=(N, D),
    formula=Chinchilla(tied=True),
    source="Muennighoff et al. 2023, arXiv:2305.16264: one exponent for parameters and data",
    published=(
        published("Chen et al. 2025, arXiv:2505.14302, Table 1", A=237.7042, B=596.2490, E=1.9279, alpha=0.3022),
        published("Kumar et al. 2024, arXiv:2411.04330, Table 2", A=4299.0, B=18060.0, E=2.7648, alpha=0.4965),
    ),
)


@dataclass(frozen=True)
class Kaplan:
    """L = [(N_c/N)^(α_N/α_D) + D_c/D]^α_D, + E with an offset."""

    offset: bool

    def __call__(self, p: Any, c: Any, xp: Any) -> Any:
        """Loss per row."""
        by_size = p["alpha_N"] / p["alpha_D"] * (p["log_N_c"] - c["log_N"])
        power = xp.exp(p["alpha_D"] * xp.logaddexp(by_size, p["log_D_c"] - c["log_D"]))
        return power + p["E"] if self.offset else power


_KAPLAN_PARAMETERS = (
    exponent("alpha_N", (0.03, 0.6), "power of N where data is plentiful"),
    exponent("alpha_D", (0.03, 0.6), "power of D where the model is large"),
    Parameter("N_c", (1e8, 1e15), (1.0, 1e40), log=True, meaning="size scale (parameters)"),
    Parameter("D_c", (1e8, 1e15), (1.0, 1e40), log=True, meaning="data scale (tokens)"),
)


KAPLAN = Law(
    name="kaplan",
    title="L = [(N_c/N)^(α_N/α_D) + D_c/D]^α_D",
    parameters=_KAPLAN_PARAMETERS,
    symbols=(N, D),
    formula=Kaplan(offset=False),
    source="Kaplan et al. 2020, arXiv:2001.08361, Eq 1.5",
    published=(
        published("Kaplan et al. 2020, arXiv:2001.08361, Table 2",
                  alpha_N=0.076, alpha_D=0.103, N_c=6.4e13, D_c=1.8e13),
    ),
)  # fmt: skip

# Without E the powers are small and the scales huge; with it the powers are those of a reducible loss.
KAPLAN_OFFSET = Law(
    name="kaplan_offset",
    title="L = [(N_c/N)^(α_N/α_D) + D_c/D]^α_D + E",
    parameters=(
        exponent("alpha_N", (0.1, 1.2), "power of N where data is plentiful"),
        exponent("alpha_D", (0.1, 1.2), "power of D where the model is large"),
        Parameter("N_c", (1e6, 1e12), (1.0, 1e40), log=True, meaning="size scale (parameters)"),
        Parameter("D_c", (1e6, 1e12), (1.0, 1e40), log=True, meaning="data scale (tokens)"),
        E_FLOOR,
    ),
    symbols=(N, D),
    formula=Kaplan(offset=True),
    source="Brandfonbrener et al. 2024, arXiv:2411.12925: Kaplan et al. 2020, Eq 1.5, with an irreducible loss",
)

LAWS = (CHINCHILLA, CHINCHILLA_TIED, KAPLAN, KAPLAN_OFFSET)
