"""Several workers on one folder: nothing is lost and nothing is done twice, whoever dies."""

import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from contextlib import ExitStack

import pytest
import yaml

from precisionlm.cli.main import main
from precisionlm.config import build
from precisionlm.storage.claim import claim
from precisionlm.storage.result import Result
from precisionlm.storage.run_directory import RunDirectory, read_metrics
from precisionlm.sweep.rows import plan
from precisionlm.sweep.scheduler import Options
from precisionlm.sweep.workers import work

from ..compiled_fast import COMPILED_FAST
from ..conftest import tiny_tree

ALONE = Options(pack=1)
ENVIRONMENT = {**os.environ, "XLA_FLAGS": COMPILED_FAST, "JAX_PLATFORMS": "cpu"}


def never():
    return False


def quiet(share, text):
    pass


@pytest.fixture
def tree(tokens_folder):
    tree = tiny_tree(tokens_folder)
    return tree | {
        "model": tree["model"] | {"layers": 1},
        "precision": {"recipe": "bf16"},  # the least to compile
        "training": tree["training"] | {"steps": 4, "eval_tokens": 256},
    }


@pytest.fixture
def experiments(tree):
    return [build(tree | {"training": tree["training"] | {"seed": seed}}, "test") for seed in range(3)]


def segments(directory):
    return list(read_metrics(directory / "segments.jsonl"))


def test_what_another_worker_leaves_is_taken_over_and_what_it_holds_is_not(experiments, tmp_path):
    rows = plan(experiments, tmp_path)
    theirs, held, mine = (RunDirectory(tmp_path, row.run.run_id) for row in rows)
    theirs.create()
    held.create()
    said = []
    with claim(held), ExitStack() as other:
        other.enter_context(claim(theirs))

        def other_dies(share, text):
            if mine.path.exists():
                other.close()

        outcome = work(rows, tmp_path, other_dies, never, ALONE, said.append)
    assert sorted(outcome.done) == sorted([theirs.path.name, mine.path.name])
    assert outcome.busy == [held.path.name] and not outcome.failed
    assert any("1 runs that others held are looked at again" in line for line in said)
    again = work(plan(experiments, tmp_path), tmp_path, quiet, never, ALONE)
    assert again.done == [held.path.name] and len(again.skipped) == 2
    assert [len(segments(d.path)) for d in (theirs, held, mine)] == [1, 1, 1]


def test_what_another_worker_finished_meanwhile_is_skipped(experiments, tmp_path):
    rows = plan(experiments[:2], tmp_path)
    theirs, mine = (RunDirectory(tmp_path, row.run.run_id) for row in rows)
    theirs.create()
    with ExitStack() as other:
        other.enter_context(claim(theirs))

        def other_finishes(share, text):
            if mine.path.exists() and Result.read(theirs) is None:
                Result(status="done", reason="", row={"steps": 4}, evaluations=[]).write(theirs)
                other.close()

        outcome = work(rows, tmp_path, other_finishes, never, ALONE)
    assert (outcome.done, outcome.skipped, outcome.busy) == ([mine.path.name], [theirs.path.name], [])


def sweep(tmp_path, tree, **keys):
    path = tmp_path / "sweep.yaml"
    path.write_text(yaml.safe_dump({"experiment": tree, **keys}))
    return ["sweep", str(path), "--out", str(tmp_path / "runs"), "--pack", "1"]


def test_a_new_axis_value_or_format_runs_nothing_again(tree, tmp_path, capsys):
    def found(words):
        assert main(words) == 0
        return json.loads(capsys.readouterr().out)

    words = [*sweep(tmp_path, tree, seeds=2, evaluate={"ptq": ["W3"]}), "--json"]
    first = found(words)
    assert len(first["done"]) == 2
    sweep(tmp_path, tree, seeds=2, grid={"training.steps": [4, 5]}, evaluate={"ptq": ["W3", "W4"]})
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "runs").glob("*/metrics.jsonl")}
    assert Counter(row["status"] for row in found([*words, "--dry-run"])) == {"done": 2, "new": 2}
    second = found(words)
    assert sorted(second["skipped"]) == sorted(first["done"]) and len(second["done"]) == 2
    assert {path: path.stat().st_mtime_ns for path in before} == before
    rounded = Counter(path.parts[-3] for path in (tmp_path / "runs").glob("*/ptq/*.json"))
    assert rounded == dict.fromkeys([*second["done"], *second["skipped"]], 2)
    shards = [found([*words, "--dry-run", "--shard", f"{i}/2"]) for i in (0, 1)]
    assert sorted(row["run_id"] for rows in shards for row in rows) == sorted(rounded)


