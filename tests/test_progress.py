"""What is said of the time left, on a clock of the test's own."""

import io
from types import SimpleNamespace

import pytest
from rich.console import Console

from precisionlm import progress
from precisionlm.cli import training
from precisionlm.progress import TimeLeft, reporting


def told(reports):
    time_left = TimeLeft()
    return [time_left.after(now, share) for now, share in reports]


def test_set_up_and_compilation_are_not_extrapolated():
    """Data at once, 20 s until the first of a thousand steps of 0.1 s."""
    said = told(
        [(0.0, 0.0), (0.5, 0.08), (20.0, 0.08)] + [(40 + i / 10, 0.08 + 0.92 * i / 1000) for i in range(1, 501)]
    )
    assert said[:4] == ["time left unknown"] * 4  # data came fast: that pace is not the steps'
    assert said[4] == "1:40 left" and said[-1] == "0:50 left"


def test_a_resumed_job_says_nothing_until_it_has_gone_on_twice():
    said = told([(30.0, 0.5), (31.0, 0.51), (31.5, 0.51), (32.0, 0.52)])
    assert said == ["time left unknown"] * 3 + ["0:48 left"]


def test_the_recent_pace_counts_and_one_pause_does_not():
    slow = [(10.0 * i, i / 100) for i in range(11)]
    fast = [(100.0 + i, (10 + i) / 100) for i in range(1, 21)]
    assert told(slow)[-1] == "15:00 left"
    assert told(slow + fast)[-1] == "1:10 left"
    evaluated = [*slow, *fast, (1000.0, 0.31), (1001.0, 0.32), (1002.0, 0.33)]
    assert told(evaluated)[-3:] == ["time left unknown", "time left unknown", "1:07 left"]


def test_the_last_few_runs_of_a_pack_say_nothing_of_the_packs_to_come():
    """A quarter of a sweep in 100 s, the last four runs of its first pack 20 times as slow."""
    said = told([(float(i), i / 400) for i in range(101)] + [(100.0 + 5 * i, 0.25 + i / 1600) for i in range(1, 12)])
    assert said[100] == "5:00 left" and said[-1] == "7:28 left"  # at the pace so far, not 24:46


@pytest.mark.parametrize("terminal", [False, True])
def test_bar_and_log_say_the_same(capsys, monkeypatch, terminal):
    clock, screen = SimpleNamespace(now=0.0), io.StringIO()
    monkeypatch.setattr(progress, "time", SimpleNamespace(monotonic=lambda: clock.now))
    monkeypatch.setattr(progress, "Console", lambda file: Console(file=screen, force_terminal=terminal, width=200))
    with reporting("train") as report:
        for now, share in [(0, 0.0), (100, 0.01), (101, 0.02), (111, 0.12)]:
            clock.now = float(now)
            report(share, "working")
    said = screen.getvalue() if terminal else capsys.readouterr().err
    assert "1:28 left" in said and ("time left unknown" in said or terminal)
    assert ("12 %  1:51 elapsed, 1:28 left  working" in said) != terminal


def test_a_log_has_the_first_and_the_last_line_of_a_job(capsys):
    with reporting("train") as report:
        report(0.0, "compiling the step")
        for step in range(1, 4):
            report(step / 3, f"step {step}")
    lines = capsys.readouterr().err.splitlines()
    assert [line.split("  ")[-1] for line in lines] == ["compiling the step", "step 3"]


def test_steps_are_told_with_their_speed(monkeypatch):
    said, now = [], iter([10.0, 12.0, 14.0])
    monkeypatch.setattr(training, "time", SimpleNamespace(monotonic=lambda: next(now)))
    told = training._Steps(lambda share, text: said.append((share, text)), 1000)
    told(0, 4, float("nan"))
    for step in (1, 2, 4):
        told(step, 4, 2.5)
    assert said == [
        (0.0, "compiling the step"),
        (0.25, "step 1/4  loss 2.5000"),
        (0.5, "step 2/4  loss 2.5000  500 tokens/s"),
        (1.0, "step 4/4  loss 2.5000  750 tokens/s"),
    ]


def test_at_the_end_nothing_is_left():
    assert TimeLeft().after(3.0, 1.0) == "0:00 left"
