"""Which runs of a sweep are packed and how large, and what becomes of packs that fail."""

import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import jax
import pytest

from precisionlm.config import CheckpointConfig
from precisionlm.errors import CannotWriteError, UserError
from precisionlm.packing import engine
from precisionlm.packing.engine import _Pack
from precisionlm.packing.reached import Results
from precisionlm.packing.size import choose, member_bytes
from precisionlm.storage.checkpoint import Checkpoints, folder_of
from precisionlm.storage.failure import read_failure
from precisionlm.storage.result import Result
from precisionlm.storage.run_directory import RunDirectory
from precisionlm.sweep import scheduler
from precisionlm.sweep.rows import plan
from precisionlm.sweep.scheduler import Options, dispatch_steps, groups_of, run_sweep
from precisionlm.sweep.status import standings
from precisionlm.training.execute import Outcome
from precisionlm.training.run import prepare_run
from precisionlm.training.step import initial_state

from .test_packs import ONE, experiment_of


def silent(*_):
    """Says nothing, and no."""


@pytest.fixture
def rows(tokens_folder, tmp_path, monkeypatch):
    monkeypatch.setattr(jax, "local_devices", lambda: ONE)
    recipes = ("W4A8", "W3A4", "bf16", "W2A8", "W4-g16")
    return plan([experiment_of(tokens_folder, recipe, 6) for recipe in recipes], tmp_path)


def test_runs_of_one_structure_and_batch_are_one_group(rows, tokens_folder, tmp_path):
    groups = groups_of(rows, Options(pack=8))
    assert [[str(row.run.recipe) for row in group.rows] for group in groups] == [
        ["W4A8", "W3A4", "W2A8"],
        ["bf16"],
        ["W4-g16"],
    ]
    assert [group.shape and group.shape.runs for group in groups] == [3, None, None]  # one run is no pack
    assert all(group.shape is None for group in groups_of(rows, Options(pack=1)))
    assert all("--pack" in group.why for group in groups_of(rows, Options()))  # on CPUs packing does not pay
    other = plan([experiment_of(tokens_folder, "W4A8", 6, training={"eval_every": 3})], tmp_path)
    assert groups_of(other, Options(pack=8))[0].shape is None


@pytest.mark.parametrize(("lengths", "waste"), [([610], 0), ([1220, 610], 0), ([12], 0), ([7], 1), ([1221], 0)])
def test_a_dispatch_divides_the_lengths_where_it_can(lengths, waste):
    steps = dispatch_steps(lengths)
    assert 8 <= steps <= 16 and sum(-length % steps for length in lengths) == waste


