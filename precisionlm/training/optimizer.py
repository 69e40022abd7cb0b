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
        "decay_fraction": o.decay_fraction,
        "final_fraction": o.final_fraction,
        "beta1": o.beta1,
        "beta2": o.beta2,
        "epsilon": o.epsilon,
        "weight_decay": o.weight_decay,
        "clip_norm": o.clip_norm,
        "z_loss": o.z_loss,
    }


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


def learning_rate(schedule: str, step: jax.Array, h: Hyper) -> jax.Array:
    """Learning rate of the update with 0-based index `step`: linear warm-up, from peak / warmup at the first update to
    the peak at index warmup - 1, then

    cosine: half a cosine from the peak to final_fraction * peak at `steps`; linear: a line there;
    wsd: the peak until (1 - decay_fraction) * steps, then a line (Hu et al. 2024, arXiv:2404.06395).
    """
    t = jnp.asarray(step, jnp.float32)
    warmup, steps = jnp.asarray(h["warmup"]), jnp.asarray(h["steps"])
    start = _decay_start(schedule, h)
    progress = jnp.clip((t - start) / jnp.maximum(steps - start, 1.0), 0.0, 1.0)
    fall = (1 + jnp.cos(jnp.pi * progress)) / 2 if schedule == "cosine" else 1 - progress
    decayed = h["final_fraction"] + (1 - h["final_fraction"]) * fall
    return h["learning_rate"] * jnp.where(t < warmup, (t + 1) / jnp.maximum(warmup, 1.0), decayed)


def decay_share(schedule: str, h: Hyper) -> float:
    """Share of the steps, 0 to 1, in which the learning rate falls."""
    return float(1.0 - jnp.minimum(_decay_start(schedule, h) / h["steps"], 1.0))


def _decay_start(schedule: str, h: Hyper) -> jax.Array:
    """Steps before the learning rate falls."""
    warmup = jnp.asarray(h["warmup"])
    return jnp.maximum(warmup, h["steps"] * (1 - h["decay_fraction"])) if schedule == "wsd" else warmup


def final_rate_fraction(schedule: str, updates: int, h: Hyper) -> float:
    """Learning rate of the last of so many updates (at least 1) / the largest one among them."""
    rates = np.asarray(learning_rate(schedule, jnp.arange(updates), h))
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
