"""What the arguments of the verb plan ask: which law with which constants, what is kept, what training costs."""

import argparse
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from precisionlm.analysis import laws
from precisionlm.analysis.decisions.cost import Cost, parse_cost
from precisionlm.analysis.fitting.analyze import Analysis
from precisionlm.analysis.laws.base import INF, Law
from precisionlm.analysis.laws.precision import BLOCK, categories, said_by, value_of, width_of, with_block
from precisionlm.cli.assignments import assignments
from precisionlm.errors import UserError

_LEAST = {"size": 1.0, "tokens": 1.0, "bits": 1.0, "block": 1.0}  # below, laws give numbers that mean nothing


@dataclass(frozen=True)
class Question:
    """What the arguments ask: a law with constants, what is fixed, what training costs. at: values of single symbols,
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


def question(arguments: argparse.Namespace, fitted: Analysis | None) -> tuple[Question, str]:
    """The question, and where its constants come from. Raises UserError for input that fits no law or number."""
    law, params, source = _constants(arguments, fitted)
    for name in ("compute", "size", "tokens", "bits", "block", "iso_loss"):
        value, option = getattr(arguments, name), "--" + name.replace("_", "-")
        least = _LEAST.get(name, 0.0)
        if value is not None and not (0 < value < INF and value >= least):
            raise UserError(
                f"{option} {value:g}: must be a positive number" + (f", {least:g} at least" if least else "")
            )
    if not 0 <= arguments.inference_tokens < INF:
        raise UserError(f"--inference-tokens {arguments.inference_tokens:g}: must be 0 or a positive number")
    at, bits, notes = _precision(arguments, law, params)
    cost = parse_cost(arguments.cost, arguments.inference_tokens)
    kept = (arguments.compute, arguments.size, arguments.tokens, bits)
    return Question(law, params, fitted, cost, *kept, at, notes), source


def _constants(arguments: argparse.Namespace, fitted: Analysis | None) -> tuple[Law, dict[str, float], str]:
    if fitted:
        return fitted.law, fitted.result.params, f"a fit of {fitted.result.rows_used} rows of {arguments.runs}"
    law = laws.get(arguments.law)
    if arguments.no_offsets:
        if not law.without_offsets:
            others = ", ".join(name for name, other in laws.LAWS.items() if other.without_offsets)
            raise UserError(f"--no-offsets: law {law.name} has no form without offsets; {others} have")
        law = laws.get(law.without_offsets)
    if not law.published:
        raise UserError(f"law {law.name} has no published constants; give --runs FILE to fit it")
    printed = law.published[0]
    return law, printed.as_dict(), printed.source + (f" ({printed.note})" if printed.note else "")


def _precision(
    arguments: argparse.Namespace, law: Law, params: Mapping[str, float]
) -> tuple[dict[str, float], float | None, tuple[str, ...]]:
    """Values of the law's symbols from --at, --block, --format and --bits; the width that is kept; what was assumed."""
    at = {name: value_of(law, name, text) for name, text in assignments("--at", arguments.at, "SYMBOL=VALUE").items()}
    at = with_block(law, arguments.block) | at if arguments.block else at
    bits: float | None = arguments.bits
    if arguments.format:
        said = said_by(law, params, name=arguments.format, at=at)
        if not said:
            raise UserError(
                f"--format {arguments.format}: law {law.name} reads no format; --bits says what training costs"
            )
        at = said | at
    elif bits is not None and categories(law):
        at = said_by(law, params, bits, at=at) | at
    if bits is None and (arguments.format or (all(s.name in at for s in categories(law)) and categories(law))):
        width = float(np.asarray(width_of(law, at)))
        bits = width if np.isfinite(width) else None
    assumed = {k: v for k, v in with_block(law, BLOCK, ("block",)).items() if k not in at}
    notes = (f"{BLOCK:g} elements per scale are assumed; --block says otherwise",) if assumed else ()
    return assumed | at, bits, notes
