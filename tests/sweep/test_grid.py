"""Sweep files: products of axes, token budgets, and mistakes."""

import pytest
import yaml

from precisionlm.errors import UserError
from precisionlm.sweep.grid import load_sweep

from ..conftest import tiny_tree


def write(tmp_path, tree):
    path = tmp_path / "sweep.yaml"
    path.write_text(yaml.safe_dump(tree))
    return path


def test_every_combination_once(tmp_path):
    grid = {
        "size": [{"model.layers": 1}, {"model.layers": 2, "model.width": 64}],
        "tokens": [1000, 2e4],
        "precision.recipe": ["bf16", "W4A8", "A8,W=int4"],
    }
    points = load_sweep(write(tmp_path, {"experiment": tiny_tree(tmp_path), "grid": grid}))
    assert len(points) == 12
    assert {(p.model.layers, p.model.width) for p in points} == {(1, 32), (2, 64)}
    assert {p.training.steps for p in points} == {4, 78}  # 256 tokens a step
    assert {p.precision.recipe for p in points} == {"bf16", "W4A8"}  # one spelling of one recipe


def test_the_experiment_can_be_a_file_and_overrides_win(tmp_path):
    (tmp_path / "base.yaml").write_text(yaml.safe_dump(tiny_tree(tmp_path)))
    path = write(tmp_path, {"experiment": "base.yaml", "grid": {"tokens": [1e4]}})
    (point,) = load_sweep(path, ["--training.steps", "5", "--model.width", "64"])
    assert (point.training.steps, point.model.width) == (5, 64)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"grdi": {}}, "unknown key 'grdi'; did you mean 'grid'?"),
        ({"grid": {"sizes": [1, 2]}}, "axis 'sizes' is no key path"),
        ({"grid": {"training.steps": 3}}, "must be a list"),
        ({"grid": {"training.stpes": [3]}}, "unknown key 'training.stpes'"),
        ({"grid": {"model.width.x": [3]}}, "'width' is no section"),
        ({"grid": {"tokens": ["many"]}}, "must be a positive number of tokens"),
        ({"grid": None}, "needs 'experiment:'"),
    ],
)
def test_mistakes_are_one_line(tmp_path, change, message):
    tree = {"experiment": tiny_tree(tmp_path), "grid": {"training.steps": [1]}} | change
    with pytest.raises(UserError) as caught:
        load_sweep(write(tmp_path, tree))
    assert message in str(caught.value) and "sweep.yaml" in str(caught.value)
