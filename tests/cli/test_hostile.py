"""Names, recipes, reasons and paths are anybody's: text on a terminal, in CSV, in figures and in the report."""

import csv
import io
import json
import os
import re
import sys
import unicodedata
from pathlib import Path
from xml.dom import minidom

import numpy as np
import pandas as pd
import pytest

from precisionlm import whole_file
from precisionlm.analysis.figures.learning import curves
from precisionlm.analysis.figures.recipes import recipes_of
from precisionlm.cli.boundary import guarded
from precisionlm.cli.main import main
from precisionlm.columns import COLUMNS
from precisionlm.errors import UserError
from precisionlm.storage.failure import record_failure
from precisionlm.storage.run_directory import RunDirectory
from precisionlm.sweep.collect import write
from precisionlm.terminal import Plain, harmless

from ..analysis.report.test_report import markup
from ..fuzz.world import make

ESCAPE = "\x1b]0;owned\x07\x1b[2J\x9b31m\x00\u202ebad\rover"
HOSTILE = [
    "<script>alert(1)</script>",
    "$\\frac{$",
    "=cmd|' /C calc'!A0",
    ESCAPE,
    "$(touch owned)`id`;'\"",
    "{{7*7}}{% raw %}",
    "</svg><img src=x onerror=alert(1)>",
    "--> <!--",
    "a\nb\r\nc",
    "%s %(x)s \\",
]


def obeyed(text):
    """Characters that a terminal would obey, or that would turn the direction of a line."""
    return [c for c in text if unicodedata.category(c) in ("Cc", "Cf") and c not in "\n\t"]


@pytest.fixture
def world(tokens_folder, tmp_path, monkeypatch):
    make(tmp_path, tokens_folder)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_what_is_printed_is_text(capsys):
    def prints():
        print(ESCAPE, "é ± 漢字\tand\r\nlines", "\udcff")
        print(ESCAPE, file=sys.stderr)
        raise UserError(ESCAPE)

    assert guarded(prints) == 2
    out, err = capsys.readouterr()
    assert not obeyed(out.replace("\r\n", "\n")) and not obeyed(err) and "bad" in out and err.count("bad") == 2
    assert out.endswith("é ± 漢字\tand\r\nlines ?\n")
    old = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    Plain(old).write("0.5 ± 0.1 …")
    old.flush()
    assert old.buffer.getvalue() == b"0.5 ? 0.1 ?"
    controls = [chr(i) for i in [*range(32), *range(0x80, 0xA0)] if chr(i) not in "\n\t"]
    assert [harmless(c) for c in controls] == ["\ufffd"] * len(controls)


def test_runs_and_folders_of_any_name(world, capsys):
    odd = world / f"runs{ESCAPE.replace(chr(0), '')}"
    (world / "runs").rename(odd)
    first, second = sorted(odd.iterdir())
    (first / "config.yaml").write_text(
        (first / "config.yaml").read_text().replace("name: tiny", f"name: {json.dumps(ESCAPE.replace(chr(0), ''))}")
    )
    (second / "result.json").write_text(json.dumps({"status": "failed", "reason": ESCAPE}))
    for words in (["table", odd, "-o", "t.csv"], ["watch", odd], ["watch", first], ["ptq", odd, "--dry-run"],
                  ["evaluate", odd, "--dry-run"], ["train", odd / "x.yaml", "--out", "o"]):  # fmt: skip
        main([str(word) for word in words])
        out, err = capsys.readouterr()
        assert (out or err) and not obeyed(out) and not obeyed(err), words


def test_a_failure_with_a_hostile_reason_in_status(world, capsys):
    assert main(["sweep", "sweep.yaml", "--out", "o", "--dry-run", "--json"]) == 0
    run_id = json.loads(capsys.readouterr().out)[0]["run_id"]
    directory = RunDirectory(world / "o", run_id)
    directory.create()
    record_failure(directory, ESCAPE)
    assert main(["sweep", "status", "sweep.yaml", "--out", "o"]) == 0
    out = capsys.readouterr().out
    assert "owned" in out and not obeyed(out)
    assert main(["sweep", "status", "sweep.yaml", "--out", "o", "--json"]) == 0  # JSON says exactly what is there
    reason = next(run["reason"] for run in json.loads(capsys.readouterr().out)["runs"] if run["reason"])
    assert reason == " ".join(ESCAPE.split())


