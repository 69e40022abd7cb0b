"""Whole runs in process: resume bitwise, skip, preemption, divergence, locks, damaged checkpoints."""

import json
import math
import shutil
from types import SimpleNamespace

import jax
import numpy as np
import pytest

from precisionlm.config import build
from precisionlm.errors import DivergedError, PreemptedError, UserError
from precisionlm.storage.checkpoint import Checkpoints
from precisionlm.storage.evaluation import Evaluation
from precisionlm.storage.run_directory import RunDirectory, read_metrics
from precisionlm.training import loop
from precisionlm.training.execute import train
from precisionlm.training.run import pace

from ..conftest import StopAt, tiny_tree

ONE = jax.devices()[:1]


def history(folder):
    return [(line["step"], line["loss"]) for line in read_metrics(folder / "metrics.jsonl")]


def test_resume_is_bitwise_the_unbroken_run(experiment, tmp_path):
    whole = train(experiment, tmp_path / "whole", devices=ONE)
    for stop in (5, 3):
        with pytest.raises(PreemptedError, match="the same command continues it"):
            train(experiment, tmp_path / "broken", interrupted=StopAt(stop - 1), devices=ONE)
    broken = train(experiment, tmp_path / "broken", devices=ONE)
    assert broken.run_id == whole.run_id
    assert history(broken.path) == history(whole.path)
    assert [step for step, _ in history(whole.path)] == list(range(1, 13))
    assert broken.result.evaluations == whole.result.evaluations


def test_every_sequence_of_an_evaluation_is_kept(experiment, tmp_path):
    training = experiment.training.model_copy(update={"steps": 2, "eval_bf16": True})
    outcome = train(experiment.model_copy(update={"training": training}), tmp_path, devices=ONE)
    for row, name in zip(outcome.result.evaluations, ("trained", "bf16"), strict=True):
        found = Evaluation.read(RunDirectory.at(outcome.path), row["sequences"])
        assert (row["evaluation"], row["sequences"]) == (name, f"evaluations/{name}.npz")
        assert (found.loss, found.tokens) == (row["val_loss"], row["val_tokens"]) and len(found.sums) == 63
        assert found.standard_error == row["val_loss_se"] > 0
        assert found.standard_error_sequences == row["val_loss_se_sequences"] != row["val_loss_se"]


def test_a_finished_run_is_skipped_and_never_overwritten(experiment, tmp_path):
    first = train(experiment, tmp_path, devices=ONE)
    before = {path: path.stat().st_mtime_ns for path in first.path.rglob("*") if path.is_file()}
    second = train(experiment, tmp_path, devices=ONE)
    assert (first.status, second.status) == ("done", "skipped")
    assert second.result == first.result
    assert {path: path.stat().st_mtime_ns for path in first.path.rglob("*") if path.is_file()} == before


def test_resume_on_another_mesh(experiment, tmp_path):
    with pytest.raises(PreemptedError):
        train(experiment, tmp_path, interrupted=StopAt(5), devices=ONE)
    whole = train(experiment, tmp_path / "whole", devices=ONE)
    resumed = train(experiment, tmp_path)
    ours, theirs = (np.array([loss for _, loss in history(run.path)]) for run in (resumed, whole))
    np.testing.assert_allclose(ours[:6], theirs[:6], atol=0)
    np.testing.assert_allclose(ours, theirs, atol=5e-4)  # rounding flips after the change of mesh


def test_divergence_is_a_recorded_result(experiment, tmp_path):
    wild = experiment.model_copy(update={"training": experiment.training.model_copy(update={"divergence_loss": 1.0})})
    with pytest.raises(DivergedError, match="above divergence_loss"):
        train(wild, tmp_path, devices=ONE)
    (result,) = [json.loads(path.read_text()) for path in tmp_path.glob("*/result.json")]
    assert result["status"] == "diverged" and "step 1" in result["reason"]
    assert result["evaluations"][0]["val_loss"] is None
    assert train(wild, tmp_path, devices=ONE).status == "skipped"


