"""Tables like those published elsewhere, made from constants like theirs: fits give them back, whatever their columns
are called and whatever sign the constants have."""

import numpy as np
import pandas as pd
import pytest

from precisionlm.analysis import laws
from precisionlm.analysis.fitting.analyze import analyze
from precisionlm.analysis.fitting.choices import Choices
from precisionlm.analysis.fitting.fit import Status
from precisionlm.analysis.fitting.objective import parse_objective
from precisionlm.analysis.table.read import read


def noisy(loss, noise, seed=0):
    return loss * np.exp(noise * np.random.default_rng(seed).normal(size=len(loss)))


def block_formats():
    """1,215 runs of floats with a scale per block of 32, in columns of another team's naming."""
    sizes, budgets = np.geomspace(2e7, 1.7e9, 9), np.geomspace(5e8, 2e11, 15)
    formats = [(1, 2), (2, 1), (2, 3), (3, 2), (4, 3), (5, 2), (3, 4), (2, 5), (4, 1)]
    rows = [(n, d, e, m, 32) for n in sizes for d in budgets for e, m in formats]
    return pd.DataFrame(rows, columns=["non-emb params", "tokens seen", "e bits", "m bits", "block"])


NAMES = {"N": "non-emb params", "D": "tokens seen", "E": "e bits", "M": "m bits", "log2B": "block", "loss": "final CE"}


def test_exponent_bits_may_cost_under_a_block_scale():
    frame, law = block_formats(), laws.get("sun")
    truth = {"n": 180.0, "alpha": 0.29, "d": 9.0e4, "beta": 0.52, "epsilon": 1.72, "K": 4e-5, "delta": -0.25, "nu": 1.9}
    columns = {s: frame[c].to_numpy(float) for s, c in NAMES.items() if s != "loss"}
    loss = law.predict(truth, columns | {"log2B": np.log2(columns["log2B"])})
    frame["final CE"] = noisy(loss, 1e-4)
    result = analyze(frame, "sun", NAMES, objective=parse_objective("squares"), starts=16).result
    assert len(frame) == 1215 == result.rows_used and result.status is Status.CONVERGED
    for name, value in truth.items():
        assert result.params[name] == pytest.approx(value, rel=0.02), name
    # Bounds are the user's: a δ that may not be negative ends at 0 and says so.
    bounded = analyze(frame, "sun", NAMES, objective=parse_objective("squares"), starts=16,
                      choices=Choices(bounds={"delta": (0.0, 5.0)})).result  # fmt: skip
    assert bounded.params["delta"] == 0.0 and bounded.rms_log > 2 * result.rms_log
    assert any("delta ends at its bound low" in m for m in bounded.messages)


def test_kaplan_with_an_offset_for_many_losses_of_the_same_runs():
    """A loss of another data set is another table of the same runs: 529 of them, each with its own offset."""
    law, rng = laws.get("kaplan_offset"), np.random.default_rng(1)
    rows = [(n, d) for n in np.geomspace(2e7, 3e9, 23) for d in np.geomspace(4e8, 6e10, 23)]
    frame = pd.DataFrame(rows, columns=["params", "tokens"])
    columns = {"N": frame.params, "D": frame.tokens}
    for k in range(2):
        truth = {"alpha_N": rng.uniform(0.3, 0.6), "alpha_D": rng.uniform(0.3, 0.6), "N_c": 10 ** rng.uniform(7, 9),
                 "D_c": 10 ** rng.uniform(8.5, 10), "E": rng.uniform(0.5, 2.2)}  # fmt: skip
        frame[f"loss {k}"] = noisy(law.predict(truth, columns), 1e-4, k)
        names = {"N": "params", "D": "tokens", "loss": f"loss {k}"}
        result = analyze(frame, "kaplan_offset", names, starts=32).result
        assert result.status is Status.CONVERGED and len(frame) == 529
        for name, value in truth.items():
            assert result.params[name] == pytest.approx(value, rel=0.01), name


