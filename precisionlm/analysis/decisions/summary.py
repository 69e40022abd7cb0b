"""What a fit advises, in plain sentences: the best size, tokens and precision for larger budgets, and when tokens hurt.

Every sentence carries what its numbers rest on: intervals, the status of the fit, how far it reaches beyond the runs.
"""

from collections.abc import Mapping

import numpy as np

from precisionlm.analysis.decisions.cautions import (
    Between,
    beyond_the_runs,
    left_open,
    of_the_fit,
    optimum_intervals,
    positive_interval,
)
from precisionlm.analysis.decisions.cost import TRAIN
from precisionlm.analysis.decisions.formats import formats_under
from precisionlm.analysis.decisions.optimum import Optimum, compute_optimal, critical_data
from precisionlm.analysis.fitting.analysis import Analysis
from precisionlm.analysis.laws.precision import categories, label_of, reads_width, unquantized
from precisionlm.errors import UserError

FACTORS = (1, 10, 100)
UNITS = "budgets are 16-bit-equivalent FLOPs of training, 6 N D P/16; parameters are non-embedding ones"


def decisions(analysis: Analysis) -> list[str]:
    """One sentence a budget (1, 10 and 100 times 6 N D of the largest run) and one a post-training width.

    Symbols that are neither size, tokens nor a width stand at their commonest value in the table. Empty for laws of the
    gap; a question that the fit cannot answer says so.
    """
    law, columns = analysis.law, analysis.result.table.columns
    if law.is_gap or not {"N", "D"} <= set(columns):
        return []
    at = usual(analysis)
    largest = TRAIN * float(np.max(columns["N"] * columns["D"]))
    return [*(_budget(analysis, largest, factor, at) for factor in FACTORS), *_critical(analysis, at)]


def usual(analysis: Analysis) -> dict[str, float]:
    """The commonest value in the table of every symbol that is neither size, tokens, a width nor a format."""
    law, columns = analysis.law, analysis.result.table.columns
    free = {"N", "D"} | {s.name for s in law.symbols if s.kind in ("bits", "ptq_bits", "category")}
    if law.at_bits is not None:
        free |= set(law.at_bits(analysis.result.params, 8.0, None))
    return {s.name: commonest(columns[s.name]) for s in law.symbols if s.name not in free}


def commonest(values: np.ndarray) -> float:
    """The value that most rows have."""
    found, counts = np.unique(values, return_counts=True)
    return float(found[np.argmax(counts)])


def _budget(analysis: Analysis, largest: float, factor: int, at: dict[str, float]) -> str:
    law, params, budget = analysis.law, analysis.result.params, largest * factor
    lead = f"{law.name}, {budget:.2g} FLOPs ({factor} x the largest run): "
    try:
        if not categories(law):
            best, bits = compute_optimal(law, params, budget, at=at), None
        else:
            choice = formats_under(law, params, budget, at=at, analysis=analysis)[0]
            if choice.best is None:
                return lead + f"no answer ({choice.reason})."
            best, bits, at = choice.best, choice.bits, choice.at
        between = optimum_intervals(analysis, budget, bits=bits, at=at)
    except UserError as problem:
        return lead + f"no answer ({problem})."
    text = f"train {_with('N', best.N, '.3g', between)} parameters on {_with('D', best.D, '.3g', between)} tokens"
    text += _precision(analysis, best, at, between)
    notes = [*best.notes, *beyond_the_runs(analysis, best.N, best.D, best.P), *of_the_fit(analysis)]
    notes += left_open(between)
    beware = f" Beware: {'; '.join(notes)}." if notes else ""
    return lead + f"{text}; predicted loss {best.loss:.4g} nats/token.{beware}"


def _precision(analysis: Analysis, best: Optimum, at: Mapping[str, float], between: Mapping[str, Between]) -> str:
    """At which precision: the format's name, the width and its fields, or what the law reads besides."""
    law, label = analysis.law, label_of(analysis.law, {**best.columns, **at})
    if categories(law):
        return f" in {label} ({best.P:g} bits)"
    if not reads_width(law):
        return f" ({label})" if label else ""
    named = f" ({label})" if law.at_bits is not None else ""
    return f" at {_with('P', best.P, '.2f', between)} bits{named}"


def _with(name: str, number: float, style: str, between: Mapping[str, Between]) -> str:
    low, high = between.get(name, (np.nan, np.nan))
    return (
        f"{number:{style}} [{low:{style}}, {high:{style}}]" if np.isfinite([low, high]).all() else f"{number:{style}}"
    )


def _critical(analysis: Analysis, at: dict[str, float]) -> list[str]:
    law, columns = analysis.law, analysis.result.table.columns
    post = next((s.name for s in law.symbols if s.kind == "ptq_bits"), None)
    if post is None:
        return []
    size = float(np.max(columns["N"]))
    lines = []
    for bits in np.unique(columns[post][np.isfinite(columns[post])]):
        point = {**unquantized(law), **at, "N": size, post: float(bits)}

        def tokens(params: Mapping[str, float], point: Mapping[str, float] = point) -> float:
            return critical_data(law, params, point)

        found = tokens(analysis.result.params)
        text = f"{law.name}, {size:.3g} parameters quantized to {bits:g} bits after training: "
        if not np.isfinite(found):
            lines.append(text + "more training never makes it worse under this law." + _beware(of_the_fit(analysis)))
            continue
        between = {"the critical tokens": positive_interval(analysis, tokens)}
        shown = _with("the critical tokens", found, ".3g", between)
        notes = [*beyond_the_runs(analysis, size, found), *of_the_fit(analysis), *left_open(between)]
        lines.append(text + f"beyond {shown} tokens more training makes it worse." + _beware(notes))
    return lines


def _beware(notes: list[str]) -> str:
    return f" Beware: {'; '.join(notes)}." if notes else ""
