"""One free gap per number format, added to the loss of an unquantized run.

    L = A N^-α + B D^-β + E + δ_P                                      format_gap
    L = A N^-α + B D^-β + E + δ_P (D/D_0)^γ_D / (N/N_0)^γ_N            format_gap_scaled

P is a text column: any name of a format or method. δ_P (nats/token) is the gap at N_0 = 1e8 parameters and D_0 = 1e10
tokens, 0 for the reference. It assumes nothing about bits; what laws of bits must explain is how the δ_P differ.
Either sign is possible: a format may have been better than its reference. Chen et al. 2025 (arXiv:2505.14302) and
Kumar et al. 2024 (arXiv:2411.04330) fit the scaled form to one format at a time.
"""

from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from precisionlm.analysis.laws.base import Columns, D, Law, N, Parameter, References, signed_exponent
from precisionlm.analysis.laws.chinchilla import base_loss, base_parameters
from precisionlm.analysis.laws.frantar import FORMAT
from precisionlm.analysis.laws.levels import Levels, chosen, notes

LOG_N, LOG_D = float(np.log(1e8)), float(np.log(1e10))


@dataclass(frozen=True)
class FormatGap:
    """The base plus the gap of the row's format."""

    formats: Levels
    scaled: bool

    def __call__(self, p: Any, c: Any, xp: Any) -> Any:
        """Loss per row."""
        return base_loss(p, c["log_N"], c["log_D"], p["alpha"], p["beta"], xp) + self._gap(p, c, xp)

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


def format_gap(formats: Levels, scaled: bool) -> Law:
    """The law for these levels of the format column."""
    powers = (
        signed_exponent("gamma_D", (-0.3, 0.6), "power of D in every gap"),
        signed_exponent("gamma_N", (-0.3, 0.6), "power of N in every gap"),
    )
    gaps = (Parameter(f"delta_{x}", (0.0, 0.3), (-10.0, 10.0), linear=True, meaning=f"gap of {x} (nats/token)")
            for x in formats.free)  # fmt: skip

    def adapt(columns: Columns, references: References) -> Law:
        return format_gap(chosen(FORMAT, columns["P"], references), scaled)

    return Law(
        name="format_gap_scaled" if scaled else "format_gap",
        title="L = A N^-α + B D^-β + E + δ_P" + (" (D/1e10)^γ_D / (N/1e8)^γ_N" if scaled else ""),
        parameters=(*base_parameters(tied=False), *gaps, *(powers if scaled and formats.free else ())),
        symbols=(N, D, replace(FORMAT, levels=formats.names)),
        formula=FormatGap(formats, scaled and bool(formats.free)),
        kept_share=FormatGap(formats, scaled and bool(formats.free)).kept_share,
        source="one gap a format, after Chen et al. 2025, arXiv:2505.14302",
        notes=notes([formats]),
        adapt=adapt,
    )


_EXAMPLE = Levels(FORMAT.name, ("bf16", "int4", "int8"), ("int4", "int8"))
LAWS = (format_gap(_EXAMPLE, scaled=False), format_gap(_EXAMPLE, scaled=True))