@pytest.mark.parametrize("policy", ["stop", "skip"])
def test_nan_in_the_gradient(experiment, tmp_path, policy, monkeypatch):
    bad = experiment.model_copy(update={"training": experiment.training.model_copy(update={"on_nan": policy})})
    real, calls = loop.hyperparameters, []

    def poisoned(e):
        # A weight of the log-normalizer that is not a number poisons loss and gradients alike, from inside the step.
        calls.append(e)
        return real(e) | {"z_loss": math.nan}

    monkeypatch.setattr(loop, "hyperparameters", poisoned)
    if policy == "stop":
        with pytest.raises(DivergedError, match="not finite at step 1"):
            train(bad, tmp_path, devices=ONE)
    else:
        with pytest.raises(DivergedError, match="12 of 12 steps had no finite gradient"):
            train(bad, tmp_path, devices=ONE)
        (path,) = tmp_path.glob("*")
        lines = list(read_metrics(path / "metrics.jsonl"))
        result = json.loads((path / "result.json").read_text())
        assert (result["status"], result["row"]["skipped_steps"]) == ("diverged", 12)
        assert result["evaluations"][0]["val_loss"] is None
        assert [line["finite"] for line in lines] == [0.0] * 12
        assert lines[0]["loss"] == pytest.approx(lines[-1]["loss"], abs=0.2)  # nothing was learned, nothing destroyed
    assert calls


@pytest.mark.parametrize("skipped", [6, 7])
def test_skipped_steps_are_counted_over_a_resume(experiment, tmp_path, monkeypatch, skipped):
    forgiving = experiment.model_copy(update={"training": experiment.training.model_copy(update={"on_nan": "skip"})})
    real = loop.train_step

    def train_step(program):
        def step(state, tokens, grids, hyper, seed):
            bad = int(state["step"]) % 2 == 0 or (skipped == 7 and int(state["step"]) == 1)
            return real(program)(state, tokens, grids, hyper | ({"z_loss": hyper["z_loss"] + nan} if bad else {}), seed)

        return step

    nan = jax.device_put(np.float32(math.nan), ONE[0])
    monkeypatch.setattr(loop, "train_step", train_step)
    with pytest.raises(PreemptedError):
        train(forgiving, tmp_path, interrupted=StopAt(5), devices=ONE)
    if skipped == 6:
        outcome = train(forgiving, tmp_path, devices=ONE)
        assert (outcome.status, outcome.result.row["skipped_steps"]) == ("done", 6)
    else:
        with pytest.raises(DivergedError, match="7 of 12 steps"):
            train(forgiving, tmp_path, devices=ONE)


def test_two_processes_cannot_train_one_run(experiment, tmp_path):
    def intrude():
        with pytest.raises(UserError, match="is being trained by another process"):
            train(experiment, tmp_path, devices=ONE)
        return True

    with pytest.raises(PreemptedError):
        train(experiment, tmp_path, interrupted=intrude, devices=ONE)


def test_a_damaged_checkpoint_gives_way_to_the_one_before(experiment, tmp_path):
    saving = experiment.model_copy(
        update={"checkpoint": experiment.checkpoint.model_copy(update={"every_steps": 3, "keep": 3})}
    )
    with pytest.raises(PreemptedError):
        train(saving, tmp_path, interrupted=StopAt(6), devices=ONE)
    (folder,) = tmp_path.glob("*/checkpoints")
    assert sorted(int(p.name) for p in folder.iterdir() if p.name.isdigit()) == [3, 6, 7]
    for path in (folder / "7" / "state" / "d").iterdir():
        path.write_bytes(b"not a tensor")
    shutil.rmtree(folder / "7" / "state" / "ocdbt.process_0")
    with pytest.warns(UserWarning, match="checkpoint of step 7 is damaged"):
        outcome = train(saving, tmp_path, devices=ONE)
    assert history(outcome.path) == history(train(saving, tmp_path / "whole", devices=ONE).path)


