"""A user's own law from a file: the documented example works; what is wrong with a file is one line."""

import re
import shlex
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from precisionlm.analysis import laws
from precisionlm.analysis.fitting.analyze import analyze
from precisionlm.cli.main import main
from precisionlm.errors import UserError

PAGE = Path(__file__).parents[3] / "docs" / "own_law.md"
TRUTH = {"A": 400.0, "alpha": 0.34, "B": 900.0, "beta": 0.3, "E": 1.8, "C": 2.0, "tau": 1.5}


@pytest.fixture
def example(tmp_path, monkeypatch):
    """The page's law and a table that it made, in the working folder; the page's commands."""
    monkeypatch.chdir(tmp_path)
    law, commands = (re.search(rf"```{kind}\n(.*?)```", PAGE.read_text(), re.S)[1] for kind in ("python", "sh"))
    Path("my_law.py").write_text(law)
    rows = [(n, d, p) for n in (3e7, 1e8, 3e8, 1e9) for d in (1e9, 5e9, 2e10, 8e10) for p in (2.0, 3, 4, 6, 8, 16)]
    frame = pd.DataFrame(rows, columns=["N_params", "D_tokens", "w_bits"])
    loss = laws.get("my_law.py:law").predict(TRUTH, dict(zip("NDP", frame.to_numpy().T, strict=True)))
    frame = frame.assign(val_loss=loss * np.exp(1e-3 * np.random.default_rng(0).normal(size=len(frame))))
    frame.to_csv("runs.csv", index=False)
    return frame, commands.strip().splitlines()


def test_the_documented_law_gives_its_constants_back_and_its_commands_run(example, capsys):
    frame, commands = example
    result = analyze(frame, "my_law.py:law", starts=16).result
    for name in ("alpha", "beta", "E", "tau", "C"):
        assert result.params[name] == pytest.approx(TRUTH[name], rel=0.05), name
    for command in commands:
        words = shlex.split(command)
        assert words[0] == "precisionlm" and main([*words[1:], "--starts", "16"]) == 0, command
    assert "my_law.py:law" in capsys.readouterr().out


def test_a_law_read_twice_is_the_same_law(example):
    assert laws.get("my_law.py:law") is laws.get("my_law.py:law")
    Path("my_law.py").write_text(Path("my_law.py").read_text().replace("bits over which it fades", "bits"))
    assert laws.get("my_law.py:law").parameter("tau").meaning == "bits"


@pytest.mark.parametrize(
    ("old", "new", "name", "message"),
    [
        ("", "", "rule", "no law 'rule' in the file; it has law"),
        ("", "", "", "expected FILE.py:NAME"),
        ("return base", "return bse", "law", "its formula fails: NameError: name 'bse' is not defined"),
        ('p["C"]', 'p["Q"]', "law", "its formula fails: KeyError: 'Q'"),
        ("    return base", "    if base[0] > 2: base = 0\n    return base", "law", "fails: TracerBool"),
        ("return base", "return xp.ones(2) * base[0] if True else base", "law", "one a row is right"),
        ("law = Law(", "law = Law(no=1,", "law", "my_law.py: TypeError"),
        ("BITS =", "BITS = =", "law", "my_law.py: SyntaxError"),
    ],
)  # fmt: skip
def test_a_bad_file_is_one_clear_line(example, old, new, name, message):
    Path("bad").mkdir()
    Path("bad/my_law.py").write_text(Path("my_law.py").read_text().replace(old, new))
    with pytest.raises(UserError, match=re.escape(message)) as problem:
        laws.get(f"bad/my_law.py:{name}")
    assert "\n" not in str(problem.value)


def test_a_file_that_is_not_there():
    with pytest.raises(UserError, match=r"no file nowhere\.py"):
        laws.get("nowhere.py:law")
