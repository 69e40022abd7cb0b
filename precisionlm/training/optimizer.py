"""AdamW and learning-rate schedules whose numbers are arguments: runs of any length share one compiled step."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from precisionlm.config import Experiment

LEARNED_SCALES = ("w_clip", "a_clip")  # of precision.learned
_NO_MATRICES = ("scale", *LEARNED_SCALES)

Hyper = dict[str, Any]  # name → float or float32 scalar


def hyperparameters(experiment: Experiment) -> Hyper:
    """The numbers of a run that its compiled step takes as arguments (floats)."""
    o, steps = experiment.optimizer, experiment.training.steps
    depth = (o.depth_scale / experiment.model.layers) ** 0.5 if o.depth_scale else 1.0
    return {
        "learning_rate": o.learning_rate * depth,
        "scale_learning_rate": o.scale_learning_rate,
        "steps": float(steps),
        "warmup": float(min(o.warmup(steps), steps)),
        **shape_of(o.schedule, o.decay_fraction),
        "final_fraction": o.final_fraction,
        "beta1": o.beta1,
        "beta2": o.beta2,
        "epsilon": o.epsilon,
        "weight_decay": o.weight_decay,
        "clip_norm": o.clip_norm,
        "z_loss": o.z_loss,
    }


def shape_of(schedule: str, decay_fraction: float) -> Hyper:
    """A schedule's shape as numbers, so that runs of different schedules share one compiled step: the share of all
    steps in which it falls (all after the warm-up but for wsd), and whether it falls as a cosine."""
    falling = decay_fraction if schedule == "wsd" else 1.0
    return {"decay_fraction": falling, "cosine": float(schedule == "cosine")}


def warmup_warning(experiment: Experiment) -> str | None:
    """One line where the warm-up takes the whole run, so that the learning rate never falls; else None."""
    steps = experiment.training.steps
    warmup = experiment.optimizer.warmup(steps)
    if warmup < steps:
        return None
    key = "warmup_fraction" if experiment.optimizer.warmup_steps is None else "warmup_steps"
    return (
        f"optimizer.{key}: {warmup} steps of warm-up are not fewer than training.steps {steps}, so the warm-up is cut "
        f"to {steps} and the learning rate never falls; lower {key} or train longer"
    )


def learning_rate(step: Any, h: Hyper, xp: Any = jnp) -> Any:
    """Learning rate of the update with 0-based index `step`: linear warm-up, from peak / warmup at the first update to
    the peak at index warmup - 1, then as the schedule says, whose shape is numbers too:

    cosine: half a cosine from the peak to final_fraction * peak at `steps`; linear: a line there;
    wsd: the peak until (1 - decay_fraction) * steps, then a line (Hu et al. 2024, arXiv:2404.06395).

    xp: whose array functions, jax.numpy or numpy.
    """
    t = xp.asarray(step, xp.float32)
    warmup, steps = xp.asarray(h["warmup"]), xp.asarray(h["steps"])
    start = _decay_start(h, xp)
    progress = xp.clip((t - start) / xp.maximum(steps - start, 1.0), 0.0, 1.0)
    fall = xp.where(h["cosine"] > 0, (1 + xp.cos(xp.pi * progress)) / 2, 1 - progress)
    decayed = h["final_fraction"] + (1 - h["final_fraction"]) * fall
    return h["learning_rate"] * xp.where(t < warmup, (t + 1) / xp.maximum(warmup, 1.0), decayed)


def decay_share(h: Hyper) -> float:
    """Share of the steps, 0 to 1, in which the learning rate falls."""
    return float(1.0 - min(_decay_start(h, np) / h["steps"], 1.0))


def _decay_start(h: Hyper, xp: Any) -> Any:
    """Steps before the learning rate falls."""
    return xp.maximum(h["warmup"], h["steps"] * (1 - h["decay_fraction"]))


def final_rate_fraction(updates: int, h: Hyper) -> float:
    """Learning rate of the last of so many updates (at least 1) / the largest one among them."""
    rates = learning_rate(np.arange(updates), h, np)
    return float(rates[-1] / rates.max())


def adamw(h: Hyper) -> optax.GradientTransformation:
    """Clip, Adam, decoupled decay of matrices; the caller multiplies by -learning rate."""
    return optax.chain(
        optax.clip_by_global_norm(h["clip_norm"]),
        optax.scale_by_adam(b1=h["beta1"], b2=h["beta2"], eps=h["epsilon"]),
        optax.add_decayed_weights(h["weight_decay"], mask=_is_matrix),
    )


def _is_matrix(params: Any) -> Any:
    return jax.tree_util.tree_map_with_path(lambda path, _: path[-1].key not in _NO_MATRICES, params)


def learning_rates(params: Any, rate: jax.Array, h: Hyper) -> Any:
    """The rate of every parameter: `rate`, and for learned scales its share of the peak times their own peak."""
    own = rate * (h["scale_learning_rate"] / h["learning_rate"])
    return jax.tree_util.tree_map_with_path(lambda path, _: own if path[-1].key in LEARNED_SCALES else rate, params)
