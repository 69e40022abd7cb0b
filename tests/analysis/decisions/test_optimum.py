"""Decisions from printed constants, checked against numbers computed independently from the same laws."""

from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest

from precisionlm.analysis import laws
from precisionlm.analysis.decisions import cautions
from precisionlm.analysis.decisions.cost import Cost, parse_cost
from precisionlm.analysis.decisions.design import default_candidates, next_runs
from precisionlm.analysis.decisions.optimum import compute_optimal, critical_data, iso_loss_size, optimum_interval
from precisionlm.analysis.fitting.analyze import analyze
from precisionlm.analysis.fitting.fit import fit
from precisionlm.analysis.fitting.objective import parse_objective
from precisionlm.analysis.laws.chen import effective_multiplier
from precisionlm.analysis.table.read import prepare
from precisionlm.bench.fit import unified_runs
from precisionlm.errors import UserError

KUMAR, SUN = laws.get("kumar"), laws.get("sun")
K, S = KUMAR.published[0].as_dict(), SUN.published[0].as_dict()
B128 = {"log2B": 7.0}


@pytest.mark.parametrize("compute", [1e19, 1e21, 1e23])
def test_kumar_optimum_does_not_move_with_the_budget(compute):
    best = compute_optimal(KUMAR, K, compute)
    assert pytest.approx(7.00, abs=0.005) == best.P
    assert best.compute == pytest.approx(compute) and pytest.approx(compute) == 6 * best.N * best.D * best.P / 16


def test_kumar_without_offsets():
    law = laws.get("kumar_no_offsets")
    assert pytest.approx(3.47, abs=0.005) == compute_optimal(law, law.published[0].as_dict(), 1e21).P


@pytest.mark.parametrize(
    ("size", "tokens", "bits"),
    [
        (8e9, 15e12, 13.8),
        (70e9, 15e12, 11.0),
        (405e9, 15e12, 8.9),
        (8e9, 1e12, 10.4),
        (70e9, 1e12, 7.9),
        (405e9, 1e12, 6.3),
    ],
)
def test_kumar_with_the_size_fixed(size, tokens, bits):
    assert pytest.approx(bits, abs=0.06) == compute_optimal(KUMAR, K, 6 * size * tokens, n=size).P


@pytest.mark.parametrize(("compute", "bits"), [(1e21, 4.19), (1e24, 5.01), (1e27, 5.98), (1e31, 7.58)])
def test_sun_optimum_grows_with_the_budget(compute, bits):
    assert pytest.approx(bits, abs=0.006) == compute_optimal(SUN, S, compute, at=B128).P


@pytest.mark.parametrize(("tokens", "bits"), [(1e11, 4.27), (1e12, 5.18), (1e13, 6.28), (1e14, 7.62)])
def test_sun_with_the_tokens_fixed(tokens, bits):
    assert pytest.approx(bits, abs=0.01) == compute_optimal(SUN, S, 1e24, d=tokens, at=B128).P


@pytest.mark.parametrize(("e", "m", "tokens"), [(8, 7, 1730e12), (4, 3, 27.3e12), (2, 1, 0.393e12)])
def test_sun_critical_data(e, m, tokens):
    found = critical_data(SUN, S, {"N": 1e9, "E": e, "M": m, "log2B": 7.0})
    assert found == pytest.approx(tokens, rel=2e-3)


@pytest.mark.parametrize(("bits", "ratio"), [(3, 178), (4, 959), (5, 5.2e3), (6, 2.8e4)])
def test_kumar_critical_data_after_ptq(bits, ratio):
    high = {"P_w": 1e3, "P_a": 1e3, "P_kv": 1e3}
    assert critical_data(KUMAR, K, {"N": 30e6, "P_post": bits, **high}) / 30e6 == pytest.approx(ratio, rel=0.01)
    assert critical_data(laws.get("chinchilla_tied"), K, {"N": 30e6}) == np.inf


