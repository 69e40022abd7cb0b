"""Kumar et al. 2024, "Scaling Laws for Precision", arXiv:2411.04330.

    N_eff = N Π_x f_x(P_x),  f_x(P) = 1 - exp(-P/γ_x + n_x),  x over weights, activations, keys and values (Eq 3, 4)
    L     = A N_eff^-α + B D^-α + E + δ_PTQ                                                            (Eq 9)
    δ_PTQ = C_T exp(-P_post/γ_post + b) D^γ_D / N_eff^γ_N Π_x [1 - exp(-C_x (P_x - P_post))]

The offsets n_x and b stand only in the paper's appendix; they decide where the best precision lies. In a fit b is
held at 0, because only C_T exp(b) can be told from data.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from precisionlm.analysis.laws.base import (
    GAP,
    INF,
    D,
    Law,
    N,
    Parameter,
    Published,
    Restriction,
    Stage,
    Symbol,
    coefficient,
    exponent,
)
from precisionlm.analysis.laws.chinchilla import base_loss, base_parameters

SOURCE = "Kumar et al. 2024, arXiv:2411.04330"
OPERANDS = ("w", "a", "kv")
HIGH = 16.0  # bits from which a training counts as unquantized

P = {
    "w": Symbol("P_w", "w_bits", "bits", "bits of the weights in training"),
    "a": Symbol("P_a", "a_bits", "bits", "bits of the activations in training"),
    "kv": Symbol("P_kv", "kv_bits", "bits", "bits of keys and values in training"),
}
P_POST = Symbol("P_post", "ptq_bits", "ptq_bits", "bits of the weights after post-training quantization", default=INF)

TABLE_2 = {
    "A": 4299.0, "alpha": 0.4965, "B": 18060.0, "E": 2.7648,
    "gamma_w": 2.6745, "n_w": 0.3037, "gamma_a": 2.2102, "n_a": 1.4072, "gamma_kv": 0.9578, "n_kv": 2.4185,
    "C_T": 0.0598, "gamma_D": 0.5068, "gamma_N": 0.3439, "gamma_post": 0.5907, "b": 1.1277,
}  # fmt: skip


def saturation(bits: Any, gamma: Any, offset: Any, xp: Any) -> Any:
    """f(P) = 1 - exp(-P/γ + n): share of the parameters that P bits keep; not positive where training diverges."""
    return 1.0 - xp.exp(-bits / gamma + offset)


def ptq_term(p: Any, log_d: Any, log_n_eff: Any, bits: Any, xp: Any) -> Any:
    """C_T exp(-P/γ_post + b) D^γ_D / N_eff^γ_N, exactly 0 where `bits` is inf (not quantized)."""
    quantized = xp.isfinite(bits)
    safe = xp.where(quantized, bits, 1.0)
    gap = xp.exp(p["log_C_T"] + p["b"] - safe / p["gamma_post"] + p["gamma_D"] * log_d - p["gamma_N"] * log_n_eff)
    return xp.where(quantized, gap, 0.0)


@dataclass(frozen=True)
class Kumar:
    """The family: which operands have a factor, with offsets or not, which PTQ term, a free power per factor or not."""

    operands: tuple[str, ...]
    offsets: bool = True
    ptq: str = "none"  # none, simple (Eq 2), unified (Eq 9)
    powers: bool = False

    def __call__(self, p: Any, c: Any, xp: Any) -> Any:
        """Loss per row; +inf where a factor f_x is not positive."""
        log_n_eff, defined = c["log_N"], True
        for x in self.operands:
            f = saturation(c[f"P_{x}"], p[f"gamma_{x}"], p[f"n_{x}"] if self.offsets else 0.0, xp)
            defined = defined & (f > 0)
            log_f = xp.log(xp.where(f > 0, f, 1.0))
            log_n_eff = log_n_eff + (p[f"s_{x}"] * log_f if self.powers else log_f)
        loss = base_loss(p, log_n_eff, c["log_D"], p["alpha"], p["alpha"], xp)
        if self.ptq != "none":
            gap = ptq_term(p, c["log_D"], log_n_eff, c["P_post"], xp)
            for x in self.operands if self.ptq == "unified" else ():
                above = xp.maximum(c[f"P_{x}"] - xp.where(xp.isfinite(c["P_post"]), c["P_post"], 0.0), 0.0)
                gap = gap * -xp.expm1(-p[f"C_{x}"] * above)
            loss = loss + gap
        return xp.where(defined, loss, xp.inf) if self.operands else loss

    def parameters(self) -> tuple[Parameter, ...]:
        """Constants of this member of the family."""
        found: list[Parameter] = list(base_parameters(tied=True))
        for x in self.operands:
            found.append(
                Parameter(f"gamma_{x}", (0.5, 4.0), (0.05, 100.0), True, meaning=f"bits until f_{x} saturates")
            )
            if self.offsets:
                found.append(Parameter(f"n_{x}", (-1.0, 1.0), (-20.0, 20.0), meaning=f"offset of f_{x}"))
            if self.powers:
                found.append(Parameter(f"s_{x}", (0.5, 2.0), (0.01, 50.0), True, meaning=f"power of f_{x}"))
        if self.ptq != "none":
            found += ptq_parameters()
        if self.ptq == "unified":
            found += [Parameter(f"C_{x}", (0.1, 2.0), (1e-4, 1e3), True, meaning=f"robustness gained per bit of {x}")
                      for x in self.operands]  # fmt: skip
        return tuple(found)


def ptq_parameters() -> list[Parameter]:
    """Constants of the post-training term."""
    return [
        coefficient("C_T", "scale of the post-training term"),
        exponent("gamma_D", (0.1, 1.0), "power of D in the post-training term"),
        exponent("gamma_N", (0.1, 1.0), "power of N in the post-training term"),
        Parameter("gamma_post", (0.3, 2.0), (0.02, 50.0), True, meaning="bits over which post-training damage fades"),
        Parameter("b", held=0.0, bounds=(-20.0, 20.0), meaning="offset of the exponent; only C_T exp(b) can be told"),
    ]


def _low_precision_ptq(c: Mapping[str, np.ndarray]) -> np.ndarray:
    trained = np.minimum.reduce([c[k] for k in ("P_w", "P_a", "P_kv") if k in c] or [np.full_like(c["N"], HIGH)])
    return np.isfinite(c.get("P_post", np.full_like(c["N"], INF))) & (trained < HIGH)


SIMPLE_PTQ = Restriction("post-training quantization of a run trained below 16 bits needs law kumar_unified",
                         _low_precision_ptq)  # fmt: skip


def _unquantized(c: Mapping[str, np.ndarray]) -> np.ndarray:
    post = c.get("P_post", np.full_like(c["N"], INF))
    return np.all([c[k] >= HIGH for k in ("P_w", "P_a", "P_kv") if k in c], axis=0) & ~np.isfinite(post)


def law(name: str, formula: Kumar, title: str, notes: tuple[str, ...] = ()) -> Law:
    """The Law of one member of the family, with Table 2's constants where it has them."""
    parameters = formula.parameters()
    names = tuple(p.name for p in parameters)
    constants = {k: TABLE_2[k] for k in names if k in TABLE_2}
    printed: tuple[Published, ...] = ()
    if set(constants) == set(names) and formula.operands:
        note = "" if formula.offsets else "the appendix's offsets n_x left out, as in the paper's main text"
        printed = (Published(tuple(constants.items()), SOURCE + ", Table 2", note),)
    base = tuple(p.name for p in base_parameters(tied=True))
    return Law(
        name=name,
        title=title,
        parameters=parameters,
        symbols=(N, D, *(P[x] for x in formula.operands), *((P_POST,) if formula.ptq != "none" else ())),
        formula=formula,
        source=SOURCE,
        published=printed,
        undefined="+inf where a factor 1 - exp(-P/γ + n) is not positive: with Table 2, 3-bit per-tensor activations",
        stages=(
            Stage(base, "rows trained at 16 bits and not quantized", _unquantized),
            Stage(
                tuple(n for n in names if n not in base and n != "b"), "all rows", lambda c: np.ones(len(c["N"]), bool)
            ),
        ),
        restrictions=(SIMPLE_PTQ,) if formula.ptq == "simple" else (),
        notes=notes,
    )


