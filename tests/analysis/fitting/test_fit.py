"""Fits: known answers, statuses, no recompilation, intervals."""

import numpy as np
import pandas as pd
import pytest

from precisionlm.analysis import laws
from precisionlm.analysis.fitting.analyze import analyze
from precisionlm.analysis.fitting.bootstrap import bootstrap
from precisionlm.analysis.fitting.choices import Choices
from precisionlm.analysis.fitting.fit import Status, error_weights, fit, fit_staged
from precisionlm.analysis.fitting.objective import Objective, parse_objective
from precisionlm.analysis.fitting.solve import compile_count
from precisionlm.analysis.table.read import prepare, read
from precisionlm.errors import UserError


def grid(law, sizes=(3e7, 1e8, 3e8, 1e9), budgets=(1e9, 4e9, 1.6e10, 6.4e10), noise=0.0, seed=0):
    frame = pd.DataFrame([(n, d) for n in sizes for d in budgets], columns=["N_params", "D_tokens"])
    loss = law.predict(law.published[0].as_dict(), {"N": frame.N_params.to_numpy(), "D": frame.D_tokens.to_numpy()})
    return frame.assign(val_loss=loss * np.exp(noise * np.random.default_rng(seed).normal(size=len(frame))))


def weights_grid(noise=0.002):
    """The same cells at five widths of the weights; the first 16 rows are unquantized."""
    law, cells = laws.get("kumar_neff_w"), grid(laws.get("chinchilla_tied"))
    frame = pd.concat([cells.assign(w_bits=bits) for bits in (16.0, 8.0, 6.0, 5.0, 4.0)], ignore_index=True)
    columns = {"N": frame.N_params, "D": frame.D_tokens, "P_w": frame.w_bits}
    loss = law.predict(law.published[0].as_dict(), {k: v.to_numpy(float) for k, v in columns.items()})
    return frame.assign(val_loss=loss * np.exp(noise * np.random.default_rng(3).normal(size=len(frame))))


def test_public_chinchilla_runs_give_the_published_constants(public):
    frame = read(public("chinchilla_epoch.csv"))
    result = fit(prepare(laws.get("chinchilla"), frame, {"loss": "loss"}, "in_published_fit"), starts=300)
    assert result.status is Status.CONVERGED and result.share > 0.95
    assert (result.rows_used, result.rows_excluded) == (240, 5)
    assert result.objective_value == pytest.approx(0.0010182740, abs=5e-11)
    published = {"A": 477.84, "B": 2143.86, "E": 1.81724, "alpha": 0.347313, "beta": 0.367183}
    for name, value in published.items():
        assert result.params[name] == pytest.approx(value, rel=3e-4), name
    absolute = fit(result.table, parse_objective("huber:1e-5"), starts=64, first=result.params)
    printed = {"A": 482.01, "B": 2085.43, "E": 1.81686, "alpha": 0.34781, "beta": 0.36585}
    for name, value in printed.items():  # a scaled Huber likelihood with free scale is least absolute deviations
        assert absolute.params[name] == pytest.approx(value, rel=2e-3), name


@pytest.mark.parametrize("name", ["chinchilla", "chinchilla_tied", "kaplan"])
def test_noiseless_tables_give_their_constants_back(name):
    law = laws.get(name)
    result = fit(prepare(law, grid(law)), starts=128)
    for key, value in law.published[0].as_dict().items():
        assert result.params[key] == pytest.approx(value, rel=1e-4), key
    assert result.rms_log < 1e-7 and result.status is Status.CONVERGED


def test_a_second_fit_of_the_same_shape_does_not_recompile():
    law = laws.get("chinchilla")
    first = fit(prepare(law, grid(law, noise=0.01)), starts=50)
    count = compile_count()
    fit(prepare(law, grid(law, noise=0.01, seed=1)), Objective("huber", 1e-2), starts=300)
    bootstrap(first, 200)
    fit(prepare(law, grid(law, noise=0.01, seed=2)), starts=50, fixed={"E": 1.8})
    assert compile_count() == count


def test_precision_stays_single_outside_of_fits():
    import jax.numpy as jnp

    law = laws.get("chinchilla")
    fit(prepare(law, grid(law)), starts=8)
    assert jnp.ones(2).dtype == jnp.float32


def test_a_parameter_on_its_bound_is_reported():
    law = laws.get("chinchilla")
    frame = grid(law)
    pure = 400 * frame.N_params**-0.3 + 400 * frame.D_tokens**-0.3 - 0.05
    result = fit(prepare(law, frame.assign(val_loss=pure)), starts=64)
    assert result.status is Status.AT_BOUND and result.params["E"] == 0.0
    assert any("E ends at its bound low" in m for m in result.messages)


def test_a_table_that_cannot_tell_constants_apart_says_which():
    law = laws.get("chinchilla")
    result = fit(prepare(law, grid(law, sizes=(1e8,))), starts=64)
    assert result.status is Status.NOT_IDENTIFIED
    assert [n for n, known in result.identified.items() if not known] == ["A", "alpha", "E"]


def test_fixed_and_unknown_parameters():
    law = laws.get("chinchilla")
    result = fit(prepare(law, grid(law, noise=0.01)), starts=32, fixed={"alpha": 0.3, "A": 300.0})
    assert (result.params["alpha"], result.params["A"]) == (pytest.approx(0.3), pytest.approx(300.0))
    assert result.free == ("B", "beta", "E") and result.correlation.shape == (3, 3)
    with pytest.raises(UserError, match="no parameter 'gamma'"):
        fit(prepare(law, grid(law)), fixed={"gamma": 1.0})


