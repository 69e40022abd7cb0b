"""Sweep files: axes, token budgets, filters, rules, caps, and mistakes."""

import json

import pytest
import yaml

from precisionlm.cli.main import main
from precisionlm.config import MeshConfig
from precisionlm.errors import UserError
from precisionlm.model.presets import non_embedding_parameters
from precisionlm.sweep.grid import load_sweep
from precisionlm.sweep.where import Names
from precisionlm.training.run import non_embedding_of, prepare_run

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
        ({"grid": [1]}, "grid: must be axes with lists of values"),
        ({"zip": {"tokens": [1e4, 2e4], "training.seed": [1]}}, "equally long; 'tokens' has 2, 'training.seed' has 1"),
        (
            {"zip": {"training.steps": [2]}},
            "zip axis 'training.steps' and grid axis 'training.steps' both set training.steps",
        ),
        ({"grid": {"training.seed": [4]}, "seeds": 2}, "'seeds:' and grid axis 'training.seed' both set training.seed"),
        ({"seeds": 0}, "seeds: must be how many seeds"),
        ({"seeds": [0, "one"]}, "seeds: must be how many seeds"),
        ({"seeds": True}, "seeds: must be how many seeds"),
        ({"where": 3}, "where: must be an expression"),
        ({"where": "D/N <"}, "where 'D/N <': cannot be read"),
        ({"where": "D / M < 3"}, "no column 'M'"),
        ({"where": "model.width > 3"}, "is written in backticks: `model.width`"),
        ({"where": "N"}, "is no true or false"),
        ({"where": "recipe == 'W4X3'"}, "where 'recipe == 'W4X3'': recipe 'W4X3':"),
        ({"where": "`precision.recipe` in ['bf16', 'W4A']"}, "recipe 'W4A':"),
        ({"where": ["N > 1", "D > 1e30"]}, "where: none of the 1 rows is left"),
        ({"lr": {}}, "lr: give one rule: mup or law"),
        ({"lr": 3e-3}, "lr = 0.003: must be a section with keys of mup, law"),
        ({"lr": {"mup": {"bse_width": 3, "rate": 1}}}, "'lr.mup.bse_width'; did you mean 'base_width'?"),
        ({"lr": {"mup": {"base_width": 3, "rate": 1, "widht": 1}}}, "unknown key 'lr.mup.widht'"),
        ({"lr": {"mup": {"base_width": 3, "rate": -1}}}, "lr.mup.rate = -1"),
        ({"lr": {"law": {"rate": 1, "N": -0.2}}}, "lr.law: the exponent N needs at.N"),
        ({"lr": {"law": {"rate": 1, "N": -0.2, "at": {"n": 1}}}}, "unknown key 'lr.law.at.n'; valid: D, N, batch"),
        (
            {"lr": {"mup": {"base_width": 3, "rate": 1}}, "grid": {"optimizer.learning_rate": [1e-3]}},
            "grid axis 'optimizer.learning_rate' and 'lr:' both set optimizer.learning_rate",
        ),
        ({"budget": {"mfu": 0.5}}, "budget: give flops or chip_hours"),
        ({"budget": {"flops": 1, "mfu": 40}}, "budget.mfu = 40: input should be less than or equal to 1"),
        ({"budget": {"flop": 1}}, "unknown key 'budget.flop'; did you mean 'flops'?"),
        ({"budget": {"flops": 1, "chip": "H10"}}, "budget.chip: chip 'H10' is unknown; did you mean"),
        ({"evaluate": {"ptq": ["W3", "W4@first:bf16"]}}, "evaluate.ptq: 'W4@first:bf16': '@' is for recipes"),
        ({"evaluate": {"ptw": []}}, "unknown key 'evaluate.ptw'; did you mean 'ptq'?"),
    ],
)
def test_mistakes_are_one_line(tmp_path, change, message):
    tree = {"experiment": tiny_tree(tmp_path), "grid": {"training.steps": [1]}} | change
    with pytest.raises(UserError) as caught:
        load_sweep(write(tmp_path, tree))
    assert message in str(caught.value) and str(caught.value).startswith(f"{tmp_path / 'sweep.yaml'}: ")
    assert "\n" not in str(caught.value)


