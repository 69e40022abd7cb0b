"""A law through the format's error: N_eff = N ρ, ρ = l tanh(f (log_1/4 GMSE)^c), after arXiv:2506.01863.

GMSE: mean squared error of the format on a unit Gaussian at its best scale, relative to the Gaussian's variance.
One law then covers integers, floats and block formats. The functional form follows that paper's description; its
constants were not at hand, so none are listed.
"""

from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np

from precisionlm.analysis.laws.base import D, Fields, Law, N, Parameter, Symbol
from precisionlm.analysis.laws.chinchilla import base_loss, base_parameters
from precisionlm.analysis.table.derive import weight_error
from precisionlm.analysis.table.formats import gaussian_error

LOG4 = float(np.log(4.0))
ERROR = Symbol("gmse", "w_gmse", "positive", "relative mean squared error of the weight format on a Gaussian",
               derive=weight_error)  # fmt: skip


@dataclass(frozen=True)
class GaussianError:
    """The base at N_eff = N ρ; β = α where tied."""

    tied: bool

    def __call__(self, p: Any, c: Any, xp: Any) -> Any:
        """Loss per row; +inf where the error is as large as the signal."""
        bits = -xp.log(c["gmse"]) / LOG4  # log_1/4: the bits of an ideal quantizer with this error
        positive = bits > 0
        bits = xp.where(positive, bits, 1.0)
        rho = xp.tanh(xp.exp(p["log_f"] + p["c"] * xp.log(bits)))
        log_n = c["log_N"] + p["log_l"] + xp.log(rho)
        loss = base_loss(p, log_n, c["log_D"], p["alpha"], p["alpha" if self.tied else "beta"], xp)
        return xp.where(positive, loss, xp.inf)


@cache
def _integer_errors() -> tuple[np.ndarray, np.ndarray]:
    widths = np.arange(2.0, 17.0)
    return widths, np.log([gaussian_error(width) for width in widths])


def at_bits(p: Any, bits: Any, fields: Fields) -> dict[str, Any]:
    """The error of a float of these exponent and mantissa bits, or of an integer of that width: between whole widths
    its logarithm lies on a line."""
    if fields is not None and fields[0] > 0:
        return {"gmse": gaussian_error(bits, *fields)}
    widths, errors = _integer_errors()
    return {"gmse": np.exp(np.interp(bits, widths, errors))}


def kept_share(p: Any, c: Any) -> Any:
    """N_eff/N = l tanh(f (log_1/4 GMSE)^c); NaN where the error is as large as the signal."""
    bits = -np.log(c["gmse"]) / LOG4
    return p["l"] * np.tanh(p["f"] * np.where(bits > 0, bits, np.nan) ** p["c"])


def _law(tied: bool) -> Law:
    return Law(
        name="gaussian_mse" if tied else "gaussian_mse_beta",
        title=f"L = A N_eff^-α + B D^-{'α' if tied else 'β'} + E, N_eff = N l tanh(f (log_1/4 GMSE)^c)",
        parameters=(
            *base_parameters(tied),
            Parameter("l", held=1.0, bounds=(1e-3, 1e3), log=True, meaning="limit of N_eff/N; A and l share one scale"),
            Parameter("f", (0.1, 2.0), (1e-4, 1e3), True, meaning="scale of the format's bits"),
            Parameter("c", (0.5, 3.0), (0.01, 20.0), meaning="power of the format's bits"),
        ),
        symbols=(N, D, ERROR),
        formula=GaussianError(tied),
        source="after arXiv:2506.01863 (form as described there; constants ours to fit)",
        at_bits=at_bits,
        kept_share=kept_share,
        undefined="+inf where the format's error is as large as the signal (GMSE ≥ 1)",
    )


LAWS = (_law(tied=True), _law(tied=False))