@pytest.mark.long
def test_three_processes_and_one_is_killed(tree, tmp_path, capsys, request):
    tree = tree | {"training": tree["training"] | {"steps": 400}, "checkpoint": {"every_steps": 100}}
    words = sweep(tmp_path, tree, seeds=5)
    runs = tmp_path / "runs"

    def worker():
        log = (tmp_path / f"worker{len(workers)}.log").open("w")
        command = [sys.executable, "-m", "precisionlm", *words, "--json"]
        with log:
            process = subprocess.Popen(command, env=ENVIRONMENT, text=True, stdout=subprocess.PIPE, stderr=log)
        request.addfinalizer(process.kill)
        return process

    def standing():
        assert main(["sweep", "status", *words[1:4], "--json"]) == 0
        return json.loads(capsys.readouterr().out)["runs"]

    def holds(process):
        return [r for r in standing() if r["holder"] and r["holder"].get("pid") == process.pid and r["step"] > 0]

    def stop_within_a_run(process):
        while True:
            while not holds(process):
                assert process.poll() is None, [path.read_text() for path in tmp_path.glob("*.log")]
                time.sleep(0.05)
            process.send_signal(signal.SIGSTOP)
            os.waitid(os.P_PID, process.pid, os.WSTOPPED)
            if found := holds(process):  # still, now that it stands
                return found[0]["run_id"]
            process.send_signal(signal.SIGCONT)

    workers, caught = [], []
    for _ in range(3):
        workers.append(worker())
        caught.append(stop_within_a_run(workers[-1]))
    assert len(set(caught)) == 3
    victim, *survivors = workers
    victim.kill()
    victim.communicate()
    outcomes = []
    for survivor in survivors:
        survivor.send_signal(signal.SIGCONT)
    for survivor in survivors:
        out, _ = survivor.communicate(timeout=300)
        assert survivor.returncode == 0
        outcomes.append(json.loads(out))
    finished = [run_id for outcome in outcomes for run_id in outcome["done"]]
    assert len(finished) == len(set(finished))  # none twice
    assert not any(outcome["failed"] or outcome["diverged"] for outcome in outcomes)
    rows = {row["run_id"]: row for row in standing()}
    assert {row["status"] for row in rows.values()} == {"done"} and len(rows) == 5  # none lost
    assert caught[0] in finished
    starts = {run_id: segments(runs / run_id) for run_id in rows}
    assert {run_id for run_id, found in starts.items() if len(found) > 1} == {caught[0]}
    for run_id in rows:
        steps = [line["step"] for line in read_metrics(runs / run_id / "metrics.jsonl") if "loss" in line]
        assert steps == list(range(1, 401))


def test_weights_at_the_end_of_a_trunk_are_rounded_too_where_a_pack_did_not(tree, tmp_path, capsys):
    wsd = {"learning_rate": 3e-3, "schedule": "wsd", "decay_fraction": 0.5, "warmup_steps": 1}
    tree = tree | {"checkpoint": {"trunk": True}, "optimizer": wsd}
    words = sweep(tmp_path, tree, grid={"training.steps": [6]}, evaluate={"ptq": ["W3"]})
    assert main(words) == 0
    (run,) = (tmp_path / "runs").iterdir()
    found = {path.stem: json.loads(path.read_text()).get("steps") for path in (run / "ptq").glob("*.json")}
    assert found == {"checkpoint-step3": 3, "rtn-int3-step3": 3, "rtn-int3": None}
