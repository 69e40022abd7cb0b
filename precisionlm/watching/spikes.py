"""Steps that stand out of their run: loss spikes and gradient-norm outliers, by a rule that outliers cannot bend.

A value is marked where it lies more than LIMIT robust standard deviations above the median of the WINDOW values before
it. The robust standard deviation is 1.4826 times the median absolute deviation from that median (Hampel 1974), which
equals the standard deviation for normal values and stays what it is while less than half of the window is off. It is
taken as at least FLOOR, so that where values hardly vary nothing small is marked. Losses are compared as they are
(nats/token), gradient norms by their logarithms, since their spread grows with their size. What falls is never marked,
and neither are the first WINDOW values: there is nothing yet to compare them with.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

WINDOW, LIMIT = 64, 6.0
LOSS_FLOOR, LOG_NORM_FLOOR = 0.005, 0.02  # nats/token; 2 % of a norm
_APART = 10  # steps without a mark that end a spike
_CHUNK = 1 << 14  # windows in memory at a time
_CONSISTENT = 1.4826  # standard deviation of normal values / their median absolute deviation


@dataclass(frozen=True)
class Spike:
    """Marked steps next to each other. first, last: their steps; peak: the largest value among them; usual: the median
    of the values before the first."""

    first: int
    last: int
    peak: float
    usual: float


def loss_spikes(steps: Sequence[int], losses: Sequence[float]) -> list[Spike]:
    """Of a run's training losses (nats/token), by step. Those that are not finite are left out."""
    return _spikes(np.asarray(steps), np.asarray(losses, np.float64), LOSS_FLOOR, logarithmic=False)


def gradient_outliers(steps: Sequence[int], norms: Sequence[float]) -> list[Spike]:
    """Of a run's global gradient norms, by step. Those that are not finite or zero are left out."""
    return _spikes(np.asarray(steps), np.asarray(norms, np.float64), LOG_NORM_FLOOR, logarithmic=True)


def above_usual(values: np.ndarray, floor: float) -> tuple[np.ndarray, np.ndarray]:
    """Of finite values in order [S]: the robust standard deviations by which each lies above the median of the WINDOW
    before it [S - WINDOW], and that median [S - WINDOW]; empty for fewer values."""
    if len(values) <= WINDOW:
        return np.zeros(0), np.zeros(0)
    before = np.lib.stride_tricks.sliding_window_view(values[:-1], WINDOW)
    usual, spread = np.empty(len(before)), np.empty(len(before))
    for start in range(0, len(before), _CHUNK):
        part = slice(start, start + _CHUNK)
        usual[part] = np.median(before[part], axis=1)
        spread[part] = np.median(np.abs(before[part] - usual[part, None]), axis=1)
    return (values[WINDOW:] - usual) / np.maximum(_CONSISTENT * spread, floor), usual


def _spikes(steps: np.ndarray, values: np.ndarray, floor: float, logarithmic: bool) -> list[Spike]:
    usable = np.isfinite(values) & ((values > 0) | (not logarithmic))
    steps, values = steps[usable], values[usable]
    above, usual = above_usual(np.log(values) if logarithmic else values, floor)
    if logarithmic:
        usual = np.exp(usual)
    found: list[Spike] = []
    for i in map(int, np.flatnonzero(above > LIMIT)):
        step, value = int(steps[WINDOW + i]), float(values[WINDOW + i])
        if found and step - found[-1].last <= _APART:
            last = found[-1]
            found[-1] = Spike(last.first, step, max(last.peak, value), last.usual)
        else:
            found.append(Spike(step, step, value, float(usual[i])))
    return found
