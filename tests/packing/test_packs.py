"""Packs against the same runs alone: losses, files, lengths, divergence, resumption, devices, trunks, claims."""

import json
import math
import shutil

import jax
import numpy as np
import pytest

from precisionlm.config import build
from precisionlm.errors import PreemptedError
from precisionlm.packing import engine, narrow
from precisionlm.packing.corpus import Corpus, Order
from precisionlm.packing.engine import Keep, Trained, train_pack
from precisionlm.packing.prepare import Prepared
from precisionlm.packing.program import PackShape, run_mesh
from precisionlm.packing.reached import Results
from precisionlm.ptq.evaluate import Options, quantize_run
from precisionlm.ptq.method import weight_quantization
from precisionlm.storage.claim import claim
from precisionlm.storage.result import Result
from precisionlm.storage.run_directory import RunDirectory, read_metrics
from precisionlm.training.execute import train
from precisionlm.training.run import prepare_run

from ..conftest import tiny_tree

ONE = jax.devices()[:1]
PTQ = (weight_quantization("W4"), weight_quantization("W3-g16"))


def experiment_of(folder, recipe="W4A8", steps=12, seed=0, **sections):
    tree = tiny_tree(folder)
    tree["precision"]["recipe"] = recipe
    tree["training"] |= {"steps": steps, "seed": seed}
    for section, values in sections.items():
        tree[section] = tree.get(section, {}) | values
    return build(tree, "test")


def shape_of(run, runs=2, devices=ONE, steps=5):
    e = run.experiment
    return PackShape(run.program, run_mesh(devices), runs, steps, e.training.batch_size, e.data.sequence_length)


@pytest.fixture(scope="module")
def members(tokens_folder):
    """Five runs of one program that differ in format, length, seed, learning rate and schedule."""
    experiments = [
        experiment_of(tokens_folder, "W4A8", 12),
        experiment_of(tokens_folder, "W3A4", 17, optimizer={"learning_rate": 1e-3, "schedule": "wsd"}),
        experiment_of(tokens_folder, "W4A8", 12, seed=1),
        experiment_of(tokens_folder, "W8A8", 7, optimizer={"learning_rate": 3e-3, "weight_decay": 0.0}),
        experiment_of(tokens_folder, "W2A2", 14),
    ]
    return [prepare_run(e, ONE) for e in experiments]


@pytest.fixture(scope="module")
def prepared(members):
    return Prepared(shape_of(members[0]), members[0], PTQ)


@pytest.fixture(scope="module")
def alone(members, tmp_path_factory):
    out = tmp_path_factory.mktemp("alone")
    return {run.run_id: train(run.experiment, out, devices=ONE) for run in members}


@pytest.fixture(scope="module")
def packed(members, prepared, tmp_path_factory):
    out = tmp_path_factory.mktemp("packed")
    assert set(train_pack(prepared, members, out).outcome.values()) == {"done"}
    return out


def losses(folder):
    return [line["loss"] for line in read_metrics(folder / "metrics.jsonl")]


def test_a_packed_run_is_the_run_alone_to_rounding(members, alone, packed):
    for run in members:
        other, folder = alone[run.run_id], packed / run.run_id
        np.testing.assert_allclose(losses(folder), losses(other.path), rtol=2e-3)
        result = Result.read(RunDirectory.at(folder))
        (mine,), (theirs,) = result.evaluations, other.result.evaluations
        assert mine["val_loss"] == pytest.approx(theirs["val_loss"], rel=2e-3)
        assert mine["val_loss_se"] == pytest.approx(theirs["val_loss_se"], rel=5e-2)
        same = set(result.row) - {"train_loss", "tokens_per_second", "wall_seconds", "goodput", "mfu", "peak_memory"}
        same -= {"audit_clipped", "audit_zeros", "audit_relative_mse"}
        assert {key: result.row[key] for key in same} == {key: other.result.row[key] for key in same}
        assert result.segments[0]["together"] == 2 and other.result.segments[0]["together"] == 1


