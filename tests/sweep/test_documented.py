"""The sweep files that the documentation and the help show are ones that the command takes."""

import json
import re
from collections import Counter
from pathlib import Path

import pytest
import yaml

from precisionlm.cli.main import build_parser, main
from precisionlm.sweep.grid import load_sweep

from ..conftest import tiny_tree

REPOSITORY = Path(__file__).resolve().parents[2]


def help_of(verb):
    (choices,) = (a.choices for a in build_parser()._actions if isinstance(a.choices, dict))
    return choices[verb].format_help()


def test_the_documents_example(tokens_folder, tmp_path, capsys):
    (text,) = re.findall(r"```yaml\n(.*?)```", (REPOSITORY / "docs/sweeps.md").read_text(), re.DOTALL)
    path, out = tmp_path / "sweep.yaml", tmp_path / "runs"
    path.write_text(text)
    (tmp_path / "base.yaml").write_text(yaml.safe_dump(tiny_tree(tokens_folder)))
    words = ["sweep", str(path), "--out", str(out)]
    assert main([*words, "--dry-run", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert Counter((row["N_params"], row["D_tokens"]) for row in rows) == {
        (26_624, 100_096): 6,
        (159_744, 100_096): 6,
        (159_744, 399_872): 6,
    }
    rates = {(e.model.width, e.optimizer.learning_rate) for e in load_sweep(path)}
    assert rates == {(32, 4e-3), (64, 2e-3)}
    few = {"training.steps": 2, "precision.recipe": "bf16", "training.seed": 0, "training.eval_tokens": 256}
    few |= {"model.layers": 1, "model.width": 32, "model.heads": 2, "model.mlp_width": 96}  # all rows are one
    assert main([*words, "--json", "--pack", "1", *(f"--{key}={value}" for key, value in few.items())]) == 0
    assert len(json.loads(capsys.readouterr().out)["done"]) == 1
    assert len(list(out.glob("*/ptq/*.json"))) == 2


def test_the_helps_example(tokens_folder, tmp_path, capsys):
    shown = help_of("sweep")
    lines = shown[shown.index("  experiment:") :].split("\n\n")[0]
    tree = yaml.safe_load(lines)
    assert (REPOSITORY / tree["experiment"]).exists() and len(tree) == 3 and "tokens" in tree["grid"]
    path = tmp_path / "sweep.yaml"
    path.write_text(lines.replace("configs/", f"{REPOSITORY}/configs/"))
    words = ["sweep", str(path), "--out", str(tmp_path / "runs"), "--dry-run", "--data.path", str(tokens_folder)]
    assert main([*words, "--json"]) == 0
    assert len(json.loads(capsys.readouterr().out)) == 8


@pytest.mark.parametrize("verb", ["train", "sweep", "evaluate", "ptq"])
def test_files_that_a_help_names_are_there(verb):
    for name in re.findall(r"(?:configs|docs|launch)/[\w./]+\w", help_of(verb)):
        assert (REPOSITORY / name).exists(), name