def _kumar_ptq(p: Any, c: Any, xp: Any) -> Any:
    return ptq_term(p, c["log_D"], c["log_N"], c["P_post"], xp)


KUMAR_PTQ = Law(
    name="kumar_ptq",
    title="δ = C_T D^γ_D / N^γ_N exp(-P_post/γ_post + b)",
    parameters=tuple(ptq_parameters()),
    symbols=(N, D, P_POST),
    formula=_kumar_ptq,
    source=SOURCE + ", Eq 2",
    target=GAP,
    published=(
        Published(
            tuple((k, TABLE_2[k]) for k in ("C_T", "gamma_D", "gamma_N", "gamma_post", "b")), SOURCE + ", Table 2"
        ),
    ),
)

N_EFF = "L = A N_eff^-α + B D^-α + E, N_eff = N Π (1 - exp(-P_x/γ_x + n_x))"
FULL = law("kumar", Kumar(OPERANDS, ptq="simple"), N_EFF + ", + δ_PTQ")
NO_OFFSETS = law("kumar_no_offsets", Kumar(OPERANDS, offsets=False, ptq="simple"),
                 "L = A N_eff^-α + B D^-α + E + δ_PTQ, N_eff = N Π (1 - exp(-P_x/γ_x))")  # fmt: skip
N_EFF_LAW = law("kumar_neff", Kumar(OPERANDS), N_EFF)
WEIGHTS = law("kumar_neff_w", Kumar(("w",)), N_EFF + ", weights only")
UNIFIED = law("kumar_unified", Kumar(OPERANDS, ptq="unified"), N_EFF + ", + δ_PTQ Π [1 - exp(-C_x (P_x - P_post))]")
FREE_POWER = law("kumar_free_power", Kumar(OPERANDS, powers=True), "L = A N_eff^-α + B D^-α + E, N_eff = N Π f_x^s_x")
FREE_POWER_WEIGHTS = law("kumar_free_power_w", Kumar(("w",), powers=True), "the same with weights only")

LAWS = (FULL, NO_OFFSETS, KUMAR_PTQ, N_EFF_LAW, WEIGHTS, UNIFIED, FREE_POWER, FREE_POWER_WEIGHTS)
