"""precisionlm watch: what it says of runs, while they go on."""

import json
import os
import pty
import signal
import subprocess
import sys
import time

import pytest

from precisionlm.cli.main import main
from precisionlm.config import to_yaml
from precisionlm.errors import PreemptedError
from precisionlm.model.presets import non_embedding_parameters
from precisionlm.storage.claim import claim
from precisionlm.storage.run_directory import RunDirectory
from precisionlm.training.execute import train
from precisionlm.training.flops import training_flops_per_token
from precisionlm.watching.follow import Follower
from precisionlm.watching.reading import Watched

from ..conftest import StopAt

SECONDS, WALL = 0.5, 0.625  # a step's own time, and from step to step


def lines(first, last, loss=3.0, norm=1.0):
    return "".join(
        json.dumps(
            {"step": i, "loss": loss, "grad_norm": norm, "finite": 1.0, "wall_seconds": WALL * i, "seconds": SECONDS}
        )
        + "\n"
        for i in range(first, last + 1)
    )


@pytest.fixture
def begun(experiment, tmp_path):
    """A run directory of an H100 with 150 steps of 200 and a spike at step 120."""
    model = experiment.model.model_copy(update={"vocab_size": 97})
    training = experiment.training.model_copy(update={"steps": 200})
    experiment = experiment.model_copy(update={"model": model, "training": training})
    directory = RunDirectory(tmp_path / "runs", "0123456789ab")
    directory.create()
    directory.write_text("config.yaml", to_yaml(experiment))
    directory.write_text("segments.jsonl", json.dumps({"device": "NVIDIA H100 80GB HBM3 x 4", "step": 0}) + "\n")
    with directory.metrics.open("a") as file:
        file.write(lines(1, 119) + lines(120, 120, loss=5.0, norm=30.0) + lines(121, 150))
        file.write(json.dumps({"step": 100, "val_loss": 3.25, "val_loss_se": 0.1}) + "\n")
        for step, error in ((10, 0.01), (150, 0.04)):
            found = {"quantization/down.a/relative_mse": error, "quantization/qkv.w/relative_mse": 0.001}
            file.write(json.dumps({"step": step, **found, "quantization/down.a/clipped": 0.9}) + "\n")
        file.write('{"step": 151, "lo')  # under way
    return directory, experiment


def test_a_reading_by_hand(begun):
    directory, e = begun
    with claim(directory):
        reading, _ = Watched(directory.path).now()
    assert (reading.state, reading.step, reading.steps, reading.loss) == ("running", 150, 200, 3.0)
    assert reading.smoothed == pytest.approx(3.02)
    assert (reading.val_loss, reading.val_step) == (3.25, 100)
    rate = 8 * 32 / SECONDS
    assert reading.tokens_per_second == rate
    per_token = training_flops_per_token(e.model, non_embedding_parameters(e.model), 32)
    assert reading.mfu == pytest.approx(rate * per_token / (4 * 989.4e12))
    assert reading.goodput == pytest.approx(SECONDS / WALL)
    assert reading.seconds_left == pytest.approx(50 * WALL)
    assert [(s.first, s.last, s.peak, s.usual) for s in reading.loss_spikes] == [(120, 120, 5.0, 3.0)]
    assert [(s.first, s.peak) for s in reading.gradient_outliers] == [(120, 30.0)]
    assert (reading.worst_site, reading.worst_error, reading.worst_error_at_first) == ("down.a", 0.04, 0.01)
    assert reading.checkpoint_step is None and reading.quiet_seconds is not None and not reading.is_quiet


def test_a_run_nobody_holds_has_no_time_left_and_a_silent_one_is_said_to_be(begun, capsys):
    directory, _ = begun
    assert Watched(directory.path).now()[0].seconds_left is None
    os.utime(directory.metrics, (time.time() - 600,) * 2)
    with claim(directory):
        assert main(["watch", str(directory.path), "--once"]) == 0
    out = capsys.readouterr().out
    assert "running, quiet for 10:0" in out and "loss spike at step 120: 5, usual 3" in out
    assert "150 of 200 (75%)" in out


