"""Metrics beside the run directory's own: what goes where, and that nothing of it changes a run."""

import json
import math

import pytest

from precisionlm.config import PrecisionConfig, TrackingConfig
from precisionlm.errors import PreemptedError, UserError
from precisionlm.storage.run_directory import read_metrics
from precisionlm.training.execute import train
from precisionlm.training.tracking import TrackedLog, trackers

from ..conftest import StopAt


def with_(experiment, **tracking):
    return experiment.model_copy(update={"tracking": experiment.tracking.model_copy(update=tracking)})


def test_tensorboard_profile_and_hlo_change_no_run(experiment, tmp_path):
    events = pytest.importorskip(
        "tensorboardX", reason="tensorboardX is not installed: pip install 'precisionlm[track]'"
    )
    asked = with_(experiment, tensorboard=True, profile_from=3, profile_steps=2, log_hlo=True)
    plain, tracked = train(experiment, tmp_path / "a"), train(asked, tmp_path / "b")
    assert plain.run_id == tracked.run_id
    losses = [[line["loss"] for line in read_metrics(o.path / "metrics.jsonl")] for o in (plain, tracked)]
    assert losses[0] == losses[1] and len(losses[0]) == 12
    names = {path.name for path in tracked.path.iterdir()}
    assert names - {path.name for path in plain.path.iterdir()} == {"tensorboard", "profile", "step.stablehlo.txt"}
    assert "stablehlo.dot_general" in (tracked.path / "step.stablehlo.txt").read_text()
    assert list((tracked.path / "profile").rglob("*.xplane.pb"))
    written = next((tracked.path / "tensorboard").iterdir()).read_bytes()
    assert events and written.count(b"grad_norm") == 12 and b"loss" in written


def errors_in(outcome):
    """step → the line of quantization errors."""
    lines = read_metrics(outcome.path / "metrics.jsonl")
    return {line["step"]: line for line in lines if any(name.startswith("quantization/") for name in line)}


def test_quantization_errors_of_every_site_are_those_of_the_steps_that_were_made(experiment, tmp_path):
    plain, asked = train(experiment, tmp_path / "a"), with_(experiment, quantization_every=1)
    every = train(asked, tmp_path / "b")
    losses = [[x["loss"] for x in read_metrics(o.path / "metrics.jsonl") if "loss" in x] for o in (plain, every)]
    assert plain.run_id == every.run_id and losses[0] == losses[1]
    found = errors_in(every)
    assert list(found) == list(range(1, 13)) and not errors_in(plain)
    audit = json.loads((every.path / "audit.json").read_text())["operands"]
    assert found[1] == {"step": 1} | {
        f"quantization/{o['site']}.{o['operand']}/{name}": o[name]
        for o in audit
        for name in ("clipped", "zeros", "mse", "relative_mse")
    }
    assert found[12]["quantization/down.w/relative_mse"] != found[1]["quantization/down.w/relative_mse"] > 0
    with pytest.raises(PreemptedError):
        train(asked, tmp_path / "c", interrupted=StopAt(5))
    assert errors_in(train(asked, tmp_path / "c")) == found  # a resumed run measures the same steps


def test_without_quantization_there_are_no_errors_to_measure(experiment, tmp_path):
    plain = experiment.model_copy(update={"precision": PrecisionConfig()})
    assert errors_in(train(with_(plain, quantization_every=3), tmp_path)) == {}


def test_lines_go_to_every_tracker_without_what_is_not_finite():
    seen, lines = [], []

    class Recording:
        def log(self, step, values):
            seen.append((step, values))

        def close(self):
            seen.append("closed")

    class Log:
        write = staticmethod(lines.append)
        flush = staticmethod(lambda: None)

    TrackedLog(Log(), [Recording()]).write({"step": 4, "loss": 2.5, "grad_norm": math.nan})
    assert math.isnan(lines[0].pop("grad_norm"))
    assert seen == [(4, {"loss": 2.5})] and lines == [{"step": 4, "loss": 2.5}]


def test_a_package_that_is_not_there_is_one_line(tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "wandb", None)
    asked = TrackingConfig(wandb_project="precision")
    with pytest.raises(UserError, match="wandb_project needs wandb"), trackers(asked, tmp_path, "id", {}, True):
        pass
    with trackers(asked, tmp_path, "id", {}, False) as none:  # other processes than the first track nothing
        assert none == []


def test_weights_and_biases_offline(experiment, tmp_path, monkeypatch):
    pytest.importorskip("wandb", reason="wandb is not installed: pip install 'precisionlm[track]'")
    monkeypatch.setenv("WANDB_MODE", "offline")
    outcome = train(with_(experiment, wandb_project="precision"), tmp_path)
    assert outcome.status == "done" and list((outcome.path / "wandb").glob("offline-run-*/*.wandb"))
