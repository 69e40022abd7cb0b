"""A few histories of the campaign of faults, and that it sees what it is there to see."""

import json
import subprocess
import sys

import pytest

from .campaign import SHARES, History, planned
from .jobs import jobs, leftovers
from .judge import problem_of
from .ledger import Ledger
from .strikes import CTRL_C, DAMAGE, FULL_DISK, KILL, TERM, Strike, watching
from .table import table_of
from .workers import Ended


def campaign(*words):
    command = [sys.executable, "-m", "tests.faults", *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True)


@pytest.mark.long  # a thousand of them: python -m tests.faults
def test_ten_faults_lose_nothing(tmp_path):
    plan = planned(jobs(tmp_path), 1000, seed=0)
    wanted = [next(n for n, (job, _) in enumerate(plan) if job == name) for name in ("prepare", "train")]
    ended = campaign("--history", *wanted)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert (
        "10 of 1000 faults in 2 histories: 0 lost runs, 0 lost steps beyond the last checkpoint, all losses bitwise "
        "equal; 0 problems"
    ) in ended.stdout


@pytest.mark.long
def test_faults_of_every_kind_lose_nothing(tmp_path):
    ended = campaign("--faults", 40, "--state", tmp_path)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert "\n40 of 40 faults" in ended.stdout
    again = campaign("--faults", 40, "--state", tmp_path)
    assert again.stdout == ended.stdout[ended.stdout.index("moment") :]  # all is done already


def test_a_thousand_faults_have_every_kind_at_every_moment(tmp_path):
    of = jobs(tmp_path)
    plan = planned(of, 1000, seed=0)
    assert plan == planned(of, 1000, seed=0) != planned(of, 1000, seed=1)
    faults = [(job, fault) for job, those in plan for fault in those]
    assert len(faults) == 1000 and sum(map(sum, (kinds.values() for kinds in SHARES.values()))) == 1000
    struck = {(job, fault.kind, fault.moment) for job, fault in faults}
    for job, kinds in SHARES.items():
        for kind in kinds:
            moments = {moment for j, k, moment in struck if (j, k) == (job, kind)}
            assert moments == set(of[job].moments) or kind == DAMAGE, (job, kind, moments)


# --- that it sees ---


@pytest.fixture
def train(tmp_path):
    return jobs(tmp_path / "jobs")["train"]


@pytest.mark.parametrize(
    ("kind", "ended", "seen"),
    [
        (None, Ended(75, False, "preempted: x"), "exit code 75, not 0"),
        (KILL, Ended(-9, True, "", left=1), "1 processes outlived the command"),
        (TERM, Ended(-15, True, ""), "exit code -15, not 0 or 75"),
        (TERM, Ended(75, True, ""), "exit code 75 with 0 lines that say why"),
        (CTRL_C, Ended(124, True, ""), "exit code 124, not 0 or 75"),
        (CTRL_C, Ended(75, True, "Traceback (most recent call last):\npreempted: x"), "a traceback, exit code 75"),
        (FULL_DISK, Ended(2, True, "error: x"), "a full disk, told as 'error: x'"),
        (FULL_DISK, Ended(2, True, "error: x: cannot be written: File too large"), ""),
        (CTRL_C, Ended(75, True, "lossepreempted: y\ntrain 5 %preempted: x"), ""),
        (DAMAGE, Ended(-9, True, ""), ""),
    ],
)
def test_how_a_command_may_end(train, kind, ended, seen):
    assert problem_of(kind, train, ended) == seen


def test_steps_that_were_saved_are_not_made_again(train, tmp_path):
    folder = tmp_path / "history"
    train.lay_out(folder)
    run = folder / "runs" / "abc"
    (run / "checkpoints" / "4").mkdir(parents=True)
    (run / "checkpoints" / "2").mkdir()
    (run / "checkpoints" / "6.orbax-checkpoint-tmp").mkdir()

    def started(*steps):
        (run / "segments.jsonl").write_text("".join(json.dumps({"step": step}) + "\n" for step in steps))

    ledger = Ledger(train, folder)
    started(0)
    ledger.begin()
    started(0, 4)
    assert ledger.lost(KILL, -9, {}, "") == {}
    started(0, 2)
    assert ledger.lost(KILL, -9, {}, "") == {"abc": 2}
    (run / "metrics.jsonl").write_text("".join(json.dumps({"step": n, "loss": 1.0}) + "\n" for n in range(1, 6)))
    assert ledger.lost(TERM, 75, {}, "preempted: run abc saved at step 5 of 6") == {"abc": 2, "abc, asked to stop": 1}
    assert leftovers(folder) == ["runs/abc/checkpoints/6.orbax-checkpoint-tmp"]


def test_a_strike_comes_at_its_call_and_binds_nothing_for_good():
    target, before = "json.loads", json.loads
    with watching([target], Strike(CTRL_C, target, 3)) as watch, pytest.raises(KeyboardInterrupt):
        watch._do = lambda: (_ for _ in ()).throw(KeyboardInterrupt())
        for _ in range(5):
            json.loads("1")
    assert watch.calls[target] == 3 and json.loads is before


def test_the_last_line_and_how_to_see_it_again():
    lost = History(7, "train", [], lost_steps=2, lost_runs=1, unequal=1, problems=["after 0 faults: lost: ['abc']"])
    said = table_of([lost], 10, "--seed 3 --faults 10")
    assert "1 lost runs, 2 lost steps beyond the last checkpoint, 1 results NOT equal; 1 problems" in said
    assert "python -m tests.faults --seed 3 --faults 10 --history 7  (train): after 0 faults: lost" in said
