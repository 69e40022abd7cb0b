"""One multiplier of N per number format: Frantar et al. 2025 (arXiv:2502.16440), Panferov et al. (QuEST, 2502.05003).

    L = A / (N eff_P)^α + B / D^β + E,   eff = 1 for the reference format

P is a text column: any name of a format or method. Each level but the reference has its own eff.

Vlassis et al. 2025 (arXiv:2509.23500) fit laws of quantization-aware training to runs of several optimizers, which
differ in what quantization costs. One joint form of it, ours:

    L = A / (N eff_O eff_O:P)^α + B / D^β + E

eff_O: what optimizer O makes of N unquantized; eff_O:P: what format P then keeps.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from precisionlm.analysis.laws.base import Columns, D, Law, N, Parameter, Published, References, Symbol
from precisionlm.analysis.laws.chinchilla import base_loss, base_parameters
from precisionlm.analysis.laws.levels import Levels, chosen, levels_of, notes, unquantized

QUEST = {
    "A": 8.134031, "alpha": 0.0627265, "B": 86.41191, "beta": 0.2412884, "E": 0.00142329,
    "eff_1": 0.02050, "eff_2": 0.15187, "eff_3": 0.43313, "eff_4": 0.69183, "eff_8": 1.01619, "eff_fp4": 0.62964,
    "eff_2.5": 0.38122, "eff_1NOH": 0.01558, "eff_2NOH": 0.07841, "eff_3NOH": 0.32211, "eff_4NOH": 0.60327,
    "eff_8NOH": 0.93763, "eff_1WO": 0.13842, "eff_2WO": 0.41372, "eff_3WO": 0.65306, "eff_4WO": 0.84043,
}  # fmt: skip
SOURCE = "Frantar et al. 2025, arXiv:2502.16440; Panferov et al. 2025 (QuEST), arXiv:2502.05003"
FORMAT = Symbol("P", "recipe", "category", "number format or method, any text")
OPTIMIZER = Symbol("O", "optimizer", "category", "optimizer, any text")


def multiplier(name: str, meaning: str) -> Parameter:
    """A positive factor of N or D around 1."""
    return Parameter(name, (0.05, 1.0), (1e-4, 10.0), True, meaning=meaning)


@dataclass(frozen=True)
class PerFormat:
    """log N_eff = log N + log eff of the row's level."""

    formats: Levels

    def __call__(self, p: Any, c: Any, xp: Any) -> Any:
        """Loss per row."""
        log_n = c["log_N"] + self.formats.value(p, "log_eff_", c["P"], xp)
        return base_loss(p, log_n, c["log_D"], p["alpha"], p["beta"], xp)

    def kept_share(self, p: Any, c: Any) -> Any:
        """eff of the row's format, 1 for a reference."""
        return np.exp(self.formats.value(p, "log_eff_", c["P"], np))


def eff_table(formats: Levels) -> Law:
    """The law for these levels of the format column."""
    parameters = (*base_parameters(tied=False),
                  *(multiplier(f"eff_{x}", f"multiplier of N for {x}") for x in formats.free))  # fmt: skip
    names = {p.name for p in parameters}
    printed: tuple[Published, ...] = ()
    if names <= set(QUEST):
        printed = (Published(tuple((k, v) for k, v in QUEST.items() if k in names), "Panferov et al. 2025 (QuEST), "
                             "arXiv:2502.05003, fit of the published runs"),)  # fmt: skip
    return Law(
        name="frantar",
        title="L = A/(N eff_P)^α + B/D^β + E",
        parameters=parameters,
        symbols=(N, D, replace(FORMAT, levels=formats.names)),
        formula=PerFormat(formats),
        kept_share=PerFormat(formats).kept_share,
        source=SOURCE,
        published=printed,
        notes=notes([formats]),
        arms=tuple({"P": float(level)} for level in range(len(formats.names))),
        adapt=_adapt,
    )


def _adapt(columns: Columns, references: References) -> Law:
    return eff_table(chosen(FORMAT, columns["P"], references))