def test_a_packed_run_leaves_the_files_of_a_run(members, alone, packed):
    for run in members:
        mine, theirs = packed / run.run_id, alone[run.run_id].path
        assert (mine / "config.yaml").read_text() == (theirs / "config.yaml").read_text()
        audits = [json.loads((folder / "audit.json").read_text()) for folder in (mine, theirs)]
        assert audits[0] == audits[1]  # of one program, and with the products that the pack's own program has
        assert [p.name for p in (mine / "checkpoints").iterdir()] == [str(run.experiment.training.steps)]
    assert not list((packed / "packs").iterdir())


def test_quantized_evaluations_equal_those_of_the_verb(members, packed, tmp_path):
    folder = packed / members[0].run_id
    packed_rows = [json.loads(path.read_text()) for path in sorted((folder / "ptq").glob("*.json"))]
    for path in (folder / "ptq").glob("*"):
        path.rename(tmp_path / path.name)
    rows = quantize_run(folder, "rtn", PTQ, lambda text: None)
    rows.sort(key=lambda row: row["sequences"])
    packed_rows.sort(key=lambda row: row["sequences"])
    for mine, theirs in zip(packed_rows, rows, strict=True):
        assert mine["val_loss"] == pytest.approx(theirs["val_loss"], rel=1e-4)
        plain = [{key: value for key, value in row.items() if "loss" not in key} for row in (mine, theirs)]
        assert plain[0] == plain[1]


def test_an_interrupted_pack_goes_on_bit_for_bit(members, prepared, packed, tmp_path):
    polls = iter([False] * 3 + [True] + [False] * 4 + [True])
    for _ in range(2):
        with pytest.raises(PreemptedError, match="the same command continues"):
            train_pack(prepared, members, tmp_path, interrupted=lambda: next(polls))
    outcome = train_pack(prepared, members, tmp_path).outcome
    assert {"done", "skipped"} >= set(outcome.values())
    for run in members:
        assert losses(tmp_path / run.run_id) == losses(packed / run.run_id)
        (mine,), (theirs,) = (Result.read(RunDirectory(root, run.run_id)).evaluations for root in (tmp_path, packed))
        assert mine == theirs


def test_a_stop_between_training_and_evaluation_loses_nothing(members, prepared, packed, tmp_path, monkeypatch):
    calls = []

    def stopping():
        calls.append(0)
        return evaluating[0]

    evaluating = [False]
    evaluate = prepared.evaluator.evaluate

    def interrupted_evaluation(*args):
        evaluating[0] = True
        return evaluate(*args)

    with monkeypatch.context() as patch:
        patch.setattr(prepared.evaluator, "evaluate", interrupted_evaluation)
        for keep in (Keep(weights=False), Keep()):
            evaluating[0] = False
            with pytest.raises(PreemptedError):
                train_pack(prepared, members[:2], tmp_path, keep, interrupted=stopping)
    train_pack(prepared, members[:2], tmp_path, Keep(weights=False))
    for run in members[:2]:
        (mine,) = Result.read(RunDirectory(tmp_path, run.run_id)).evaluations
        (theirs,) = Result.read(RunDirectory(packed, run.run_id)).evaluations
        assert mine == theirs and not (tmp_path / run.run_id / "checkpoints").exists()


def test_two_members_that_are_one_run_are_equal_bit_for_bit(tokens_folder, prepared, tmp_path):
    """The same experiment twice, under two names of its data folder."""
    run = prepare_run(experiment_of(tokens_folder, "W4A8", 12), ONE)
    twin = prepare_run(experiment_of(tokens_folder, "W4A8", 12, optimizer={"learning_rate": 3e-3, "z_loss": 0.0}), ONE)
    assert run.run_id == twin.run_id
    slots = [run, twin]
    numbers = prepared.numbers(slots)
    order = Order(run.train_batches())
    from precisionlm.packing.program import blank_stack, put
    from precisionlm.training.step import initial_state

    prepared.compile()
    state = blank_stack(prepared.shape)()
    for slot in (0, 1):
        state = put(prepared.shape.alone())(state, initial_state(run.program, 0, run.grids), slot)
    batches = prepared.place(prepared.corpus.batches([(order, 0), (order, 0)]))
    state, metrics = prepared.advance(state, prepared.corpus.on_device, batches, *numbers, prepared.counts([5, 5]))
    assert all(np.array_equal(leaf[0], leaf[1]) for leaf in jax.tree.leaves(state))
    assert np.array_equal(metrics["loss"][:, 0], metrics["loss"][:, 1])


