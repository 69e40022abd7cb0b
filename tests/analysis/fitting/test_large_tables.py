"""Very many rows: searched on a sample, fitted on all of them, in chunks."""

import numpy as np
import pytest

from precisionlm.analysis import laws
from precisionlm.analysis.fitting import solve as solver
from precisionlm.analysis.fitting.analyze import select
from precisionlm.analysis.fitting.fit import fit, make_problem
from precisionlm.analysis.fitting.objective import Objective
from precisionlm.analysis.fitting.search import RARE, SAMPLE, sampled
from precisionlm.analysis.table.read import prepare
from precisionlm.bench.fit import chinchilla_runs


def test_the_optimum_is_that_of_all_rows():
    table = prepare(laws.get("chinchilla"), chinchilla_runs(9_000, seed=3))
    result = fit(table, starts=16)
    problem, weights = result.problem, np.ones(len(table))
    truth = laws.get("chinchilla").published[0].as_dict()
    start = np.array([[float(p.to_search(truth[p.name])) for p in problem.law.parameters]])
    direct = solver.solve(problem, start, weights)
    assert result.objective_value == pytest.approx(direct.objective[0], rel=1e-9)
    np.testing.assert_allclose(result.point, direct.point[0], rtol=1e-6)
    assert result.rows_used == 9_000 and result.share > 0.5
    r = np.abs(result.residuals)
    assert result.objective_value == pytest.approx(np.where(r <= 1e-3, r**2 / 2, 1e-3 * (r - 5e-4)).sum(), rel=1e-9)


def test_a_sample_keeps_every_kind_of_run():
    frame = chinchilla_runs(30_000)
    frame["recipe"] = np.where(np.arange(30_000) % 1000 == 0, "mxfp4", np.where(np.arange(30_000) % 2, "bf16", "W8A8"))
    problem = make_problem(select("frantar", frame), Objective(), {})
    small, rows = sampled(problem)
    assert len(rows) == len(np.unique(rows)) <= SAMPLE + RARE
    kinds, counts = np.unique(small.columns["P"], return_counts=True)
    assert len(kinds) == 3 and counts.min() == 30
    np.testing.assert_array_equal(small.observed, problem.observed[rows])
    few = make_problem(prepare(laws.get("chinchilla"), chinchilla_runs(300)), Objective(), {})
    assert sampled(few)[0] is few


def test_rows_in_chunks_give_the_same_optimum(monkeypatch):
    table = prepare(laws.get("chinchilla"), chinchilla_runs(301))
    whole = fit(table, starts=16)
    monkeypatch.setattr(solver, "CHUNK", 64)
    cut = fit(table, starts=16)
    assert cut.objective_value == pytest.approx(whole.objective_value, rel=1e-10)
    np.testing.assert_allclose(cut.point, whole.point, rtol=1e-7)