def test_result_has_every_column_of_the_table(experiment, tmp_path):
    from precisionlm.columns import NAMES

    outcome = train(experiment, tmp_path, devices=ONE)
    row = outcome.result.row | outcome.result.evaluations[0]
    of_the_table = {
        "eval_recipe",
        "eval_execution",
        "delta",
        "delta_se",
        "delta_to",
        "intermediate",
        "stated_by_others",
    }  # made when it is collected
    of_ptq = {name for name in NAMES if name.startswith("ptq_")}
    assert set(NAMES) - set(row) == {"status"} | of_ptq | of_the_table
    assert set(row) - set(NAMES) == {"sequences"}  # a file of the run directory
    assert row["D_tokens"] == 12 * 8 * 32 and row["audit_dots"] == 32
    assert row["flops"] == row["D_tokens"] * 6 * (row["N_params"] + 32 * 97 + 2 * 2 * 32 * 32 / 2)


def test_interim_evaluations_are_logged(tokens_folder, tmp_path):
    tree = tiny_tree(tokens_folder)
    tree["training"] |= {"eval_every": 5, "eval_bf16": True}
    outcome = train(build(tree, "test"), tmp_path, devices=ONE)
    found = [line["step"] for line in read_metrics(outcome.path / "metrics.jsonl") if "val_loss" in line]
    assert found == [5, 10]
    assert [e["evaluation"] for e in outcome.result.evaluations] == ["trained", "bf16"]


def test_seconds_are_of_the_steps_alone(experiment, tmp_path, monkeypatch):
    """A clock on which a step takes 1 s, its compilation 50, an evaluation 100, a checkpoint 30."""
    clock = SimpleNamespace(now=0.0)
    real_step, real_evaluate, real_save = loop.train_step, loop.evaluate, Checkpoints.save

    class Loss(SimpleNamespace):
        def __float__(self):  # the host waits for the device
            clock.now += 1
            return float(self.value)

    def train_step(program):
        clock.compiled = False

        def step(*arguments):
            clock.now += 0 if clock.compiled else 50
            clock.compiled = True
            state, metrics = real_step(program)(*arguments)
            return state, metrics | {"loss": Loss(value=metrics["loss"])}

        return step

    def evaluate(*arguments):
        clock.now += 100
        return real_evaluate(*arguments)

    def save(*arguments):
        clock.now += 30
        return real_save(*arguments)

    monkeypatch.setattr(loop, "time", SimpleNamespace(monotonic=lambda: clock.now, perf_counter=lambda: clock.now))
    monkeypatch.setattr(loop, "train_step", train_step)
    monkeypatch.setattr(loop, "evaluate", evaluate)
    monkeypatch.setattr(Checkpoints, "save", save)
    asked = experiment.model_copy(
        update={
            "training": experiment.training.model_copy(update={"eval_every": 4}),
            "checkpoint": experiment.checkpoint.model_copy(update={"every_steps": 3, "every_seconds": None}),
        }
    )
    with pytest.raises(PreemptedError):
        train(asked, tmp_path, interrupted=StopAt(5), devices=ONE)
    outcome = train(asked, tmp_path, devices=ONE)
    steps = [line for line in read_metrics(outcome.path / "metrics.jsonl") if "loss" in line]
    begun = len(steps) - len([line for line in steps if "seconds" in line])
    assert begun == 2 and "seconds" not in steps[0]  # the first step of each start is told apart
    assert {line["seconds"] for line in steps if "seconds" in line} == {1.0}
    assert outcome.result.row["tokens_per_second"] == 8 * 32


def test_goodput_and_tokens_per_second_by_hand():
    assert pace([0.05] * 10, 100, 95.0) == (pytest.approx(2000), pytest.approx(0.5 / 95))
    assert pace([9.0] * 10 + [0.5, 0.25, 0.25], 100, 910.0) == (400.0, pytest.approx(0.1))
    assert math.isnan(pace([], 100, 5.0)[0]) and pace([], 100, 5.0)[1] == 0.0
