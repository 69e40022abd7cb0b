"""Castro et al. 2025 (Quartet), arXiv:2505.14669: forward precision costs parameters, backward precision costs data.

    L = (A / (N eff_N)^α + B / (D eff_D)^β)^γ + E

eff_N applies where the forward product is quantized, eff_D where the backward products are; both are 1 at bf16.
`quartet` has one of each; `quartet_schemes` one eff_N per forward format or scheme and one eff_D per backward one.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from precisionlm.analysis.laws.base import (
    Columns,
    D,
    Law,
    N,
    Parameter,
    References,
    Stage,
    Symbol,
    exponent,
    published,
)
from precisionlm.analysis.laws.levels import Levels, chosen, notes
from precisionlm.analysis.table.derive import backward_quantized, forward_quantized

SOURCE = "Castro et al. 2025 (Quartet), arXiv:2505.14669"
FORWARD = Symbol("forward", "fwd_quantized", "field", "1 where the forward products are quantized, else 0",
                 derive=forward_quantized)  # fmt: skip
BACKWARD = Symbol("backward", "bwd_quantized", "field", "1 where the backward products are quantized, else 0",
                  derive=backward_quantized)  # fmt: skip
FORWARD_SCHEME = Symbol("forward", "fwd_format", "category", "format or scheme of the forward products, any text")
BACKWARD_SCHEME = Symbol("backward", "bwd_format", "category", "format or scheme of the backward products, any text")
BASE = ("A", "alpha", "B", "beta", "gamma", "E")

_BASE_PARAMETERS = (
    Parameter("A", (1e2, 1e7), (1e-6, 1e15), True, meaning="scale of the model-size term"),
    exponent("alpha", (0.2, 1.2), "power of N"),
    Parameter("B", (1e2, 1e7), (1e-6, 1e15), True, meaning="scale of the data term"),
    exponent("beta", (0.2, 1.2), "power of D"),
    Parameter("gamma", (0.15, 1.0), (0.01, 3.0), True, meaning="outer power"),
    Parameter("E", bounds=(0.0, 50.0), linear=True, meaning="irreducible loss (nats/token)"),
)


def _multiplier(name: str, meaning: str) -> Parameter:
    return Parameter(name, (0.3, 1.0), (1e-3, 10.0), True, meaning=meaning)


def _loss(p: Any, log_n: Any, log_d: Any, xp: Any) -> Any:
    size = p["log_A"] - p["alpha"] * log_n
    data = p["log_B"] - p["beta"] * log_d
    return xp.exp(p["gamma"] * xp.logaddexp(size, data)) + p["E"]


def _quartet(p: Any, c: Any, xp: Any) -> Any:
    return _loss(p, c["log_N"] + c["forward"] * p["log_eff_N"], c["log_D"] + c["backward"] * p["log_eff_D"], xp)


def _stages(
    forward: Callable[[Columns], np.ndarray], backward: Callable[[Columns], np.ndarray], size: tuple[str, ...],
    data: tuple[str, ...],
) -> tuple[Stage, ...]:  # fmt: skip
    """The paper's protocol: base, then each pass on rows where it alone is quantized. size, data: their constants."""
    base = Stage(BASE, "rows with both passes at bf16", lambda c: ~forward(c) & ~backward(c))
    by_data = Stage(data, "rows with the backward pass alone quantized", lambda c: ~forward(c) & backward(c))
    by_size = Stage(size, "rows with the forward pass alone quantized", lambda c: forward(c) & ~backward(c))
    return (base, *(stage for stage in (by_data, by_size) if stage.free))


def _adapt(columns: Mapping[str, np.ndarray], references: References) -> Law:
    """A pass that no row quantizes has no multiplier."""
    passes = (("eff_N", FORWARD.name), ("eff_D", BACKWARD.name))
    idle = [(eff, name) for eff, name in passes if name in columns and not columns[name].any()]
    said = tuple(f"{eff} is held at 1: no row quantizes the {name} pass" for eff, name in idle)
    stages = tuple(stage for stage in QUARTET.stages if not {eff for eff, _ in idle} & set(stage.free))
    return replace(QUARTET.hold(**{eff: 1.0 for eff, _ in idle}), notes=said, stages=stages)


