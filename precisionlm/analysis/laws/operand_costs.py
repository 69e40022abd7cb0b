"""Costs of single operands that add up and grow with tokens: ours, after docs/study.md.

Kumar et al. 2024 (arXiv:2411.04330, Eq 4) have precision act on an effective size that does not depend on D. In the
study's runs the cost of few bits grows with D, and the costs of weights, activations, keys and values are summed. This
law gives each operand the form that Kumar et al.'s δ_PTQ (Eq 2) and Chen et al.'s δ (arXiv:2505.14302, Eq 5) have.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from precisionlm.analysis.laws.base import (
    Columns,
    D,
    Law,
    N,
    Parameter,
    References,
    coefficient,
    signed_exponent,
)
from precisionlm.analysis.laws.chinchilla import base_loss, base_parameters
from precisionlm.analysis.laws.identifiable import LABELS, constants_per_operand
from precisionlm.analysis.laws.kumar import HIGH, OPERANDS, P, label
from precisionlm.errors import UserError

NAME = "operand_costs"
SOURCE = "ours, docs/study.md"


@dataclass(frozen=True)
class OperandCosts:
    """A N^-α + B D^-β + E + D^γ_D / N^γ_N Σ_x C_x exp(-P_x/γ_x) over these operands."""

    operands: tuple[str, ...]

    def __call__(self, p: Any, c: Any, xp: Any) -> Any:
        """Loss per row."""
        loss = base_loss(p, c["log_N"], c["log_D"], p["alpha"], p["beta"], xp)
        grown = p["gamma_D"] * c["log_D"] - p["gamma_N"] * c["log_N"]
        for x in self.operands:
            loss = loss + xp.exp(p[f"log_C_{x}"] + grown - c[f"P_{x}"] / p[f"gamma_{x}"])
        return loss


def _law(operands: tuple[str, ...], notes: Sequence[str] = ()) -> Law:
    scales = (coefficient(f"C_{x}", f"scale of the cost of {LABELS[x]}") for x in operands)
    fades = (
        Parameter(f"gamma_{x}", (0.3, 2.0), (0.05, 20.0), log=True, meaning=f"bits over which that of {x} fades")
        for x in operands
    )
    powers = (
        signed_exponent("gamma_D", (0.0, 1.0), "power of D in the costs"),
        signed_exponent("gamma_N", (0.0, 0.5), "power of 1/N in the costs"),
    )
    return Law(
        name=NAME,
        title="L = A N^-α + B D^-β + E + D^γ_D / N^γ_N Σ C_x exp(-P_x/γ_x)",
        parameters=(*base_parameters(tied=False), *scales, *fades, *(powers if operands else ())),
        symbols=(N, D, *(P[x] for x in operands)),
        formula=OperandCosts(operands),
        source=SOURCE,
        label=label,
        notes=tuple(notes),
        adapt=partial(_member, operands),
    )


def _member(whole: tuple[str, ...], columns: Columns, references: References) -> Law:
    """The member with the operands that these rows tell apart. Raises UserError where they tell of none."""
    counts, _ = constants_per_operand(columns, whole, HIGH)
    if not counts:
        needed = ", ".join(f"{P[x].column} ({P[x].name})" for x in whole)
        raise UserError(f"law {NAME} needs one column of {needed} with two widths or more; --columns P_w=COLUMN names "
                        "another")  # fmt: skip
    notes = [f"C_{x} is left out: the rows do not tell what {LABELS[x]} cost by themselves"
             for x in whole if x not in counts]  # fmt: skip
    single = [x for x, count in counts.items() if count == 1]
    notes += [f"gamma_{x} is held at 1 bit: too few widths of {LABELS[x]} to tell it" for x in single]
    return _law(tuple(counts), notes).hold(**{f"gamma_{x}": 1.0 for x in single})


LAWS = (_law(OPERANDS),)
