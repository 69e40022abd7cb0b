"""Nothing is lost: on purpose what a campaign of faults (`python -m tests.faults`) hits by luck alone."""

import json
import os
import shutil
import subprocess
import sys

import jax
import pytest
import yaml

from precisionlm.config import build
from precisionlm.errors import PreemptedError, UserError
from precisionlm.ptq.evaluate import quantize_run
from precisionlm.ptq.method import weight_quantization
from precisionlm.storage.run_directory import RunDirectory, read_metrics
from precisionlm.sweep.rows import plan
from precisionlm.sweep.scheduler import run_sweep
from precisionlm.training import execute
from precisionlm.training.execute import train

from ..conftest import tiny_tree
from .jobs import TIMES

ONE = jax.devices()[:1]
BEFORE_STEPS = 2  # polls: before the audit and before the first step


class StopAt:
    """Asks for an interruption at its `count`-th poll."""

    def __init__(self, count):
        self.left = count

    def __call__(self):
        self.left -= 1
        return self.left <= 0


@pytest.fixture
def tree(tokens_folder):
    tree = tiny_tree(tokens_folder)
    tree["model"] |= {"layers": 1}
    tree["precision"] = {"recipe": "bf16"}
    tree["training"] |= {"steps": 6, "eval_every": 3}
    return tree


def lines(folder):
    return [{k: v for k, v in line.items() if k not in TIMES} for line in read_metrics(folder / "metrics.jsonl")]


def test_every_poll_can_be_the_one_that_stops(tree, tmp_path):
    experiment = build(tree, "test")
    whole = train(experiment, tmp_path / "whole", devices=ONE)
    # 6 steps and 8 batches at each evaluation: before the first step, in an evaluation between, in the last one.
    saved = {1: "after step 0", BEFORE_STEPS: "after step 0", BEFORE_STEPS + 5: "step 3 of 6", -1: "step 6 of 6"}
    batches = -(-2000 // (8 * 32))
    saved[BEFORE_STEPS + 6 + batches + 2] = saved.pop(-1)
    for polls, message in saved.items():
        with pytest.raises(PreemptedError, match=message):
            train(experiment, tmp_path / "broken", interrupted=StopAt(polls), devices=ONE)
        assert not list((tmp_path / "broken").glob("*/result.json"))
        if "after" not in message:
            broken = train(experiment, tmp_path / "broken", devices=ONE)
            assert lines(broken.path) == lines(whole.path)
            assert broken.result.evaluations == whole.result.evaluations
            shutil.rmtree(tmp_path / "broken")


def test_a_result_means_that_its_checkpoint_is_there(tree, tmp_path, monkeypatch):
    real, seen = RunDirectory.write_json, []

    def write_json(self, name, content):
        seen.append((name, sorted(p.name for p in (self.path / "checkpoints").iterdir())))
        real(self, name, content)

    monkeypatch.setattr(RunDirectory, "write_json", write_json)
    train(build(tree, "test"), tmp_path, devices=ONE)
    assert seen == [("audit.json", []), ("result.json", ["6"])]


def test_a_record_with_missing_steps_is_not_continued(tree, tmp_path):
    with pytest.raises(PreemptedError):
        train(build(tree, "test"), tmp_path, interrupted=StopAt(BEFORE_STEPS + 2), devices=ONE)
    (log,) = tmp_path.glob("*/metrics.jsonl")
    log.write_text("".join(log.read_text().splitlines(keepends=True)[1:]))
    with pytest.raises(UserError, match="does not hold each of the 2 steps"):
        train(build(tree, "test"), tmp_path, devices=ONE)


def test_a_damaged_last_checkpoint_is_replaced(tree, tmp_path):
    experiment = build(tree | {"checkpoint": {"every_steps": 5}}, "test")
    evaluating = StopAt(BEFORE_STEPS + 6 + 8 + 2)
    with pytest.raises(PreemptedError, match="step 6 of 6"):
        train(experiment, tmp_path, interrupted=evaluating, devices=ONE)
    (folder,) = tmp_path.glob("*/checkpoints")
    shutil.rmtree(folder / "6" / "state" / "ocdbt.process_0")
    with pytest.warns(UserWarning, match="checkpoint of step 6 is damaged"):
        outcome = train(experiment, tmp_path, devices=ONE)
    (row,) = quantize_run(outcome.path, "rtn", [weight_quantization("4")], print)
    assert row["val_loss"] > 0  # the last checkpoint can be read again


def test_a_sweep_stops_between_runs_and_ptq_between_batches(tree, tmp_path):
    experiments = [build(tree | {"training": tree["training"] | {"seed": seed}}, "test") for seed in (0, 1)]
    rows = plan(experiments, tmp_path)
    finished = list(tmp_path.glob("*/result.json"))

    def after_one_run():
        return bool(list(tmp_path.glob("*/result.json")))

    with pytest.raises(PreemptedError, match="1 of 2 runs are finished"):
        run_sweep(rows, tmp_path, lambda share, text: None, after_one_run)
    assert not finished and len(list(tmp_path.glob("*"))) == 1
    outcome = run_sweep(rows, tmp_path, lambda share, text: None, lambda: False)
    assert (len(outcome.done), len(outcome.skipped)) == (1, 1)
    folder = tmp_path / outcome.done[0]
    with pytest.raises(PreemptedError):
        quantize_run(folder, "rtn", [weight_quantization("4")], print, StopAt(3))
    assert not list(folder.glob("ptq/*"))


@pytest.mark.long
def test_one_of_two_commands_wins(tree, tmp_path):
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(tree | {"training": tree["training"] | {"steps": 200}}))
    command = [sys.executable, "-m", "precisionlm", "train", tmp_path / "run.yaml", "--out", tmp_path / "runs"]
    environment = os.environ | {"JAX_PLATFORMS": "cpu"}
    both = [subprocess.Popen(command, env=environment, text=True, stderr=subprocess.PIPE) for _ in range(2)]
    ended = [(process.communicate(timeout=180)[1], process.returncode) for process in both]
    (_, won), (errors, lost) = sorted(ended, key=lambda pair: pair[1])
    assert (won, lost) == (0, 2) and errors.count("\n") == 1 and "is being trained by another process" in errors
    (result,) = (tmp_path / "runs").glob("*/result.json")
    assert json.loads(result.read_text())["status"] == "done"


