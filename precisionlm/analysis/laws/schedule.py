"""Post-training damage with the learning-rate schedule in it: Catalan-Tatjer et al. 2025, arXiv:2510.06213.

They find that damage grows as the learning rate decays, more than with tokens: runs that end at a high rate, or decay
for a short time, quantize better at equal N and D. The paper prints no formula; the covariates are ours:

    δ = C_T D^γ_D / N^γ_N exp(-P_post/γ_post + κ_r r + κ_s s)

r: last learning rate over the largest (0 to 1); s: share of the steps in which the rate decays (0 to 1). κ_r < 0 and
κ_s > 0 are what they describe; γ_D then says what tokens do at a fixed schedule.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from precisionlm.analysis.laws.base import GAP, Columns, D, Law, N, Parameter, References, Symbol
from precisionlm.analysis.laws.kumar import AFTER, QUANTIZED_AFTER, ptq_parameters, ptq_term
from precisionlm.errors import UserError


def decay_share(frame: pd.DataFrame, names: Mapping[str, str]) -> np.ndarray:
    """(rows,) share of the steps in which the learning rate falls: of cosine and linear schedules all after the
    warm-up; NaN for others, which do not say when they begin to fall."""
    needed = ("schedule", "warmup_steps", "steps")
    missing = [column for column in needed if column not in frame.columns]
    if missing:
        raise UserError(f"no column 'decay_share', and none can be computed without column {', '.join(missing)}")
    warmup, steps = (pd.to_numeric(frame[column], errors="coerce") for column in needed[1:])
    return np.where(frame["schedule"].isin(["cosine", "linear"]), 1.0 - warmup / steps, np.nan)


FINAL = Symbol("r", "final_lr_fraction", "field", "last learning rate / largest one (0 to 1)")
DECAY = Symbol("s", "decay_share", "field", "share of the steps in which the learning rate decays", derive=decay_share)
COVARIATES = {"kappa_r": FINAL, "kappa_s": DECAY}


@dataclass(frozen=True)
class Scheduled:
    """The post-training term times exp of the covariates named."""

    covariates: tuple[str, ...]

    def __call__(self, p: Any, c: Any, xp: Any) -> Any:
        """Gap per row, nats/token."""
        exponent = sum(p[name] * c[COVARIATES[name].name] for name in self.covariates)
        return ptq_term(p, c["log_D"], c["log_N"], c["P_post"], xp) * xp.exp(exponent + 0.0 * c["log_N"])


def _adapt(columns: Columns, references: References) -> Law:
    """A covariate that is not there, does not vary, or only as another one does, is left out."""
    kept, said = [], []
    known = [np.ones(len(columns["N"]))]
    for name, symbol in COVARIATES.items():
        if symbol.name not in columns:
            said.append(f"{name} is left out: the table has no column {symbol.column}")
        elif np.linalg.matrix_rank(np.stack([*known, columns[symbol.name]])) == len(known):
            said.append(f"{name} is left out: {symbol.column} does not vary by itself in these rows")
        else:
            kept.append(name)
            known.append(columns[symbol.name])
    return scheduled(tuple(kept), tuple(said))


def scheduled(covariates: tuple[str, ...], said: tuple[str, ...] = ()) -> Law:
    """The law with these covariates."""
    kappas = {
        "kappa_r": Parameter("kappa_r", (-2.0, 1.0), (-50.0, 50.0), meaning="log damage per unit of r"),
        "kappa_s": Parameter("kappa_s", (-1.0, 2.0), (-50.0, 50.0), meaning="log damage per unit of s"),
    }
    return Law(
        name="kumar_ptq_schedule",
        title="δ = C_T D^γ_D / N^γ_N exp(-P_post/γ_post + κ_r r + κ_s s)",
        parameters=(*ptq_parameters(), *(kappas[name] for name in covariates)),
        symbols=(N, D, AFTER, *(COVARIATES[name] for name in covariates)),
        formula=Scheduled(covariates),
        source="covariates after Catalan-Tatjer et al. 2025, arXiv:2510.06213; the rest: Kumar et al. 2024, Eq 2",
        target=GAP,
        restrictions=(QUANTIZED_AFTER,),
        notes=said,
        adapt=_adapt,
    )


LAWS = (scheduled(tuple(COVARIATES)),)
