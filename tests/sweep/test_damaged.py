"""One damaged run does not stop the others: it is named, and what is left is done."""

import json
import shutil

import pytest

from precisionlm.cli.main import main
from precisionlm.sweep.collect import collect

from ..fuzz.world import make


@pytest.fixture
def runs(tokens_folder, tmp_path, monkeypatch):
    make(tmp_path, tokens_folder)
    monkeypatch.chdir(tmp_path)
    return sorted((tmp_path / "runs").iterdir())


VERBS = (["ptq", "runs", "--dry-run"], ["evaluate", "runs", "--dry-run"])


@pytest.mark.parametrize("content", ["", "[1]", '{"status": "done"}', '{"reason": NaN'])
def test_a_damaged_result(runs, capsys, content):
    (runs[0] / "result.json").write_text(content)
    for words in VERBS:
        assert main(words) == 0
        out, err = capsys.readouterr()
        assert str(runs[1].name) in out and runs[0].name not in out
        assert err.startswith("left out: ") and f"{runs[0].name}/result.json" in err and err.count("\n") == 1
    assert main(["table", "runs", "-o", "t.csv", "--json"]) == 0
    counts = json.loads(capsys.readouterr().out)
    assert counts["runs"] == 1 and len(counts["unfinished"]) == 1 and runs[0].name in counts["unfinished"][0]
    (runs[1] / "result.json").write_text(content)
    assert main(["table", "runs", "-o", "t.csv"]) == 2 and main(VERBS[0]) == 2


def test_a_copied_run_and_a_row_that_is_none(runs, capsys):
    shutil.copytree(runs[0], runs[0].with_name("copy"))
    (runs[1] / "ptq" / "rtn-int4.json").write_text("")
    (runs[1] / "evaluations" / "W3-1999-abcdef.json").write_text('{"evaluation": "recipe", "val_loss": "low"}')
    (runs[1] / "wandb" / "run").mkdir(parents=True)
    (runs[1] / "wandb" / "run" / "config.yaml").write_text("x: 1")  # of Weights & Biases: no run
    assert main(["table", "runs", "-o", "t.csv", "--json"]) == 0
    counts = json.loads(capsys.readouterr().out)
    assert (counts["rows"], counts["runs"], len(counts["unfinished"])) == (4, 2, 3)
    assert any("copy: a copy of run" in line for line in counts["unfinished"])
    for words in VERBS:
        assert main(words) == 0
        assert "copy: a copy of run" in capsys.readouterr().err


@pytest.mark.parametrize(("key", "value"), [("val_tokens", 2**63), ("val_tokens", 10**25), ("val_loss", 10**400)])
def test_a_number_that_no_column_holds(runs, capsys, key, value):
    path = runs[0] / "ptq" / "rtn-int4.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {key: value}))
    assert main(["table", "runs", "-o", "t.csv", "--json"]) == 0
    (line,) = json.loads(capsys.readouterr().out)["unfinished"]
    assert f"rtn-int4.json: {key} is '{str(value)[:19]}" in line


def test_whole_numbers_beside_missing_ones_keep_every_digit(runs):
    path = runs[0] / "ptq" / "rtn-int4.json"
    found = json.loads(path.read_text()) | {"val_tokens": 2**60 + 1, "flops": 10**21}
    path.write_text(json.dumps(found))
    (runs[1] / "ptq" / "rtn-int4.json").write_text(json.dumps(found | {"val_tokens": None}))
    table, _ = collect(runs[0].parent)
    assert 2**60 + 1 in table["val_tokens"].dropna().tolist() and table["val_tokens"].isna().sum() == 1
    assert table["flops"].dropna().tolist() == [1e21, 1e21]


@pytest.mark.parametrize(
    ("of", "key"), [("row", "run_id"), ("row", "recipe"), ("evaluation", "evaluation"), ("evaluation", "val_tokens")]
)
def test_a_result_that_lacks_a_key(runs, capsys, of, key):
    path = runs[0] / "result.json"
    found = json.loads(path.read_text())
    del (found["row"] if of == "row" else found["evaluations"][0])[key]
    path.write_text(json.dumps(found))
    for words in (*VERBS, ["table", "runs", "-o", "t.csv"]):
        assert main(words) == 0, words
        assert "unforeseen" not in capsys.readouterr().err
    assert main(["table", str(runs[0]), "-o", "t.csv"]) == (0 if key == "val_tokens" else 2)
    assert main(["sweep", "sweep.yaml", "--out", "runs", "--dry-run"]) == 0


@pytest.mark.parametrize("name", ["../../secret.npz", "/etc/passwd", "a/../../b.npz"])
def test_an_evaluation_is_of_its_run(runs, capsys, name):
    found = json.loads((runs[0] / "ptq" / "rtn-int4.json").read_text())
    (runs[0] / "ptq" / "rtn-int4.json").write_text(json.dumps(found | {"sequences": name}))
    assert main(["table", "runs", "-o", "t.csv", "--json"]) == 0
    counts = json.loads(capsys.readouterr().out)
    assert len(counts["unfinished"]) == 1 and "names a file outside the run" in counts["unfinished"][0]


def test_data_that_moved(runs, capsys, tmp_path):
    (tmp_path / "data").rename(tmp_path / "moved")
    assert main(["ptq", "runs", "--dry-run"]) == 2
    assert "holds no prepared data" in capsys.readouterr().err
    assert main(["ptq", "runs", "--dry-run", "--data.path", "moved"]) == 0
    assert "nothing was quantized" in capsys.readouterr().out
    assert main(["ptq", "runs", "--dry-run", "--training.steps", "3"]) == 2
    assert "ptq: unknown argument '--training.steps'" in capsys.readouterr().err