def test_an_owner_who_finished_meanwhile_is_not_repeated(tree, tmp_path, monkeypatch):
    train(build(tree, "test"), tmp_path, devices=ONE)
    real, asked = RunDirectory.read_json, []

    def late(self, name):
        asked.append(name)
        return None if len(asked) == 1 else real(self, name)

    monkeypatch.setattr(RunDirectory, "read_json", late)
    monkeypatch.setattr(execute, "_train", None)
    assert train(build(tree, "test"), tmp_path, devices=ONE).status == "skipped"


def test_a_folder_that_cannot_be_made(tree, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"cannot be written: Not a directory"):
        train(build(tree, "test"), tmp_path / "file" / "runs", devices=ONE)


def test_a_folder_that_is_read_only(tree, tmp_path):
    (tmp_path / "runs").mkdir(mode=0o555)
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(tree))
    command = [sys.executable, "-m", "precisionlm", "train", tmp_path / "run.yaml", "--out", tmp_path / "runs"]
    if os.geteuid() == 0:
        if shutil.which("setpriv") is None:
            pytest.skip("root may write into a read-only folder, and util-linux's setpriv is not here to forbid it")
        command = ["setpriv", "--bounding-set", "-dac_override,-dac_read_search", *command]
    ended = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"JAX_PLATFORMS": "cpu"})
    assert ended.returncode == 2 and "cannot be written: Permission denied" in ended.stderr
    assert "Traceback" not in ended.stderr and not any((tmp_path / "runs").iterdir())