@dataclass(frozen=True)
class PerOptimizer:
    """The same with a multiplier for each optimizer and one for each format under it (`pairs`: level -> position)."""

    optimizers: Levels
    formats: tuple[str, ...]
    pairs: Levels

    def __call__(self, p: Any, c: Any, xp: Any) -> Any:
        """Loss per row."""
        return base_loss(p, c["log_N"] + self._log_eff(p, c, xp), c["log_D"], p["alpha"], p["beta"], xp)

    def kept_share(self, p: Any, c: Any) -> Any:
        """What optimizer and format make of N together, 1 for the reference."""
        return np.exp(self._log_eff(p, c, np))

    def _log_eff(self, p: Any, c: Any, xp: Any) -> Any:
        pairs = self.pairs.value(p, "log_eff_", c["O"] * len(self.formats) + c["P"], xp)
        return self.optimizers.value(p, "log_eff_", c["O"], xp) + pairs


def _adapt_optimizers(columns: Columns, references: References) -> Law:
    formats = chosen(FORMAT, columns["P"], references)
    optimizer, plain = columns["O"], ~np.isin(columns["P"], formats.free)
    # No optimizer is unquantized: the reference is the user's, or the commonest of those with unquantized runs.
    base = levels_of(optimizer[plain]) if plain.any() else levels_of(optimizer)
    common = max(base, key=lambda name: int(np.sum(optimizer == name)))
    optimizers = chosen(OPTIMIZER, optimizer, {"O": common, **references})
    said = [f"every eff is measured against optimizer '{(set(optimizers.names) - set(optimizers.free)).pop()}'"]
    alone = [name for name in optimizers.free if name not in base]
    if alone:
        said.append(f"no unquantized run of {', '.join(alone)}: the eff of its formats hold what is the optimizer's")
    optimizers = replace(optimizers, free=tuple(name for name in optimizers.free if name not in alone))
    there = sorted({f"{o}:{f}" for o, f in zip(optimizer, columns["P"], strict=True) if f in formats.free})
    every = tuple(f"{o}:{f}" for o in optimizers.names for f in formats.names)
    return optimizer_law(optimizers, formats, Levels("O:P", every, tuple(there)), (*said, *notes([formats])))


def optimizer_law(optimizers: Levels, formats: Levels, pairs: Levels, said: tuple[str, ...] = ()) -> Law:
    """The law for these optimizers and formats; `pairs` has OPTIMIZER:FORMAT for each in turn."""
    return Law(
        name="frantar_optimizer",
        title="L = A/(N eff_O eff_O:P)^α + B/D^β + E",
        parameters=(
            *base_parameters(tied=False),
            *(multiplier(f"eff_{x}", f"multiplier of N for optimizer {x}") for x in optimizers.free),
            *(multiplier(f"eff_{x}", f"multiplier of N for {x}") for x in pairs.free),
        ),
        symbols=(N, D, replace(FORMAT, levels=formats.names), replace(OPTIMIZER, levels=optimizers.names)),
        formula=PerOptimizer(optimizers, formats.names, pairs),
        kept_share=PerOptimizer(optimizers, formats.names, pairs).kept_share,
        source="after Vlassis et al. 2025, arXiv:2509.23500, and " + SOURCE,
        notes=said,
        adapt=_adapt_optimizers,
    )  # fmt: skip


def table_of(effs: Mapping[str, float]) -> Levels:
    """The levels of a printed table eff_LEVEL -> value, beside the reference 16."""
    names = levels_of(np.array(["16", *(k.removeprefix("eff_") for k in effs if k.startswith("eff_"))], object))
    return Levels(FORMAT.name, names, tuple(name for name in names if not unquantized(name)))


QUEST_LAW = eff_table(table_of(QUEST))
OPTIMIZERS = optimizer_law(
    Levels("O", ("adamw", "muon"), ("muon",)), Levels("P", ("bf16", "int4"), ("int4",)),
    Levels("O:P", ("adamw:bf16", "adamw:int4", "muon:bf16", "muon:int4"), ("adamw:int4", "muon:int4")),
)  # fmt: skip

LAWS = (QUEST_LAW, OPTIMIZERS)
