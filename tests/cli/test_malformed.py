"""What people type and write by mistake: one line that says what was wrong, exit code 2, nothing written."""

import os

import pytest
import yaml

from precisionlm.cli.main import main
from precisionlm.yaml_text import parse

from ..conftest import tiny_tree

BOMB = "a: &a [x, x]\n" + "".join(
    f"{new}: &{new} [{', '.join([f'*{old}'] * 9)}]\n" for old, new in zip("abcdefgh", "bcdefghi", strict=True)
)


@pytest.fixture
def here(tokens_folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(tiny_tree(tokens_folder)))
    return tmp_path


def refused(capsys, *words):
    before = sorted(os.listdir())
    assert main([str(word) for word in words]) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.startswith("error: ") and err.count("\n") == 1 and "unforeseen" not in err, err
    assert sorted(os.listdir()) == before
    return err


@pytest.mark.parametrize(
    ("value", "line"),
    [
        ("{a", "override --training.steps {a: not valid YAML"),
        ("*x", "found undefined alias 'x'"),
        ("@", "character '@' that cannot start any token"),
        ("2020-01-01", "training.steps = 2020-01-01: input should be a valid integer"),
        ("!!set {a, b}", "the tag 'tag:yaml.org,2002:set' is not read here"),
        ("!!python/name:os.system", "is not read here"),
        ("? [1]", "a key must be a word"),
        ("&a [*a]", "an anchor refers to itself"),
        ("[" * 5000, "more than 50 mappings and lists in each other"),
        ("1:30", "training.steps = 1:30: input should be a valid integer"),
        ("010", "training.steps = 10.0: input should be a valid integer"),
        ("1\u0663", "input should be a valid integer"),
        ('"\\0"', "characters that no file can"),
        ("9" * 5000, "not valid YAML: Exceeds the limit"),
        ("2147483648", "less than or equal to 2147483647"),
    ],
)
def test_values_that_are_no_steps(here, capsys, value, line):
    assert line in refused(capsys, "train", "run.yaml", "--out", "o", "--dry-run", "--training.steps", value)


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["--model.layers", "10000000"], "model.layers = 10000000: input should be less than or equal to 100000"),
        (["--model.vocab_size", "9999999999"], "less than or equal to 2147483647"),
        (["--training.seed", "2147483648"], "less than or equal to 2147483647"),
        (["--precision.recipe", "W\u0663A8"], "cannot read"),
        (["--mesh.replica", "-2", "--mesh.fsdp", "-2"], "-2: must be at least 1, or -1"),
        (["--out", "run.yaml/x"], "run.yaml is no folder"),
        (["--training.steps", "--json"], "--training.steps: a value is missing before --json"),
        (["--name", "a\0b"], "characters that no file can"),
    ],
)
def test_arguments_of_train(here, capsys, words, line):
    assert line in refused(capsys, "train", "run.yaml", "--out", "o", "--dry-run", *words)


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("x: 2020-01-01\n", "unknown key 'x'"),
        ("? [1, 2]\n: 3\n", "a key must be a word"),
        ("x: &x {y: *x}\n", "an anchor refers to itself"),
        (BOMB, "more than 200,000 values"),
        ("x: " + "{b: " * 3000, "more than 50 mappings"),
        ("x: !!binary aGk=\n", "is not read here"),
        ("1: 2\n", "unknown key '1'"),
        ("true: 2\n", "unknown key 'true'"),
        ("# " + "x" * (1 << 20), "longer than 1,048,576 characters"),
    ],
    ids=lambda text: text[:20],
)
def test_files_with_more_than_a_tree(here, capsys, text, line):
    (here / "bad.yaml").write_text((here / "run.yaml").read_text() + text)
    assert line in refused(capsys, "train", "bad.yaml", "--out", "o", "--dry-run")


