"""Profile intervals: equal to linearised ones where the objective is quadratic, open where the data are silent."""

import numpy as np
import pytest

from precisionlm.analysis import laws
from precisionlm.analysis.fitting.bootstrap import bootstrap, bootstrap_staged
from precisionlm.analysis.fitting.fit import fit, fit_staged
from precisionlm.analysis.fitting.objective import parse_objective
from precisionlm.analysis.fitting.profile import profile_intervals, profile_of
from precisionlm.analysis.table.read import prepare
from precisionlm.errors import UserError

from .test_fit import grid, weights_grid

CHINCHILLA = laws.get("chinchilla")


@pytest.fixture(scope="module")
def fitted():
    return fit(prepare(CHINCHILLA, grid(CHINCHILLA, noise=0.004)), parse_objective("squares"), starts=32)


def test_a_linear_constant_alone_has_its_linearised_interval(fitted):
    fixed = {k: v for k, v in fitted.params.items() if k != "E"}
    alone = fit(fitted.table, parse_objective("nats"), starts=8, fixed=fixed)
    profile = profile_intervals(alone, ["E"])["E"]
    assert profile == pytest.approx(alone.intervals["E"], rel=1e-4)
    n = len(alone.table)
    error = np.sqrt(np.sum((alone.predicted - alone.table.observed) ** 2) / (n - 1) / n)  # of a mean
    assert alone.standard_errors["E"] == pytest.approx(error, rel=1e-3)


def test_the_objective_rises_alike_at_both_ends(fitted):
    low, high = profile_intervals(fitted, ["alpha"])["alpha"]
    assert low < fitted.params["alpha"] < high
    rises = [
        fit(fitted.table, parse_objective("squares"), starts=16, fixed={"alpha": end}).objective_value
        - fitted.objective_value
        for end in (low, high)
    ]
    assert rises[0] == pytest.approx(rises[1], rel=0.05) and rises[0] > 0


def test_a_derived_quantity_has_the_profile_of_the_constant_that_it_is(fitted):
    constant = profile_intervals(fitted, ["beta"])["beta"]
    assert profile_of(fitted, lambda p: p["beta"]) == pytest.approx(constant, rel=2e-3)
    assert profile_of(fitted, lambda p: -2 * p["beta"]) == pytest.approx((-2 * constant[1], -2 * constant[0]), rel=2e-3)

    def tokens_per_parameter(p):  # of the compute-optimal model at 1e21 FLOPs
        size = (p["alpha"] * p["A"] / (p["beta"] * p["B"]) * (1e21 / 6) ** p["beta"]) ** (1 / (p["alpha"] + p["beta"]))
        return 1e21 / 6 / size**2

    low, high = profile_of(fitted, tokens_per_parameter)
    linear = fitted.interval_of(tokens_per_parameter)
    assert 0 < low < tokens_per_parameter(fitted.params) < high
    assert 0.5 < (high - low) / (linear[1] - linear[0]) < 2


def test_profiles_are_open_where_the_data_leave_them_open(fitted):
    constant = fit(prepare(CHINCHILLA, grid(CHINCHILLA, sizes=(1e8,), noise=0.004)), starts=32)
    assert profile_intervals(constant, ["alpha"])["alpha"] == (0.0, 20.0)
    with pytest.raises(UserError, match="not a fitted constant"):
        profile_intervals(fitted, ["gamma"])
    with pytest.raises(UserError, match="not finite"):
        profile_of(fitted, lambda p: np.inf)
    with pytest.raises(UserError, match="does not depend"):
        profile_of(fitted, lambda p: 3.0)


@pytest.mark.parametrize("objective", ["nats", "relative"])
def test_least_squares_agree_with_curve_fit(objective):
    from scipy.optimize import curve_fit

    table = prepare(CHINCHILLA, grid(CHINCHILLA, noise=0.01))
    ours = fit(table, parse_objective(objective), starts=32)

    def loss(x, log_a, alpha, log_b, beta, e):
        return np.exp(log_a - alpha * np.log(x[0])) + np.exp(log_b - beta * np.log(x[1])) + e

    x = np.stack([table.columns["N"], table.columns["D"]])
    start = [np.log(400), 0.35, np.log(2000), 0.37, 1.8]
    unit = table.observed if objective == "relative" else None
    theirs = curve_fit(loss, x, table.observed, start, unit, maxfev=20000, ftol=1e-14, xtol=1e-14)[0]
    for name, value in zip(("alpha", "beta", "E"), theirs[[1, 3, 4]], strict=True):
        assert ours.params[name] == pytest.approx(value, rel=1e-5), name


def test_a_staged_bootstrap_carries_the_uncertainty_of_the_base():
    table = prepare(laws.get("kumar_neff_w"), weights_grid())
    stages = fit_staged(table, parse_objective("squares"), starts=8)
    base_exact = bootstrap(stages[-1], 96, over="cell")
    staged = bootstrap_staged(stages, table, 96, over="cell")
    assert staged.errors["alpha"] > 0 and base_exact.errors["alpha"] == pytest.approx(0.0, abs=1e-12)
    assert staged.errors["gamma_w"] > 1.1 * base_exact.errors["gamma_w"]
