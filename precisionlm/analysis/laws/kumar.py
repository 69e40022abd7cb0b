"""Kumar et al. 2024, "Scaling Laws for Precision", arXiv:2411.04330.

    N_eff = N Π_x f_x(P_x),  f_x(P) = 1 - exp(-P/γ_x + n_x),  x over weights, activations, keys and values (Eq 3, 4)
    L     = A N_eff^-α + B D^-α + E + δ_PTQ                                                            (Eq 9)
    δ_PTQ = C_T exp(-P_post/γ_post + b) D^γ_D / N_eff^γ_N Π_x [1 - exp(-C_x (P_x - P_post))]

The offsets n_x and b stand only in the paper's appendix; they decide where the best precision lies. In a fit b is
held at 0, because only C_T exp(b) can be told from data. The paper ties β to α; members named `_beta` do not.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np

from precisionlm.analysis.laws.base import (
    GAP,
    INF,
    Columns,
    D,
    Law,
    N,
    Parameter,
    Published,
    References,
    Restriction,
    Stage,
    Symbol,
    coefficient,
    signed_exponent,
)
from precisionlm.analysis.laws.chinchilla import base_loss, base_parameters
from precisionlm.analysis.laws.identifiable import constants_per_operand
from precisionlm.analysis.table.precision import HIGH
from precisionlm.errors import UserError

SOURCE = "Kumar et al. 2024, arXiv:2411.04330"
OPERANDS = ("w", "a", "kv")
FIGURES = "precisionlm.analysis.figures.kumar"

P = {
    "w": Symbol("P_w", "w_bits", "bits", "bits of the weights in training"),
    "a": Symbol("P_a", "a_bits", "bits", "bits of the activations in training"),
    "kv": Symbol("P_kv", "kv_bits", "bits", "bits of keys and values in training"),
}
P_POST = Symbol("P_post", "ptq_bits", "ptq_bits", "bits of the weights after post-training quantization", default=INF)
AFTER = replace(P_POST, default=None)  # for laws of the gap alone, which say nothing without it

# Widths of the paper's grid: all operands at 16, 6 and 8 bits, and each alone at 4 to 8.
_ALL = [{f"P_{x}": bits for x in OPERANDS} for bits in (16.0, 6.0, 8.0)]
_ONE = [_ALL[0] | {f"P_{x}": bits} for x in OPERANDS for bits in (4.0, 5.0, 6.0, 8.0)]

TABLE_2 = {
    "A": 4299.0, "alpha": 0.4965, "B": 18060.0, "E": 2.7648,
    "gamma_w": 2.6745, "n_w": 0.3037, "gamma_a": 2.2102, "n_a": 1.4072, "gamma_kv": 0.9578, "n_kv": 2.4185,
    "C_T": 0.0598, "gamma_D": 0.5068, "gamma_N": 0.3439, "gamma_post": 0.5907, "b": 1.1277,
}  # fmt: skip


def saturation(bits: Any, gamma: Any, offset: Any, xp: Any) -> Any:
    """f(P) = 1 - exp(-P/γ + n): share of the parameters that P bits keep; not positive where training diverges."""
    return 1.0 - xp.exp(-bits / gamma + offset)


def log_kept(p: Any, operand: str, bits: Any, xp: Any) -> tuple[Any, Any]:
    """log of f_x(P)^s_x for operand x, and where it is defined. An absent n_x counts as 0, an absent s_x as 1."""
    f = saturation(bits, p[f"gamma_{operand}"], p.get(f"n_{operand}", 0.0), xp)
    log_f = xp.log(xp.where(f > 0, f, 1.0))
    return (p[f"s_{operand}"] * log_f if f"s_{operand}" in p else log_f), f > 0


def kept(p: Mapping[str, Any], operand: str, bits: Any) -> np.ndarray:
    """N_eff/N that `bits` of operand x leave, NaN where training diverges; constants and bits broadcast."""
    log_f, defined = log_kept(p, operand, np.asarray(bits, float), np)
    return np.where(defined, np.exp(log_f), np.nan)


def ptq_term(p: Any, log_d: Any, log_n_eff: Any, bits: Any, xp: Any) -> Any:
    """C_T exp(-P/γ_post + b) D^γ_D / N_eff^γ_N, exactly 0 where `bits` is inf (not quantized)."""
    quantized = xp.isfinite(bits)
    safe = xp.where(quantized, bits, 1.0)
    gap = xp.exp(p["log_C_T"] + p["b"] - safe / p["gamma_post"] + p["gamma_D"] * log_d - p["gamma_N"] * log_n_eff)
    return xp.where(quantized, gap, 0.0)


@dataclass(frozen=True)
class Kumar:
    """The family: which operands have a factor, with offsets or not, which PTQ term, a free power per factor or not,
    one exponent for N and D or two."""

    operands: tuple[str, ...]
    offsets: bool = True
    ptq: str = "none"  # none, simple (Eq 2), unified (Eq 9)
    powers: bool = False
    tied: bool = True

    def __call__(self, p: Any, c: Any, xp: Any) -> Any:
        """Loss per row; +inf where a factor f_x is not positive."""
        log_n_eff, defined = c["log_N"], True
        for x in self.operands:
            log_f, positive = log_kept(p, x, c[f"P_{x}"], xp)
            log_n_eff, defined = log_n_eff + log_f, defined & positive
        loss = base_loss(p, log_n_eff, c["log_D"], p["alpha"], p["alpha" if self.tied else "beta"], xp)
        if self.ptq != "none":
            gap = ptq_term(p, c["log_D"], log_n_eff, c["P_post"], xp)
            for x in self.operands if self.ptq == "unified" else ():
                above = xp.maximum(c[f"P_{x}"] - xp.where(xp.isfinite(c["P_post"]), c["P_post"], 0.0), 0.0)
                gap = gap * -xp.expm1(-p[f"C_{x}"] * above)
            loss = loss + gap
        return xp.where(defined, loss, xp.inf) if self.operands else loss

    def kept_share(self, p: Any, c: Any) -> Any:
        """N_eff/N: the product of the factors at the widths of the columns, NaN where one is not positive."""
        share: Any = 1.0
        for x in self.operands:
            share = share * kept(p, x, c[f"P_{x}"])
        return share

    def parameters(self) -> tuple[Parameter, ...]:
        """Constants of this member of the family."""
        found: list[Parameter] = list(base_parameters(self.tied))
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
        signed_exponent("gamma_D", (-0.2, 1.0), "power of D in the post-training term"),
        signed_exponent("gamma_N", (-0.2, 1.0), "power of N in the post-training term"),
        Parameter("gamma_post", (0.3, 2.0), (0.02, 50.0), True, meaning="bits over which post-training damage fades"),
        Parameter("b", held=0.0, bounds=(-20.0, 20.0), meaning="offset of the exponent; only C_T exp(b) can be told"),
    ]


def label(columns: Mapping[str, Any]) -> str:
    """Widths in training and after it, as W4A8KV16 PTQ4."""
    trained = "".join(f"{x.upper()}{min(columns[f'P_{x}'], HIGH):.3g}" for x in OPERANDS if f"P_{x}" in columns)
    post = columns.get("P_post", INF)
    return " ".join(filter(None, (trained, f"PTQ{post:g}" if np.isfinite(post) else "")))


def _low_precision_ptq(c: Mapping[str, np.ndarray]) -> np.ndarray:
    trained = np.minimum.reduce([c[k] for k in ("P_w", "P_a", "P_kv") if k in c] or [np.full_like(c["N"], HIGH)])
    return np.isfinite(c.get("P_post", np.full_like(c["N"], INF))) & (trained < HIGH)


SIMPLE_PTQ = Restriction("post-training quantization of a run trained below 16 bits needs law kumar_unified",
                         _low_precision_ptq)  # fmt: skip


QUANTIZED_AFTER = Restriction("not quantized after training: there is no gap",
                              lambda c: ~np.isfinite(c["P_post"]))  # fmt: skip


def _unquantized(c: Mapping[str, np.ndarray]) -> np.ndarray:
    post = c.get("P_post", np.full_like(c["N"], INF))
    return np.all([c[k] >= HIGH for k in ("P_w", "P_a", "P_kv") if k in c], axis=0) & ~np.isfinite(post)


def law(name: str, formula: Kumar, title: str, notes: tuple[str, ...] = (), adapts: bool = False) -> Law:
    """The Law of one member of the family, with Table 2's constants where it has them.

    adapts: a fit takes the member that the rows can determine.
    """
    parameters = formula.parameters()
    names = tuple(p.name for p in parameters)
    constants = {k: TABLE_2[k] for k in names if k in TABLE_2}
    printed: tuple[Published, ...] = ()
    if set(constants) == set(names) and formula.operands:
        note = "the appendix's offsets n_x left out, as in the paper's main text"
        if formula.offsets:
            note = (
                "with the offsets n_x of its appendix; that of per-tensor activations, n_a, moves the best width most"
            )
        printed = (Published(tuple(constants.items()), SOURCE + ", Table 2", note),)
    base = tuple(p.name for p in base_parameters(formula.tied))
    return Law(
        name=name,
        title=title,
        parameters=parameters,
        symbols=(N, D, *(P[x] for x in formula.operands), *((P_POST,) if formula.ptq != "none" else ())),
        formula=formula,
        source=SOURCE,
        published=printed,
        undefined="+inf where a factor 1 - exp(-P/γ + n) is not positive: with Table 2, 3-bit per-tensor activations",
        label=label,
        kept_share=formula.kept_share if formula.operands else None,
        arms=(*_ALL, *_ONE) if printed and formula.operands == OPERANDS and formula.ptq == "none" else (),
        figures=FIGURES,
        without_offsets="kumar_no_offsets" if name in ("kumar", "kumar_no_offsets") else "",
        stages=(
            Stage(base, "rows trained at 16 bits and not quantized", _unquantized),
            Stage(
                tuple(n for n in names if n not in base and n != "b"), "all rows", lambda c: np.ones(len(c["N"]), bool)
            ),
        ),
        restrictions=(SIMPLE_PTQ,) if formula.ptq == "simple" else (),
        notes=notes,
        adapt=partial(_member, name, formula) if adapts else None,
    )


def _member(name: str, whole: Kumar, columns: Columns, references: References) -> Law:
    """The member of the family that these rows can determine; its notes say what was left out and why.

    An operand with three or more widths of its own gets γ and n, one with two γ alone (n held at 0), one whose width
    follows from the others' no factor. Raises UserError if the table says nothing about precision at all.
    """
    post = columns["P_post"]
    if not any(f"P_{x}" in columns for x in whole.operands) and not np.isfinite(post).any():
        needed = ", ".join(
            f"{symbol.column} ({symbol.name})" for symbol in (*map(P.get, whole.operands), P_POST) if symbol
        )
        raise UserError(f"law {name} needs one column of {needed}; --columns P_w=COLUMN names another")
    constants, said = constants_per_operand(columns, whole.operands, HIGH)
    notes = list(said)
    operands, held = tuple(constants), {f"n_{x}": 0.0 for x, count in constants.items() if count == 1}
    has_ptq = bool(np.isfinite(post).any())
    ptq = "none" if not has_ptq else "unified" if whole.ptq == "unified" and operands else "simple"
    if has_ptq and len(np.unique(post[np.isfinite(post)])) < 2:
        held["gamma_post"] = 1.0
        notes.append("gamma_post is held at 1: post-training quantization was done to one width only")
    factors = "".join(f" f_{x}" for x in operands)
    beta = "α" if whole.tied else "β"
    title = f"L = A N_eff^-α + B D^-{beta} + E{' + δ_PTQ' if has_ptq else ''}, N_eff = N{factors}"
    member = replace(whole, operands=operands, ptq=ptq)
    return law(name, member, title, tuple(notes), adapts=True).hold(**held)


def _kumar_ptq(p: Any, c: Any, xp: Any) -> Any:
    return ptq_term(p, c["log_D"], c["log_N"], c["P_post"], xp)


KUMAR_PTQ = Law(
    name="kumar_ptq",
    title="δ = C_T D^γ_D / N^γ_N exp(-P_post/γ_post + b)",
    parameters=tuple(ptq_parameters()),
    symbols=(N, D, AFTER),
    formula=_kumar_ptq,
    source=SOURCE + ", Eq 2",
    target=GAP,
    label=label,
    figures=FIGURES,
    restrictions=(QUANTIZED_AFTER,),
    published=(
        Published(
            tuple((k, TABLE_2[k]) for k in ("C_T", "gamma_D", "gamma_N", "gamma_post", "b")), SOURCE + ", Table 2"
        ),
    ),
)

_SUM = "L = A N_eff^-α + B D^-{} + E"
_FACTORS = ", N_eff = N Π (1 - exp(-P_x/γ_x + n_x))"
_UNIFIED = ", + δ_PTQ Π [1 - exp(-C_x (P_x - P_post))]"
_NAMES = {("w",): "_w", ("a",): "_a", ("w", "a"): "_wa", OPERANDS: ""}


def _members(tied: bool) -> tuple[Law, ...]:
    """The members of the family with β = α, or with both."""
    end = "" if tied else "_beta"
    title = _SUM.format("α" if tied else "β") + _FACTORS
    return (
        law(f"kumar{end}", Kumar(OPERANDS, ptq="simple", tied=tied), title + ", + δ_PTQ", adapts=True),
        law(f"kumar_unified{end}", Kumar(OPERANDS, ptq="unified", tied=tied), title + _UNIFIED, adapts=True),
        *(law(f"kumar_neff{which}{end}", Kumar(operands, tied=tied), title) for operands, which in _NAMES.items()),
    )


NO_OFFSETS = law("kumar_no_offsets", Kumar(OPERANDS, offsets=False, ptq="simple"),
                 _SUM.format("α") + " + δ_PTQ, N_eff = N Π (1 - exp(-P_x/γ_x))")  # fmt: skip
FREE_POWERS = tuple(
    law(f"kumar_free_power{_NAMES[operands]}", Kumar(operands, powers=True),
        _SUM.format("α") + ", N_eff = N Π f_x^s_x")
    for operands in (OPERANDS, ("w",))
)  # fmt: skip

KUMAR, UNIFIED, *NEFF = _members(tied=True)
NEFF_W = NEFF[0]
LAWS = (KUMAR, UNIFIED, *NEFF, *_members(tied=False), NO_OFFSETS, KUMAR_PTQ, *FREE_POWERS)
