"""The command line as a user types it: the whole pipeline, exit codes, and one-line errors."""

import argparse
import json
import os
import signal
import subprocess
import sys
import time

import pandas as pd
import pytest
import yaml

from precisionlm.cli.main import build_parser, main
from precisionlm.columns import NAMES

from ..conftest import tiny_tree

ENVIRONMENT = {**os.environ, "XLA_FLAGS": "--xla_backend_optimization_level=0", "JAX_PLATFORMS": "cpu"}


def precisionlm(*words, **options):
    command = [sys.executable, "-m", "precisionlm", *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, env=ENVIRONMENT, timeout=300, **options)


def ok(*words):
    result = precisionlm(*words)
    assert result.returncode == 0, result.stderr
    return result.stdout


@pytest.fixture
def config(tokens_folder, tmp_path):
    path = tmp_path / "run.yaml"
    path.write_text(yaml.safe_dump(tiny_tree(tokens_folder)))
    return path


def test_the_whole_pipeline(tmp_path, capsys):
    def dry_run(*words):
        assert main([*map(str, words), "--dry-run", "--json"]) == 0
        return json.loads(capsys.readouterr().out)

    text = tmp_path / "text"
    text.mkdir()
    for i in range(40):
        words = [f"word{(i * j) % 17} follows word{(i + j) % 13}." for j in range(150)]
        (text / f"{i}.txt").write_text(" ".join(words))
    data = tmp_path / "data"
    meta = json.loads(
        ok("data", "prepare", text, "--out", data, "--vocab-size", 270, "--validation-every", 8, "--json")
    )
    assert meta["vocab_size"] == 270
    tree = tiny_tree(data)
    tree["model"] |= {"layers": 1}
    sweep = tmp_path / "sweep.yaml"
    grid = {
        "size": [{"model.width": 32}],
        "tokens": [10_500, 20_000],
        "precision.recipe": ["bf16", "W3A8"],
    }
    sweep.write_text(yaml.safe_dump({"experiment": tree, "grid": grid}))
    out = tmp_path / "runs"
    planned = dry_run("sweep", sweep, "--out", out)
    assert len(planned) == 4 and {row["status"] for row in planned} == {"new"} and not out.exists()
    swept = json.loads(ok("sweep", sweep, "--out", out, "--json"))
    assert len(swept["done"]) == 4 and swept["compilations"] == 2  # two scale structures
    again = dry_run("sweep", sweep, "--out", out)
    assert {row["status"] for row in again} == {"done"}
    assert len(dry_run("ptq", out, "--bits", "2,int4/g16", "--recipe", "bf16")) == 2 and not list(out.glob("*/ptq"))
    quantized = json.loads(ok("ptq", out, "--bits", "2,int4/g16", "--recipe", "bf16", "--json"))
    assert len(quantized) == 4
    assert [row["status"] for row in dry_run("evaluate", out)] == ["done"] * 4
    words = ["evaluate", out, "--precision.recipe", "W3A8", "--training.eval_tokens", 1000]
    assert {row["status"] for row in dry_run(*words)} == {"new"} and not list(out.glob("*/evaluations/*.json"))
    again = json.loads(ok(*words, "--json"))
    assert sorted(row["evaluation"] for row in again) == ["recipe"] * 2 + ["trained"] * 2
    assert json.loads(ok(*words, "--json")) == [row | {"status": "done"} for row in again]
    counts = json.loads(ok("table", out, "-o", tmp_path / "runs.parquet", "--json"))
    assert (counts["rows"], counts["runs"], counts["unfinished"]) == (12, 4, [])
    table = pd.read_parquet(tmp_path / "runs.parquet")
    assert tuple(table.columns) == NAMES
    assert len(pd.read_csv(tmp_path / "runs.csv")) == 12
    assert table["val_loss"].between(0.3, 6).all() and (table["val_loss_se"] > 0).all()
    assert set(table["ptq_bits"].dropna()) == {2.0, 4.0} and set(table["ptq_group"].dropna()) == {float("inf"), 16.0}
    fitted = json.loads(ok("fit", "--runs", tmp_path / "runs.parquet", "--law", "kumar", "--starts", 50, "--json"))
    assert fitted["rows_used"] == 8 and {"law", "params", "objective", "status", "rows_excluded"} <= set(fitted)
    report = tmp_path / "report.html"
    ok("report", "--runs", tmp_path / "runs.parquet", "--law", "kumar", "--bootstrap", 20, "--starts", 50, "-o", report)
    assert "<svg" in report.read_text() or "data:image" in report.read_text()


