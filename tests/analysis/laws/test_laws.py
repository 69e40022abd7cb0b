"""Laws: printed constants give the papers' printed numbers, derivatives are right, undefined means +inf."""

import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from precisionlm.analysis import laws
from precisionlm.analysis.fitting.fit import make_problem
from precisionlm.analysis.fitting.objective import Objective
from precisionlm.analysis.fitting.solve import solve
from precisionlm.analysis.table.read import prepare
from precisionlm.errors import UserError

from ..fitting.test_fit import grid


def test_kumar_reproduces_the_losses_of_its_table():
    # L(30M, 1.5B), L(30M, 26B), L(220M, 26B) at 16 bits, from Table 2's base without the saturating factors.
    law = laws.get("chinchilla_tied")
    kumar = law.published[1].as_dict()
    loss = law.predict(kumar, {"N": [30e6, 30e6, 220e6], "D": [1.5e9, 26e9, 26e9]})
    np.testing.assert_allclose(loss, [4.10, 3.72, 3.197], atol=0.005)


def test_kumar_factors_at_three_bits():
    law = laws.get("kumar_neff_w")
    p = law.published[0].as_dict()
    # f_w(3) = 0.56: the loss equals that of a model of 0.56 N
    small = laws.get("chinchilla_tied").predict(p, {"N": 1e8 * (1 - np.exp(-3 / 2.6745 + 0.3037)), "D": 1e10})
    np.testing.assert_allclose(law.predict(p, {"N": 1e8, "D": 1e10, "P_w": 3}), small, rtol=1e-12)


def test_kumar_is_infinite_where_activations_diverge():
    law = laws.get("kumar")
    p = law.published[0].as_dict()
    loss = law.predict(p, {"N": 1e8, "D": 1e10, "P_w": 16, "P_a": [3.0, 4.0], "P_kv": 16})
    assert np.isinf(loss[0]) and np.isfinite(loss[1])


def test_ptq_damage_at_30m_and_26b():
    law = laws.get("kumar_ptq")
    gap = law.predict(law.published[0].as_dict(), {"N": 30e6, "D": 26e9, "P_post": [3, 4, 5, 6, np.inf]})
    np.testing.assert_allclose(gap, [0.586, 0.108, 0.020, 0.0037, 0.0], rtol=0.02, atol=1e-12)


def test_unified_damage_vanishes_where_training_was_no_finer():
    law = laws.get("kumar_unified")
    p = laws.get("kumar").published[0].as_dict() | {"C_w": 0.5, "C_a": 0.5, "C_kv": 0.5}
    at = {"N": 1e8, "D": 1e10, "P_w": 4, "P_a": 16, "P_kv": 16}
    after = law.predict(p, at | {"P_post": [4.0, 6.0, 3.0, np.inf]})
    assert after[0] == after[1] == after[3] < after[2]


def test_chinchilla_matches_its_formula():
    law = laws.get("chinchilla")
    loss = law.predict({"A": 400.0, "B": 500.0, "E": 1.7, "alpha": 0.3, "beta": 0.4}, {"N": 1e9, "D": 2e10})
    np.testing.assert_allclose(loss, 400 * 1e9**-0.3 + 500 * 2e10**-0.4 + 1.7, rtol=1e-13)


def test_unknown_law_names_the_nearest():
    with pytest.raises(UserError, match="did you mean 'chinchilla'"):
        laws.get("chinchila")


def test_laws_are_equal_when_their_fields_are():
    assert hash(laws.get("kumar")) == hash(laws.get("kumar")) and laws.get("kumar") != laws.get("kumar_unified")


def _log_loss(law, point, problem):
    values = {p.name: float(np.exp(z) if p.log else z) for p, z in zip(law.parameters, point, strict=True)}
    return np.log(law.predict(values, problem.columns))


def test_objective_gradient_matches_finite_differences():
    law = laws.get("chinchilla")
    table = prepare(law, grid(law, noise=0.002))
    problem = make_problem(table, Objective("huber", 1e-3), {})
    point = np.array([float(p.to_search(law.published[0].as_dict()[p.name])) for p in law.parameters])

    def value(z):
        r = _log_loss(law, z, problem) - np.log(table.observed)
        return np.where(np.abs(r) <= 1e-3, r**2 / 2, 1e-3 * (np.abs(r) - 5e-4)).sum()

    stuck = replace(problem, low=point, high=point)  # all fixed: the solver reports value and gradient and stops
    solution = solve(stuck, point[None], np.ones(len(table)))
    assert solution.objective[0] == pytest.approx(value(point), rel=1e-12)
    for i in range(len(point)):
        step = np.zeros_like(point)
        step[i] = 1e-7
        numeric = (value(point + step) - value(point - step)) / 2e-7
        assert solution.gradient[0, i] == pytest.approx(numeric, rel=2e-3, abs=1e-5), law.names[i]


def test_every_law_stands_in_the_list_of_laws():
    """docs/laws.md names each, alone or as an ending (`…_w`, `_deff`) in the row of its family."""
    page = (Path(__file__).parents[3] / "docs" / "laws.md").read_text()
    named = set(re.findall(r"`…?(\w+)`", page))
    for name in laws.LAWS:
        base = name.removesuffix("_beta")
        assert name in named or base in named or any(base.endswith(end) for end in named if end.startswith("_")), name