def points_of(tmp_path, base=(), **keys):
    return load_sweep(write(tmp_path, {"experiment": tiny_tree(tmp_path) | dict(base), **keys}))


def test_zipped_axes_go_forward_together_with_every_point_of_the_grid(tmp_path):
    sizes = [{"model.layers": 1}, {"model.layers": 2}]
    points = points_of(
        tmp_path,
        grid={"precision.recipe": ["bf16", "W4"]},
        zip={"size": sizes, "tokens": [512, 1024]},
        seeds=[3, 5],
    )
    found = [(p.precision.recipe, p.model.layers, p.training.steps, p.training.seed) for p in points]
    assert found == [
        (recipe, layers, steps, seed)
        for recipe in ("bf16", "W4")
        for layers, steps in ((1, 2), (2, 4))
        for seed in (3, 5)
    ]
    assert [p.training.seed for p in points_of(tmp_path, seeds=3)] == [0, 1, 2]


def test_where_leaves_the_rows_that_are_meant(tmp_path):
    grid = {"model.layers": [1, 2, 4], "tokens": [1e4, 1e6], "precision.recipe": ["bf16", "W4A8", "W3A4-g16"]}

    def left(*where):
        return {(p.model.layers, p.tokens, p.precision.recipe) for p in points_of(tmp_path, grid=grid, where=[*where])}

    every = left("N > 0")
    assert len(every) == 18
    n = {layers: non_embedding_parameters(points_of(tmp_path, grid={"model.layers": [layers]})[0].model)
         for layers in (1, 2, 4)}  # fmt: skip
    assert left(f"D/N < {1e4 / n[2] * 1.1}") == {p for p in every if p[0] in (2, 4) and p[1] < 1e5}
    assert left(f"N == {n[1]}", "tokens > 1e5") == {p for p in every if p[0] == 1 and p[1] > 1e5}
    assert left("w_bits < 16 and a_bits == 8") == {p for p in every if p[2] == "W4A8"}
    assert left("w_group == 16 or recipe == 'bf16'") == {p for p in every if p[2] != "W4A8"}
    assert left("`model.layers` in [1, 4] and steps > 100") == {p for p in every if p[0] != 2 and p[1] > 1e5}
    assert left("`training.weights_from` is missing") == every
    assert left("steps * batch_tokens == D_tokens and N == N_params") == every


def test_where_reads_recipes_as_the_grid_does(tmp_path):
    written = ["int4full-g32", "W=int4full/g64,A=int12/g64", "A4W4", "W4A4@down:bf16"]
    grid = {"precision.recipe": written}
    points = points_of(tmp_path, grid=grid)
    assert len({p.precision.recipe for p in points}) == 4 and points[0].precision.recipe != written[0]
    for name in ("recipe", "`precision.recipe`"):
        for text, point in zip(written, points, strict=True):
            for spelled in (text, point.precision.recipe):
                assert points_of(tmp_path, grid=grid, where=f'{name} == "{spelled}"') == [point]
        both = '["int4full-g32", "A4W4"]'
        assert points_of(tmp_path, grid=grid, where=f"{name} in {both}") == [points[0], points[2]]
        assert points_of(tmp_path, grid=grid, where=f"{name} not in {both}") == [points[1], points[3]]


def test_the_expressions_n_is_the_tables(experiment):
    run = prepare_run(experiment.model_copy(update={"mesh": MeshConfig(fsdp=1, replica=8)}))
    assert Names(run.experiment)["N"] == non_embedding_of(run)


