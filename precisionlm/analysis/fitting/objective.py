"""What a fit minimises: Huber or squares of log residuals, or squares of relative residuals."""

import math
from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp
import numpy as np

from precisionlm.errors import UserError, nearest


@dataclass(frozen=True)
class Objective:
    """Sum over rows of weight * rho(residual).

    `kind` huber: r = log prediction - log observation, rho = r²/2 up to `delta`, then delta (|r| - delta/2)
    (Hoffmann et al. 2022, Eq 3). `squares`: the same r, rho = r²/2. `relative`: r = prediction/observation - 1 and
    rho = r²/2.
    """

    kind: str = "huber"
    delta: float = 1e-3

    def __str__(self) -> str:
        return f"huber:{self.delta:g}" if self.kind == "huber" else self.kind

    @property
    def threshold(self) -> float:
        """Residual at which rho turns linear."""
        return self.delta if self.kind == "huber" else math.inf

    @property
    def logarithmic(self) -> bool:
        """Residuals are differences of logarithms."""
        return self.kind != "relative"


def parse_objective(text: str) -> Objective:
    """`huber`, `huber:1e-3`, `squares` or `relative` -> Objective. Raises UserError for anything else."""
    kind, _, argument = text.partition(":")
    if kind not in ("huber", "squares", "relative"):
        raise UserError(f"objective '{text}' is unknown; {nearest(kind, ['huber:1e-3', 'squares', 'relative'])}")
    if kind != "huber":
        if argument:
            raise UserError(f"objective '{kind}' takes no number, got '{text}'")
        return Objective(kind)
    try:
        delta = float(argument) if argument else 1e-3
    except ValueError:
        delta = math.nan
    if not (0 < delta < math.inf):
        raise UserError(f"objective '{text}': huber takes a positive number, as in huber:1e-3")
    return Objective("huber", delta)


def residual(logarithmic: bool, prediction: Any, observation: Any) -> Any:
    """Residual per row, for JAX or NumPy arrays."""
    xp = np if isinstance(prediction, np.ndarray) else jnp
    return xp.log(prediction / observation) if logarithmic else prediction / observation - 1.0


def huber(r: Any, delta: Any) -> Any:
    """Huber's rho per row; squares / 2 for delta = inf."""
    a = jnp.abs(r)
    small = a <= delta
    return jnp.where(small, 0.5 * r * r, jnp.where(small, 1.0, delta) * (a - jnp.where(small, 0.0, 0.5 * delta)))