def test_a_real_run_stopped_and_finished(experiment, tmp_path, capsys):
    checkpoint = experiment.checkpoint.model_copy(update={"every_steps": 4})
    plain = experiment.precision.model_copy(update={"recipe": "bf16"})
    experiment = experiment.model_copy(update={"checkpoint": checkpoint, "precision": plain})
    with pytest.raises(PreemptedError):
        train(experiment, tmp_path / "runs", interrupted=StopAt(5))
    assert main(["watch", str(tmp_path / "runs"), "--json"]) == 0
    (row,) = json.loads(capsys.readouterr().out)
    assert (row["state"], row["steps"]) == ("begun", 12) and row["step"] == row["checkpoint_step"] > 3
    assert 0 <= row["checkpoint_age"] < 600 and row["mfu"] is None and row["device"] == "cpu x 8"
    outcome = train(experiment, tmp_path / "runs")
    main(["watch", str(outcome.path), "--json"])
    (row,) = json.loads(capsys.readouterr().out)
    written = outcome.result.row
    assert (row["state"], row["step"], row["starts"]) == ("done", 12, 2)
    assert written["goodput"] <= row["goodput"] <= 1  # that of the whole run counts its last evaluation too
    assert row["run_id"] == outcome.run_id and row["loss_spikes"] == []


def test_a_folder_is_a_table_and_what_cannot_be_read_is_named(begun, tmp_path, capsys):
    _, experiment = begun
    other = RunDirectory(tmp_path / "runs" / "nested", "aaaaaaaaaaaa")
    other.create()
    other.write_text("config.yaml", to_yaml(experiment))
    (tmp_path / "runs" / "wandb").mkdir()
    (tmp_path / "runs" / "wandb" / "config.yaml").write_text("_wandb: {}")
    broken = RunDirectory(tmp_path / "runs", "bbbbbbbbbbbb")
    broken.create()
    broken.write_text("config.yaml", "model: [")
    assert main(["watch", str(tmp_path / "runs"), "--once"]) == 0
    out = capsys.readouterr().out
    assert "0123456789ab" in out and "aaaaaaaaaaaa" in out and "1 spike (last 120)" in out and "150/200" in out
    assert "left out" in out and "bbbbbbbbbbbb" in out and "wandb" not in out
    assert main(["watch", str(broken.path)]) == 2
    assert main(["watch", str(tmp_path / "nothing")]) == 2
    assert "no run directory, nor a folder of them" in capsys.readouterr().err


def test_following_reads_what_came_and_begins_again_after_a_resume(tmp_path):
    path = tmp_path / "metrics.jsonl"
    follower = Follower(path)
    follower.read()
    assert follower.record.steps == []
    path.write_text(lines(1, 3) + '{"step": 4, "loss')
    follower.read()
    assert follower.record.steps == [1, 2, 3]
    with path.open("a") as file:
        file.write('": 2.5}\n\x00damaged\n{"step": 5, "loss": null, "finite": 0.0}\n')
    follower.read()
    assert follower.record.steps == [1, 2, 3, 4, 5] and follower.record.skipped == 1
    trimmed = tmp_path / "trimmed"
    trimmed.write_text(lines(1, 2))
    trimmed.replace(path)
    follower.read()
    assert follower.record.steps == [1, 2] and follower.record.skipped == 0


def test_on_a_terminal_it_follows_the_run_until_ctrl_c(begun):
    directory, _ = begun
    ours, theirs = pty.openpty()
    command = [sys.executable, "-m", "precisionlm", "watch", str(directory.path), "--every", "0.05"]
    process = subprocess.Popen(
        command, stdout=theirs, stderr=theirs, env=os.environ | {"TERM": "xterm", "COLUMNS": "120"}
    )
    os.close(theirs)

    def until(words):
        seen = b""
        while words not in seen:
            try:
                seen += os.read(ours, 4096)
            except OSError:
                raise AssertionError(f"it ended: {seen!r}") from None
        return seen

    assert b"\x1b[" in until(b"150 of 200")  # what draws is obeyed
    with directory.metrics.open("a") as file:
        file.write("\n" + lines(151, 160))
    until(b"160 of 200")
    process.send_signal(signal.SIGINT)
    assert process.wait(60) == 0
    os.close(ours)
