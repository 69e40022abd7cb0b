"""One multiplier of N per number format: Frantar et al. 2025 (arXiv:2502.16440), Panferov et al. (QuEST, 2502.05003).

    L = A / (N eff_P)^α + B / D^β + E,   eff = 1 for the reference format

P is a text column: any name of a format or method. Each level but the reference has its own eff.
"""

from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from precisionlm.analysis.laws.base import D, Law, N, Parameter, Published, Symbol
from precisionlm.analysis.laws.chinchilla import base_loss, base_parameters

QUEST = {
    "A": 8.134031, "alpha": 0.0627265, "B": 86.41191, "beta": 0.2412884, "E": 0.00142329,
    "eff_1": 0.02050, "eff_2": 0.15187, "eff_3": 0.43313, "eff_4": 0.69183, "eff_8": 1.01619, "eff_fp4": 0.62964,
    "eff_2.5": 0.38122, "eff_1NOH": 0.01558, "eff_2NOH": 0.07841, "eff_3NOH": 0.32211, "eff_4NOH": 0.60327,
    "eff_8NOH": 0.93763, "eff_1WO": 0.13842, "eff_2WO": 0.41372, "eff_3WO": 0.65306, "eff_4WO": 0.84043,
}  # fmt: skip
REFERENCES = ("16", "bf16", "BF16", "fp16", "float32")


@dataclass(frozen=True)
class PerFormat:
    """`free`: levels with an eff of their own; every other level is a reference with eff = 1."""

    free: tuple[str, ...]
    codes: tuple[int, ...]

    def __call__(self, p: Any, c: Any, xp: Any) -> Any:
        """Loss per row."""
        if not self.free:
            return base_loss(p, c["log_N"], c["log_D"], p["alpha"], p["beta"], xp)
        # One look-up a row: a chain of comparisons, and its derivatives, would grow with the square of the formats.
        known = dict(zip(self.codes, self.free, strict=True))
        zero = 0.0 * p[f"log_eff_{self.free[0]}"]
        logs = [p[f"log_eff_{known[i]}"] if i in known else zero for i in range(max(self.codes) + 2)]
        stacked = xp.concatenate([xp.atleast_1d(value) for value in logs], -1)
        code = xp.minimum(c["P"], max(self.codes) + 1).astype(int)
        return base_loss(p, c["log_N"] + xp.take(stacked, code, -1), c["log_D"], p["alpha"], p["beta"], xp)


def eff_table(levels: tuple[str, ...]) -> Law:
    """The law for these levels of the format column; those named 16, bf16, ... are the reference."""
    free = tuple(level for level in levels if level not in REFERENCES)
    parameters = (*base_parameters(tied=False),
                  *(Parameter(f"eff_{x}", (0.05, 1.0), (1e-4, 10.0), True, meaning=f"multiplier of N for {x}")
                    for x in free))  # fmt: skip
    names = {p.name for p in parameters}
    printed: tuple[Published, ...] = ()
    if names <= set(QUEST):
        printed = (Published(tuple((k, v) for k, v in QUEST.items() if k in names), "Panferov et al. 2025 (QuEST), "
                             "arXiv:2502.05003, fit of the published runs"),)  # fmt: skip
    return Law(
        name="frantar",
        title="L = A/(N eff_P)^α + B/D^β + E",
        parameters=parameters,
        symbols=(N, D, replace(FORMAT, levels=levels)),
        formula=PerFormat(free, tuple(levels.index(x) for x in free)),
        source="Frantar et al. 2025, arXiv:2502.16440; Panferov et al. 2025 (QuEST), arXiv:2502.05003",
        published=printed,
        notes=() if len(free) < len(levels) else ("no reference format (bf16 or 16): A and the eff share one scale",),
    )


def levels_of(values: np.ndarray) -> tuple[str, ...]:
    """The levels of a text column, references first, then in order of the alphabet."""
    found = sorted(set(values.tolist()))
    return tuple(sorted(found, key=lambda level: (level not in REFERENCES, level)))


FORMAT = Symbol("P", "recipe", "category", "number format or method, any text")

QUEST_LAW = eff_table(("16", *(k[4:] for k in QUEST if k.startswith("eff_"))))

LAWS = (QUEST_LAW,)