def test_sun_layouts_round_to_the_papers():
    best = compute_optimal(SUN, S, 1e21, bits=8.0, at=B128)
    assert (round(best.columns["E"]), round(best.columns["M"])) == (4, 3)


def test_costs(tmp_path):
    assert Cost().total(1e9, 1e10, 8) == pytest.approx(3e19)
    assert Cost(offset=2.0).relative(14) == 1.0
    path = tmp_path / "steps.csv"
    path.write_text("bits,seconds\n4,0.5\n8,0.6\n16,1.0\n")
    measured = parse_cost(str(path))
    assert measured.relative(8) == pytest.approx(0.6) and measured.relative(12) == pytest.approx(0.8)
    assert pytest.approx(7.0, abs=0.05) != compute_optimal(KUMAR, K, 1e21, measured).P
    served = Cost(inference_tokens=1e13)
    free, busy = compute_optimal(KUMAR, K, 1e23), compute_optimal(KUMAR, K, 1e23, served)
    assert busy.N < free.N and busy.compute == pytest.approx(1e23)
    for bad in ("quadratic", "linear:x", str(tmp_path / "none.csv")):
        with pytest.raises(UserError):
            parse_cost(bad)


def test_budgets_that_buy_nothing_are_refused():
    with pytest.raises(UserError, match="positive"):
        compute_optimal(KUMAR, K, -1.0)
    with pytest.raises(UserError, match="nothing is left"):
        compute_optimal(KUMAR, K, 1e20, n=1e9, d=1e9, bits=4)
    with pytest.raises(UserError, match="undefined at P_a = 3 alone"):
        compute_optimal(KUMAR, K, 1e20, n=1e9, bits=3)
    with pytest.raises(UserError, match="--inference-tokens 1e\\+13"):
        compute_optimal(KUMAR, K, 1e20, Cost(inference_tokens=1e13), n=1e9, bits=8)
    with pytest.raises(UserError, match="--tokens nan"):
        compute_optimal(KUMAR, K, 1e20, d=float("nan"))
    with pytest.raises(UserError, match="gap alone"):
        compute_optimal(laws.get("ouyang"), laws.get("ouyang").published[0].as_dict(), 1e20)
    with pytest.raises(UserError, match="--at G="):
        compute_optimal(laws.get("chen"), laws.get("chen").published[0].as_dict(), 1e21)


def test_equal_loss_sizes_have_equal_loss():
    columns = {"D": np.full(3, 13e9), "P_w": np.array([4.0, 8.0, 16.0]), "P_a": 16.0, "P_kv": 16.0}
    sizes = iso_loss_size(KUMAR, K, 3.2, columns)
    np.testing.assert_allclose(KUMAR.predict(K, columns | {"N": sizes}), 3.2, rtol=1e-9)
    assert sizes[0] > sizes[1] > sizes[2]
    assert np.isnan(iso_loss_size(KUMAR, K, 1.0, columns)).all()


def test_intervals_of_the_optimum_hold_the_truth(kumar_runs):
    analysis = analyze(kumar_runs(ptq=False), "kumar_neff", starts=32, resamples=100)
    found = optimum_interval(analysis.law, analysis.bootstrap.samples, 1e21)
    own = compute_optimal(analysis.law, analysis.result.params, 1e21)
    assert found["P"][0] < own.P < found["P"][1] and found["P"][0] < 7.0 < found["P"][1]


def test_chen_multipliers():
    p = laws.get("chen").published[0].as_dict()
    np.testing.assert_allclose(effective_multiplier(p, 594e6, 100e9, [32, 256]), [0.77, 0.69], atol=0.006)
    np.testing.assert_allclose(effective_multiplier(p, 7e9, 1e12, [32, 256]), [0.68, 0.59], atol=0.006)