def test_objectives():
    law = laws.get("chinchilla")
    table = prepare(law, grid(law, noise=0.01))
    squares = fit(table, parse_objective("squares"), starts=16)
    assert squares.objective_value == pytest.approx(np.sum(squares.residuals**2) / 2, rel=1e-9)
    relative = fit(table, parse_objective("relative"), starts=16)
    assert relative.objective_value == pytest.approx(np.sum(np.expm1(relative.residuals) ** 2) / 2, rel=1e-9)
    nats = fit(table, parse_objective("nats"), starts=16)
    assert nats.objective_value == pytest.approx(np.sum((nats.predicted - table.observed) ** 2) / 2, rel=1e-9)
    huber = fit(table, starts=16)
    r = np.abs(huber.residuals)
    assert huber.objective_value == pytest.approx(np.where(r <= 1e-3, r**2 / 2, 1e-3 * (r - 5e-4)).sum(), rel=1e-9)
    for bad in ("hubert", "huber:-1", "huber:x", "squares:2"):
        with pytest.raises(UserError, match="objective"):
            parse_objective(bad)


def test_weights_from_standard_errors_move_the_fit_towards_precise_rows():
    law = laws.get("chinchilla")
    frame = grid(law, noise=0.02)
    frame["val_loss_se"] = np.where(np.arange(len(frame)) < 8, 1e-4, 0.1)
    table = prepare(law, frame)
    weights = error_weights(table)
    assert weights.mean() == pytest.approx(1.0) and weights[0] > 5 * weights[-1]
    plain, weighted = (fit(table, parse_objective("squares"), 64, weights=w) for w in (None, weights))
    assert np.abs(weighted.residuals[:8]).mean() < np.abs(plain.residuals[:8]).mean()
    renamed = frame.drop(columns="val_loss_se").rename(columns={"val_loss": "final"})
    with pytest.raises(UserError, match="--weights needs the column final_se"):
        error_weights(prepare(law, renamed, {"loss": "final"}))


def test_kumar_is_recovered_from_its_own_grid(kumar_runs):
    analysis = analyze(kumar_runs(), "kumar", starts=16, resamples=80)
    assert (analysis.bootstrap.over, analysis.bootstrap.groups) == ("cell", 20)
    truth = laws.get("kumar").published[0].as_dict()
    truth["C_T"] *= np.exp(truth["b"])
    params = analysis.result.params
    for name in ("alpha", "E", "gamma_w", "n_w", "gamma_a", "n_a", "gamma_D", "gamma_N", "gamma_post"):
        assert params[name] == pytest.approx(truth[name], rel=0.12), name
    inside = [low <= truth[n] <= high for n, (low, high) in analysis.intervals.items() if n in analysis.result.free]
    assert np.mean(inside) > 0.7
    assert analysis.result.status is Status.CONVERGED and analysis.result.r2 > 0.99


def test_staged_fit_keeps_the_base():
    stages = fit_staged(prepare(laws.get("kumar_neff_w"), weights_grid()), starts=16)
    assert [stage.rows_used for stage in stages] == [16, 80]
    assert all(stages[1].params[k] == pytest.approx(stages[0].params[k]) for k in ("A", "alpha", "B", "E"))
    assert stages[1].free == ("gamma_w", "n_w")
    assert stages[1].params["gamma_w"] == pytest.approx(2.6745, rel=0.1)


def test_staged_fits_take_fixed_constants_and_weights():
    frame = weights_grid()
    frame["val_loss_se"] = np.where(np.arange(len(frame)) % 2, 1e-4, 1e-2)
    held = {"alpha": 0.4965, "n_w": 0.3037}
    choices = Choices(fixed=held)
    base, last = analyze(frame, "kumar_neff_w", starts=16, choices=choices, staged=True, weighted=True).fits
    assert base.free == ("A", "B", "E") and last.free == ("gamma_w",)
    assert all(fit.params[k] == pytest.approx(v) for fit in (base, last) for k, v in held.items())
    weights = error_weights(last.table)
    np.testing.assert_allclose(base.weights, weights[:16])
    np.testing.assert_allclose(last.weights, weights)


def test_tiny_table_is_honest(tiny_runs):
    analysis = analyze(tiny_runs, "kumar", starts=64, resamples=200)
    assert analysis.result.status is not Status.CONVERGED or analysis.result.condition > 100
    assert "gamma_a" not in analysis.law.names
    words = " ".join(analysis.warnings)
    assert "f_a is left out" in words and "12 runs are too few to trust" in words
    low, high = analysis.intervals["E"]
    assert high - low > 1.0


def test_bootstrap_errors_shrink_with_more_runs_and_bad_units_are_refused():
    law = laws.get("chinchilla")
    few, many = (
        bootstrap(fit(prepare(law, grid(law, np.geomspace(3e7, 1e9, k), noise=0.01)), starts=32), 256) for k in (4, 16)
    )
    assert many.errors["alpha"] < few.errors["alpha"]
    result = fit(prepare(law, grid(law, noise=0.01)), starts=16)
    low, high = bootstrap(result, 128).band({"N": [1e8, 1e9], "D": [1e10, 1e10]})
    predicted = law.predict(result.params, {"N": [1e8, 1e9], "D": [1e10, 1e10]})
    assert (low < predicted).all() and (predicted < high).all()
    with pytest.raises(UserError, match="valid: auto, row, run, seed, cell"):
        bootstrap(result, 10, over="model")
    with pytest.raises(UserError, match="at least 2"):
        bootstrap(result, 1)


def test_runs_are_resampled_with_their_evaluations(tiny_runs):
    result = analyze(tiny_runs, "kumar", starts=16).result
    assert bootstrap(result, 16, over="run").groups == 12
    assert bootstrap(result, 16, over="row").groups == 24
    assert bootstrap(result, 16, over="cell").groups == 4
