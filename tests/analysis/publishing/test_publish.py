"""A published folder holds the table as it was, describes every column of it, and nothing of the machine."""

import hashlib
import json

import numpy as np
import pandas as pd
import pyarrow.parquet
import pytest
import yaml

from precisionlm.analysis.fitting.analyze import analyze
from precisionlm.analysis.publishing.card import Card, Fit, card, plain
from precisionlm.analysis.publishing.clean import typed, without_paths
from precisionlm.analysis.publishing.croissant import VERSION
from precisionlm.analysis.publishing.publish import Stated, publish, ready
from precisionlm.analysis.table.files import read
from precisionlm.errors import UserError

from ..predictions.test_predictions import runs

HOSTILE = "<script>alert(1)</script> | [x](http://evil) `a` \n# head *b* _c_ &amp;"
STATED = Stated("Some runs", "CC-BY-4.0", "https://example.org/runs", "Somebody", "2026-11-26")


@pytest.fixture
def table():
    frame = runs(noise=0.002).assign(mixture="", w_group=np.inf, vocab_size=97, dataset="0123456789ab")
    frame.loc[0, "name"], frame.loc[1, "own"] = HOSTILE, "/home/me/secret/notes.txt"
    frame.loc[2, "mixture"] = "0.5 0123456789ab (/data/me/text, 1 epochs) + 0.5 ba9876543210 (gs://b/x/y, 2 epochs)"
    frame.loc[3, "status"], frame.loc[3, "val_loss"] = "diverged", np.nan
    return frame


def test_the_folder_reads_back_as_the_table(table, tmp_path):
    clean = ready(table)
    assert dict(clean.cleaned) == {"own": 1, "mixture": 1}
    files = publish(clean, tmp_path / "out", STATED)
    assert [path.name for path in files] == ["README.md", "croissant.json", "runs.csv", "runs.parquet"]
    expected = typed(table).assign(own=table["own"].replace("/home/me/secret/notes.txt", "notes.txt"))
    expected.loc[2, "mixture"] = "0.5 0123456789ab (text, 1 epochs) + 0.5 ba9876543210 (gs://b/x/y, 2 epochs)"
    pd.testing.assert_frame_equal(read(tmp_path / "out" / "runs.parquet"), expected, check_dtype=False)
    as_text = read(tmp_path / "out" / "runs.csv")
    for column in ("run_id", "N_params", "val_loss", "status", "w_group", "ptq_method", "own"):
        pd.testing.assert_series_equal(as_text[column], expected[column], check_dtype=False)
    assert not any(b"/home/me" in path.read_bytes() or b"/data/me" in path.read_bytes() for path in files)
    again = ready(read(tmp_path / "out" / "runs.csv"))
    publish(again, tmp_path / "out", STATED)  # its own folder is replaced, from either file alike
    found = read(tmp_path / "out" / "runs.parquet").fillna({"mixture": ""})  # CSV has no empty text
    pd.testing.assert_frame_equal(found, expected, check_dtype=False)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out"]


def test_a_column_that_holds_something_else_stays_as_it_is():
    frame = pd.DataFrame({"steps": [1.0, np.inf], "seed": ["0", "x"], "N_params": [1.0, 2.0], "schema": [1.5, 2.0]})
    found = typed(frame)
    assert found["steps"].tolist() == [1.0, np.inf] and found["seed"].tolist() == ["0", "x"]
    assert str(found["N_params"].dtype) == "Int64" and found["schema"].tolist() == [1.5, 2.0]


@pytest.mark.parametrize("value", [1e30, -np.inf, 2.0**63])
def test_what_64_bits_do_not_hold_stays_as_it_is(value):
    assert typed(pd.DataFrame({"seed": [1.0, value]}))["seed"].tolist() == [1.0, value]  # a warning would be an error


