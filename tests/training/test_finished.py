"""Further evaluations of finished runs: equal to those of training, done once, of the right data and scales."""

import json
import shutil

import numpy as np
import pytest

from precisionlm.cli.main import main
from precisionlm.config import build
from precisionlm.errors import PreemptedError, UserError
from precisionlm.storage.evaluation import Evaluation
from precisionlm.storage.run_directory import RunDirectory
from precisionlm.sweep.collect import collect
from precisionlm.training.execute import train
from precisionlm.training.finished import evaluate_finished, request

from ..conftest import tiny_tree


@pytest.fixture(scope="module")
def finished(tokens_folder, tmp_path_factory):
    """A function: recipe → a copy of a finished run at it, with its evaluation at bf16."""
    made = {}

    def run(recipe, tmp_path):
        if recipe not in made:
            tree = tiny_tree(tokens_folder)
            tree["model"] |= {"layers": 1}
            tree["precision"] = {"recipe": recipe}
            tree["training"] |= {"steps": 3, "eval_bf16": True}
            made[recipe] = train(build(tree, "test"), tmp_path_factory.mktemp("runs"))
        return shutil.copytree(made[recipe].path, tmp_path / made[recipe].path.name)

    return run


def trained(folder):
    return json.loads((folder / "result.json").read_text())["evaluations"]


def test_equals_the_evaluation_of_training_and_is_done_once(finished, tmp_path):
    folder = finished("W=int4/lsq,A=int8", tmp_path)
    at_its_own, at_bf16 = trained(folder)
    assert request(folder, []).recorded == at_its_own
    assert request(folder, ["--precision.recipe", "bf16"]).recorded == at_bf16
    shutil.rmtree(folder / "evaluations")
    old = json.loads((folder / "result.json").read_text())
    for row in old["evaluations"]:
        del row["sequences"]
    (folder / "result.json").write_text(json.dumps(old))
    for words, name, expected in (([], "trained", at_its_own), (["--precision.recipe=bf16"], "recipe", at_bf16)):
        asked = request(folder, [*words, "--training.accumulate", "1"])
        assert asked.recorded is None and asked.evaluation == name
        row = evaluate_finished(asked)
        assert row["val_loss"] == pytest.approx(expected["val_loss"], abs=1e-6)
        assert (row["val_tokens"], row["evaluation"]) == (2000, name)
        assert row["eval_recipe"] == ("bf16" if words else "A8,W=int4/lsq")
        kept = Evaluation.read(RunDirectory.at(folder), row["sequences"])
        assert kept is not None and kept.loss == row["val_loss"]
        written = (folder / row["sequences"]).with_suffix(".json")
        assert request(folder, words).recorded == json.loads(written.read_text())
    assert len(list((folder / "evaluations").iterdir())) == 4


def test_more_tokens_and_another_recipe_are_further_rows(finished, tmp_path):
    folder = finished("bf16", tmp_path)
    before = (folder / "result.json").read_bytes()
    more = ["--training.eval_tokens", "3000"]
    evaluate_finished(request(folder, more))
    evaluate_finished(request(folder, [*more, "--precision.recipe", "W2A8"]))
    assert (folder / "result.json").read_bytes() == before
    everything = request(folder, ["--training.eval_tokens", "999999"])
    assert everything.name == request(folder, ["--training.eval_tokens", "888888"]).name  # the split is smaller
    rows, unfinished = collect(tmp_path)
    assert unfinished == [] and list(rows["val_tokens"]) == [2000, 3000, 3000]
    rows = rows.set_index(["evaluation", "eval_recipe", "val_tokens"])
    coarse, fine = rows.loc[("recipe", "W2A8", 3000)], rows.loc[("trained", "bf16", 3000)]
    assert coarse["delta_to"] == f"{folder.name}/trained" and 0 < coarse["delta_se"] < coarse["val_loss_se"]
    assert coarse["delta"] == pytest.approx(coarse["val_loss"] - fine["val_loss"], abs=1e-9) and coarse["delta"] != 0


def test_scales_that_are_not_there_are_an_error(finished, tmp_path):
    plain, learned = finished("bf16", tmp_path), finished("W=int4/lsq,A=int8", tmp_path)
    for folder, recipe in ((plain, "W=int4/lsq"), (learned, "W=int4/lsq,A=int4/lac"), (learned, "W=int4/lsq/g16")):
        with pytest.raises(UserError, match=r"needs learned scales \(.*_clip.*\) that this run, trained at"):
            request(folder, ["--precision.recipe", recipe])
    row = evaluate_finished(request(learned, ["--precision.recipe", "W4A8"]))  # drops them
    assert np.isfinite(row["val_loss"]) and row["evaluation"] == "recipe"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--optimizer.learning_rate", "1"], "--optimizer.learning_rate decides no evaluation of a finished run"),
        (["--training.dtype", "float32"], "--training.dtype decides no evaluation"),
        (["--training.eval_token=5"], "did you mean 'training.eval_tokens'?"),
        (["--training.eval_tokens", "0"], "training.eval_tokens = 0"),
        (["--precision.recipe", "W4-g5"], "does not divide"),
        (["--data.path", "{other}"], "is not what this run was trained on"),
    ],
)
def test_bad_input_is_one_line_and_writes_nothing(finished, tokens_folder, tmp_path, capsys, words, message):
    folder = finished("bf16", tmp_path)
    other = shutil.copytree(tokens_folder, tmp_path / "other")
    meta = json.loads((other / "meta.json").read_text())
    meta["validation"]["sha256"] = "0" * 64
    (other / "meta.json").write_text(json.dumps(meta))
    before = sorted(folder.rglob("*"))
    capsys.readouterr()
    assert main(["evaluate", str(folder), *(word.format(other=other) for word in words)]) == 2
    said = capsys.readouterr()
    assert message in said.err and said.err.count("\n") == 1 and said.out == ""
    assert sorted(folder.rglob("*")) == before


def test_the_data_may_have_moved_and_an_interruption_writes_nothing(finished, tokens_folder, tmp_path):
    folder = finished("bf16", tmp_path)
    moved = shutil.copytree(tokens_folder, tmp_path / "moved")
    asked = request(
        folder, ["--data.path", str(moved), "--training.eval_tokens", "2500", "--training.loss_chunks", "4"]
    )
    with pytest.raises(PreemptedError):
        evaluate_finished(asked, lambda: True)
    assert [path.name for path in (folder / "evaluations").iterdir()] == ["trained.npz"]
    assert evaluate_finished(asked)["val_tokens"] == 2500