def narrow_widths():
    """Kumar's weights-only law on its own grid from 5 bits on; runs at 4 bits are on offer too."""
    law = laws.get("kumar_neff_w")
    frame = unified_runs(400)
    frame = frame[np.isinf(frame.ptq_bits) & (frame.w_bits >= 5)][["N_params", "D_tokens", "w_bits"]].drop_duplicates()
    first = fit(prepare(law, frame.assign(val_loss=_loss(law, frame, 0))), parse_objective("squares"), 32)
    every = default_candidates(first)
    small = every["N"] < 1e8
    pool = {k: np.tile(v[small], 2) for k, v in every.items()}
    pool["P_w"][small.sum() :] = 4.0  # half of the candidates are at a width that no run has yet
    return first, frame, pool, "gamma_w"


def few_budgets():
    """Chinchilla's law on three sizes at nearly the same budget; the power of D is wanted."""
    law = laws.get("chinchilla")
    sizes, budgets = np.meshgrid([3e7, 1e8, 3e8], [1e10, 1.5e10, 2e10, 3e10])
    frame = pd.DataFrame({"N_params": sizes.ravel(), "D_tokens": budgets.ravel()})
    first = fit(prepare(law, frame.assign(val_loss=_loss(law, frame, 0))), parse_objective("squares"), 64)
    sizes, budgets = np.meshgrid([1e7, 3e7, 1e8, 3e8], np.geomspace(5e8, 6e10, 12))
    return first, frame, {"N": sizes.ravel(), "D": budgets.ravel()}, "beta"


@pytest.mark.parametrize("setting", [narrow_widths, few_budgets])
def test_next_runs_beat_random_ones(setting):
    first, frame, pool, quantity = setting()
    law = first.law
    chosen = next_runs(first, 6, quantity, pool)
    assert chosen.runs[-1].error < chosen.runs[0].error < chosen.error
    picked = {k: np.array([r.columns[k] for r in chosen.runs]) for k in pool}
    price = Cost().total(pool["N"], pool["D"], pool.get("P_w", np.full(len(pool["N"]), 16.0)))
    rng, ours, random = np.random.default_rng(0), [], []
    for trial in range(30):
        drawn = rng.permutation(len(price))
        drawn = drawn[: max(6, 1 + int(np.sum(np.cumsum(price[drawn]) < sum(r.flops for r in chosen.runs))))]
        base = frame.assign(val_loss=_loss(law, frame, trial))
        for rows, errors in ((picked, ours), ({k: v[drawn] for k, v in pool.items()}, random)):
            errors.append(_refit(law, base, rows, trial, first.params)[quantity] - truth(law)[quantity])
    assert np.median(np.abs(ours)) < np.median(np.abs(random))
    with pytest.raises(UserError, match="not a fitted constant"):
        next_runs(first, 1, "rho")


def truth(law):
    return laws.get("kumar" if law.name.startswith("kumar") else law.name).published[0].as_dict()


def _loss(law, frame, seed):
    names = {s.name: s.column for s in law.symbols}
    clean = law.predict(truth(law), {k: frame[v].to_numpy(float) for k, v in names.items()})
    return clean * np.exp(0.003 * np.random.default_rng(seed).normal(size=len(frame)))


def _refit(law, frame, rows, seed, first):
    names = {s.name: s.column for s in law.symbols}
    new = pd.DataFrame({names[k]: v for k, v in rows.items()})
    new["val_loss"] = _loss(law, new, 1000 + seed)
    new["seed"] = 1 + np.arange(len(new))  # the same run twice is a repetition, not a duplicate
    both = pd.concat([frame, new], ignore_index=True)
    return fit(prepare(law, both), parse_objective("squares"), 1, first=first).params


@pytest.mark.parametrize("interval", [(-1000.0, 1001.0), (-5.0, 1.0), (1.0, float("inf"))])
def test_an_interval_that_says_nothing_is_all_positive_numbers(interval):
    analysis = SimpleNamespace(result=SimpleNamespace(interval_of=lambda value: interval))
    assert cautions._linearised(analysis, lambda constants: 1.0) == (0.0, float("inf"))
