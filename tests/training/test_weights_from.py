"""Weights of one run as the beginning of another, at another recipe and on another mesh: weights only."""

import shutil
from pathlib import Path

import jax
import numpy as np
import pytest

from precisionlm.cli.main import main
from precisionlm.config import CheckpointConfig, apply_overrides, build, to_yaml
from precisionlm.errors import UserError
from precisionlm.ptq.evaluate import quantize_run
from precisionlm.ptq.method import weight_quantization
from precisionlm.storage.checkpoint import Checkpoints, absolute, folder_of, restore_params
from precisionlm.storage.run_directory import RunDirectory
from precisionlm.training.execute import beginning_of, train
from precisionlm.training.run import prepare_run
from precisionlm.training.step import abstract_state, initial_state, without_learned_scales

from ..conftest import tiny_tree

ONE = jax.devices()[:1]


def at(tree, recipe, source=None, **training):
    given = tree["training"] | training | ({"weights_from": str(source.path)} if source else {})
    return build(tree | {"precision": {"recipe": recipe}, "training": given}, "test")


@pytest.fixture
def tree(tokens_folder):
    tree = tiny_tree(tokens_folder)
    tree["model"] |= {"layers": 1}
    tree["training"] |= {"steps": 3}
    return tree


def started(experiment, folder, devices=None):
    run = prepare_run(experiment, devices)
    with Checkpoints(folder, experiment.checkpoint) as checkpoints:
        beginning = beginning_of(run, RunDirectory(folder, run.run_id), checkpoints)
    assert (beginning.step, beginning.position) == (0, {})
    return run, beginning.state


@pytest.mark.parametrize("recipe", ["W4A4", "W=int4/lsq,A=int4/lac"])
def test_weights_and_nothing_else_are_taken(tree, tmp_path, recipe):
    learned = recipe != "W4A4"
    source = train(at(tree, "bf16" if learned else "W=int4/lsq"), tmp_path / "source", devices=ONE)
    run, state = started(at(tree, recipe, source), tmp_path / "new")  # onto eight devices
    _, theirs = restore_params(
        source.path / "checkpoints", without_learned_scales(abstract_state(run.program)["params"])
    )
    jax.tree.map(np.testing.assert_array_equal, without_learned_scales(state["params"]), theirs)
    assert int(state["step"]) == 0 and not any(np.any(leaf) for leaf in jax.tree.leaves(state["opt_state"]))
    if learned:  # step sizes belong to the weights taken, not to fresh ones
        fresh = initial_state(run.program, 0, run.grids)["params"]
        scales, others = (p["blocks"]["mlp"]["down"]["w_clip"] for p in (state["params"], fresh))
        assert scales.shape == others.shape and not np.allclose(scales, others, atol=1e-3)


def test_a_run_from_weights_goes_on_from_their_loss(tree, tmp_path):
    source = train(at(tree, "bf16", steps=12), tmp_path, devices=ONE)
    outcome = train(at(tree, "W8A8", source), tmp_path, devices=ONE)
    assert outcome.result.row["weights_from"] == source.run_id and outcome.run_id != source.run_id
    first = source.result.evaluations[0]["val_loss"]
    assert outcome.result.evaluations[0]["val_loss"] < first + 0.05
    assert train(at(tree, "W8A8"), tmp_path, devices=ONE).result.evaluations[0]["val_loss"] > first + 0.1


def test_what_is_no_source_is_an_error(tree, tmp_path, capsys):
    source = train(at(tree, "bf16"), tmp_path, devices=ONE)
    wider = tree | {"model": tree["model"] | {"mlp_width": 96}}
    with pytest.raises(UserError, match=r"checkpoint: 'params/blocks/mlp/down/w' is .* there and .* in this run"):
        train(at(wider, "W8A8", source), tmp_path, devices=ONE)
    config = tmp_path / "run.yaml"
    config.write_text(to_yaml(at(tree, "W8A8")))
    words = ["train", str(config), "--out", str(tmp_path / "runs"), "--dry-run", "--weights-only"]
    assert main([*words, str(tmp_path / "0123456789ab")]) == 2
    assert "0123456789ab is not the directory of a finished run" in capsys.readouterr().err
    assert main([*words, str(tmp_path / "pretrained")]) == 2  # its name is part of the new run's identity
    assert "training.weights_from" in capsys.readouterr().err
    renamed = tmp_path / "copies" / "0123456789ab"
    shutil.copytree(source.path, renamed)
    assert main([*words, str(renamed)]) == 2
    assert f"holds run {source.run_id}; keep that name" in capsys.readouterr().err
    assert main([*words, str(source.path)]) == 0
    assert not (tmp_path / "runs").exists()


def test_checkpoints_in_a_folder_of_their_own(tree, tmp_path):
    elsewhere = {"checkpoint": {"folder": str(tmp_path / "bucket"), "trunk": True}}
    wsd = tree | {"optimizer": tree["optimizer"] | {"schedule": "wsd", "warmup_steps": 1, "decay_fraction": 0.5}}
    first = train(at(wsd | elsewhere, "bf16", steps=4), tmp_path / "runs", devices=ONE)
    assert {p.name for p in (tmp_path / "bucket" / first.run_id).iterdir()} == {"checkpoints", "trunk"}
    assert not (first.path / "checkpoints").exists() and not (first.path / "trunk").exists()
    branched = train(at(wsd | elsewhere, "bf16", steps=6), tmp_path / "runs", devices=ONE)
    assert branched.result.row["branch_steps"] == 2
    (row,) = quantize_run(first.path, "rtn", [weight_quantization("4")], print)
    assert row["val_loss"] > 0
    _, state = started(at(tree, "bf16", first), tmp_path / "new", ONE)
    theirs = restore_params(tmp_path / "bucket" / first.run_id / "checkpoints", abstract_of(state))[1]
    jax.tree.map(np.testing.assert_array_equal, state["params"], theirs)


def test_a_bucket_is_no_folder_of_this_machine():
    config = CheckpointConfig(folder="gs://bucket/runs")
    assert str(folder_of(RunDirectory(Path("runs"), "0a1b"), config)) == "gs://bucket/runs/0a1b/checkpoints"
    assert str(absolute("gs://bucket/runs")) == "gs://bucket/runs"
    assert str(absolute("runs")) == str(Path.cwd() / "runs")
    tree = apply_overrides(
        {"checkpoint": {"folder": "elsewhere"}}, ["--checkpoint.folder", "null", "--data.path", "1e5"]
    )
    assert tree == {"checkpoint": {"folder": None}, "data": {"path": "1e5"}}


def abstract_of(state):
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state["params"])