@pytest.mark.parametrize(
    ("grid", "line"),
    [
        ("{tokens: [.nan]}", "tokens = nan: must be a positive number"),
        ("{tokens: [.inf]}", "tokens = inf: must be a positive number"),
        ("{tokens: [true]}", "tokens = True: must be a positive number"),
        ("{tokens: [1e300]}", "less than or equal to 2147483647"),
        ("{training.steps: [2020-01-01]}", "input should be a valid integer"),
        ("{training.steps: [3], tokens: [1e4]}", "both set training.steps"),
        ("{a: [{training.steps: 3}], b: [{training.steps: 4}]}", "both set training.steps"),
        ("{size: [{1: 2}]}", "unknown key '1'"),
        ("{a.b: [" + ",".join("0" * 400) + "], c.d: [" + ",".join("0" * 400) + "]}", "make 160,000 rows"),
    ],
    ids=lambda text: text[:30],
)
def test_grids(here, capsys, grid, line):
    (here / "sweep.yaml").write_text(f"experiment: run.yaml\ngrid: {grid}\n")
    assert line in refused(capsys, "sweep", "sweep.yaml", "--out", "o", "--dry-run")


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["demo", "--dry-run", "--scale", "inf"], "--scale inf: must be a positive number"),
        (["sweep", "run.yaml", "--out", "o", "--pack", "²"], "unknown key"),
        (["ptq", "runs", "--steps", "\u0663"], "--steps \u0663"),
        (["train", "no\0where", "--out", "o"], "cannot be read: embedded null byte"),
        (["import", ".", "--data", "d", "--tokens", "inf"], "--tokens inf: must be a whole number of tokens"),
        (["import", ".", "--data", "d", "--batch-tokens", "nan"], "--batch-tokens nan: must be a whole number"),
        (["nope"], "invalid choice: 'nope'"),
        (["train", "run.yaml"], "train: the following arguments are required: --out"),
        (["precision", "explain", "W4", "--plot", "run.yaml/x.png"], "cannot be written"),
        (["plan", "--law", "kumar", "--published", "--size", "1e9", "--tokens", "nan"], "--tokens nan: must be"),
        (["plan", "--law", "kumar", "--published", "--compute", "0"], "--compute 0: must be a positive number"),
    ],
)
def test_other_verbs(here, capsys, words, line):
    if "--plot" in words:
        assert main(words) == 2
        assert line in capsys.readouterr().err
    else:
        assert line in refused(capsys, *words)


def test_overrides_may_stand_before_the_file(here, capsys):
    assert main(["train", "--training.seed", "1", "run.yaml", "--out=o", "--mesh.fsdp=-1", "--dry-run"]) == 0
    assert "1 runs" in capsys.readouterr().out


def test_numbers_and_texts_as_everybody_writes_them():
    assert parse("{a: 1e-3, b: 1_000, c: 0x1f, d: 2020-01-01, e: 1:30, <<: {f: .5}}") == {
        "f": 0.5, "a": 1e-3, "b": 1000, "c": 31, "d": "2020-01-01", "e": "1:30",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (OSError(28, "No space left on device", "x.csv"), 2, "error: x.csv: No space left on device\n"),
        (KeyboardInterrupt(), 75, "preempted: interrupted; the same command does what was not finished\n"),
        (MemoryError(), 2, "error: this machine has not enough memory for it\n"),
        (
            RuntimeError("RESOURCE_EXHAUSTED: 3 GB\n at x"),
            2,
            "not enough memory for it: RESOURCE_EXHAUSTED: 3 GB at x\n",
        ),
        (KeyError("x\x1b[2J"), 2, "error: unforeseen KeyError: 'x\\x1b[2J' (PRECISIONLM_DEBUG=1 shows where)\n"),
    ],
    ids=lambda found: type(found).__name__,
)
def test_whatever_else_happens_is_a_line_and_with_debug_a_traceback(capsys, monkeypatch, error, code, line):
    from precisionlm.cli.boundary import guarded

    def fails():
        raise error

    assert guarded(fails) == code
    err = capsys.readouterr().err
    assert err.endswith(line) and err.count("\n") == 1
    monkeypatch.setenv("PRECISIONLM_DEBUG", "1")
    assert guarded(fails) == code and "Traceback" in capsys.readouterr().err
