"""Branch and decay: a run that begins from a shorter one's trunk is, bit for bit, the run from the start."""

import shutil
from pathlib import Path

import jax
import pytest

from precisionlm.config import build
from precisionlm.errors import PreemptedError
from precisionlm.storage.run_directory import read_metrics
from precisionlm.sweep.rows import plan
from precisionlm.sweep.scheduler import run_sweep
from precisionlm.training.execute import train
from precisionlm.training.run import prepare_run

from ..conftest import StopAt, tiny_tree

ONE = jax.devices()[:1]


@pytest.fixture
def tree(tokens_folder):
    tree = tiny_tree(tokens_folder)
    tree["optimizer"] |= {"schedule": "wsd", "warmup_steps": 2, "decay_fraction": 0.25}
    tree["model"] |= {"layers": 1}
    tree["training"] |= {"eval_every": 4}
    return tree | {"checkpoint": {"trunk": True}}


def at(tree, steps, **optimizer):
    return build(
        tree | {"training": tree["training"] | {"steps": steps}, "optimizer": tree["optimizer"] | optimizer}, "test"
    )


def history(folder):
    return [(line["step"], line.get("loss"), line.get("val_loss")) for line in read_metrics(folder / "metrics.jsonl")]


def same(one, other):
    assert one.run_id == other.run_id and history(one.path) == history(other.path)
    assert one.result.evaluations == other.result.evaluations


def test_longer_runs_begin_where_shorter_ones_decay(tree, tmp_path):
    budgets = [at(tree, steps) for steps in (16, 8, 12)]
    rows = plan(budgets, tmp_path / "sweep")
    assert [round(row.shared / row.flops * row.run.experiment.training.steps) for row in rows] == [9, 0, 6]
    outcome = run_sweep(rows, tmp_path / "sweep", lambda share, text: None, lambda: False)
    assert outcome.compilations <= 1 and len(outcome.done) == 3
    for experiment, begun in zip(budgets, (9, 0, 6), strict=True):
        branched = train(experiment, tmp_path / "sweep")
        assert branched.result.row["branch_steps"] == begun and branched.status == "skipped"
        alone = train(experiment, tmp_path / "alone" / str(experiment.training.steps))
        assert alone.result.row["branch_steps"] == 0
        same(branched, alone)


def test_a_branch_survives_an_interruption_and_a_damaged_trunk_is_not_used(tree, tmp_path):
    short = train(at(tree, 8), tmp_path / "runs", devices=ONE)
    with pytest.raises(PreemptedError, match="saved at step 8"):
        train(at(tree, 12), tmp_path / "runs", interrupted=StopAt(1), devices=ONE)
    branched = train(at(tree, 12), tmp_path / "runs", devices=ONE)
    assert (branched.result.row["branch_from"], branched.result.row["branch_steps"]) == (short.run_id, 6)
    assert [segment["step"] for segment in branched.result.segments] == [6, 8]  # its own starts alone
    same(branched, train(at(tree, 12), tmp_path / "alone", devices=ONE))
    (kept,) = (branched.path / "trunk").iterdir()
    shutil.rmtree(kept / "state" / "ocdbt.process_0")
    with pytest.warns(UserWarning, match="checkpoint of step 9 is damaged"):
        anew = train(at(tree, 16), tmp_path / "runs", devices=ONE)
    assert anew.result.row["branch_steps"] == 0


@pytest.mark.parametrize("folder", [None, pytest.param("kept", marks=pytest.mark.long)])
def test_a_trunk_is_found_however_its_folder_is_written(tree, tmp_path, monkeypatch, folder):
    """Relative paths where the trunk was trained, paths from the root where its branch is."""
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path)
    train(at(tree | {"checkpoint": {"trunk": True, "folder": folder}}, 8), Path("runs"), devices=ONE)
    monkeypatch.chdir(tmp_path / "elsewhere")
    branch = tree | {"checkpoint": {"trunk": True, "folder": folder and str(tmp_path / folder)}}
    assert train(at(branch, 12), tmp_path / "runs", devices=ONE).result.row["branch_steps"] == 6


def test_only_runs_that_are_alike_before_their_decay_share_a_trunk(tree, tmp_path):
    train(at(tree, 8), tmp_path, devices=ONE)
    others = (at(tree, 12, warmup_steps=3), at(tree, 12, learning_rate=1e-3), at(tree, 12, schedule="cosine"),
              at(tree, 6), at(tree, 12, final_fraction=0.1))  # fmt: skip
    for other in others:
        assert train(other, tmp_path, devices=ONE).result.row["branch_steps"] == 0
    longer = prepare_run(at(tree, 12, decay_fraction=0.5), ONE).trunk
    assert longer.identity == prepare_run(at(tree, 8), ONE).trunk.identity and longer.steps == 6
    assert prepare_run(at(tree, 12, schedule="cosine"), ONE).trunk is None
