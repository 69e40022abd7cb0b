"""precisionlm runs and curves: what a folder of runs holds, whatever became of each."""

import csv
import json
import os
import time

import pytest

from precisionlm.cli.main import main
from precisionlm.config import to_yaml
from precisionlm.model.presets import non_embedding_parameters
from precisionlm.storage.claim import claim
from precisionlm.storage.failure import record_failure
from precisionlm.storage.result import Result
from precisionlm.storage.run_directory import RunDirectory

STEPS, BATCH = 12, 8 * 32  # of the tiny experiment


@pytest.fixture
def runs(experiment, tmp_path):
    """A folder with a run of each kind; a function makes them, and gives the folder."""
    root = tmp_path / "runs"

    def directory(number: int, steps: int = 0, recipe: str = "W4A8") -> RunDirectory:
        made = RunDirectory(root, f"{number:012x}")
        made.create()
        precision = experiment.precision.model_copy(update={"recipe": recipe})
        model = experiment.model.model_copy(update={"vocab_size": 97})
        made.write_text("config.yaml", to_yaml(experiment.model_copy(update={"precision": precision, "model": model})))
        lines = [{"step": i + 1, "loss": 4.0 - 0.1 * i, "seconds": 0.5} for i in range(steps)]
        made.write_text("metrics.jsonl", "".join(json.dumps(line) + "\n" for line in lines))
        return made

    def finished(number: int, recipe: str, loss: float | None, status: str = "done", run_id: str = "") -> RunDirectory:
        made = directory(number, STEPS, recipe)
        row = {"run_id": run_id or made.path.name, "name": "tiny", "recipe": recipe, "N_params": 20_480, "seed": 0,
               "D_tokens": 3072, "steps": STEPS, "batch_tokens": BATCH, "tokens_per_second": 512.0}  # fmt: skip
        reason = "loss not finite" if status == "diverged" else ""
        evaluations = [
            {"evaluation": "recipe", "val_loss": 9.0, "val_loss_se": None},
            {"evaluation": "trained", "val_loss": loss, "val_loss_se": None},
        ]
        Result(status=status, reason=reason, row=row, evaluations=evaluations).write(made)
        return made

    finished(1, "W4A8", 3.25)
    finished(2, "bf16", 3.125)
    finished(3, "W2", None, "diverged")
    finished(4, "bf16", 3.0, run_id="000000000002")
    directory(5, 6)
    record_failure(directory(6), "mesh: no")
    (finished(7, "W3", 3.5).path / "result.json").write_text("{")
    (directory(8).path / "config.yaml").write_text("model: {")
    RunDirectory(root, "00000000000a").create()  # nobody's: no file of a run
    held = directory(9, 3)
    return root, held, experiment


def test_every_kind_of_run_is_shown_as_what_it_is(runs, capsys):
    root, held, experiment = runs
    with claim(held):
        assert main(["runs", str(root), "--json"]) == 0
    found = {int(row["run_id"], 16): row for row in json.loads(capsys.readouterr().out)}
    assert {number: row["status"] for number, row in found.items()} == {
        1: "done", 2: "done", 3: "diverged", 4: "copy", 5: "begun", 6: "failed", 7: "damaged", 8: "damaged",
        9: "running",
    }  # fmt: skip
    n = non_embedding_parameters(experiment.model)
    assert [found[9][key] for key in ("N", "D", "step", "steps", "loss", "tokens_per_second")] == [
        n, STEPS * BATCH, 3, STEPS, 3.8, BATCH / 0.5,
    ]  # fmt: skip
    assert [found[1][key] for key in ("name", "recipe", "loss", "tokens_per_second")] == ["tiny", "W4A8", 3.25, 512.0]
    assert found[3]["reason"] == "loss not finite" and found[3]["loss"] is None
    assert found[4]["reason"] == "holds run 000000000002"
    assert found[6]["reason"] == "mesh: no"
    assert "result.json: no JSON" in found[7]["reason"] and "config.yaml" in found[8]["reason"]


