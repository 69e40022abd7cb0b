"""Tables collected in pieces become one: every row once, the last one named where pieces overlap."""

import json

import pandas as pd
import pytest

from precisionlm.analysis import load_runs
from precisionlm.cli.main import main

from ..fuzz.world import make


@pytest.fixture
def study(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return load_runs("study-2026")


def test_pieces_of_a_table_are_the_table(study, capsys):
    """No two of trained rows, rows after quantization by several methods and rows of trunks are taken for one."""
    study.iloc[:1200].to_parquet("a.parquet")
    study.iloc[1000:].to_csv("b.csv", index=False)
    assert main(["table", "a.parquet", "b.csv", "-o", "all.parquet", "--json"]) == 0
    counts = json.loads(capsys.readouterr().out)
    assert (counts["rows"], counts["repeated"], counts["runs"]) == (len(study), 200, study.run_id.nunique())
    both = pd.read_parquet("all.parquet")
    for name in ("run_id", "ptq_method", "val_loss", "delta", "D_tokens"):
        assert list(both[name].dropna()) == list(study[name].dropna())
    assert main(["table", "study-2026", "all.parquet", "-o", "again.parquet"]) == 0
    assert f"{len(study)} that more than one had" in capsys.readouterr().out


def test_of_a_row_that_two_have_the_last_one_counts(study):
    study.assign(val_loss=1.0).to_parquet("old.parquet")
    study.to_parquet("new.parquet")
    assert main(["table", "old.parquet", "new.parquet", "-o", "all.parquet"]) == 0
    pd.testing.assert_series_equal(pd.read_parquet("all.parquet").val_loss, study.val_loss, check_dtype=False)


def test_run_directories_and_tables(tokens_folder, tmp_path, monkeypatch, capsys):
    make(tmp_path, tokens_folder)
    monkeypatch.chdir(tmp_path)
    assert main(["table", "runs", "-o", "first.parquet"]) == 0
    assert main(["table", "runs", "first.parquet", "-o", "all.parquet"]) == 0
    pd.testing.assert_frame_equal(pd.read_parquet("all.parquet"), pd.read_parquet("first.parquet"))


@pytest.mark.parametrize(
    "content, said",
    [
        ("N,D,loss\n1e6,1e9,3.2\n", "every row of a table of runs has its run_id"),
        ("run_id,evaluation,loss\nabc,trained,3.2\n", "column loss is none of a table of runs"),
        ("run_id,evaluation,N_params\nabc,trained,many\n", "column N_params holds what is no int"),
        ("run_id,evaluation,N_params\nabc,trained,inf\n", "column N_params holds what is no int"),
        ("run_id,evaluation,N_params\nabc,trained,1e40\n", "column N_params holds what is no int"),
    ],
)
def test_a_table_of_something_else(study, capsys, content, said):
    with open("x.csv", "w") as file:
        file.write(content)
    assert main(["table", "study-2026", "x.csv", "-o", "all.parquet"]) == 2
    assert f"x.csv: {said}" in capsys.readouterr().err
