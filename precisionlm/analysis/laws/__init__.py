"""The laws, one file a paper. A new law is one file with a `LAWS` tuple and one entry in `_PAPERS`."""

from collections.abc import Mapping

import numpy as np

from precisionlm.analysis.laws import (
    alternatives,
    chen,
    chinchilla,
    frantar,
    gaussian_mse,
    kumar,
    ouyang,
    quartet,
    sun,
)
from precisionlm.analysis.laws.base import Law
from precisionlm.analysis.laws.identifiable import kumar_for
from precisionlm.errors import UserError, nearest

_PAPERS = (chinchilla, kumar, alternatives, sun, chen, ouyang, frantar, quartet, gaussian_mse)

LAWS: dict[str, Law] = {law.name: law for paper in _PAPERS for law in paper.LAWS}


ADAPTIVE = ("kumar", "kumar_unified")  # families of which a fit takes the member that the rows can determine


def get(name: str) -> Law:
    """The law of that name. Raises UserError naming the closest."""
    if name not in LAWS:
        raise UserError(f"law '{name}' is unknown; {nearest(name, list(LAWS))}")
    return LAWS[name]


def adapt(law: Law, columns: Mapping[str, np.ndarray]) -> Law:
    """The member of the law's family that these rows can determine (symbol -> (rows,)); the law itself otherwise."""
    if law.name in ADAPTIVE:
        return kumar_for(columns, law.name, unified=law.name == "kumar_unified")
    return law