def test_a_diverging_member_is_recorded_and_disturbs_nobody(tokens_folder, members, prepared, packed, tmp_path):
    wild = prepare_run(experiment_of(tokens_folder, "W4A8", 12, optimizer={"learning_rate": 1e6}), ONE)
    outcome = train_pack(prepared, [wild, *members], tmp_path).outcome
    assert outcome[wild.run_id] == "diverged"
    result = Result.read(RunDirectory(tmp_path, wild.run_id))
    other = None
    with pytest.raises(Exception, match="diverged"):
        train(wild.experiment, tmp_path / "alone", devices=ONE)
    other = Result.read(RunDirectory(tmp_path / "alone", wild.run_id))
    assert (result.status, result.row["steps"]) == ("diverged", other.row["steps"])
    assert math.isnan(result.evaluations[0]["val_loss"] or math.nan)
    for run in members:
        np.testing.assert_allclose(losses(tmp_path / run.run_id), losses(packed / run.run_id), rtol=1e-6)


def test_eight_devices_train_what_one_trains(members, packed, tmp_path):
    shape = shape_of(members[0], 8, jax.devices())
    outcome = train_pack(Prepared(shape, members[0]), members, tmp_path).outcome
    assert set(outcome.values()) == {"done"}
    for run in members:
        np.testing.assert_allclose(losses(tmp_path / run.run_id), losses(packed / run.run_id), rtol=2e-3)


def test_a_corpus_on_the_host_gives_the_same_batches(members, prepared, monkeypatch):
    run = members[2]
    wanted = [(Order(run.train_batches()), 3), None]
    there = prepared.corpus
    windows = there.batches(wanted)
    monkeypatch.setattr("precisionlm.packing.corpus.fits", lambda device, tokens: False)
    here = Corpus(prepared.shape, run.dataset)
    tokens = here.batches(wanted)
    length = run.experiment.data.sequence_length
    gathered = np.asarray(there.on_device)[windows[..., None] * length + np.arange(length + 1)]
    assert here.on_device is None and np.array_equal(tokens[:, 0], gathered[:, 0])
    batches = run.train_batches()
    loaded = [next(batches)["tokens"] for _ in range(8)]
    assert np.array_equal(tokens[:, 0], np.stack(loaded[3:]))


def test_runs_of_one_trunk_begin_where_the_decay_of_another_began(tokens_folder, tmp_path):
    wsd = {"learning_rate": 3e-3, "schedule": "wsd", "decay_fraction": 0.5, "warmup_steps": 2}
    runs = [
        prepare_run(experiment_of(tokens_folder, "W4A8", steps, optimizer=wsd, checkpoint={"trunk": True}), ONE)
        for steps in (16, 8, 12)
    ]
    prepared = Prepared(shape_of(runs[0]), runs[0], PTQ[:1])
    assert set(train_pack(prepared, runs, tmp_path).outcome.values()) == {"done"}
    branches = {run.experiment.training.steps: Result.read(RunDirectory(tmp_path, run.run_id)).row for run in runs}
    assert [branches[steps]["branch_steps"] for steps in (8, 12, 16)] == [0, 4, 6]
    for run in runs:
        other = train(run.experiment, tmp_path / "alone", devices=ONE)
        np.testing.assert_allclose(losses(tmp_path / run.run_id), losses(other.path), rtol=2e-3)
    packed = {path.name: json.loads(path.read_text()) for path in (tmp_path / runs[0].run_id / "ptq").glob("*.json")}
    for name in packed:
        (tmp_path / runs[0].run_id / "ptq" / name).unlink()
    quantize_run(tmp_path / runs[0].run_id, "rtn", PTQ[:1], lambda text: None, options=Options("all"))
    assert set(packed) == {"checkpoint-step8.json", "rtn-int4-step8.json", "rtn-int4.json"}
    for name, mine in packed.items():
        theirs = json.loads((tmp_path / runs[0].run_id / "ptq" / name).read_text())
        assert mine.keys() == theirs.keys() and mine.get("D_tokens") == theirs.get("D_tokens")
        assert mine["val_loss"] == pytest.approx(theirs["val_loss"], rel=1e-4)


