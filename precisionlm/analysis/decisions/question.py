"""What a plan is asked: which law with which constants, what is kept, what training costs."""

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from precisionlm.analysis import laws
from precisionlm.analysis.decisions.cost import Cost, parse_cost
from precisionlm.analysis.fitting.analysis import Analysis
from precisionlm.analysis.laws.base import INF, Law
from precisionlm.analysis.laws.precision import BLOCK, categories, said_by, value_of, width_of, with_block
from precisionlm.errors import UserError, check_count

_LEAST = {"size": 1.0, "tokens": 1.0, "bits": 1.0, "block": 1.0}  # below, laws give numbers that mean nothing


@dataclass(frozen=True)
class Options:
    """The options of `precisionlm plan` but for the law: what is decided, what is kept. Each is documented at
    `precisionlm.plan`, whose keywords they are. Raises UserError for numbers out of their range."""

    compute: float | None = None
    size: float | None = None
    tokens: float | None = None
    bits: float | None = None
    format: str = ""
    block: float | None = None
    at: Mapping[str, str | float] = field(default_factory=dict)
    cost: str = "linear"
    inference_tokens: float = 0.0
    offsets: bool = True
    critical: bool = False
    iso_loss: float | None = None
    next: int | None = None
    quantity: str = "P"

    def __post_init__(self) -> None:
        for name in ("compute", "size", "tokens", "bits", "block", "iso_loss"):
            value, option = getattr(self, name), "--" + name.replace("_", "-")
            least = _LEAST.get(name, 0.0)
            if value is not None and not (0 < value < INF and value >= least):
                raise UserError(
                    f"{option} {value:g}: must be a positive number" + (f", {least:g} at least" if least else "")
                )
        if not 0 <= self.inference_tokens < INF:
            raise UserError(f"--inference-tokens {self.inference_tokens:g}: must be 0 or a positive number")
        check_count("--next", self.next, 1, 1000)


@dataclass(frozen=True)
class Question:
    """What the options ask: a law with constants, what is fixed, what training costs. at: values of single symbols,
    levels and fields of a chosen format among them."""

    law: Law
    params: Mapping[str, float]
    fitted: Analysis | None
    cost: Cost
    compute: float | None
    n: float | None
    d: float | None
    bits: float | None
    at: dict[str, float]
    notes: tuple[str, ...] = ()


def question(law: str | Analysis, options: Options) -> tuple[Question, str]:
    """The question to a fit, or to the published constants of a law by its name, and where its constants come from.
    Raises UserError for input that fits no law."""
    fitted = law if isinstance(law, Analysis) else None
    found, params, source = _constants(law, options.offsets)
    at, bits, notes = _precision(options, found, params)
    cost = parse_cost(options.cost, options.inference_tokens)
    kept = (options.compute, options.size, options.tokens, bits)
    return Question(found, params, fitted, cost, *kept, at, notes), source


def _constants(given: str | Analysis, offsets: bool) -> tuple[Law, dict[str, float], str]:
    if isinstance(given, Analysis):
        return given.law, given.params, f"a fit of {given.rows_used} rows of {given.source}"
    law = laws.get(given)
    if not offsets:
        if not law.without_offsets:
            others = ", ".join(name for name, other in laws.LAWS.items() if other.without_offsets)
            raise UserError(f"--no-offsets: law {law.name} has no form without offsets; {others} have")
        law = laws.get(law.without_offsets)
    if not law.published:
        raise UserError(f"law {law.name} has no published constants; give --runs FILE to fit it")
    printed = law.published[0]
    return law, printed.as_dict(), printed.source + (f" ({printed.note})" if printed.note else "")


def _precision(
    options: Options, law: Law, params: Mapping[str, float]
) -> tuple[dict[str, float], float | None, tuple[str, ...]]:
    """Values of the law's symbols from at, block, format and bits; the width that is kept; what was assumed."""
    words = {name: value if isinstance(value, str) else f"{value:.17g}" for name, value in options.at.items()}
    at = {name: value_of(law, name, text) for name, text in words.items()}
    at = with_block(law, options.block) | at if options.block else at
    bits = options.bits
    if options.format:
        said = said_by(law, params, name=options.format, at=at)
        if not said:
            raise UserError(
                f"--format {options.format}: law {law.name} reads no format; --bits says what training costs"
            )
        at = said | at
    elif bits is not None and categories(law):
        at = said_by(law, params, bits, at=at) | at
    if bits is None and (options.format or (all(s.name in at for s in categories(law)) and categories(law))):
        width = float(np.asarray(width_of(law, at)))
        bits = width if np.isfinite(width) else None
    assumed = {k: v for k, v in with_block(law, BLOCK, ("block",)).items() if k not in at}
    notes = (f"{BLOCK:g} elements per scale are assumed; --block says otherwise",) if assumed else ()
    return assumed | at, bits, notes