def test_cells_of_csv_are_no_formulas(tmp_path):
    texts = [*HOSTILE, "+1", "-1+cmd", "@SUM(A1)", "\tx", "\rx", "x\r=1+1", "W4A8", "", None]
    frame = pd.DataFrame({"name": texts, "recipe": texts, "val_loss": -1.5, "D_tokens": 5})
    frame = frame.astype({c.name: "string" for c in COLUMNS if c.dtype == "str" and c.name in frame})
    parquet, text = write(frame, tmp_path / "runs.csv")
    pd.testing.assert_frame_equal(pd.read_parquet(parquet), frame)
    with text.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["name"] for row in rows] == [
        f"'{harmless(t)}" if t and t[0] in "=+-@\t\r" else harmless(t or "") for t in texts
    ]
    assert {row["val_loss"] for row in rows} == {"-1.5"}


def test_the_report_and_its_figures(tiny_runs, tmp_path, monkeypatch, capsys):
    """Of a law whose constants are named after levels of the table."""
    monkeypatch.chdir(tmp_path)
    frame = pd.concat([tiny_runs] * 2, ignore_index=True)
    frame["val_loss"] *= np.exp(0.002 * np.random.default_rng(1).normal(size=len(frame)))
    turned = {name: [HOSTILE[(i + k) % len(HOSTILE)] for i in range(len(frame))] for k, name in enumerate(
        ("recipe", "name", "ptq_method", "schedule", "<img src=x onerror=alert(2)>"))}  # fmt: skip
    schemes = {"fwd_format": [HOSTILE[i % 4] for i in range(len(frame))], "bwd_format": HOSTILE[0]}
    frame = frame.assign(**turned, **schemes, run_id=[f"../{text}{i}" for i, text in enumerate(turned["name"])])
    frame = frame[frame.evaluation == "trained"].drop(columns="ptq_method")
    frame.to_parquet("runs.parquet")
    shared = ["--runs", "runs.parquet", "--law", "quartet_schemes", "--starts", "4", "--bootstrap", "4"]
    assert main(["report", *shared, "-o", "r.html", "--title", HOSTILE[0] + ESCAPE, "--metrics", "."]) == 0
    assert not obeyed("".join(capsys.readouterr()))
    page = Path("r.html").read_text()
    assert not re.search(r"<(script|img|iframe|object|link|a)\b", markup(page))
    assert "{{7*7}}" in page and not obeyed(page)
    assert "default-src 'none'" in page and "&lt;script&gt;" in page
    drawn = list(Path("figures").glob("*.svg"))
    for path in drawn:
        minidom.parse(str(path))
        assert not obeyed(path.read_text()) and not re.search(r"<(script|img)\b", path.read_text())
    assert drawn and not os.path.exists("owned")


def test_learning_curves_are_of_runs_in_the_folder(tiny_runs, tmp_path):
    (tmp_path / "secret").mkdir()
    (tmp_path / "runs" / "own").mkdir(parents=True)
    for path in (tmp_path / "secret", tmp_path / "runs" / "own"):
        (path / "metrics.jsonl").write_text("".join(f'{{"step": {i}, "loss": 2.0}}\n' for i in range(1, 50)))
    frame = tiny_runs.assign(batch_tokens=64)
    for run_id in ("../secret", str(tmp_path / "secret"), ".."):
        found = frame.assign(run_id=run_id)
        assert curves(found, recipes_of(found), tmp_path / "runs") is None
    own = frame.assign(run_id="own")
    assert curves(own, recipes_of(own), tmp_path / "runs") is not None


def test_a_full_disk_leaves_the_report_of_before(tiny_runs, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    tiny_runs.to_csv("runs.csv", index=False)
    Path("r.html").write_text("before")

    def full(path):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(whole_file, "sync", lambda path: full(path) if path.suffix == ".html" else None)
    words = [
        "report",
        "--runs",
        "runs.csv",
        "--law",
        "chinchilla_tied",
        "--starts",
        "4",
        "--bootstrap",
        "0",
        "-o",
        "r.html",
    ]
    assert main(words) == 2 and "cannot be written: No space left on device" in capsys.readouterr().err
    assert Path("r.html").read_text() == "before"
    assert not list(tmp_path.rglob("*.partial*"))
