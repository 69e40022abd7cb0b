"""predict and score as typed: a file written once with its hash, read back against the runs."""

import hashlib
import json

import pandas as pd
import pytest
import yaml

from precisionlm.cli.cells import read_cells
from precisionlm.cli.main import main
from precisionlm.errors import UserError

from ..analysis.predictions.test_predictions import runs
from ..conftest import tiny_tree


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    runs(noise=0.002).to_csv("runs.csv", index=False)
    cells = [{"N_params": 32_000_000, "D_tokens": [20_480_000, 61_440_000, 184320000], "schedule": "cosine"},
             {"N_params": [5], "D_tokens": 20_480_000.0},
             {"N_params": 1e6, "D_tokens": 20_480_000, "w_bits": 4}]  # fmt: skip
    (tmp_path / "cells.yaml").write_text(yaml.safe_dump({"cells": cells}))
    return tmp_path


def call(capsys, *words):
    code = main([str(word) for word in words])
    found = capsys.readouterr()
    return code, found.out, found.err


FIT = ("--runs", "runs.csv", "--law", "chinchilla", "--where", "name == 'small'", "--starts", 20, "--bootstrap", 20)


def test_predictions_are_written_once_the_same_each_time_and_scored(here, capsys):
    (here / "cells.yaml").write_text((here / "cells.yaml").read_text().replace("- 5", "- 7000000"))
    words = ("predict", *FIT, "--cells", "cells.yaml")
    code, out, _ = call(capsys, *words, "-o", "p.csv")
    digest = hashlib.sha256((here / "p.csv").read_bytes()).hexdigest()
    assert code == 0 and "p.csv: 4 predictions of 5 cells" in out and out.endswith(f"sha256 {digest}\n")
    assert "chinchilla: 4, not of 1 cells (1 x trained below 16 bits" in out
    code, out, _ = call(capsys, *words, "-o", "again.csv", "--json")
    assert code == 0 and json.loads(out)["sha256"] == digest and json.loads(out)["predictions"] == {"chinchilla": 4}
    before = (here / "p.csv").read_text()
    assert call(capsys, *words, "-o", "p.csv")[0] == 0
    code, out, err = call(capsys, *words, "-o", "p.csv", "--objective", "squares")
    assert code == 2 and out == "" and "p.csv: holds other predictions, which stay" in err.splitlines()[-1]
    assert (here / "p.csv").read_text() == before

    code, out, err = call(capsys, "score", "p.csv", "runs.csv")
    assert code == 0 and err == "" and f"p.csv: 4 predictions, sha256 {digest}" in out
    assert "missing: chinchilla, val_loss: D_tokens=20480000, N_params=7000000: no row has N_params 7000000" in out
    assert "worst of chinchilla, val_loss: D_tokens=" in out and "bf16 within 0." in out
    code, out, _ = call(capsys, "score", "p.csv", "again.csv", "runs.csv", "--by", "schedule", "--json")
    found = json.loads(out)
    assert code == 0 and found["files"] == {"p.csv": digest, "again.csv": digest}
    assert [(g["block"], g["scored"], g["missing"]) for g in found["groups"]] == [("", 6, 2)]
    assert len(found["pairs"]) == 6 and found["pairs"][0]["block"] == "cosine"


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (("predict", *FIT, "--cells", "cells.yaml"), "row 4: 5 parameters cannot be a count"),
        (("predict", *FIT, "--cells", "no.yaml"), "no.yaml: cannot be read"),
        (("predict", *FIT, "--cells", "runs.csv", "-o", "p.parquet"), "p.parquet: the name must end in .csv"),
        (("score", "runs.csv", "runs.csv"), "predictions need columns law, quantity, predicted"),
        (("score", "no.csv", "runs.csv"), "no.csv: no such file"),
    ],
)
def test_what_cannot_be_predicted_or_scored_is_one_line(here, capsys, words, line):
    files = sorted(here.iterdir())
    code, out, err = call(capsys, *words)
    assert code == 2 and out == "" and line in err and err.count("\n") == 1
    assert sorted(here.iterdir()) == files


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("cells: 3", "or 'cells:' with a list of mappings"),
        ("cells: [3]", "'3' is no mapping of columns to values"),
        ("cells: [{N_params: []}]", "N_params must be a value or a list of values"),
        ("cells: [{N_params: [{a: 1}]}]", "N_params must be a value or a list of values"),
        ("cells: [{predicted: 3}]", "column predicted is one that predictions have themselves"),
        ("cells: [{val_loss: 3}]", "no cell with a coordinate"),
        ("{cells: [{N_params: 1}], more: 2}", "must be a sweep file, or 'cells:'"),
        (f"cells: [{{a: &x {list(range(400))}, b: *x}}]", "one entry makes more than 100,000 cells"),
    ],
)
def test_a_list_of_cells_that_is_none(tmp_path, text, line):
    (tmp_path / "c.yaml").write_text(text)
    with pytest.raises(UserError, match=line):
        read_cells(tmp_path / "c.yaml")


def test_the_runs_of_a_sweep_are_cells_as_the_table_will_name_them(tokens_folder, tmp_path):
    sweep = {"experiment": tiny_tree(tokens_folder),
             "grid": {"tokens": [1e4, 2e4], "precision.recipe": ["bf16", "W3A8"]},
             "seeds": 2, "evaluate": {"ptq": ["W3", "mxfp4"]}}  # fmt: skip
    (tmp_path / "s.yaml").write_text(yaml.safe_dump(sweep))
    cells = read_cells(tmp_path / "s.yaml")
    assert len(cells.frame) == 2 * 2 * 2 * 3 and set(cells.coordinates) <= set(cells.frame.columns)
    trained = cells.frame[cells.frame["evaluation"] == "trained"]
    assert trained["ptq_bits"].isna().all() and set(trained["w_bits"]) == {16.0, 3.0}
    assert set(trained["D_tokens"]) == {39 * 256, 78 * 256} and set(trained["seed"]) == {0, 1}
    after = cells.frame[cells.frame["evaluation"] == "ptq"]
    assert set(zip(after["ptq_format"], after["ptq_scale"], after["ptq_group"], strict=True)) == {
        ("int3", "channel", float("inf")), ("mxfp4", "group", 32.0)}  # fmt: skip
    assert isinstance(cells.frame, pd.DataFrame) and (after["ptq_method"] == "rtn").all()
