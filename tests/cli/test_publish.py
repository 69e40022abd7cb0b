"""publish as typed: fits, text and refusals."""

import json

import pandas as pd
import pytest

from precisionlm.cli.main import main
from precisionlm.data.meta import Meta

from ..analysis.predictions.test_predictions import runs
from ..analysis.report.test_report import markup


@pytest.fixture
def here(tmp_path, monkeypatch, tokens_folder):
    monkeypatch.chdir(tmp_path)
    meta = Meta.read(tokens_folder)
    frame = runs(noise=0.002).assign(dataset=meta.train.sha256[:12])
    frame.loc[0, "name"] = "<script>alert(1)</script>"
    frame.to_parquet("runs.parquet")
    return tmp_path


def call(capsys, *words):
    code = main([str(word) for word in words])
    found = capsys.readouterr()
    return code, found.out, found.err


FIT = "--law chinchilla --where \"schedule == 'cosine'\" --starts 20"


def test_the_folder_has_the_fits_as_typed_and_what_the_text_is(here, capsys, tokens_folder):
    words = ("publish", "runs.parquet", "--out", "out", "--license", "MIT", "--data", tokens_folder, "--fit", FIT)
    code, out, err = call(capsys, *words, "--dry-run")
    assert code == 0 and "would fit chinchilla on 30 rows" in out and not (here / "out").exists()
    code, out, err = call(capsys, *words, "--json")
    found = json.loads(out)
    assert code == 0 and err == "" and found["rows"] == 30
    assert {"out/report.html", "out/figures/residuals.svg", "out/README.md"} <= set(found["files"])
    card = (here / "out" / "README.md").read_text()
    assert f"\n    precisionlm fit --runs runs.parquet {FIT}\n" in card and str(here) not in card
    assert f"| training tokens | {Meta.read(tokens_folder).train.tokens} |" in card and "\nMIT\n" in card
    assert str(tokens_folder.parent) not in card and "| source | chain.u16 |" in card
    report = (here / "out" / "report.html").read_text()
    assert "sha256 of runs.parquet" in report and str(here) not in report
    assert "<script" not in markup(report) and "&lt;script&gt;" in report
    pd.testing.assert_frame_equal(
        pd.read_parquet("out/runs.parquet"), pd.read_parquet("runs.parquet"), check_dtype=False
    )


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (("--fit", "--law chinchilla --runs x.csv"), "takes no --runs, --dry-run, --json and --profile"),
        (("--fit", "--law chinchilla --json"), "takes no --runs, --dry-run, --json and --profile"),
        (("--fit", "--law 'chinchilla"), "--fit '--law 'chinchilla': No closing quotation"),
        (("--fit", "--law x"), "law 'x' is unknown"),
        (("--fit", "--lawx 3"), "--fit '--lawx 3': "),
        (("--date", "tomorrow"), "--date tomorrow: must be a date"),
        (("--data", "."), "holds no prepared data"),
        (("--out", "."), "is there and holds other things"),
        (("--out", "runs.parquet/x"), "is no folder"),
    ],
)
def test_what_cannot_be_published_is_one_line(here, capsys, words, line):
    before = sorted(here.iterdir())
    code, out, err = call(capsys, "publish", "runs.parquet", "--out", "out", *words)
    assert code == 2 and out == "" and line in err and err.count("\n") == 1, err
    assert sorted(here.iterdir()) == before


def test_text_that_no_row_was_trained_on_is_refused(here, capsys, tokens_folder):
    runs().assign(dataset="0" * 12).to_parquet("runs.parquet")
    code, _, err = call(capsys, "publish", "runs.parquet", "--out", "out", "--data", tokens_folder)
    assert code == 2 and "no row was trained on it: its training tokens are" in err
