"""The experiment tree: strict in, canonical out, one clear line for every mistake."""

import pytest
import yaml

from precisionlm.config import Experiment, apply_overrides, build, load, to_yaml
from precisionlm.errors import UserError

from .conftest import tiny_tree


@pytest.fixture
def config_file(tmp_path):
    path = tmp_path / "run.yaml"
    path.write_text(yaml.safe_dump(tiny_tree(tmp_path)))
    return path


def test_canonical_yaml_reads_back(config_file):
    experiment = load(config_file)
    assert build(yaml.safe_load(to_yaml(experiment)), "again") == experiment
    assert to_yaml(build(yaml.safe_load(to_yaml(experiment)), "again")) == to_yaml(experiment)


@pytest.mark.parametrize("text", ["3723808099e1", "123456789012", "1e5", "null", "0x1f"])
def test_texts_that_look_like_numbers_read_back(config_file, tmp_path, text):
    experiment = load(config_file).model_copy(update={"name": text})
    (tmp_path / "canonical.yaml").write_text(to_yaml(experiment))
    assert load(tmp_path / "canonical.yaml") == experiment


def test_overrides_and_scientific_notation(config_file):
    experiment = load(config_file, ["--training.steps", "50", "--optimizer.learning_rate=1e-3"])
    assert (experiment.training.steps, experiment.optimizer.learning_rate) == (50, 1e-3)
    config_file.write_text(config_file.read_text().replace("0.003", "3e-3"))
    assert load(config_file).optimizer.learning_rate == 3e-3


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("--training.stpes 3", "unknown key 'training.stpes'; did you mean 'steps'?"),
        ("--modle.width 3", "unknown key 'modle'; did you mean 'model'?"),
        ("--training.steps -1", "training.steps = -1: input should be greater than or equal to 1"),
        ("--training.steps 3.5", "training.steps = 3.5: input should be a valid integer"),
        ("--training.steps true", "training.steps = True: input should be a valid integer"),
        ("--optimizer.learning_rate abc", "optimizer.learning_rate = abc: input should be a valid number"),
        ("--optimizer.learning_rate .nan", "optimizer.learning_rate = nan: input should be a finite number"),
        ("--optimizer.schedule cosin", "input should be 'cosine', 'wsd' or 'linear'"),
        ("--precision.recipe W4B3", "precision.recipe: recipe 'W4B3': cannot read 'W4B3'"),
        ("--model.heads 5", "model: width 32 is not divisible by heads 5"),
        ("--training 3", "training = 3"),
        ("--training.steps", "overrides must come as '--section.key value'"),
        ("--model.width.x 3", "'width' is no section"),
    ],
)
def test_every_mistake_is_one_line_with_file_and_key(config_file, override, message):
    with pytest.raises(UserError) as caught:
        load(config_file, override.split())
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
    if not message.startswith(("overrides", "'width'")):
        assert str(config_file) in str(caught.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: [1", "not valid YAML"),
        ("- 1", "must be a mapping"),
        ("model: {layers: 1, layers: 2}", "key 'layers' is given twice"),
        ("model: {}", "key 'model.layers' is missing"),
    ],
)
def test_files_that_are_not_experiments(tmp_path, text, message):
    path = tmp_path / "bad.yaml"
    path.write_text(text)
    with pytest.raises(UserError, match=message):
        load(path)
    with pytest.raises(UserError, match="cannot be read"):
        load(tmp_path / "absent.yaml")


def test_overrides_leave_their_input_alone():
    tree = {"model": {"width": 1}}
    assert apply_overrides(tree, ["--model.width", "2"])["model"]["width"] == 2
    assert tree == {"model": {"width": 1}}


def test_experiments_are_frozen(config_file):
    with pytest.raises(ValueError, match="frozen"):
        load(config_file).training.steps = 3
    assert isinstance(hash(load(config_file)), int)
    assert Experiment.model_fields["mesh"].default == load(config_file).mesh