def test_the_tail_of_a_pack_goes_on_in_a_narrower_one(members, prepared, packed, tmp_path, monkeypatch):
    wide = Prepared(shape_of(members[0], runs=4), members[0], PTQ)
    monkeypatch.setattr(engine, "pays", lambda slots, needed, steps, *_: steps > 2 and needed <= slots // 2)
    trained = train_pack(wide, members, tmp_path)
    assert trained.narrower == 2 and {"done"} == set(trained.outcome.values())
    left = [run for run in members if run.run_id not in trained.outcome]
    assert sorted(run.experiment.training.steps for run in left) == [7, 17]
    begun = {run.run_id: len(losses(tmp_path / run.run_id)) for run in left}
    assert max(begun.values()) == 15
    assert train_pack(prepared, left, tmp_path) == Trained(dict.fromkeys(begun, "done"))
    assert not (tmp_path / "packs").exists() or not list((tmp_path / "packs").iterdir())
    for run in members:
        np.testing.assert_allclose(losses(tmp_path / run.run_id), losses(packed / run.run_id), rtol=2e-3)
        assert [line["step"] for line in read_metrics(tmp_path / run.run_id / "metrics.jsonl")] == list(
            range(1, run.experiment.training.steps + 1)
        )


@pytest.mark.parametrize(
    "slots, needed, steps, seconds, cost, right",
    [
        (12, 3, 1000, 0.1, 20, True),
        (12, 3, 400, 0.1, 20, False),
        (12, 7, 9999, 0.1, 20, False),
        (2, 1, 50, 1, 10, True),
    ],
)
def test_a_narrower_pack_must_save_twice_what_it_costs(slots, needed, steps, seconds, cost, right):
    assert narrow.pays(slots, needed, steps, seconds, cost) == right
    assert narrow.slots_needed(2, 1, 2) == 4 and narrow.slots_needed(3, 0, 1) == 3


def test_a_run_that_another_process_trains_is_passed_over(members, prepared, tmp_path):
    directory = RunDirectory(tmp_path, members[0].run_id)
    directory.create()
    with claim(directory):
        outcome = train_pack(prepared, members[:2], tmp_path).outcome
    assert outcome == {members[0].run_id: "busy", members[1].run_id: "done"}
    again = train_pack(prepared, members[:2], tmp_path).outcome
    assert again == {members[0].run_id: "done", members[1].run_id: "skipped"}


def test_damaged_weights_of_a_trained_member_are_trained_again(members, prepared, packed, tmp_path, monkeypatch):
    (run, *_) = members

    def stopped(self):
        raise PreemptedError("stopped")

    with monkeypatch.context() as patch, pytest.raises(PreemptedError):
        patch.setattr(Results, "evaluate", stopped)
        train_pack(prepared, [run], tmp_path, Keep())
    (weights,) = (tmp_path / run.run_id / "checkpoints").glob("[0-9]*")
    shutil.rmtree(weights / "state" / "ocdbt.process_0")
    with pytest.warns(UserWarning, match=f"the checkpoint of step {weights.name} is damaged"):
        train_pack(prepared, [run], tmp_path, Keep())
    (mine,) = Result.read(RunDirectory(tmp_path, run.run_id)).evaluations
    (theirs,) = Result.read(RunDirectory(packed, run.run_id)).evaluations
    assert mine == theirs
