"""Schedules against optax's, AdamW against a hand calculation."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from precisionlm.training.optimizer import (
    adamw,
    final_rate_fraction,
    hyperparameters,
    learning_rate,
    shape_of,
    warmup_warning,
)

H = {"learning_rate": 3e-3, "steps": 200.0, "warmup": 20.0, "final_fraction": 0.1}
STEPS = np.arange(0, 201)


def ours(schedule, h=H):
    return np.asarray(jax.jit(jax.vmap(lambda t: learning_rate(t, h | shape_of(schedule, 0.25))))(STEPS))


WARM_UP = 3e-3 * np.arange(1, 21) / 20  # the first update learns, the twentieth is at the peak


def test_cosine_equals_optax():
    reference = optax.warmup_cosine_decay_schedule(0.0, 3e-3, 20, 200, 3e-4)
    np.testing.assert_allclose(ours("cosine")[:20], WARM_UP, rtol=1e-5)
    np.testing.assert_allclose(ours("cosine")[20:], [float(reference(t)) for t in STEPS[20:]], rtol=2e-5, atol=1e-9)


def test_linear_equals_optax():
    reference = optax.linear_schedule(3e-3, 3e-4, 180)
    np.testing.assert_allclose(ours("linear")[:20], WARM_UP, rtol=1e-5)
    np.testing.assert_allclose(ours("linear")[20:], [float(reference(t)) for t in range(181)], rtol=2e-5, atol=1e-9)


def test_wsd_is_flat_then_a_line():
    rates = ours("wsd")
    np.testing.assert_allclose(rates[:20], WARM_UP, rtol=1e-5)
    np.testing.assert_allclose(rates[20:151], 3e-3, rtol=1e-6)
    np.testing.assert_allclose(rates[150:], np.linspace(3e-3, 3e-4, 51), rtol=1e-5)


def test_one_executable_for_every_length_and_schedule():
    fn = jax.jit(learning_rate)
    for steps, schedule in ((10.0, "wsd"), (1000.0, "wsd"), (1000.0, "cosine"), (1000.0, "linear")):
        fn(3, H | {"steps": steps} | shape_of(schedule, 0.25))
    assert fn._cache_size() == 1


def test_no_warm_up_starts_at_the_peak():
    assert ours("cosine", H | {"warmup": 0.0})[0] == pytest.approx(3e-3)


def test_adamw_first_step_by_hand_decays_matrices_only():
    h = {"clip_norm": 0.5, "beta1": 0.9, "beta2": 0.95, "epsilon": 1e-8, "weight_decay": 0.1}
    params = {"w": jnp.array([[2.0, -4.0]]), "norm": {"scale": jnp.array([1.0])}}
    gradients = {"w": jnp.array([[3.0, 0.0]]), "norm": {"scale": jnp.array([4.0])}}
    optimizer = adamw(h)
    updates, _ = optimizer.update(gradients, optimizer.init(params), params)
    # Bias-corrected first step: g / |g| = sign(g), whatever clipping does to its length.
    np.testing.assert_allclose(updates["w"], [[1 + 0.1 * 2, 0.1 * -4]], rtol=1e-5)
    np.testing.assert_allclose(updates["norm"]["scale"], [1.0], rtol=1e-5)


def test_hyperparameters_resolve_warm_up_and_depth(experiment):
    deep = experiment.model_copy(
        update={"optimizer": experiment.optimizer.model_copy(update={"depth_scale": 8, "warmup_steps": 3})}
    )
    assert hyperparameters(experiment)["warmup"] == 1.0
    assert hyperparameters(deep)["warmup"] == 3.0
    assert hyperparameters(deep)["learning_rate"] == pytest.approx(3e-3 * 2.0)


def test_the_final_fraction_is_that_of_the_rates_used():
    linear, wsd, cosine = (H | shape_of(schedule, 0.25) for schedule in ("linear", "wsd", "cosine"))
    assert final_rate_fraction(200, linear) == pytest.approx(0.1 + 0.9 / 180)  # the end itself is at index 200
    assert final_rate_fraction(150, wsd) == 1.0  # stopped before the decay
    assert final_rate_fraction(20, cosine | {"steps": 20.0}) == 1.0  # nothing but warm-up
    assert final_rate_fraction(5, cosine) == 1.0


@pytest.mark.parametrize(("warmup", "steps", "warned"), [(11, 12, False), (12, 12, True), (500, 12, True)])
def test_a_warm_up_as_long_as_the_run_is_said(experiment, warmup, steps, warned):
    optimizer = experiment.optimizer.model_copy(update={"warmup_steps": warmup})
    line = warmup_warning(experiment.model_copy(update={"optimizer": optimizer}))
    assert (line is not None) == warned
    if line:
        assert f"{warmup} steps of warm-up" in line and "training.steps 12" in line and "\n" not in line
