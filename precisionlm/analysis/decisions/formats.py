"""Which format to take under a budget, for laws that have constants of each format and not of each width."""

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np
import pandas as pd

from precisionlm.analysis.decisions.cost import Cost
from precisionlm.analysis.decisions.optimum import Optimum, compute_optimal
from precisionlm.analysis.fitting.analysis import Analysis
from precisionlm.analysis.laws.base import Law
from precisionlm.analysis.laws.precision import categories, label_of, width_of
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


def combinations(law: Law, at: Mapping[str, float], analysis: Analysis | None = None) -> dict[tuple[float, ...], float]:
    """Levels of the law's categories -> mean bits of their operands: as the fitted rows say, else as the names do.

    at: levels that are chosen already. Of a fit, those combinations that its rows have. NaN: nobody says how wide.
    """
    kinds = categories(law)
    every = product(*([at[s.name]] if s.name in at else map(float, range(len(s.levels))) for s in kinds))
    widths = {codes: float(width_of(law, dict(zip((s.name for s in kinds), codes, strict=True)))) for codes in every}
    if analysis is None:
        return widths
    table = analysis.result.table
    rows = np.stack([table.columns[s.name] for s in kinds], 1)
    known = [c for c in OPERANDS if c in table.frame.columns]
    bits = (
        table.frame[known].apply(pd.to_numeric, errors="coerce").to_numpy(float) if known else np.zeros((len(rows), 0))
    )
    mean = np.array([np.nanmean(row) if np.isfinite(row).any() else np.nan for row in bits])
    found = {}
    for codes, named in widths.items():
        here = (rows == codes).all(axis=1)
        if here.any():
            told = mean[here][np.isfinite(mean[here])]
            found[codes] = float(told.mean()) if len(told) else named
    return found


def formats_under(
    law: Law, params: Mapping[str, Any], compute: float, cost: Cost = Cost(), n: float | None = None,
    d: float | None = None, bits: float | None = None, at: Mapping[str, float] | None = None,
    analysis: Analysis | None = None,
) -> list[Choice]:  # fmt: skip
    """Every format with the lowest loss that `compute` 16-bit-equivalent FLOPs buy in it, best first.

    bits: the width that costs are reckoned with, where the user says so. analysis: the fit that the constants are of.
    """
    names, choices = [s.name for s in categories(law)], []
    for codes, width in combinations(law, at or {}, analysis).items():
        here, width = {**(at or {}), **dict(zip(names, codes, strict=True))}, width if bits is None else bits
        label = label_of(law, here)
        if not np.isfinite(width):
            choices.append(Choice(label, width, here, None, "its width is not known, so neither are its costs: --bits"))
            continue
        try:
            choices.append(Choice(label, width, here, compute_optimal(law, params, compute, cost, n, d, width, here)))
        except UserError as problem:
            choices.append(Choice(label, width, here, None, str(problem)))
    return sorted(choices, key=lambda c: c.best.loss if c.best else np.inf)