def test_gaps_of_formats_with_odd_names_and_either_sign():
    """574 runs: 7 sizes, 82 (budget, format) pairs."""
    formats = ["bf16", "nvfp4, rht", "nvfp4 (no scale=e4m3)", "mxfp4:g32"]
    rows = [(n, d, f) for n in np.geomspace(3e7, 1e9, 7) for d in np.geomspace(1e9, 1e11, 21) for f in formats][:574]
    frame = pd.DataFrame(rows, columns=["N", "D", "kind of run"])
    truth = {"A": 400.0, "alpha": 0.34, "B": 900.0, "beta": 0.3, "E": 1.8,
             "delta_nvfp4, rht": 0.02, "delta_nvfp4 (no scale=e4m3)": -0.01, "delta_mxfp4:g32": 0.06,
             "gamma_D": -0.124, "gamma_N": 0.2}  # fmt: skip
    gap = frame["kind of run"].map(lambda f: truth.get(f"delta_{f}", 0.0))
    scale = (frame.D / 1e10) ** -0.124 / (frame.N / 1e8) ** 0.2
    loss = 400 * frame.N**-0.34 + 900 * frame.D**-0.3 + 1.8 + gap * scale
    frame["loss"] = noisy(loss.to_numpy(), 1e-5)
    result = analyze(frame, "format_gap_scaled", {"P": "kind of run"}, starts=16).result
    assert set(result.params) == set(truth)
    for name, value in truth.items():
        assert result.params[name] == pytest.approx(value, rel=0.02), name
    choices = Choices(fixed={"delta_nvfp4, rht": 0.02}, starts={"gamma_D": (-0.2, 0.0)}, reference="bf16")
    fixed = analyze(frame, "format_gap_scaled", {"P": "kind of run"}, starts=16, choices=choices).result
    assert "delta_nvfp4, rht" not in fixed.free and fixed.params["gamma_D"] == pytest.approx(-0.124, rel=0.02)


def test_backward_gaps_of_quartet_shrink_with_tokens(public):
    """γ_D < 0 in paired gaps of the paper's backward quantizer: 21 runs, gaps to the same size and tokens at bf16."""
    frame = read(public("quartet_fp4.csv"))
    plain = frame[(frame.fwd_scheme == "BF16") & (frame.bwd_scheme == "BF16")]
    base = plain.groupby(["N_params", "D_tokens"]).loss.mean().rename("_base")
    frame = frame.join(base, on=["N_params", "D_tokens"])
    frame["gap to bf16"] = frame.loss - frame._base
    where = "in_paper_version and fwd_scheme == 'BF16' and bwd_scheme == 'AlbertTsengQuantizer'"
    names = {"P": "bwd_scheme", "gap": "gap to bf16"}
    result = analyze(frame, "format_gap_paired", names, where, parse_objective("squares"), 32).result
    assert result.rows_used == 21 and result.params["gamma_D"] == pytest.approx(-0.124, abs=5e-4)


def test_each_scheme_of_quartet_has_its_multiplier(public):
    frame = read(public("quartet_fp4.csv"))
    names = {"forward": "fwd_scheme", "backward": "bwd_scheme"}
    result = analyze(frame, "quartet_schemes", names, "fwd_format == 'bf16'", starts=64).result
    assert result.rows_used == 104 and result.status is Status.CONVERGED
    assert [n for n in result.free if n.startswith("eff_N")] == []
    assert result.params["eff_D_QuEST"] < 0.4 < 0.8 < result.params["eff_D_AlbertTsengQuantizer"] < 0.95


def test_repetition_saturates_as_published():
    """Muennighoff et al. 2023: four epochs are nearly as good as new tokens, forty are worth far less."""
    law = laws.get("data_constrained")
    p = law.published[0].as_dict()
    unique = 1e10

    def loss(epochs, fresh):
        tokens = unique * epochs
        return law.predict(p, {"N": 3e8, "D": tokens, "U": tokens if fresh else unique})[0]

    assert loss(4, False) - loss(4, True) < 0.01
    worth = 1 + 15.4 * (1 - np.exp(-39 / 15.4))  # D'/U at 40 epochs
    assert loss(40, False) == pytest.approx(loss(worth, True), rel=1e-9)
    # N_opt of the printed constants: 0.051 parameters a token (G² = (A/B)^(1/α)).
    small, best = 1e9, (521 / 1488) ** (1 / 0.353) * 1e9
    assert best / small == pytest.approx(0.0511, rel=1e-2)
    twice = best * (1 + 5.3 * (1 - np.exp(-1 / 5.3)))  # N' of a model twice as large
    at = {"D": small, "U": small}
    assert law.predict(p, {"N": 2 * best, **at})[0] == pytest.approx(
        521 * twice**-0.353 + 1488 * small**-0.353 + 1.87, rel=1e-9
    )
