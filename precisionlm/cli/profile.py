"""`precisionlm fit --profile`: profile intervals of constants and of what a decision rests on."""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from precisionlm.analysis.decisions.optimum import compute_optimal, critical_data
from precisionlm.analysis.decisions.summary import commonest, usual
from precisionlm.analysis.fitting.analysis import Analysis
from precisionlm.analysis.fitting.profile import profile_intervals, profile_of
from precisionlm.analysis.laws.precision import label_of, reads_width
from precisionlm.errors import UserError

BUDGET = 1e21  # 16-bit-equivalent FLOPs at which the optimal width P is asked for
DERIVED = ("P", "D_crit")


def profiles(analysis: Analysis, names: list[str]) -> dict[str, dict[str, Any]]:
    """Name -> value, profile 95 % interval and meaning. Names are fitted constants, P (optimal bits) and D_crit
    (tokens beyond which more training hurts the largest size, quantized to the fewest bits in the table).

    Raises UserError for another name, or a quantity that the law or the fit does not have.
    """
    found: dict[str, dict[str, Any]] = {}
    for fit in analysis.fits:
        own = [name for name in names if name in fit.free]
        for name, interval in profile_intervals(fit, own).items():
            found[name] = {"value": fit.params[name], "interval": interval, "meaning": fit.law.parameter(name).meaning}
    for name in (n for n in names if n not in found):
        if name not in DERIVED or analysis.stages:
            known = [*analysis.identified, *(() if analysis.stages else DERIVED)]
            raise UserError(f"--profile '{name}': not a fitted constant; choose from {', '.join(known)}")
        value, meaning = _optimal_bits(analysis) if name == "P" else _critical(analysis)
        at_fit = value(analysis.result.params)
        if not np.isfinite(at_fit):
            raise UserError(f"--profile {name}: it is infinite under this fit ({meaning})")
        found[name] = {"value": at_fit, "interval": profile_of(analysis.result, value), "meaning": meaning}
    return {name: found[name] for name in names}


def _optimal_bits(analysis: Analysis) -> tuple[Callable[[Mapping[str, float]], float], str]:
    law = analysis.law
    if law.is_gap or not reads_width(law):
        raise UserError(f"--profile P: law {law.name} has no optimal bits of training")
    at = usual(analysis)
    return lambda params: compute_optimal(law, params, BUDGET, at=at).P, f"optimal bits at {BUDGET:g} FLOPs"


def _critical(analysis: Analysis) -> tuple[Callable[[Mapping[str, float]], float], str]:
    law, columns = analysis.law, analysis.result.table.columns
    at = {s.name: commonest(columns[s.name]) for s in law.symbols} | {"N": float(columns["N"].max())}
    del at["D"]
    post = next((s.name for s in law.symbols if s.kind == "ptq_bits"), None)
    if post is not None:
        quantized = columns[post][np.isfinite(columns[post])]
        at |= {post: float(quantized.min(initial=np.inf))}
        at |= {s.name: float(columns[s.name].max()) for s in law.symbols if s.kind == "bits"}
    where = f"N = {at['N']:.4g}, {label_of(law, at)}".removesuffix(", ")
    return lambda params: critical_data(law, params, at), f"tokens beyond which training hurts, {where}"
