"""What comes after training works from any folder, where data and checkpoints moved, and after a damaged checkpoint."""

import json
import os
import shutil

import pytest
import yaml

from precisionlm.cli.main import main
from precisionlm.config import load

from ..conftest import tiny_tree


@pytest.fixture(scope="module")
def trained(tokens_folder, tmp_path_factory):
    """A folder in which `train run.yaml --out runs` was typed, with relative paths in the file."""
    root = tmp_path_factory.mktemp("trained")
    shutil.copytree(tokens_folder, root / "data")
    tree = tiny_tree("data")
    tree["data"]["path"] = "data"
    tree["model"] |= {"layers": 1}
    tree["precision"] = {"recipe": "bf16"}
    tree["checkpoint"] = {"every_steps": 6, "folder": "kept"}
    (root / "run.yaml").write_text(yaml.safe_dump(tree))
    before = os.getcwd()
    os.chdir(root)
    try:
        assert main(["train", "run.yaml", "--out", "runs"]) == 0
    finally:
        os.chdir(before)
    return root


@pytest.fixture
def world(trained, tmp_path, monkeypatch):
    """A copy of it, elsewhere; the working directory is a third one."""
    shutil.copytree(trained, tmp_path / "there")
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    return tmp_path / "there"


def said(capsys, *words):
    code = main([str(word) for word in words])
    out, err = capsys.readouterr()
    return code, out, err


def test_a_run_is_found_from_any_folder(trained, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (run,) = (trained / "runs").iterdir()
    experiment = load(run / "config.yaml")
    assert (experiment.data.path, experiment.checkpoint.folder) == (str(trained / "data"), str(trained / "kept"))
    for words in (["ptq", run, "--dry-run"], ["evaluate", run, "--dry-run"], ["export", run, "--out", "x", "--dry-run"],
                  ["generate", run, "--tokens", "2", "--prompt", "ā"]):  # fmt: skip
        assert said(capsys, *words)[0] == 0, words


def test_what_moved_is_said_and_checked(trained, world, capsys):
    """All of it moved, and where it was is nothing any more."""
    (run,) = (world / "runs").iterdir()
    text = (run / "config.yaml").read_text()
    (run / "config.yaml").write_text(text.replace(str(trained), str(world / "gone")))
    moved = ["--data.path", world / "data", "--checkpoint.folder", world / "kept"]
    for words in (["ptq", run, "--weights", "W4"], ["evaluate", run, "--precision.recipe", "W8"],
                  ["export", run, "--out", "x"], ["generate", run, "--tokens", "2"]):  # fmt: skip
        code, _, err = said(capsys, *words)
        assert code == 2 and "holds no prepared data any more; --data.path says where it is now" in err, words
        assert said(capsys, *words, *moved)[0] == 0, words
        code, _, err = said(capsys, *words[:2], *words[2:], "--training.steps", "3")
        assert code == 2 and "--training.steps" in err
    other = shutil.copytree(world / "data", world / "other")
    meta = json.loads((other / "meta.json").read_text())
    meta["train"]["sha256"] = "0" * 64
    (other / "meta.json").write_text(json.dumps(meta))
    code, _, err = said(capsys, "ptq", run, "--data.path", other, "--checkpoint.folder", world / "kept")
    assert code == 2 and "is not what this run was trained on" in err


@pytest.mark.long
def test_a_damaged_last_checkpoint(trained, world, capsys):
    (run,) = (world / "runs").iterdir()
    (run / "config.yaml").write_text((run / "config.yaml").read_text().replace(str(trained), str(world)))
    (kept,) = (world / "kept").glob("*/checkpoints")
    assert sorted(path.name for path in kept.iterdir()) == ["12", "6"]
    for path in (kept / "12").rglob("d/*"):
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    code, out, err = said(capsys, "ptq", run, "--weights", "W4", "--json")
    (row,) = json.loads(out)
    assert code == 0 and row["intermediate"] and (row["steps"], row["D_tokens"]) == (6, 6 * 8 * 32)
    assert "the checkpoint of step 12 is damaged" in err and "quantized is that of step 6" in err
    assert [path.name for path in (run / "ptq").glob("rtn*.json")] == ["rtn-int4-step6.json"]
    code, _, err = said(capsys, "generate", run, "--tokens", "2")
    assert code == 0 and err.startswith("left out: ") and err.count("\n") == 1
    code, _, err = said(capsys, "export", run, "--out", "x")
    assert code == 0 and "exported is that of step 6" in err
    assert yaml.safe_load((world.parent / "here/x/README.md").read_text().split("---")[1])["precisionlm"]["steps"] == 6
    code, _, err = said(capsys, "evaluate", run, "--precision.recipe", "W8")  # its row would be of the run's end
    assert code == 2 and "the checkpoint of step 12 is damaged" in err and "those before it: 6" in err
    shutil.rmtree(kept / "6")
    for words in (["ptq", run, "--weights", "W5"], ["generate", run, "--tokens", "2"], ["export", run, "--out", "y"]):
        code, _, err = said(capsys, *words)
        assert code == 2 and "there is none before it" in err, words
