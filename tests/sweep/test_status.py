"""Where every run of a sweep stands, while others train, without touching a device or a file."""

import json
import os
import subprocess
import sys

import pytest
import yaml

from precisionlm.cli.main import main
from precisionlm.config import build
from precisionlm.storage.claim import claim
from precisionlm.storage.failure import record_failure
from precisionlm.storage.result import Result
from precisionlm.storage.run_directory import RunDirectory, last_metrics
from precisionlm.sweep.rows import plan
from precisionlm.sweep.status import lines, standings, summary

from ..conftest import tiny_tree

STEPS = 400


@pytest.fixture
def tree(tokens_folder):
    tree = tiny_tree(tokens_folder)
    return tree | {"training": tree["training"] | {"steps": STEPS}}


@pytest.fixture
def experiments(tree):
    return [build(tree | {"training": tree["training"] | {"seed": seed}}, "test") for seed in range(7)]


def begun(out, row, steps=0, seconds=0.5):
    directory = RunDirectory(out, row.run.run_id)
    directory.create()
    steps = [json.dumps({"step": i + 1, "loss": 3.0} | ({"seconds": seconds} if i else {})) for i in range(steps)]
    directory.metrics.write_text("\n".join([*steps, '{"step": 9']))  # a line under way
    return directory


def contents(folder):
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*")}


def test_every_state_is_told_apart(experiments, tmp_path):
    rows = plan(experiments, tmp_path)
    assert {one.state for one in standings(experiments, tmp_path)} == {"new"} and not contents(tmp_path)
    done, diverged, failed, left, running, silent, _ = rows
    begun(tmp_path, done, STEPS)
    Result(status="done", reason="", row={"steps": STEPS}, evaluations=[]).write(
        RunDirectory(tmp_path, done.run.run_id)
    )
    reason = "loss 31.00 nats/token at step 7 is above divergence_loss"
    directory = begun(tmp_path, diverged, 7)
    Result(status="diverged", reason=reason, row={"steps": 7}, evaluations=[]).write(directory)
    record_failure(begun(tmp_path, failed, 3), "XlaRuntimeError: out of memory")
    begun(tmp_path, left, 100)
    with claim(begun(tmp_path, running, 300)), claim(begun(tmp_path, silent)):
        before = contents(tmp_path)
        found = {one.run_id: one for one in standings([*experiments, *experiments], tmp_path)}
        assert contents(tmp_path) == before
        shown = lines(list(found.values()))
    assert [one.state for one in found.values()] == ["done", "diverged", "failed", "begun", "running", "running", "new"]
    assert [one.step for one in found.values()] == [STEPS, 7, 3, 100, 300, 0, 0]
    assert found[failed.run.run_id].reason == "XlaRuntimeError: out of memory"
    assert found[diverged.run.run_id].reason == reason
    runs = found[running.run.run_id]
    assert runs.holder["pid"] == os.getpid() and runs.tokens_per_second == 256 / 0.5
    assert runs.seconds_left == pytest.approx(100 * 0.5)
    assert found[silent.run.run_id].tokens_per_second is None
    total = summary(list(found.values()))
    assert total.runs == 7 and sum(total.counts.values()) == 7 and total.counts["running"] == 2
    assert total.flops == pytest.approx(sum(row.flops for row in rows))  # as a plan counts them
    left_steps = 300 + 100 + 400 + 400  # begun, running, silent, new; what failed is not counted
    assert total.flops_left == pytest.approx(rows[0].flops * left_steps / STEPS)
    assert total.tokens_per_second == 512 and total.seconds_left == pytest.approx(left_steps * 0.5)
    assert any(f"pid {os.getpid()} since" in line and "step 300 of 400, 512 tokens/s" in line for line in shown)
    assert any("failed" in line and "out of memory" in line for line in shown)
    assert "1 done, 1 diverged, 2 running, 1 failed, 1 begun, nobody holds them, 1 to do" in shown[-2]
    assert "512 tokens/s now, time left at this speed" in shown[-1]
    assert "unknown, nothing runs" in lines(standings(experiments, tmp_path))[-1]


def test_the_command_asks_no_device(tree, tmp_path, capsys):
    path = tmp_path / "sweep.yaml"
    path.write_text(yaml.safe_dump({"experiment": tree, "seeds": 3}))
    words = ["sweep", "status", str(path), "--out", str(tmp_path / "runs")]
    command = [sys.executable, "-m", "precisionlm", *words, "--json"]
    environment = os.environ | {"JAX_PLATFORMS": "no_such_platform"}  # fails where a device is asked for
    found = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=120)
    assert found.returncode == 0, found.stderr
    content = json.loads(found.stdout)
    assert [row["status"] for row in content["runs"]] == ["new"] * 3 and content["summary"]["counts"]["new"] == 3
    assert not (tmp_path / "runs").exists()
    assert main(words) == 0 and "3 runs: 3 to do" in capsys.readouterr().out
    assert main(words[:2] + words[3:]) == 2 and "sweep status needs the sweep's file" in capsys.readouterr().err
    assert main(["sweep", str(path), str(path), *words[3:]]) == 2 and "takes one file" in capsys.readouterr().err


def test_the_last_lines_of_a_long_log(tmp_path):
    path = tmp_path / "metrics.jsonl"
    assert last_metrics(path) == []
    path.write_text("".join(json.dumps({"step": i}) + "\n" for i in range(50)) + '{"ste')
    assert [line["step"] for line in last_metrics(path)] == list(range(50))
    assert [line["step"] for line in last_metrics(path, size=40)] == [48, 49]
