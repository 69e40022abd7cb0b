"""One free gap per number format above the loss of an unquantized run.

    L = A N^-α + B D^-β + E + δ_P                                      format_gap
    L = A N^-α + B D^-β + E + δ_P (D/D_0)^γ_D / (N/N_0)^γ_N            format_gap_scaled
    δ = δ_P (D/D_0)^γ_D / (N/N_0)^γ_N                                  format_gap_paired, of gaps to the same run's bf16

P is a text column: any name of a format or method. δ_P (nats/token) is the gap at N_0 = 1e8 parameters and D_0 = 1e10
tokens, 0 for the reference. It assumes nothing about bits; what laws of bits must explain is how the δ_P differ.
Either sign is possible: a format may have been better than its reference. Chen et al. 2025 (arXiv:2505.14302) and
Kumar et al. 2024 (arXiv:2411.04330) fit the scaled form to one format at a time.
"""

from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from precisionlm.analysis.laws.base import (
    GAP,
    LOSS,
    Columns,
    D,
    Law,
    N,
    Parameter,
    References,
    Restriction,
    signed_exponent,
)
from precisionlm.analysis.laws.chinchilla import base_loss, base_parameters
from precisionlm.analysis.laws.frantar import FORMAT
from precisionlm.analysis.laws.levels import Levels, chosen, levels_of, notes, unquantized

LOG_N, LOG_D = float(np.log(1e8)), float(np.log(1e10))
_GAP = "δ_P (D/1e10)^γ_D / (N/1e8)^γ_N"
_BASE = "L = A N^-α + B D^-β + E + "
TITLES = {"format_gap": _BASE + "δ_P", "format_gap_scaled": _BASE + _GAP, "format_gap_paired": "δ = " + _GAP}


@dataclass(frozen=True)
class FormatGap:
    """The gap of the row's format, with a power of N and D or not, above the base or alone."""

    formats: Levels
    scaled: bool
    alone: bool

    def __call__(self, p: Any, c: Any, xp: Any) -> Any:
        """Loss, or gap, per row."""
        gap = self._gap(p, c, xp)
        return gap if self.alone else gap + base_loss(p, c["log_N"], c["log_D"], p["alpha"], p["beta"], xp)

    def kept_share(self, p: Any, c: Any) -> Any:
        """The share of the parameters that would lose as much without quantization, from A (N eff)^-α = A N^-α + δ."""
        size = np.exp(p["log_A"] - p["alpha"] * c["log_N"])
        left = 1.0 + self._gap(p, c, np) / size
        return np.where(left > 0, left, np.nan) ** (-1 / p["alpha"])

    def _gap(self, p: Any, c: Any, xp: Any) -> Any:
        gap = self.formats.value(p, "delta_", c["P"], xp)
        if self.scaled:
            gap = gap * xp.exp(p["gamma_D"] * (c["log_D"] - LOG_D) - p["gamma_N"] * (c["log_N"] - LOG_N))
        return gap


def format_gap(name: str, formats: Levels) -> Law:
    """The law of that name for these levels of the format column."""
    alone, scaled = name == "format_gap_paired", name != "format_gap" and bool(formats.free)
    powers = (
        signed_exponent("gamma_D", (-0.3, 0.6), "power of D in every gap"),
        signed_exponent("gamma_N", (-0.3, 0.6), "power of N in every gap"),
    )
    gaps = (Parameter(f"delta_{x}", (0.0, 0.3), (-10.0, 10.0), linear=True, meaning=f"gap of {x} (nats/token)")
            for x in formats.free)  # fmt: skip

    def plain(c: Columns) -> np.ndarray:
        return ~np.isin(c["P"], [formats.names.index(x) for x in formats.free])

    def adapt(columns: Columns, references: References) -> Law:
        if not alone:
            return format_gap(name, chosen(FORMAT, columns["P"], references))
        # Every gap is already measured against the unquantized run.
        names = levels_of(columns["P"])
        return format_gap(name, Levels(FORMAT.name, names, tuple(x for x in names if not unquantized(x))))

    return Law(
        name=name,
        title=TITLES[name],
        parameters=(*(() if alone else base_parameters(tied=False)), *gaps, *(powers if scaled else ())),
        symbols=(N, D, replace(FORMAT, levels=formats.names)),
        formula=FormatGap(formats, scaled, alone),
        kept_share=None if alone else FormatGap(formats, scaled, alone).kept_share,
        source="one gap a format, after Chen et al. 2025, arXiv:2505.14302",
        target=GAP if alone else LOSS,
        restrictions=(Restriction("not quantized: there is no gap", plain),) if alone else (),
        notes=notes([formats]),
        adapt=adapt,
    )


_EXAMPLE = Levels(FORMAT.name, ("bf16", "int4", "int8"), ("int4", "int8"))
LAWS = tuple(format_gap(name, _EXAMPLE) for name in TITLES)