def label(columns: Mapping[str, Any]) -> str:
    """Which passes are quantized."""
    passes = [name for name in ("forward", "backward") if columns[name] > 0]
    return f"{' and '.join(passes)} quantized" if passes else "not quantized"


QUARTET = Law(
    name="quartet",
    title="L = (A/(N eff_N)^α + B/(D eff_D)^β)^γ + E",
    parameters=(
        *_BASE_PARAMETERS,
        _multiplier("eff_N", "multiplier of N with a quantized forward product"),
        _multiplier("eff_D", "multiplier of D with quantized backward products"),
    ),
    symbols=(N, D, FORWARD, BACKWARD),
    formula=_quartet,
    label=label,
    kept_share=lambda p, c: np.where(c["forward"] > 0, p["eff_N"], 1.0),
    source=SOURCE,
    published=(
        published("Castro et al. 2025 (Quartet), arXiv:2505.14669, fit of the published runs (MXFP4)", A=152374.8,
                  alpha=0.588576, B=525459.0, beta=0.544039, gamma=0.273929, E=1.348141, eff_N=0.647813,
                  eff_D=0.891765),
    ),
    stages=_stages(lambda c: c["forward"] > 0, lambda c: c["backward"] > 0, ("eff_N",), ("eff_D",)),
    adapt=_adapt,
)  # fmt: skip


@dataclass(frozen=True)
class Schemes:
    """The same with a multiplier of N a forward level and one of D a backward level."""

    forward: Levels
    backward: Levels

    def __call__(self, p: Any, c: Any, xp: Any) -> Any:
        """Loss per row."""
        log_n = c["log_N"] + self.forward.value(p, "log_eff_N_", c["forward"], xp)
        return _loss(p, log_n, c["log_D"] + self.backward.value(p, "log_eff_D_", c["backward"], xp), xp)


def schemes(forward: Levels, backward: Levels) -> Law:
    """The law for these levels of the forward and the backward column."""
    size = tuple(_multiplier(f"eff_N_{x}", f"multiplier of N with forward products in {x}") for x in forward.free)
    data = tuple(_multiplier(f"eff_D_{x}", f"multiplier of D with backward products in {x}") for x in backward.free)

    def quantized(levels: Levels) -> Callable[[Columns], np.ndarray]:
        free = [levels.names.index(name) for name in levels.free]
        return lambda c: np.isin(c[levels.symbol], free)

    return Law(
        name="quartet_schemes",
        title="L = (A/(N eff_N)^α + B/(D eff_D)^β)^γ + E, eff_N per forward scheme, eff_D per backward scheme",
        parameters=(*_BASE_PARAMETERS, *size, *data),
        symbols=(N, D, replace(FORWARD_SCHEME, levels=forward.names), replace(BACKWARD_SCHEME, levels=backward.names)),
        formula=Schemes(forward, backward),
        kept_share=lambda p, c: np.exp(forward.value(p, "log_eff_N_", c["forward"], np)),
        source=SOURCE,
        stages=_stages(quantized(forward), quantized(backward), tuple(p.name for p in size),
                       tuple(p.name for p in data)),
        notes=notes([forward, backward]),
        adapt=_adapt_schemes,
    )  # fmt: skip


def _adapt_schemes(columns: Columns, references: References) -> Law:
    return schemes(*(chosen(s, columns[s.name], references) for s in (FORWARD_SCHEME, BACKWARD_SCHEME)))


SCHEMES = schemes(Levels("forward", ("bf16", "mxfp4"), ("mxfp4",)), Levels("backward", ("bf16", "mxfp4"), ("mxfp4",)))

LAWS = (QUARTET, SCHEMES)
