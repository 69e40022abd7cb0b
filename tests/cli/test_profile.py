"""What fit prints about certainty: where intervals come from, what is not identified, profiles; bench coverage."""

import json

import pytest

from precisionlm.bench.fit import chinchilla_runs
from precisionlm.cli.main import main


@pytest.fixture
def runs(tmp_path):
    path = tmp_path / "runs.csv"
    chinchilla_runs(60, noise=0.003).to_csv(path, index=False)
    return str(path)


def test_profiles_stand_beside_the_constants(runs, capsys):
    words = ["fit", "--runs", runs, "--law", "chinchilla", "--starts", "16", "--profile", "alpha,E"]
    assert main([*words, "--json"]) == 0
    data = json.loads(capsys.readouterr().out)
    assert data["intervals_from"].startswith("linearised, 60 runs")
    for name in ("alpha", "E"):
        low, high = data["profiles"][name]["interval"]
        assert low < data["params"][name] == data["profiles"][name]["value"] < high
        assert data["identified"][name] and data["standard_errors"][name] > 0
    assert main(words) == 0
    assert "profile of alpha: " in capsys.readouterr().out


def test_a_profile_that_cannot_be_is_one_line(runs, capsys):
    for name, why in (("gamma", "not a fitted constant"), ("P", "no optimal bits")):
        assert main(["fit", "--runs", runs, "--law", "chinchilla", "--starts", "16", "--profile", name]) == 2
        said = capsys.readouterr().err
        assert why in said and said.count("\n") == 1


def test_what_is_not_identified_is_said_in_words(tmp_path, capsys):
    path = tmp_path / "runs.csv"
    chinchilla_runs(20).assign(N_params=1e8).to_csv(path, index=False)
    assert main(["fit", "--runs", str(path), "--law", "chinchilla", "--starts", "16"]) == 0
    said = capsys.readouterr()
    assert "status not-identified" in said.out and "[0, 20]" in said.out and "  not identified" in said.out
    assert "warning: not identified: A, alpha" in said.err


def test_coverage_is_measured_and_bad_words_are_refused(capsys):
    assert main(["bench", "coverage", "--laws", "chinchilla", "--tables", "2", "--bootstrap", "8", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert {row["over"] for row in rows} == {"auto", "run"} and all(0 <= row["bootstrap"] <= 1 for row in rows)
    assert main(["bench", "coverage", "--laws", "quartet"]) == 2
    assert main(["bench", "coverage", "--tables", "0"]) == 2
