"""The verbs through argparse, as a script would call them."""

import argparse
import json

import pytest

from precisionlm.analysis.cli import add_verbs
from precisionlm.errors import UserError


@pytest.fixture
def call(capsys):
    """A function: words -> (exit code, standard output)."""

    def run(*words):
        parser = argparse.ArgumentParser("precisionlm")
        add_verbs(parser.add_subparsers(required=True))
        arguments = parser.parse_args([str(w) for w in words])
        code = arguments.run(arguments)
        return code, capsys.readouterr().out

    return run


@pytest.fixture
def tiny_csv(tiny_runs, tmp_path):
    path = tmp_path / "runs.csv"
    tiny_runs.to_csv(path, index=False)
    return path


def test_fit_json_has_the_promised_keys(call, tiny_csv):
    code, out = call("fit", "--runs", tiny_csv, "--law", "chinchilla_tied", "--objective", "squares", "--starts", 32,
                     "--bootstrap", 50, "--json")  # fmt: skip
    data = json.loads(out)
    assert code == 0 and data["law"] == "chinchilla_tied" and data["rows_used"] == 12 and data["rows_excluded"] == 12
    assert set(data["params"]) == {"A", "B", "E", "alpha"} and len(data["intervals"]["alpha"]) == 2
    assert data["status"] in ("converged", "at-bound", "ill-conditioned", "not-converged")
    assert isinstance(data["objective"], float) and data["objective_name"] == "squares"


def test_fit_renames_columns_and_selects_rows(call, tiny_runs, tmp_path):
    path = tmp_path / "runs.parquet"
    tiny_runs.rename(columns={"N_params": "size", "val_loss": "nats"}).to_parquet(path)
    _, out = call("fit", "--runs", path, "--law", "chinchilla", "--columns", "N=size,D=D_tokens,loss=nats", "--where",
                  "recipe == 'bf16'", "--starts", 16, "--json")  # fmt: skip
    assert json.loads(out)["rows_used"] == 4


def test_fit_prints_constants_for_people(call, tiny_csv):
    _, out = call("fit", "--runs", tiny_csv, "--law", "kumar", "--starts", 16)
    assert "gamma_w" in out and "rows used 24, excluded 0" in out


def test_fit_fixes_constants(call, tiny_csv):
    _, out = call("fit", "--runs", tiny_csv, "--law", "kumar", "--starts", 16, "--fix", "alpha=0.5", "--json")
    assert json.loads(out)["params"]["alpha"] == 0.5
    with pytest.raises(UserError, match="NAME=VALUE"):
        call("fit", "--runs", tiny_csv, "--law", "kumar", "--fix", "alpha")


def test_report_verb_writes_the_page(call, tiny_csv, tmp_path):
    out_path = tmp_path / "out" / "page.html"
    _, out = call("report", "--runs", tiny_csv, "--law", "chinchilla_tied", "--starts", 16, "--bootstrap", 20, "-o",
                  out_path, "--json")  # fmt: skip
    assert out_path.is_file() and json.loads(out)["report"] == str(out_path)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--law", "kumer"], "did you mean 'kumar'"),
        (["--law", "kumar", "--objective", "l1"], "objective 'l1' is unknown"),
        (["--law", "kumar", "--where", "bits > 3"], "--where 'bits > 3'"),
        (["--law", "kumar", "--starts", "0"], "--starts 0"),
    ],
)
def test_bad_words_are_one_clear_line(call, tiny_csv, words, message):
    with pytest.raises(UserError, match=message):
        call("fit", "--runs", tiny_csv, *words)