def test_croissant_describes_files_and_every_column(table, tmp_path):
    publish(ready(table), tmp_path / "out", STATED)
    found = json.loads((tmp_path / "out" / "croissant.json").read_text())
    assert found["conformsTo"] == VERSION and found["@type"] == "sc:Dataset" and found["license"] == "CC-BY-4.0"
    assert found["creator"]["name"] == "Somebody" and found["datePublished"] == "2026-11-26"
    files = {file["@id"]: file for file in found["distribution"]}
    for name, file in files.items():
        content = (tmp_path / "out" / name).read_bytes()
        assert file["sha256"] == hashlib.sha256(content).hexdigest() and file["contentSize"] == f"{len(content)} B"
        assert file["contentUrl"] == file["name"] == name
    (records,) = found["recordSet"]
    columns = [field["source"]["extract"]["column"] for field in records["field"]]
    assert columns == pyarrow.parquet.read_schema(tmp_path / "out" / "runs.parquet").names
    types = dict(zip(columns, (field["dataType"] for field in records["field"]), strict=True))
    assert (types["N_params"], types["val_loss"], types["recipe"]) == ("sc:Integer", "sc:Float", "sc:Text")
    assert all(field["source"]["fileObject"]["@id"] in files and field["description"] for field in records["field"])
    used = {key for field in records["field"] for key in field} | set(records) | {k for f in files.values() for k in f}
    schema_org = {"name", "description", "contentUrl", "encodingFormat", "contentSize", "sha256"}
    assert used <= set(found["@context"]) | schema_org | {"@type", "@id"}


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of its own libraries
def test_mlcroissant_accepts_it(table, tmp_path):
    mlcroissant = pytest.importorskip("mlcroissant", reason="mlcroissant, the reference reader, is not installed")
    publish(ready(table), tmp_path / "out", STATED)
    found = mlcroissant.Dataset(jsonld=tmp_path / "out" / "croissant.json")
    assert not found.metadata.issues.errors and len(list(found.records("runs"))) == len(table)


def test_cells_are_text_in_the_card(table):
    fits = [Fit("precisionlm fit --runs runs.parquet --law chinchilla", analyze(table, "chinchilla", starts=20))]
    files = [{"name": "runs.parquet", "contentSize": "1 B", "sha256": "0"}]
    text = card(ready(table).frame, Card(HOSTILE, "About.", None, files, [{"source": HOSTILE}], fits, {"own": 1}))
    front, body = text.removeprefix("---\n").split("\n---\n", 1)
    assert yaml.safe_load(front)["pretty_name"] == HOSTILE and yaml.safe_load(front)["license"] == "unknown"
    assert "<script>" not in body.replace("\\<script", "") and "[x](" not in body.replace("\\[x", "")
    assert [line for line in body.splitlines() if line.startswith("# ")] == [f"# {plain(HOSTILE)}"]
    rows = [line for line in body.splitlines() if line.startswith("| ") and "script" in line]
    assert [row.count("|") - row.count("\\|") for row in rows] == [6, 3]
    assert rows[0].endswith(" | trained | done | 1 | 1 |") and rows[1].startswith("| source | ")
    assert "diverged (1 rows) stay in the table" in body and "    precisionlm fit --runs runs.parquet --law" in body
    assert "| N_params | int | 30 | non-embedding parameters (count): everything but embedding table and head |" in body
    assert "Of the fit of chinchilla: 1 rows, status is diverged." in body and "Not stated by who published" in body
    assert "cut to their last part in 1 cells of `own`" in body


def test_a_folder_of_others_stays_and_a_failure_leaves_nothing(table, tmp_path, monkeypatch):
    out = tmp_path / "out"
    publish(ready(table), out, STATED)
    before = {path.name: path.read_bytes() for path in out.iterdir()}

    def full(*arguments, **named):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(pd.DataFrame, "to_csv", full)
    for folder in (out, tmp_path / "new"):
        with pytest.raises(UserError, match="No space left on device; nothing is left of it"):
            publish(ready(table), folder, STATED)
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before
    monkeypatch.undo()
    (out / "mine.txt").write_text("mine")
    with pytest.raises(UserError, match="is there and not empty"):
        publish(ready(table), out, STATED)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out"] and (out / "mine.txt").read_text() == "mine"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("/home/me/x.csv", "x.csv"),
        ("~/data/x", "x"),
        ("file:///a/b", "b"),
        ("C:\\Users\\me\\x.txt", "x.txt"),
        ("a (/b/c d/e), /f", "a (c d/e), f"),
        ("'/b/c'", "'c'"),
        *((same, same) for same in ("W4,A=int8/tensor", "int4/had32/sr", "../x/y", "gs://b/x/y", "a/b", "1 / 2", "/",
                                    "05ad/trained", "https://x.org/y", "N / D", "D/N < 500", "<b>x</b>")),
    ],
)  # fmt: skip
def test_only_absolute_paths_are_cut(text, expected):
    assert without_paths(text) == expected
