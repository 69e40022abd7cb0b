"""Configurations that can be written: a template that runs, every key, all mistakes of a file at once."""

import pytest
import yaml

from precisionlm.cli.config import TEMPLATE, every_key
from precisionlm.cli.main import main
from precisionlm.config import Experiment, build, load
from precisionlm.errors import UserError
from precisionlm.precision.recipe import parse_recipe
from precisionlm.sections import key_paths
from precisionlm.words import FORMATS, KEYS

from ..conftest import tiny_tree


def test_the_template_trains(tokens_folder, tmp_path, capsys):
    assert main(["config", "--template"]) == 0
    text = capsys.readouterr().out
    assert text == TEMPLATE and len(text.splitlines()) <= 14
    (tmp_path / "run.yaml").write_text(text)
    sizes = "--data.sequence_length 32 --model.width 32 --model.heads 2 --training.batch_size 8"
    here = ["--data.path", str(tokens_folder), *sizes.split(), "--training.steps", "2", "--training.eval_tokens", "500"]
    assert main(["train", str(tmp_path / "run.yaml"), "--out", str(tmp_path / "runs"), *here]) == 0
    assert "done" in capsys.readouterr().out


def test_every_key_is_listed_with_what_it_means(capsys):
    assert main(["config", "--all"]) == 0
    text = capsys.readouterr().out
    assert text.splitlines() == list(every_key())
    tree = yaml.safe_load(text)
    for path in key_paths(Experiment):
        *sections, key = path.split(".")
        if "rope_scaling" not in path:
            node = tree
            for section in sections:
                node = node[section]
            assert key in node, path
        (line,) = [line for line in text.splitlines() if line.strip(" #").startswith(f"{key}:") and "  # " in line][:1]
        assert len(line.split("  # ", 1)[1]) > 8, f"{path} is not explained"
    tiny = tiny_tree("x")
    for section, values in tree.items():
        if isinstance(values, dict):
            tiny[section] = values | tiny.get(section, {})
    assert build(tiny, "all") == build(tiny_tree("x") | {"name": tiny["name"]}, "tiny")  # the defaults are those shown


def test_a_file_is_shown_as_it_is_read(tokens_folder, tmp_path, capsys):
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(tiny_tree(tokens_folder)))
    assert main(["config", str(tmp_path / "run.yaml"), "--training.steps", "7"]) == 0
    (tmp_path / "shown.yaml").write_text(capsys.readouterr().out)
    assert load(tmp_path / "shown.yaml") == load(tmp_path / "run.yaml", ["--training.steps", "7"])


@pytest.mark.parametrize("words", [[], ["--all", "--template"], ["--all", "--training.steps", "7"]])
def test_one_thing_is_shown(words, capsys):
    assert main(["config", *words]) == 2
    assert capsys.readouterr().err.count("\n") == 1


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (
            {"data": {"path": "x", "seq_len": 32}, "training": {"max_steps": 3, "batch_size": 0}},
            "unknown key 'data.seq_len'; did you mean 'sequence_length'? · "
            "unknown key 'training.max_steps'; did you mean 'steps'? · "
            "training.batch_size = 0: input should be greater than or equal to 1",
        ),
        ({"model": {"n_layer": 2, "n_embd": 32}}, "unknown key 'model.n_layer'; did you mean 'layers'? · "),
        ({"lr": 1e-3}, "unknown key 'lr'; did you mean 'optimizer.learning_rate'?"),
        ({"recipe": "W4A8"}, "unknown key 'recipe'; did you mean 'precision.recipe'?"),
        ({"steps": 5}, "unknown key 'steps'; did you mean 'training.steps'?"),
        ({"precision": "W4A8"}, "keys of recipe, backward, execution; did you mean 'precision.recipe'?"),
        ({"model": {}}, "key 'model.layers' is missing · key 'model.width' is missing · key 'model.heads' is missing"),
    ],
)  # fmt: skip
def test_all_mistakes_of_a_file_are_told_at_once(change, said):
    with pytest.raises(UserError) as caught:
        build(tiny_tree("x") | change, "run.yaml")
    assert said in str(caught.value)
    assert str(caught.value).count("sequence_length") < 2  # under its other name it is not missing as well


def test_a_long_list_of_mistakes_ends():
    with pytest.raises(UserError, match=r"· and 12 more$"):
        build(tiny_tree("x") | {f"key{i}": 1 for i in range(20)}, "run.yaml")


def test_hints_lead_to_keys_and_formats_that_are_there():
    assert set(KEYS.values()) <= {*key_paths(Experiment)}
    assert not {*KEYS} & {path.rpartition(".")[2] for path in key_paths(Experiment)}
    for theirs, ours in FORMATS.items():
        with pytest.raises(UserError, match="did you mean"):
            parse_recipe(f"W={theirs}")
        assert parse_recipe(f"W={ours.replace(',', ' ').replace(';', ' ').split()[0]}")
