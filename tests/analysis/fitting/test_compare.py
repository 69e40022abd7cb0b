"""Comparisons: what was held out and how much of it, quantiles, laws that cannot be fitted."""

import json

import numpy as np
import pandas as pd
import pytest

from precisionlm.analysis import laws
from precisionlm.analysis.fitting.choices import Choices
from precisionlm.analysis.fitting.compare import compare
from precisionlm.analysis.fitting.comparison import as_table, excluded_lines
from precisionlm.analysis.fitting.held_out import errors_of, make_splits
from precisionlm.analysis.table.read import prepare
from precisionlm.cli.main import main

TRUTH = laws.get("kumar_neff_w").published[0].as_dict()


def runs(sizes=(3e7, 6e7, 1.1e8, 2.2e8), budgets=(1.5e9, 3e9, 6e9, 1.3e10), widths=(3.0, 4, 6, 8, 16), extra=()):
    rows = [(n, d, w) for n in sizes for d in budgets for w in widths] + list(extra)
    frame = pd.DataFrame(rows, columns=["N_params", "D_tokens", "w_bits"])
    columns = {"N": frame.N_params, "D": frame.D_tokens, "P_w": frame.w_bits}
    loss = laws.get("kumar_neff_w").predict(TRUTH, columns)
    return frame.assign(val_loss=loss * np.exp(2e-3 * np.random.default_rng(0).normal(size=len(frame))))


def splits_of(frame, **options):
    return {s.name: s for s in make_splits(prepare(laws.get("kumar_neff_w"), frame), **({"folds": 5} | options))}


def test_the_largest_sizes_are_added_until_enough_rows_are_held_out():
    frame = runs(extra=[(9e8, 1.3e10, 16.0)])  # a single run of the largest size
    splits = splits_of(frame)
    largest = splits["largest N"]
    assert (largest.rows, largest.cells) == (21, 5) and largest.masks[0].sum() == 21
    assert largest.what == "the 2 largest N, from 2.2e+08: 21 rows in 5 (N, D) pairs" and not largest.short
    assert splits["largest D"].what == "D = 1.3e+10: 21 rows in 5 (N, D) pairs"
    assert splits["k-fold by cell"].what == "5 folds over 17 (N, D) pairs, 81 rows"
    assert splits_of(frame, least=1)["largest N"].rows == 21  # one pair alone is still too few
    asked = splits_of(frame, least=60)["largest N"]
    assert asked.short and asked.rows == 21  # half of the sizes stay in the fit
    assert sum(m.sum() for m in splits["k-fold by cell"].masks) == 81


def test_every_held_out_set_is_reported():
    frame = pd.concat([runs(), runs()[:3].assign(status="diverged")]).fillna({"status": "done"})
    found = compare(frame, ["chinchilla", "kumar_neff_w"], starts=16, folds=4)
    shown = as_table(found)
    for split in found.splits:
        assert split.what in shown["caption"]
    best, other = found.scores
    assert best.name == "kumar_neff_w" and found.differences["chinchilla"][1] > 0
    for name, errors in best.held_out.items():
        assert 0 < errors.median <= errors.q90 <= errors.worst < 0.02 and errors.rms < 0.005, name
        relative = np.abs(np.expm1(best.residuals[name][~np.isnan(best.residuals[name])]))
        assert errors.worst == pytest.approx(relative.max()) and np.isclose(relative, errors.median).any()
    assert other.held_out["largest N"].rms > 3 * best.held_out["largest N"].rms
    assert excluded_lines(found) == ["excluded for all laws: 3 x status is diverged"] and found.rows_excluded == 3


def test_a_law_without_a_fit_is_shown_and_comes_last():
    # No start of γ within these bounds leaves a positive factor at 3 bits: the law is undefined on every start.
    choices = Choices(bounds={"gamma_w": (60.0, 100.0), "n_w": (0.0, 5.0)}, starts={"n_w": (2.0, 4.0)})
    found = compare(runs(), ["kumar_neff_w", "chinchilla"], starts=8, folds=3, choices=choices)
    last = found.scores[-1]
    assert last.name == "kumar_neff_w" and last.fit is None and "undefined on these rows" in last.problem
    assert as_table(found)["rows"][-1][:3] == ["kumar_neff_w", "", f"not fitted: {last.problem}"]
    assert any("kumar_neff_w: not fitted" in w for w in found.warnings)
    assert not found.differences


def test_a_law_that_is_undefined_on_a_held_out_row_has_an_infinite_error():
    errors = errors_of(np.array([0.01, np.inf, -0.02, np.nan]))
    assert errors.rms == np.inf and errors.worst == np.inf and errors.median == pytest.approx(np.expm1(0.02), rel=0.05)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--folds", "0"], "--folds 0: at least 2"),
        (["--folds", "1"], "--folds 1: at least 2"),
        (["--held-out", "0"], "--held-out 0"),
        (["--columns", "Q=w_bits"], "none of the laws chinchilla, kumar_neff_w has a symbol 'Q'"),
        (["--bound", "delta=-1:5"], "has no constant 'delta'"),
        (["--bound", "gamma_w=5:1"], "the lower end comes first"),
        (["--bound", "alpha=0.3"], "two different ends"),
        (["--bound", "gamma_w=-1:5"], "gamma_w is a positive factor"),
        (["--start", "gamma_w=1:500"], "outside of its bounds"),
        (["--fix", "alpha=1:2"], "expected NAME=VALUE with a number"),
        (["--fix", "alpha"], "expected NAME=VALUE"),
        (["--reference", "bf16"], "reads no column of levels"),
        (["--starts", "0"], "--starts 0"),
    ],
)
def test_bad_words_are_one_clear_line(tmp_path, capsys, words, message):
    runs().to_csv(tmp_path / "runs.csv", index=False)
    laws_ = ["--laws", "chinchilla,kumar_neff_w"]
    assert main(["compare", "--runs", str(tmp_path / "runs.csv"), *laws_, *words]) == 2
    error = capsys.readouterr().err
    assert message in error and error.startswith("error: ") and error.count("\n") == 1


def test_json_has_sizes_and_quantiles(tmp_path, capsys):
    runs().to_csv(tmp_path / "runs.csv", index=False)
    words = ["compare", "--runs", str(tmp_path / "runs.csv"), "--laws", "chinchilla,kumar_additive", "--folds", "3"]
    assert main([*words, "--starts", "8", "--fix", "rho=2", "--json"]) == 0
    data = json.loads(capsys.readouterr().out)
    assert data["held_out"]["largest N"]["rows"] == 20 and data["held_out"]["largest N"]["cells"] == 4
    errors = data["laws"][0]["held_out_relative_error"]["k-fold by cell"]
    assert set(errors) == {"median", "90%", "max"} and data["ranking"][0] == data["laws"][0]["law"]
    fixed = next(law for law in data["laws"] if law["law"] == "kumar_additive")
    assert fixed["params"]["rho"] == 2.0 and "rho" not in fixed["fitted"]
