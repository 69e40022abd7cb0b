"""What a fit says of itself: several findings at once, each with its constants; no narrow interval without data."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from precisionlm.analysis import laws
from precisionlm.analysis.fitting.analysis import Analysis
from precisionlm.analysis.fitting.analyze import analyze
from precisionlm.analysis.fitting.bootstrap import bootstrap
from precisionlm.analysis.fitting.fit import Status, fit
from precisionlm.analysis.fitting.grouping import grouping
from precisionlm.analysis.fitting.judge import judge
from precisionlm.analysis.fitting.objective import parse_objective
from precisionlm.analysis.fitting.percentile import percentile_interval
from precisionlm.analysis.fitting.search import Optimum
from precisionlm.analysis.table.read import prepare
from precisionlm.errors import UserError

from .test_fit import grid
from .test_recovery import simulate

CHINCHILLA = laws.get("chinchilla")


def lost(result):
    return [name for name, known in result.identified.items() if not known]


def four_cells():
    """Two sizes, two budgets, eight precisions in each: losses differ by precision and by a noise of 0.3 %."""
    base = grid(CHINCHILLA, sizes=(3e7, 1e9), budgets=(1e9, 6.4e10))
    arms = [base.assign(val_loss=base.val_loss * (1 + 0.01 * i), recipe=f"W{i}") for i in range(8)]
    frame = pd.concat(arms, ignore_index=True)
    return frame.assign(val_loss=frame.val_loss * np.exp(0.003 * np.random.default_rng(0).normal(size=len(frame))))


def test_five_constants_on_four_cells_have_no_narrow_interval():
    result = fit(prepare(CHINCHILLA, four_cells()), starts=64)
    analysis = Analysis(result, bootstrap(result, 50))
    assert lost(result) == list(CHINCHILLA.names) and result.status is Status.NOT_IDENTIFIED
    assert {name: analysis.intervals[name] for name in lost(result)} == {
        "A": (0.0, np.inf), "alpha": (0.0, 20.0), "B": (0.0, np.inf), "beta": (0.0, 20.0), "E": (0.0, 50.0)
    }  # fmt: skip
    assert all(not np.isfinite(error) for error in analysis.standard_errors.values())
    words = " ".join(analysis.caution(["alpha"]))
    assert "4 distinct points for 5 constants" in words and "too few cells to resample: 4" in words


def test_what_the_data_determine_is_known_beside_what_they_do_not():
    result = fit(prepare(CHINCHILLA, four_cells()), starts=64)
    low, high = result.interval_of(lambda p: CHINCHILLA.predict(p, {"N": 1e9, "D": 1e9})[0])
    assert 0 < high - low < 0.5  # the loss in one of the cells is known
    assert result.interval_of(lambda p: p["alpha"]) == (-np.inf, np.inf)
    far = result.interval_of(lambda p: CHINCHILLA.predict(p, {"N": 1e12, "D": 1e13})[0])
    assert far[1] - far[0] > 3 * (high - low)


def test_constants_without_effect_are_not_identified():
    constant = fit(prepare(CHINCHILLA, grid(CHINCHILLA).assign(val_loss=3.0)), starts=16)
    assert lost(constant) == ["A", "alpha", "B", "beta"]
    law = laws.get("kumar_neff_w")
    frame = grid(laws.get("chinchilla_tied"), noise=0.003).assign(w_bits=16.0)
    untouched = fit(prepare(law, frame), starts=16)
    # One width cannot tell its factor from A either.
    assert {"gamma_w", "n_w"} <= set(lost(untouched)) <= {"A", "gamma_w", "n_w"}
    assert untouched.intervals["gamma_w"] == law.parameter("gamma_w").bounds


def test_one_factor_of_two_that_the_data_show_is_the_one_identified():
    table = replace(simulate("kumar_tied", 0), law=laws.get("kumar_untied"))
    truth = {"A": 4299.0, "alpha": 0.4965, "B": 18060.0, "E": 2.7648, "gamma": 2.5, "n": 0.3, "gamma_data": 0.05,
             "n_data": -20.0}  # fmt: skip
    exact = table.law.predict(truth, table.columns)
    noisy = replace(table, observed=exact * np.exp(0.002 * np.random.default_rng(0).normal(size=len(exact))))
    result = fit(noisy, starts=16)
    assert lost(result) == ["gamma_data", "n_data"]
    low, high = result.intervals["gamma"]
    assert low < 2.5 < high < 2 * low


def test_a_bound_does_not_hide_what_else_is_wrong(tiny_runs):
    result = analyze(tiny_runs, "kumar", starts=16).result
    kinds = {finding.kind for finding in result.findings}
    assert {"at-bound", "not-identified", "few-groups"} <= kinds
    assert ("E",) in [f.constants for f in result.findings if f.kind == "at-bound"]
    assert result.status is Status.NOT_IDENTIFIED and "E" in lost(result)


def test_not_converged_means_away_from_the_optimum():
    table = prepare(CHINCHILLA, grid(CHINCHILLA, noise=0.01))
    found = fit(table, parse_objective("squares"), starts=16)
    error = found.uncertainty.errors

    def moved_by(errors):
        point = found.point + np.array([errors * error[0], 0, 0, 0, 0])
        optimum = Optimum(point, found.objective_value, 0.8, 32)
        return judge(table, found.problem, optimum, found.weights, grouping(table), 0.0)

    near, far = moved_by(1e-5), moved_by(0.5)
    assert near.gradient > 1e-4 and near.status is Status.CONVERGED
    assert far.status is Status.NOT_CONVERGED and "standard errors away" in far.messages[0]


def test_noise_is_shared_where_the_data_say_so():
    frame = grid(CHINCHILLA, noise=0.003)
    alone = prepare(CHINCHILLA, frame)
    assert grouping(alone).over == "run" and "its own noise" in grouping(alone).why
    arms = pd.concat([frame.assign(recipe=r) for r in ("bf16", "W4A4")], ignore_index=True)
    arms["val_loss"] += 0.01 * np.arange(len(arms))
    paired = grouping(prepare(CHINCHILLA, arms))
    assert (paired.over, paired.count) == ("cell", 16)
    seeds = pd.concat([arms.assign(seed=s, val_loss=arms.val_loss + 0.001 * s) for s in (1, 2)], ignore_index=True)
    by_seed = grouping(prepare(CHINCHILLA, seeds))
    assert (by_seed.over, by_seed.count) == ("seed", 32)
    replicas = seeds[seeds.recipe == "bf16"]
    assert grouping(prepare(CHINCHILLA, replicas)).over == "run"
    with pytest.raises(UserError, match="no column seed"):
        grouping(alone, "seed")


def test_percentiles_hold_95_in_100_however_few_the_samples():
    draws = np.random.default_rng(0).random((49, 4000))
    low, high = percentile_interval(draws)
    assert np.mean(high - low) == pytest.approx(0.95, abs=0.003)  # the chance that a further draw falls inside
    assert percentile_interval(np.arange(1.0, 200.0)) == pytest.approx((5.0, 195.0))


def test_percentiles_pass_over_what_is_infinite_or_undefined():
    low, high = percentile_interval(np.stack([np.arange(199.0), np.where(np.arange(199) < 190, 1.0, np.inf)], 1))
    assert low == pytest.approx([4.0, 1.0]) and high == pytest.approx([194.0, np.inf])
    assert percentile_interval([1.0, np.nan])[1] == np.inf
