"""Every law gives its published constants back from simulated runs on its paper's grid; intervals cover them."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from precisionlm.analysis import laws
from precisionlm.analysis.fitting.bootstrap import bootstrap
from precisionlm.analysis.fitting.fit import Status, fit, jacobian, make_problem
from precisionlm.analysis.fitting.objective import Objective, parse_objective
from precisionlm.analysis.table.read import Table

NOISE = 0.002
SIZES, BUDGETS = (30e6, 60e6, 110e6, 220e6), (1.5e9, 3e9, 6e9, 13e9, 26e9)

CHEN, CHEN_BUDGETS = (74.3e6, 144.7e6, 297.3e6, 594.5e6), (10e9, 20e9, 50e9, 100e9)


def cells(sizes=SIZES, budgets=BUDGETS, **kinds):
    frame = pd.DataFrame([(n, d) for n in sizes for d in budgets], columns=["N", "D"])
    for name, values in kinds.items():
        frame = frame.merge(pd.DataFrame({name: values}), how="cross")
    return frame


def kumar_grid(post=False):
    widths = [(16, 16, 16), *((p, 16, 16) for p in (3, 4, 5, 6, 7, 8, 12)), *((16, p, 16) for p in (4, 5, 6, 7, 8, 12)),
              *((16, 16, p) for p in (4, 5, 6, 7, 8, 12)), *((p, p, p) for p in (4, 5, 6, 8))]  # fmt: skip
    frame = cells().merge(pd.DataFrame(widths, columns=["P_w", "P_a", "P_kv"]).astype(float), how="cross")
    frame["P_post"] = np.inf
    if post:
        high = frame[frame[["P_w", "P_a", "P_kv"]].min(axis=1) == 16]
        frame = pd.concat([frame, *(high.assign(P_post=p) for p in (3.0, 4.0, 5.0, 6.0))])
    return frame


def unified_grid():
    widths = [(16, 16, 16), *((p, 16, 16) for p in (3, 4, 6)), *((16, p, 16) for p in (4, 5, 7)),
              *((16, 16, p) for p in (4, 5, 6)), (4, 6, 6), (6, 5, 5)]  # fmt: skip
    frame = cells((30e6, 220e6), (1.5e9, 6e9, 26e9), P_post=[2.0, 3.0, 4.0, 5.0, np.inf])
    return frame.merge(pd.DataFrame(widths, columns=["P_w", "P_a", "P_kv"]).astype(float), how="cross")


def free_power_grid():
    """Low widths of every operand alone: they tell the power from the scale."""
    widths = [tuple(p if i == operand else 16.0 for i in range(3)) for operand in range(3) for p in (1, 2, 3, 4, 6, 8)]
    widths = pd.DataFrame([(16.0, 16.0, 16.0), *widths], columns=["P_w", "P_a", "P_kv"])
    return cells((30e6, 220e6), (1.5e9, 6e9, 26e9)).merge(widths, how="cross")


def repeated_grid():
    """Up to 60 repetitions, and sizes far above what the distinct tokens ask for."""
    return cells((1e7, 1e8, 1e9, 8e9), (3e9, 1e10, 3e10, 9e10), U=[1e8, 5e8, 3e9, 9e10])


def schedule_grid():
    frame = cells((30e6, 220e6), (1.5e9, 6e9, 26e9), P_post=[3.0, 4, 5], r=[0.0, 0.1, 0.5, 1.0])
    return frame.merge(pd.DataFrame({"s": [0.1, 0.5, 0.9]}), how="cross")


def sun_grid():
    formats = [(0, 7), *((1, m) for m in range(1, 7)), (2, 1), (2, 3), (3, 1), (3, 2), (4, 1), (4, 3), (4, 5), (5, 1),
               (5, 2), (6, 1)]  # fmt: skip
    kinds = [(e, m, 13.1567) for e, m in formats] + [(1, 1, b) for b in (5.0, 6.0, 7.0, 8.0, 9.0)]
    frame = cells((40894464, 84934656, 154140672, 679477248), (10.48576e9, 20.97152e9, 52.4288e9, 104.8576e9))
    return frame.merge(pd.DataFrame(kinds, columns=["E", "M", "log2B"]).astype(float), how="cross")


GAUSSIAN = {"A": 400.0, "alpha": 0.35, "B": 900.0, "E": 1.9, "l": 1.0, "f": 0.45, "c": 1.1}
KUMAR = laws.get("kumar").published[0].as_dict() | {"b": 0.0, "C_T": 0.0598 * np.exp(1.1277)}
UNTIED = KUMAR | {"alpha": 0.52, "beta": 0.46, "A": 6000.0, "B": 8000.0, "E": 2.7}
BASE = {"A": 400.0, "alpha": 0.34, "B": 900.0, "beta": 0.3, "E": 1.8}
REPEATED = {"R_D": 15.4, "R_N": 5.3, "A": 521.0, "B": 1488.0, "E": 1.87, "alpha": 0.36, "beta": 0.34}
ALTERNATIVE = {"A": 4299.0, "alpha": 0.4965, "B": 18060.0, "E": 2.7648}
FREE_POWER = ALTERNATIVE | {"gamma_w": 2.0, "n_w": 0.1, "s_w": 1.6, "gamma_a": 1.8, "n_a": 0.2, "s_a": 1.4,
                            "gamma_kv": 1.5, "n_kv": 0.3, "s_kv": 1.2}  # fmt: skip
UNIFIED = KUMAR | {"C_w": 0.5, "C_a": 0.8, "C_kv": 0.3}
CASES = {
    "chinchilla": (cells((6e7, 2e8, 6e8, 2e9, 1.6e10), (1e9, 3e9, 1e10, 3e10, 3e11)), {}),
    "chinchilla_tied": (cells(), {}),
    "kaplan_offset": (cells((1e6, 1e7, 1e8, 1e9), (2e7, 2e8, 2e9, 2e10)),
                      {"alpha_N": 0.4, "alpha_D": 0.45, "N_c": 2e8, "D_c": 4e9, "E": 1.7}),
    "data_constrained": (repeated_grid(), {}),
    "data_constrained_beta": (repeated_grid(), REPEATED),
    "kaplan": (cells((1e6, 1e7, 1e8, 1e9), (2e7, 2e8, 2e9, 2e10)), {}),
    "kumar": (kumar_grid(post=True), {"b": 0.0, "C_T": 0.0598 * np.exp(1.1277)}),
    "kumar_no_offsets": (kumar_grid(post=True), {"b": 0.0, "C_T": 0.0598 * np.exp(1.1277)}),
    "kumar_neff": (kumar_grid(), {}),
    "kumar_free_power": (free_power_grid(), FREE_POWER),
    "kumar_neff_w": (cells(P_w=[3.0, 4, 5, 6, 7, 8, 12, 16]), {}),
    "kumar_unified": (unified_grid(), UNIFIED),
    "kumar_beta": (kumar_grid(post=True), UNTIED),
    "kumar_unified_beta": (unified_grid(), UNIFIED | UNTIED),
    "kumar_neff_a": (cells(P_a=[4.0, 5, 6, 7, 8, 12, 16]), {}),
    "kumar_neff_wa": (kumar_grid(), {}),
    "kumar_neff_beta": (kumar_grid(), UNTIED),
    "kumar_neff_w_beta": (cells(P_w=[3.0, 4, 5, 6, 7, 8, 12, 16]), UNTIED),
    "kumar_neff_a_beta": (cells(P_a=[4.0, 5, 6, 7, 8, 12, 16]), UNTIED),
    "kumar_neff_wa_beta": (kumar_grid(), UNTIED),
    "kumar_ptq_schedule": (schedule_grid(), KUMAR | {"kappa_r": -1.2, "kappa_s": 0.6}),
    "kumar_ptq": (cells(P_post=[3.0, 4, 5, 6]), {"b": 0.0, "C_T": 0.0598 * np.exp(1.1277)}),
    "kumar_additive": (cells(P_w=[3.0, 4, 5, 6, 8, 12, 16]), ALTERNATIVE | {"C": 3.0, "rho": 2.5}),
    "kumar_multiplicative": (cells(P_w=[3.0, 4, 5, 6, 8, 12, 16]), ALTERNATIVE | {"C": 4.0, "rho": 2.0}),
    "kumar_deff": (cells(P_w=[3.0, 4, 5, 6, 8, 12, 16]), ALTERNATIVE | {"gamma": 2.5, "n": 0.3}),
    "kumar_tied": (cells(P_w=[3.0, 4, 5, 6, 8, 12, 16]), ALTERNATIVE | {"gamma": 2.5, "n": 0.3}),
    "kumar_untied": (cells(P_w=[3.0, 4, 5, 6, 8, 12, 16]),
                     ALTERNATIVE | {"gamma": 2.5, "n": 0.3, "gamma_data": 1.5, "n_data": 0.6}),
    "kumar_free_power_w": (cells(P_w=[2.0, 3, 4, 5, 6, 8, 12, 16]),
                           ALTERNATIVE | {"gamma_w": 2.0, "n_w": 0.1, "s_w": 1.6}),
    "operand_costs": (kumar_grid(), BASE | {"C_w": 1e-3, "C_a": 4e-3, "C_kv": 2e-3, "gamma_w": 1.1, "gamma_a": 1.4,
                                            "gamma_kv": 0.9, "gamma_D": 0.45, "gamma_N": 0.15}),
    "sun": (sun_grid(), {}),
    "chen": (cells(CHEN, CHEN_BUDGETS, G=[1.0, 32, 64, 128, 256, 1024]), {}),
    "chen_gap": (cells(CHEN, CHEN_BUDGETS, G=[32.0, 64, 128, 256, 1024]), {}),
    "ouyang": (cells(P_post=[2.0, 3, 4]), {}),
    "frantar": (cells(P=np.arange(17.0)), {}),
    "frantar_optimizer": (cells(P=[0.0, 1.0], O=[0.0, 1.0]),
                          BASE | {"eff_muon": 1.3, "eff_adamw:int4": 0.6, "eff_muon:int4": 0.5}),
    "format_gap": (cells(P=[0.0, 1.0, 2.0]), BASE | {"delta_int4": 0.12, "delta_int8": -0.01}),
    "format_gap_paired": (cells(P=[1.0, 2.0]),
                          {"delta_int4": 0.12, "delta_int8": 0.03, "gamma_D": -0.124, "gamma_N": 0.2}),
    "format_gap_scaled": (cells(P=[0.0, 1.0, 2.0]),
                          BASE | {"delta_int4": 0.12, "delta_int8": -0.03, "gamma_D": -0.124, "gamma_N": 0.2}),
    "quartet_schemes": (cells((3e7, 5e7, 1e8, 2e8), (1e9, 3e9, 1e10, 5e10), forward=[0.0, 1.0], backward=[0.0, 1.0]),
                        laws.get("quartet").published[0].as_dict() | {"eff_N_mxfp4": 0.65, "eff_D_mxfp4": 0.89}),
    "quartet": (cells((3e7, 5e7, 1e8, 2e8), (1e9, 3e9, 1e10, 5e10), forward=[0.0, 1.0], backward=[0.0, 1.0]), {}),
    "gaussian_mse_beta": (cells(gmse=[1e-5, 1e-4, 1e-3, 0.013, 0.047, 0.19]), GAUSSIAN | {"beta": 0.31}),
    "gaussian_mse": (cells(gmse=[1e-5, 1e-4, 1e-3, 0.013, 0.047, 0.19]), GAUSSIAN),
}  # fmt: skip


def truth_of(name):
    law = laws.get(name)
    base = law.published[0].as_dict() if law.published else {}
    return {k: (base | CASES[name][1])[k] for k in law.names}


def simulate(name, seed, noise=NOISE) -> Table:
    """A runs table made from the law itself; built directly, as if read and accepted."""
    law = replace(laws.get(name), adapt=None)  # the grid has what tells all of its constants
    grid, rng = CASES[name][0].reset_index(drop=True), np.random.default_rng(seed)
    columns = {s.name: grid[s.name].to_numpy(float) for s in law.symbols}
    observed = law.predict(truth_of(name), columns) * np.exp(noise * rng.normal(size=len(grid)))
    assert np.isfinite(observed).all()
    index = np.arange(len(grid))
    cell = np.unique(np.stack([columns["N"], columns["D"]], 1), axis=0, return_inverse=True)[1].reshape(-1)
    return Table(law, columns, observed, np.full(len(grid), np.nan), index, cell, index, {}, (), grid)


def test_every_law_has_a_case():
    assert set(CASES) == set(laws.LAWS)


@pytest.mark.parametrize("name", CASES)
def test_derivatives_match_finite_differences(name):
    table = simulate(name, 0)
    law, problem = table.law, make_problem(table, Objective(), {})
    truth = truth_of(name)
    point = np.array([float(p.to_search(truth[p.name])) for p in law.parameters])
    exact = jacobian(problem, point)

    def logs(z):
        values = {p.name: float(np.exp(v) if p.log else v) for p, v in zip(law.parameters, z, strict=True)}
        return np.log(law.predict(values, problem.columns))

    for i in range(len(point)):
        step = np.zeros_like(point)
        step[i] = 1e-5
        np.testing.assert_allclose(
            exact[:, i], (logs(point + step) - logs(point - step)) / 2e-5, rtol=1e-5, atol=2e-7, err_msg=law.names[i]
        )


@pytest.mark.parametrize("name", ["sun", "chen_gap", "ouyang", "quartet", "kumar_unified", "gaussian_mse",
                                  "kaplan_offset", "data_constrained", "format_gap_scaled", "kumar_ptq_schedule",
                                  "frantar_optimizer", "kumar_neff_wa_beta"])  # fmt: skip
def test_constants_come_back(name):
    result = fit(simulate(name, 1, noise=1e-5), parse_objective("squares"), starts=64)
    assert result.status in (Status.CONVERGED, Status.ILL_CONDITIONED)
    truth = truth_of(name)
    for key in result.free:
        assert result.params[key] == pytest.approx(truth[key], rel=0.05), key
    predicted = result.law.predict(truth, result.table.columns)
    np.testing.assert_allclose(result.predicted, predicted, rtol=2e-5)


def coverage(name, tables=100, refits=200):
    """Share of (table, constant) pairs whose percentile 95 % interval holds the truth."""
    truth, inside = truth_of(name), []
    for seed in range(tables):
        table = simulate(name, seed)
        result = fit(table, parse_objective("squares"), 1, first=truth)
        intervals = bootstrap(result, refits, over="row", seed=seed).intervals
        inside.append([intervals[k][0] <= truth[k] <= intervals[k][1] for k in result.free])
    return float(np.mean(inside))


def test_intervals_cover_the_truth_quick():
    assert 0.85 <= coverage("chinchilla_tied", tables=30, refits=100) <= 1.0


@pytest.mark.long
@pytest.mark.parametrize("name", CASES)
def test_intervals_cover_the_truth(name):
    share = coverage(name)
    print(f"coverage of {name}: {share:.3f}")
    assert 0.90 <= share <= 0.99