def test_train_override_dry_run_and_json(config, tmp_path):
    shown = ok("train", config, "--out", tmp_path / "runs", "--training.steps", 4, "--dry-run")
    assert "1 runs" in shown and "W4A8" in shown and not (tmp_path / "runs").exists()
    outcome = json.loads(ok("train", config, "--out", tmp_path / "runs", "--training.steps", 4, "--json"))
    assert outcome["status"] == "done" and outcome["result"]["row"]["steps"] == 4
    assert {"config.yaml", "metrics.jsonl", "result.json", "audit.json", "checkpoints"} <= set(
        os.listdir(outcome["run_dir"])
    )


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["train", "{config}", "--out", "o", "--training.stpes", "3"], "did you mean 'steps'?"),
        (["train", "absent.yaml", "--out", "o"], "absent.yaml: cannot be read"),
        (["train", "{config}", "--out", "o", "--data.path", "nowhere"], "nowhere"),
        (["train", "{config}", "--out", "o", "--precision.recipe", "W4A4-g5"], "does not divide"),
        (["sweep", "{config}", "--out", "o"], "unknown key"),
        (["table", "nowhere"], "holds no finished run"),
        (["ptq", "nowhere"], "holds no finished run"),
        (["evaluate", "nowhere"], "holds no finished run"),
        (["evaluate", "nowhere", "--optimizer.learning_rate", "1"], "decides no evaluation of a finished run"),
        (["fit", "--runs", "nowhere.csv", "--law", "kumar"], "nowhere.csv"),
        (["table", "nowhere", "--bogus", "1"], "unknown argument '--bogus'"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_two(config, tmp_path, words, message):
    result = precisionlm(*(word.format(config=config) for word in words), cwd=tmp_path)
    assert result.returncode == 2
    assert message in result.stderr and result.stderr.count("\n") == 1 and result.stderr.startswith("error: ")
    assert result.stdout == "" and not (tmp_path / "o").exists()


def test_a_warm_up_that_is_cut_is_one_warning_and_recorded_as_used(config, tmp_path, capsys):
    words = ["train", str(config), "--out", str(tmp_path / "runs"), "--training.steps", "5"]
    for dry in ([], ["--dry-run"]):
        assert main([*words, "--optimizer.warmup_steps", "9", "--json", *dry]) == 0
        out, err = capsys.readouterr()
        (line,) = [line for line in err.splitlines() if not line.startswith("train ")]
        assert line.startswith("warning: optimizer.warmup_steps: 9 steps of warm-up") and "training.steps 5" in line
        if not dry:
            row = json.loads(out)["result"]["row"]
            assert (row["warmup_steps"], row["final_lr_fraction"]) == (5, 1.0)
    assert main([*words, "--dry-run"]) == 0
    assert "warning" not in capsys.readouterr().err


def test_a_dry_run_of_data_and_demo_writes_nothing(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "text.txt").write_text("some words " * 200)
    words = ["data", "prepare", "text.txt", "--out", "data", "--vocab-size", "300", "--dry-run"]
    assert main([*words, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["status"], found["files"], found["bytes"], found["vocab_size"]) == ("new", 1, 2200, 300)
    assert main(words) == 0 and "nothing was written" in capsys.readouterr().out
    assert main([*words[:2], "absent", *words[3:]]) == 2 and "names no file" in capsys.readouterr().err
    assert main(["demo", "--dry-run", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert len(rows) == 12 and {row["recipe"] for row in rows} == {"bf16", "W4A8", "W3A8"}
    assert len({row["N_params"] for row in rows}) == len({row["D_tokens"] for row in rows}) == 2
    assert main(["demo", "--dry-run", "--scale", "0"]) == 2
    assert os.listdir() == ["text.txt"]


def test_divergence_exits_three(config, tmp_path):
    words = ["train", config, "--out", tmp_path / "runs", "--training.divergence_loss", "1.0"]
    assert [precisionlm(*words).returncode for _ in range(2)] == [3, 3]


def test_sigterm_saves_and_exits_75_and_the_same_command_finishes(config, tmp_path):
    words = ["train", config, "--out", tmp_path / "runs", "--training.steps", "4000"]
    command = [sys.executable, "-m", "precisionlm", *map(str, words)]
    process = subprocess.Popen(command, env=ENVIRONMENT, stderr=subprocess.PIPE, text=True)
    metrics = None
    while metrics is None or metrics.stat().st_size == 0:
        time.sleep(0.2)
        metrics = next((tmp_path / "runs").glob("*/metrics.jsonl"), None)
        assert process.poll() is None
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 75, errors
    assert "the same command continues it" in errors
    assert not list((tmp_path / "runs").glob("*/result.json"))
    assert list((tmp_path / "runs").glob("*/checkpoints/[0-9]*"))


def test_every_verb_has_help_with_an_example(capsys):
    def help_of(*words):
        with pytest.raises(SystemExit) as stop:
            main([*words, "--help"])
        assert stop.value.code == 0
        return capsys.readouterr().out

    listing = help_of()
    for verb in [
        "data",
        "train",
        "sweep",
        "evaluate",
        "ptq",
        "table",
        "fit",
        "compare",
        "plan",
        "figures",
        "report",
        "predict",
        "score",
        "publish",
        "demo",
    ]:
        assert verb in listing
        text = help_of(verb, "prepare") if verb == "data" else help_of(verb)
        assert "example" in text and f"precisionlm {verb}" in text and "--json" in text
        assert ("--dry-run" in text) == (verb not in ("table", "score"))  # all others spend time
    assert main(["table", "--columns"]) == 0
    assert "N_params (int)" in capsys.readouterr().out


def parsers(parser, *words):
    """Every parser of the command line, with the words that lead to it."""
    yield words
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for word, below in action.choices.items():
                yield from parsers(below, *words, word)


@pytest.mark.parametrize("words", list(parsers(build_parser())), ids=" ".join)
def test_every_help_can_be_printed(words, capsys):
    with pytest.raises(SystemExit) as stop:
        main([*words, "--help"])
    assert stop.value.code == 0 and "usage: " + " ".join(("precisionlm", *words)) in capsys.readouterr().out


@pytest.mark.long
def test_bench_training_runs_the_command_itself():
    words = ("--size", "tiny", "--steps", 30, "--every", 10, "--rounds", 1, "--json")
    found = json.loads(ok("bench", "training", *words))
    assert min(found["first_loss_warm_s"], found["first_loss_cold_s"], found["saving_ratios"][0]) > 0
    assert "at least 30" in precisionlm("bench", "training", "--steps", 29, "--every", 10).stderr