def test_the_table_for_people(runs, capsys):
    root, *_ = runs
    now = time.time()
    for number in range(1, 10):
        for path in (root / f"{number:012x}").iterdir():
            os.utime(path, (now - 7200, now - 7200))
    assert main(["runs", str(root)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["run", "name", "recipe", "N", "D", "seed", "status", "loss", "tokens/s", "age"]
    (first,) = [line for line in lines if line.startswith("000000000001")]
    assert first.split() == ["000000000001", "tiny", "W4A8", "20.5k", "3.07k", "0", "done", "3.2500", "512", "2", "h"]
    (begun,) = [line for line in lines if line.startswith("000000000005")]
    assert "begun 50%  ~3.5000" in begun
    assert lines[-1] == "9 runs: 2 done, 1 diverged, 1 failed, 2 begun, 2 damaged, 1 copy"


def test_some_of_them_in_an_order(runs, capsys):
    root, *_ = runs

    def listed(*options: str) -> list[int]:
        assert main(["runs", str(root), "--json", *options]) == 0
        return [int(row["run_id"], 16) for row in json.loads(capsys.readouterr().out)]

    assert listed("--where", "status == 'done'", "--sort", "loss") == [2, 1]
    assert listed("--where", "status == 'done'", "--sort", "val_loss", "--reverse") == [1, 2]
    assert listed("--where", "recipe == 'W4A8' and D / N_params < 1 and step is not missing", "--sort", "step") == [
        6, 9, 5, 1,
    ]  # fmt: skip
    assert listed("--where", "recipe == 'A8W4'", "--sort", "step") == listed(
        "--where", "recipe == 'W4A8'", "--sort", "step"
    )
    assert listed("--sort", "loss")[-4:] == [3, 6, 7, 8]  # without a loss, at the end
    assert listed("--where", "loss < 0") == []
    for options, said in (
        (["--sort", "los"], "--sort los: did you mean 'loss'?"),
        (["--where", "los < 3"], "did you mean 'loss'?"),
        (["--where", "loss"], "is no true or false"),
    ):
        assert main(["runs", str(root), *options]) == 2
        assert said in capsys.readouterr().err
    assert main(["runs", str(root / "00000000000a")]) == 2
    assert "no run directory here" in capsys.readouterr().err


def test_curves(runs, tmp_path, capsys):
    root, *_ = runs
    for name, begins in (("c.png", b"\x89PNG"), ("c.svg", b"<?xml")):
        assert main(["curves", str(root), "-o", str(tmp_path / name)]) == 0
        assert (tmp_path / name).read_bytes().startswith(begins)
    assert "W4A8" in (tmp_path / "c.svg").read_text()
    capsys.readouterr()
    where = ["--where", "status != 'copy' and steps > 0"]
    assert main(["curves", str(root), "-o", str(tmp_path / "c.csv"), "--json", *where]) == 0
    assert json.loads(capsys.readouterr().out) == {
        "file": str(tmp_path / "c.csv"), "runs": 6, "lines": 3 * STEPS + 6 + 3,
    }  # fmt: skip
    with (tmp_path / "c.csv").open() as file:
        rows = list(csv.DictReader(file))
    last = [row for row in rows if row["run_id"] == "000000000005"][-1]
    assert (last["step"], last["tokens"], last["loss"], last["val_loss"]) == ("6", str(6 * BATCH), "3.5", "")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["{root}", "-o", "c.pdf"], "must end in .png, .svg or .csv"),
        (["{root}", "-o", "c.png", "--where", "status == 'failed'"], "none of the runs has metrics yet"),
        (["{root}", "-o", "c.png", "--where", "status == 'damaged'"], "no runs that can be read"),
        (["none", "-o", "c.png"], "no run directory"),
    ],
)
def test_curves_of_nothing(arguments, said, runs, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["curves", *(word.format(root=runs[0]) for word in arguments)]) == 2
    assert said in capsys.readouterr().err
    assert not list(tmp_path.glob("c.*"))