def test_learning_rates_by_rule(tmp_path):
    grid = {"model.width": [32, 64], "tokens": [2560, 25600], "precision.recipe": ["bf16", "W4"]}
    rates = {(p.model.width, p.tokens, p.precision.recipe): p.optimizer.learning_rate
             for p in points_of(tmp_path, grid=grid, lr={"mup": {"base_width": 128, "rate": 1e-3}})}  # fmt: skip
    assert {width: rate for (width, _, _), rate in rates.items()} == {32: 4e-3, 64: 2e-3} and len(rates) == 8
    law = {"rate": 3e-3, "N": -0.2, "batch": 0.5, "D": -0.1, "at": {"N": 1e4, "batch": 1024, "D": 2560}}
    for p in points_of(tmp_path, grid=grid | {"training.batch_size": [8, 16]}, lr={"law": law}):
        expected = 3e-3 * (non_embedding_parameters(p.model) / 1e4) ** -0.2
        expected *= (p.batch_tokens / 1024) ** 0.5 * (p.tokens / 2560) ** -0.1
        assert p.optimizer.learning_rate == pytest.approx(expected, rel=1e-5)
    path = write(tmp_path, {"experiment": {k: v for k, v in tiny_tree(tmp_path).items() if k != "optimizer"},
                            "seeds": 1, "lr": {"mup": {"base_width": 32, "rate": 7e-3}}})  # fmt: skip
    assert load_sweep(path)[0].optimizer.learning_rate == 7e-3  # a rule needs no rate to replace
    assert load_sweep(path, ["--optimizer.learning_rate", "1.0"])[0].optimizer.learning_rate == 1.0


@pytest.mark.parametrize(
    ("budget", "message"),
    [
        ({"flops": 1e3}, "budget.flops: 2 runs cost 8.69e+08 FLOPs, the cap is 1e+03"),
        (
            {"chip_hours": 1e-12, "chip": "H100", "mfu": 0.3},
            "hours of one H100 SXM at 30% of its bf16 peak, the",
        ),
        ({"chip_hours": 1}, "budget.chip_hours: this device's peak is not known; add chip"),
        ({"flops": 1e15, "chip_hours": 4, "chip": "TPU v5e"}, None),
    ],
)
def test_a_budget_is_refused_before_anything_runs(tokens_folder, tmp_path, capsys, budget, message):
    path = write(tmp_path, {"experiment": tiny_tree(tokens_folder), "seeds": 2, "budget": budget})
    words = ["sweep", str(path), "--out", str(tmp_path / "runs")]
    assert main([*words, "--dry-run"]) == (2 if message else 0)
    out, err = capsys.readouterr()
    if message is None:
        assert "hours of one TPU v5e at an assumed 40%" in out
        return
    assert message in err and err.startswith(f"error: {path}: budget") and err.count("\n") == 1
    assert main(words) == 2 and not (tmp_path / "runs").exists()


def test_a_dry_run_shows_packs_and_what_is_left(tokens_folder, tmp_path, capsys):
    grid = {"precision.recipe": ["bf16", "W4A8", "W3A8"]}
    tree = {"experiment": tiny_tree(tokens_folder), "grid": grid, "seeds": 9, "evaluate": {"ptq": ["W3"]}}
    path = write(tmp_path, tree)
    words = ["sweep", str(path), "--out", str(tmp_path / "runs"), "--dry-run"]
    assert main([*words, "--pack", "1"]) == 0
    out = capsys.readouterr().out
    assert out.count("one by one (asked for)") == 2 and "to train: 27 runs, 2 training steps to compile" in out
    assert main([*words, "--pack", "2", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert len(rows) == 27 and {(row["recipe"] == "bf16", row["group"], row["pack"]) for row in rows} == {
        (True, 0, 16),  # two on each of eight devices
        (False, 1, 16),
    }
    assert main([*words, "--ptq", "W4-g7"]) == 2 and "does not divide" in capsys.readouterr().err