def test_memory_limits_a_pack_and_more_is_kept_without_remat(rows, monkeypatch):
    run = rows[0].run
    alone = prepare_run(run.experiment, ONE)
    tokens = run.experiment.batch_tokens
    deep = alone.program.model.model_copy(update={"layers": 8})
    kept, recomputed = (member_bytes(replace(alone.program, model=deep), tokens, how) for how in ("none", "dots"))
    assert kept > 1.2 * recomputed
    monkeypatch.setattr("precisionlm.packing.size._PAYS", {"cpu": 1000})
    monkeypatch.setattr("precisionlm.packing.size._memory", lambda program: 3.5e9)
    assert choose(alone, 5, None).runs == 5
    needed = member_bytes(alone.program, tokens, "none")
    monkeypatch.setattr("precisionlm.packing.size._memory", lambda program: 3.5 * needed)
    choice = choose(alone, 5, None)
    assert choice.runs == 2 and "GiB" in choice.why
    filled = 4096 // tokens  # of a CPU; a few runs more than that are no pack of their own
    monkeypatch.setattr("precisionlm.packing.size._memory", lambda program: 1e12)
    assert filled > 4 and choose(alone, 2 * filled, None).runs == filled
    choice = choose(alone, filled + 2, None)
    assert choice.runs == -(-(filled + 2) // 2) and f", {filled + 2} are 2 times {choice.runs}" in choice.why


def test_a_pack_that_does_not_fit_is_halved(rows, tmp_path, monkeypatch):
    tried, lines = [], []
    train_pack = scheduler.train_pack

    def small(prepared, *rest):
        tried.append(prepared.shape.runs)
        if prepared.shape.runs > 2:
            raise RuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 8 bytes")
        return train_pack(prepared, *rest)

    monkeypatch.setattr(scheduler, "train_pack", small)
    outcome = run_sweep([*rows[:2], rows[3]], tmp_path, silent, lambda: False, Options(pack=4), lines.append)
    assert (tried, len(outcome.done)) == ([3, 1], 3)
    assert "packs of 3 do not fit the memory; packs of 1 now" in lines


def test_a_tail_gets_a_pack_of_its_own_width(tokens_folder, tmp_path, monkeypatch):
    monkeypatch.setattr(jax, "local_devices", lambda: ONE)
    rows = plan([experiment_of(tokens_folder, "W4A8", steps, seed=steps) for steps in (6, 7, 40)], tmp_path)
    lines = []
    monkeypatch.setattr(engine, "pays", lambda slots, needed, *_: needed <= slots // 2)
    outcome = run_sweep(rows, tmp_path, silent, lambda: False, Options(pack=3), lines.append)
    assert len(outcome.done) == 3 and not outcome.failed
    assert "1 runs are left; packs of 1 now" in lines and outcome.compilations >= 2


def test_what_fails_is_recorded_and_tried_again_when_asked(rows, tmp_path, monkeypatch):
    lines = []
    with monkeypatch.context() as patch:
        patch.setattr(scheduler, "train_pack", lambda *_: (_ for _ in ()).throw(ValueError("no such\nkernel")))
        outcome = run_sweep(rows[:2], tmp_path, silent, lambda: False, Options(pack=2), lines.append)
    assert len(outcome.failed) == 2 and not outcome.done
    for row in rows[:2]:
        assert read_failure(RunDirectory(tmp_path, row.run.run_id)) == "ValueError: no such kernel"
        assert any(row.run.run_id in line and "no such kernel" in line for line in lines)
    again = plan([row.run.experiment for row in rows[:3]], tmp_path)
    assert [row.status for row in again] == ["failed", "failed", "new"]
    outcome = run_sweep(again, tmp_path, silent, lambda: False, Options(pack=2))
    assert (len(outcome.failed), len(outcome.done)) == (2, 1)
    outcome = run_sweep(again, tmp_path, silent, lambda: False, Options(pack=2, retry_failed=True))
    assert (len(outcome.failed), len(outcome.done), len(outcome.skipped)) == (0, 2, 1)
    assert all(Result.read(RunDirectory(tmp_path, row.run.run_id)).status == "done" for row in again)


def test_bad_input_of_one_run_stops_no_other(rows, tmp_path, monkeypatch):
    wrong, lines = rows[1].run.run_id, []

    def train(experiment, out, *rest):
        run_id = prepare_run(experiment).run_id
        if run_id == wrong:
            raise UserError("its data is gone")
        return Outcome(run_id, out / run_id, "done", None)

    monkeypatch.setattr(scheduler, "train", train)
    outcome = run_sweep(rows[:3], tmp_path, silent, lambda: False, Options(pack=1), lines.append)
    assert (len(outcome.done), outcome.failed) == (2, [wrong])
    assert f"failed: run {wrong}: its data is gone" in lines
    assert read_failure(RunDirectory(tmp_path, wrong)) == "its data is gone"


@pytest.mark.long
def test_what_is_wrong_with_members_of_a_pack_stops_no_other(rows, tmp_path):
    """A run whose metrics were cut off, and one whose result is damaged: both are tried again when asked."""
    chosen, lines = [rows[0], rows[1], rows[3]], []
    experiments, ids = [row.run.experiment for row in chosen], [row.run.run_id for row in chosen]
    for i in (0, 2):
        directory = RunDirectory(tmp_path, ids[i])
        with Checkpoints(folder_of(directory, CheckpointConfig()), CheckpointConfig()) as checkpoints:
            run = prepare_run(experiments[i], ONE)
            state = initial_state(run.program, run.experiment.training.seed, run.grids)
            checkpoints.save(2, state, {"data": run.train_batches().get_state(), "wall_seconds": 1.0})
    RunDirectory(tmp_path, ids[1]).write_text("result.json", "{")
    (tmp_path / "packs" / "x").mkdir(parents=True)
    (tmp_path / "packs" / "x" / "pack.json").write_text("[1")
    found = plan(experiments, tmp_path)
    assert [row.status for row in found] == ["begun", "failed", "begun"]
    outcome = run_sweep(found, tmp_path, silent, lambda: False, Options(pack=3), lines.append)
    assert (outcome.done, sorted(outcome.failed)) == ([], sorted(ids))
    assert sum("does not hold each of the 2 steps" in line for line in lines if line.startswith("failed: run")) == 2
    told = {one.run_id: one for one in standings(experiments, tmp_path)}
    assert {one.state for one in told.values()} == {"failed"} and "does not hold each" in told[ids[0]].reason
    for i in (0, 2):
        shutil.rmtree(tmp_path / ids[i] / "checkpoints")
    again = Options(pack=3, retry_failed=True)
    outcome = run_sweep(plan(experiments, tmp_path), tmp_path, silent, lambda: False, again)
    assert (sorted(outcome.done), outcome.failed) == (sorted(ids), [])
    assert (tmp_path / ids[1] / "result.json.damaged").read_text() == "{"
    assert {row.status for row in plan(experiments, tmp_path)} == {"done"}


def test_what_is_left_of_a_pack_is_packed_as_all_of_it_was(rows, tmp_path):
    whole = groups_of(rows, Options(pack=2))[0]
    left = [replace(row, status="done") if str(row.run.recipe) in ("W4A8", "W3A4") else row for row in rows]
    assert [row.finished for row in left[:2]] == [True, True]
    (rest,) = [group for group in groups_of(left, Options(pack=2)) if group.shape is not None]
    assert len(rest.rows) == 1 and rest.shape == whole.shape
    assert not any(group.shape for group in groups_of(left, Options(pack=1)))
    begun = frozenset([rest.rows[0].run.run_id])  # a pack has saved it, and nobody else can read that
    (alone,) = [group for group in groups_of(left, Options(pack=1), begun) if group.shape is not None]
    assert alone.shape.runs == 1 and [row.run.run_id for row in alone.rows] == list(begun)


def refused(*_):
    raise CannotWriteError("no space left")


def test_a_run_that_cannot_be_opened_is_let_go():
    let_go = []
    member = SimpleNamespace(open=refused, let_go=lambda: let_go.append(1))
    pack = SimpleNamespace(
        _taken=[],
        _slots=[None],
        _queue=SimpleNamespace(next_ready=lambda: SimpleNamespace(run_id="abc")),
        _claim=lambda run: member,
        _out=Path(),
        outcome={},
        _shape=SimpleNamespace(runs=1),
        _prepared=SimpleNamespace(products=None, measure=None),
    )
    with pytest.raises(CannotWriteError):
        _Pack._fill(pack)
    assert let_go == [1]


def test_a_run_whose_result_cannot_be_written_is_let_go():
    let_go = []
    member = SimpleNamespace(
        directory=None, finish=refused, let_go=lambda: let_go.append(1), run=SimpleNamespace(run_id="abc")
    )
    reached, evaluated = SimpleNamespace(end=True, member=member), SimpleNamespace(write=lambda directory: [])
    with pytest.raises(CannotWriteError):
        Results(None, True, silent, None, {})._leave(reached, evaluated)
    assert let_go == [1]
