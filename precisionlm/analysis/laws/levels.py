"""Text columns in a law: one constant a level, measured against a reference level."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from precisionlm.analysis.laws.base import Symbol
from precisionlm.analysis.table.precision import UNQUANTIZED
from precisionlm.errors import UserError, nearest


@dataclass(frozen=True)
class Levels:
    """The levels of a category, and those of them that have a constant of their own: the others are the reference.

    note: what a reader should know about the choice of the reference, or ''.
    """

    symbol: str
    names: tuple[str, ...]
    free: tuple[str, ...]
    note: str = ""

    def value(self, p: Mapping[str, Any], prefix: str, codes: Any, xp: Any) -> Any:
        """The constant `prefix`LEVEL of each row's level, 0 for the reference.

        codes: positions in `names`, of any shape. One product with a table of memberships, which compiles and
        differentiates at a cost that hardly grows with the number of levels.
        """
        if not self.free:
            return xp.zeros_like(codes)
        places = np.array([self.names.index(name) for name in self.free], float)
        member = (codes[..., None] == places) * 1.0
        constants = xp.stack([p[prefix + name] for name in self.free], -1)
        column = constants[:, None] if constants.ndim == 1 else xp.swapaxes(constants, -1, -2)
        return (member @ column)[..., 0]


def levels_of(values: np.ndarray) -> tuple[str, ...]:
    """The levels of a text column, references first, then in order of the alphabet."""
    return tuple(sorted(set(values.tolist()), key=lambda name: (not unquantized(name), name)))


def unquantized(name: str) -> bool:
    """Whether a level's name says that nothing is quantized."""
    return name.lower() in UNQUANTIZED


def chosen(symbol: Symbol, values: np.ndarray, references: Mapping[str, str]) -> Levels:
    """The levels of these rows' text, measured against the user's reference or else the unquantized ones.

    Without either, against the commonest level. Raises UserError for a reference that no row has.
    """
    names = levels_of(values)
    reference = references.get(symbol.name)
    if reference is not None and reference not in names:
        raise UserError(f"--reference {reference}: no row has it as {symbol.name}; {nearest(reference, list(names))}")
    if reference is not None:
        return Levels(symbol.name, names, tuple(name for name in names if name != reference))
    free = tuple(name for name in names if not unquantized(name))
    if len(free) < len(names):
        return Levels(symbol.name, names, free)
    reference = max(names, key=lambda name: (int(np.sum(values == name)), name))
    note = f"no level of {symbol.name} is unquantized (bf16, 16): all are measured against '{reference}', the "
    note += "commonest; choose another with --reference"
    return Levels(symbol.name, names, tuple(name for name in names if name != reference), note)


def notes(levels: Sequence[Levels]) -> tuple[str, ...]:
    """What to say about the references."""
    return tuple(level.note for level in levels if level.note)
