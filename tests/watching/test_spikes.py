"""What is marked as a spike, and what is not."""

import numpy as np
import pytest

from precisionlm.watching.spikes import (
    LIMIT,
    LOSS_FLOOR,
    WINDOW,
    Spike,
    above_usual,
    gradient_outliers,
    loss_spikes,
)

STEPS = 3000


@pytest.fixture
def losses():
    """A falling loss with the noise of batches."""
    noise = np.random.default_rng(0).normal(0, 0.03, STEPS)
    return 2.5 + 6 / np.sqrt(1 + np.arange(STEPS) / 20) + noise


def test_a_falling_noisy_loss_has_no_spikes(losses):
    assert loss_spikes(range(1, STEPS + 1), losses) == []


def test_planted_spikes_are_found_with_their_steps_and_height(losses):
    losses[1000:1004] += [0.5, 1.5, 1.0, 0.4]
    losses[2000] += 0.4
    found = loss_spikes(range(1, STEPS + 1), losses)
    assert [(s.first, s.last) for s in found] == [(1001, 1004), (2001, 2001)]
    assert found[0].peak == losses[1001] and found[0].usual == pytest.approx(np.median(losses[936:1000]))


def test_a_drop_and_the_beginning_are_not_marked(losses):
    losses[1000] -= 2.0
    losses[WINDOW - 1] += 5.0
    assert loss_spikes(range(1, STEPS + 1), losses) == []


def test_a_new_level_is_marked_until_it_is_the_usual_one(losses):
    losses[1500:] += 1.0
    (spike,) = loss_spikes(range(1, STEPS + 1), losses)
    assert spike.first == 1501 and spike.last <= 1501 + WINDOW


def test_the_rule_is_median_and_mad_with_a_floor():
    values = np.array([1.0, 2.0, 3.0, 4.0] * (WINDOW // 4) + [100.0])
    above, usual = above_usual(values, LOSS_FLOOR)
    assert usual == [2.5] and above == pytest.approx([(100 - 2.5) / (1.4826 * 1.0)])
    flat = np.array([3.0] * WINDOW + [3.0 + LIMIT * LOSS_FLOOR * 0.99, 3.0 + LIMIT * LOSS_FLOOR * 1.01])
    assert [s.first for s in loss_spikes(range(len(flat)), flat)] == [WINDOW + 1]
    assert len(above_usual(np.ones(WINDOW), LOSS_FLOOR)[0]) == 0


def test_windows_are_those_before_each_value_whatever_the_chunk(losses, monkeypatch):
    whole = above_usual(losses, LOSS_FLOOR)
    monkeypatch.setattr("precisionlm.watching.spikes._CHUNK", 100)
    assert all(np.array_equal(a, b) for a, b in zip(above_usual(losses, LOSS_FLOOR), whole, strict=True))


def test_gradient_norms_are_compared_by_their_logarithms():
    rng = np.random.default_rng(1)
    norms = np.exp(rng.normal(0, 0.5, STEPS))  # up to exp(1.7) is usual here
    norms[500] = np.nan
    norms[1500] = 60.0
    found = gradient_outliers(range(STEPS), norms)
    assert [(s.first, s.peak) for s in found] == [(1500, 60.0)]
    assert found == [Spike(1500, 1500, 60.0, found[0].usual)] and 0.7 < found[0].usual < 1.4
