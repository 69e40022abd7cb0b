"""What a fit advises, in plain sentences: the best size, tokens and bits for larger budgets, and when tokens hurt."""

from typing import Any

import numpy as np

from precisionlm.analysis.decisions.cost import TRAIN
from precisionlm.analysis.decisions.optimum import compute_optimal, critical_data, has_precision, optimum_interval
from precisionlm.analysis.fitting.analyze import Analysis
from precisionlm.errors import UserError

FACTORS = (1, 10, 100)


def decisions(analysis: Analysis) -> list[str]:
    """One sentence a budget (1, 10 and 100 times the FLOPs of the largest run) and one a post-training width.

    Symbols that are neither size, tokens nor bits stand at their commonest value in the table. Empty for laws of the
    gap; a question that the fit cannot answer says so.
    """
    law, columns = analysis.law, analysis.result.table.columns
    if law.is_gap or not {"N", "D"} <= set(columns):
        return []
    decided = {"N", "D", "P_w", "P_a", "P_kv", "P_post", "E", "M"}
    at = {k: _commonest(v) for k, v in columns.items() if k in {s.name for s in law.symbols} - decided}
    largest = TRAIN * float(np.max(columns["N"] * columns["D"]))
    lines = [_budget(analysis, largest, factor, at) for factor in FACTORS]
    return lines + _critical(analysis)


def _budget(analysis: Analysis, largest: float, factor: int, at: dict[str, float]) -> str:
    law, budget = analysis.law, largest * factor
    lead = f"{law.name}, {budget:.2g} FLOPs ({factor} x the largest run): "
    try:
        best = compute_optimal(law, analysis.result.params, budget, at=at)
        between = optimum_interval(law, analysis.bootstrap.samples, budget, at=at) if analysis.bootstrap else {}
    except UserError as problem:
        return lead + f"no answer ({problem})."

    def value(name: str, number: float, style: str) -> str:
        low_high = between.get(name)
        shown = f" [{low_high[0]:{style}}, {low_high[1]:{style}}]" if low_high else ""
        return f"{number:{style}}{shown}"

    text = f"train {value('N', best.N, '.3g')} parameters on {value('D', best.D, '.3g')} tokens"
    if has_precision(law):
        text += f" at {value('P', best.P, '.2f')} bits"
    notes = f" Beware: {'; '.join(best.notes)}." if best.notes else ""
    return lead + f"{text}; predicted loss {best.loss:.4g} nats/token.{notes}"


def _critical(analysis: Analysis) -> list[str]:
    columns: dict[str, Any] = analysis.result.table.columns
    post = columns.get("P_post", np.array([]))
    size = float(np.max(columns["N"]))
    high: dict[str, float] = {k: float(np.max(columns[k])) for k in ("P_w", "P_a", "P_kv") if k in columns}
    lines = []
    for bits in np.unique(post[np.isfinite(post)]):
        found = critical_data(analysis.law, analysis.result.params, {"N": size, "P_post": float(bits), **high})
        when = f"beyond {found:.3g} tokens more training makes it worse" if np.isfinite(found) else (
            "more training never makes it worse under this law")  # fmt: skip
        lines.append(f"{analysis.law.name}, {size:.3g} parameters quantized to {bits:g} bits after training: {when}.")
    return lines


def _commonest(values: np.ndarray) -> float:
    found, counts = np.unique(values, return_counts=True)
    return float(found[np.argmax(counts)])
