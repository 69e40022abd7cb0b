"""What a fit minimises: Huber or squares of log residuals, or squares of relative residuals."""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from precisionlm.errors import UserError, nearest


@dataclass(frozen=True)
class Objective:
    """Sum over rows of weight * rho(residual).

    `kind` huber: r = log prediction - log observation, rho = r²/2 up to `delta`, then delta (|r| - delta/2)
    (Hoffmann et al. 2022, Eq 3). `squares`: the same r, rho = r²/2. `relative`: r = prediction/observation - 1 and
    rho = r²/2. `nats`: r = prediction - observation in nats/token and rho = r²/2, the least squares of scipy's
    curve_fit (Gadre et al. 2024, arXiv:2403.08540).
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
    def scale(self) -> str:
        """What a residual is a difference of: log, relative or nats."""
        return self.kind if self.kind in ("relative", "nats") else "log"


def parse_objective(text: str) -> Objective:
    """`huber`, `huber:1e-3`, `squares`, `relative` or `nats` -> Objective. Raises UserError for anything else."""
    kind, _, argument = text.partition(":")
    if kind not in ("huber", "squares", "relative", "nats"):
        raise UserError(
            f"objective '{text}' is unknown; {nearest(kind, ['huber:1e-3', 'squares', 'relative', 'nats'])}"
        )
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


def residual(scale: str, prediction: Any, observation: Any) -> Any:
    """Residual per row, for JAX or NumPy arrays; scale as `Objective.scale`."""
    if scale == "nats":
        return prediction - observation
    if scale == "relative":
        return prediction / observation - 1.0
    if isinstance(prediction, np.ndarray):
        return np.log(prediction / observation)
    import jax.numpy as jnp  # here: to parse an objective takes no JAX

    return jnp.log(prediction / observation)


def huber(r: Any, delta: Any) -> Any:
    """Huber's rho per row; squares / 2 for delta = inf."""
    import jax.numpy as jnp

    a = jnp.abs(r)
    small = a <= delta
    return jnp.where(small, 0.5 * r * r, jnp.where(small, 1.0, delta) * (a - jnp.where(small, 0.0, 0.5 * delta)))
