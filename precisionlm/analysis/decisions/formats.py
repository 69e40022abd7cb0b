"""Which format to take under a budget, for laws that have constants of each format and not of each width."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from precisionlm.analysis.decisions.cost import Cost
from precisionlm.analysis.decisions.optimum import Optimum, compute_optimal
from precisionlm.analysis.fitting.analyze import Analysis
from precisionlm.analysis.laws.base import Law
from precisionlm.analysis.laws.precision import category, width_named
from precisionlm.errors import UserError

OPERANDS = ("w_bits", "a_bits", "kv_bits")


@dataclass(frozen=True)
class Choice:
    """One format under a budget. bits: what its training costs are reckoned with. best: None where nothing is bought,
    with the reason."""

    name: str
    bits: float
    at: dict[str, float]
    best: Optimum | None
    reason: str = ""


def level_widths(law: Law, analysis: Analysis | None = None) -> dict[str, float]:
    """Format -> mean bits of its operands: as the fitted rows say it, else as its name does; NaN where neither does."""
    kind = category(law)
    if kind is None:
        return {}
    widths = {level: width_named(level) for level in kind.levels}
    if analysis is None:
        return widths
    table = analysis.result.table
    known = [c for c in OPERANDS if c in table.frame.columns]
    if known:
        bits = table.frame[known].apply(pd.to_numeric, errors="coerce").to_numpy(float)
        mean = np.nanmean(np.where(np.isnan(bits).all(1, keepdims=True), 16.0, bits), axis=1)
        codes = table.columns[kind.name].astype(int)
        widths |= {kind.levels[code]: float(mean[codes == code].mean()) for code in np.unique(codes)}
    return widths


def formats_under(
    law: Law, params: Mapping[str, Any], compute: float, widths: Mapping[str, float], cost: Cost = Cost(),
    n: float | None = None, d: float | None = None, at: Mapping[str, float] | None = None,
) -> list[Choice]:  # fmt: skip
    """Every format with the lowest loss that `compute` 16-bit-equivalent FLOPs buy in it, best first."""
    kind = category(law)
    assert kind is not None
    choices = []
    for code, level in enumerate(kind.levels):
        here, bits = dict(at or {}) | {kind.name: float(code)}, widths[level]
        if not np.isfinite(bits):
            choices.append(Choice(level, bits, here, None, "its width is not known, so neither are its costs"))
            continue
        try:
            choices.append(Choice(level, bits, here, compute_optimal(law, params, compute, cost, n, d, bits, here)))
        except UserError as problem:
            choices.append(Choice(level, bits, here, None, str(problem)))
    return sorted(choices, key=lambda c: c.best.loss if c.best else np.inf)
