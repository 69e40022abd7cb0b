"""Number formats as data: what a word such as `int4` or `e4m3` means, and the values that it has.

What a compiled program sees of a format is its `precision.grid.Grid`.
"""

import math
import re
from dataclasses import dataclass, replace
from functools import cache
from typing import TYPE_CHECKING

import numpy as np

from precisionlm.errors import UserError, nearest
from precisionlm.words import FORMATS

if TYPE_CHECKING:
    from precisionlm.precision.grid import Grid


@dataclass(frozen=True)
class Format:
    """A number format. `kind`: unquantized (bf16), int (uniform levels) or float.

    exponent, mantissa: bits as the laws count them (an integer of b bits has 0 and b - 1). levels: of an integer grid;
    an odd number lies evenly around zero, an even one has one more below it (two's complement). unsigned: the levels
    begin at zero. special: codes lost at the top of a float (`nan`: one, E4M3FN's; `inf`: a whole exponent, OCP E5M2's
    Inf and NaN).
    """

    name: str
    kind: str
    bits: float
    exponent: int
    mantissa: int
    levels: int = 0
    special: str = ""
    unsigned: bool = False

    def grid(self, edge: bool = False) -> "Grid":
        """The grid's scalars (numpy float32). `edge`: the largest magnitude maps to the outer edge of the last bucket
        (AQT's default for integers) instead of to the largest value (the three papers)."""
        if self.kind == "unquantized":
            return _grid(0, 1, 1, 1, -1, 1, 1, 1)
        if self.kind == "int":
            smallest, largest = self._ends()
            bound = max(-smallest, largest)
            return _grid(1, 1, 1, 1, smallest, largest, bound + 0.5 if edge else bound, self.reach())
        emin, emax = self._exponent_range()
        qmax = self._largest()
        half_step = 2.0 ** (emax - self.mantissa) / 2
        outer = qmax + half_step if edge else qmax
        return _grid(1, 2.0**emin, 2.0**emax, 2.0**-self.mantissa, -qmax, qmax, outer, self.reach())

    def _ends(self) -> tuple[int, int]:
        """The smallest and the largest level of an integer grid."""
        smallest = 0 if self.unsigned else -(self.levels // 2)
        return smallest, smallest + self.levels - 1

    def _largest(self) -> float:
        """The largest value of a float."""
        _, emax = self._exponent_range()
        return 2.0**emax * (2 - 2.0**-self.mantissa * (2 if self.special == "nan" else 1))

    def _exponent_range(self) -> tuple[int, int]:
        """Exponents of the smallest normal and of the largest value, with the IEEE bias 2^(X-1) - 1."""
        if self.exponent == 8:
            # The whole float32 range would leave no room to scale in; a window of 163 binades is as good as endless.
            return -100, 63
        bias = 2 ** (self.exponent - 1) - 1
        return 1 - bias, 2**self.exponent - 1 - bias - (1 if self.special == "inf" else 0)

    def reach(self) -> float:
        """The largest magnitude's place, in standard deviations, that makes the mean squared error of rounding a normal
        variable to this grid least (QuEST, arXiv:2502.05003, §3)."""
        return _reach(replace(self, name=""))

    def values(self) -> np.ndarray:
        """All values of the grid, ascending, float64. Raises ValueError for grids of more than 2^13 values."""
        if self.bits > 13 or self.kind == "unquantized":
            raise ValueError(f"{self.name} has too many values to list")
        if self.kind == "int":
            smallest, largest = self._ends()
            return np.arange(smallest, largest + 1, dtype=np.float64)
        emin, emax = self._exponent_range()
        steps = 2**self.mantissa
        positive = [2.0**emin * k / steps for k in range(steps)]
        positive += [2.0**e * (1 + k / steps) for e in range(emin, emax + 1) for k in range(steps)]
        positive = [v for v in positive if v <= self._largest()]
        return np.array(sorted({-v for v in positive} | set(positive)))


def _grid(*scalars: float) -> "Grid":
    from precisionlm.precision.grid import Grid  # with JAX, which reading a recipe does not need

    return Grid(*(np.float32(s) for s in scalars))


@cache
def _reach(fmt: Format) -> float:
    if fmt.bits > 10:  # finer than the tails are rare: clip nothing that a tensor is likely to hold
        return 6.0
    values = fmt.values() / np.abs(fmt.values()).max()
    edges = (values[1:] + values[:-1]) / 2
    x = np.linspace(-8, 8, 40001)
    density = np.exp(-(x**2) / 2)

    def error(reach: float) -> float:
        return float(np.sum(density * (x - reach * values[np.searchsorted(edges, x / reach)]) ** 2))

    candidates = np.geomspace(0.5, 6.5, 200)
    return float(candidates[int(np.argmin([error(c) for c in candidates]))])


BF16 = Format("bf16", "unquantized", 16, 8, 7)
_FLOAT = re.compile(r"e([0-9])m([0-9]+)(fn?)?")
_NAMES = ["bf16", "int4", "int8", "int4full", "uint8", "e4m3", "e4m3fn", "e5m2", "e5m2f", "e2m1", "e3m2", "e2m3"]
_NAMES += ["ternary", "levels5"]


def integer(bits: float) -> Format:
    """`int2`…`int12` with 2^bits - 1 levels, or for fractional bits the odd number of levels nearest to 2^bits."""
    if bits == int(bits):
        if not 2 <= bits <= 12:
            raise UserError(f"'int{bits:g}' is no format: integer bits go from 2 to 12, or 16 for bf16")
        return Format(f"int{int(bits)}", "int", bits, 0, int(bits) - 1, levels=2 ** int(bits) - 1)
    return levels(2 * round((2**bits - 1) / 2) + 1)


def levels(count: int) -> Format:
    """A uniform symmetric grid with an odd number of levels: log2(count) bits."""
    if count < 3 or count % 2 == 0 or count > 4095:
        raise UserError(f"'levels{count}' is no format: the count must be odd, from 3 to 4095")
    bits = math.log2(count)
    return Format(f"levels{count}", "int", bits, 0, math.ceil(bits) - 1, levels=count)


def parse_format(word: str) -> Format:
    """`bf16`, `int2`…`int12`, `int2full`…`int12full`, `uint2`…`uint12`, `int1.58`, `ternary`, `levels5`, any `eXmY`
    with X 0…8 and Y 0…10, `e4m3fn`, `e5m2f`.

    `int4` has 15 levels, evenly around zero, `int4full` all 16 codes of two's complement: -8…7, the largest magnitude
    maps to 8 (Chen et al. 2025, §3). `uint8` holds 0…255, for attention probabilities. Floats have no Inf/NaN codes
    (Sun et al. 2025, §3), but `e4m3fn` and `e5m2` are the OCP ones; E5M2 without such codes, up to 114688, is `e5m2f`.
    Raises UserError.
    """
    word = word.lower()
    if word in ("bf16", "int16", "16"):
        return BF16
    if word == "ternary":
        return levels(3)
    if match := re.fullmatch(r"int([0-9]+(?:\.[0-9]+)?)", word):
        return integer(float(match[1]))
    if match := re.fullmatch(r"(u?)int([0-9]+)(full)?", word):
        bits = int(match[2])
        if bool(match[1]) != bool(match[3]) and 2 <= bits <= 12:
            return Format(word, "int", bits, 0, bits - 1, levels=2**bits, unsigned=bool(match[1]))
    if match := re.fullmatch(r"levels([0-9]+)", word):
        return levels(int(match[1]))
    if match := _FLOAT.fullmatch(word):
        exponent, mantissa, suffix = int(match[1]), int(match[2]), match[3]
        named = not suffix or word in ("e4m3fn", "e5m2f")
        if exponent <= 8 and mantissa <= 10 and exponent + mantissa >= 1 and named:
            return _float(word, exponent, mantissa)
    meant = FORMATS.get(word.lower())
    hint = f"did you mean {meant}?" if meant else nearest(word, _NAMES)
    raise UserError(f"'{word}' is no number format; {hint} (int2…int12, eXmY with X ≤ 8 and Y ≤ 10)")


def _float(word: str, exponent: int, mantissa: int) -> Format:
    bits = 1 + exponent + mantissa
    if exponent == 0:  # sign and mantissa alone: a fixed-point grid
        return Format(word, "int", bits, 0, mantissa, levels=2 ** (mantissa + 1) - 1)
    special = {"e4m3fn": "nan", "e5m2": "inf"}.get(word, "")
    return Format(word, "float", bits, exponent, mantissa, special=special)
