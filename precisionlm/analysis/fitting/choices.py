"""What a user decides about a law's constants before a fit: bounds, where starts lie, values, references of levels."""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace

from precisionlm.analysis.laws.base import Law, Parameter
from precisionlm.errors import UserError, nearest

Range = tuple[float, float]


@dataclass(frozen=True)
class Choices:
    """bounds, starts: constant -> (low, high) in natural units. fixed: constant -> value. reference: the level that
    the others of a law's text column are measured against, or SYMBOL=LEVEL,... for a law of several."""

    bounds: Mapping[str, Range] = field(default_factory=dict)
    starts: Mapping[str, Range] = field(default_factory=dict)
    fixed: Mapping[str, float] = field(default_factory=dict)
    reference: str = ""

    def applied(self, law: Law) -> Law:
        """The law with these bounds and starts; constants it does not have are left to `check`."""
        return replace(law, parameters=tuple(self._parameter(p) for p in law.parameters))

    def fixed_of(self, law: Law) -> dict[str, float]:
        """The values that belong to this law."""
        return {name: value for name, value in self.fixed.items() if name in law.names}

    def references_of(self, law: Law) -> dict[str, str]:
        """Category symbol -> reference level; levels may hold commas and equal signs themselves.

        Raises UserError if it is not said of which of several categories.
        """
        categories = [symbol.name for symbol in law.symbols if symbol.kind == "category"]
        if not self.reference or not categories:
            return {}
        parts = re.split(rf"(?:^|,)\s*({'|'.join(map(re.escape, categories))})\s*=", self.reference)
        if len(parts) > 1:
            return {name: level.strip() for name, level in zip(parts[1::2], parts[2::2], strict=True)}
        if len(categories) > 1:
            told = " or ".join(f"{name}=LEVEL" for name in categories)
            raise UserError(f"--reference {self.reference}: law {law.name} has several; say {told}")
        return {categories[0]: self.reference.strip()}

    def check(self, laws: Iterable[Law]) -> None:
        """Raises UserError for a constant that none of these laws has, or a reference where none has levels."""
        laws = tuple(laws)
        names = list(dict.fromkeys(name for law in laws for name in law.names))
        for option, given in (("--bound", self.bounds), ("--start", self.starts), ("--fix", self.fixed)):
            for name in given:
                if name not in names:
                    shown = ", ".join(law.name for law in laws)
                    raise UserError(f"{option}: law {shown} has no constant '{name}'; {nearest(name, names)}")
        if self.reference and not any(symbol.kind == "category" for law in laws for symbol in law.symbols):
            raise UserError(f"--reference {self.reference}: law {laws[0].name} reads no column of levels")

    def _parameter(self, p: Parameter) -> Parameter:
        if p.name in self.bounds:
            low, high = self.bounds[p.name]
            if low == high:
                raise UserError(f"--bound {p.name}={low:g}: two different ends are needed; --fix keeps a value")
            if p.log and low < 0:
                raise UserError(f"--bound {p.name}={low:g}:{high:g}: {p.name} is a positive factor; bounds from 0 up")
            p = replace(p, bounds=(low, high), start=_within(p.start, low, high))
        if p.name in self.starts:
            low, high = self.starts[p.name]
            if not p.bounds[0] <= low <= high <= p.bounds[1] or (p.log and low <= 0):
                raise UserError(
                    f"--start {p.name}={low:g}:{high:g} lies outside of its bounds {p.bounds[0]:g}:{p.bounds[1]:g}; "
                    "see --bound"
                )
            p = replace(p, begin=(low, high))
        return p


def _within(start: Range, low: float, high: float) -> Range:
    """The start range inside of new bounds; all of them, or a unit of them, where it lies outside."""
    inside = max(start[0], low), min(start[1], high)
    return inside if inside[0] < inside[1] else (low, min(high, low + 1.0)) if low > -1e300 else (high - 1.0, high)
