"""The laws, one file a paper. A new law is one file with a `LAWS` tuple and one entry in `_PAPERS`."""

from precisionlm.analysis.laws import (
    alternatives,
    chen,
    chinchilla,
    data_constrained,
    format_gap,
    frantar,
    gaussian_mse,
    kumar,
    operand_costs,
    ouyang,
    quartet,
    schedule,
    sun,
)
from precisionlm.analysis.laws.base import Law
from precisionlm.analysis.laws.own import is_own, load
from precisionlm.errors import UserError, nearest

_PAPERS = (
    chinchilla, data_constrained, kumar, alternatives, operand_costs, sun, chen, ouyang, schedule, frantar, format_gap,
    quartet, gaussian_mse,
)  # fmt: skip

LAWS: dict[str, Law] = {law.name: law for paper in _PAPERS for law in paper.LAWS}


USUAL = kumar.KUMAR.name
"""The law of a report, and of the demo, where none is named: its family has a member for most tables."""


def get(name: str) -> Law:
    """The law of that name, or of a file as FILE.py:NAME. Raises UserError naming the closest."""
    if is_own(name):
        return load(name)
    if name not in LAWS:
        raise UserError(f"law '{name}' is unknown; {nearest(name, list(LAWS))}")
    return LAWS[name]
