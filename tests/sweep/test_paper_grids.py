"""The shipped sweep files of the three papers: they load, they are the published grids, and a dry run takes them."""

import csv
import json
from dataclasses import replace
from itertools import product
from pathlib import Path

import pytest

from precisionlm.cli.main import main
from precisionlm.config import Experiment
from precisionlm.model.presets import load_experiment, non_embedding_parameters, preset
from precisionlm.precision.binding import leaks_future
from precisionlm.precision.recipe import parse_recipe
from precisionlm.sweep.grid import load_sweep
from precisionlm.training.run import prepare_run

REPOSITORY = Path(__file__).resolve().parents[2]
CONFIGS = REPOSITORY / "configs"
SUN_RUNS = REPOSITORY.parent / "shared" / "sun2025_runs.csv"
SWEEPS = {
    "kumar2024/grid.yaml": 4 * 5 * 31,
    "kumar2024/float_weights.yaml": 140,
    "kumar2024/compute_matched.yaml": 5,
    "sun2025/41m.yaml": 92,
    "sun2025/85m.yaml": 88,
    "sun2025/154m.yaml": 88,
    "sun2025/679m.yaml": 88,
    "sun2025/679m_e5m1.yaml": 3,
    "sun2025/1.2b.yaml": 8,
    "sun2025/7b.yaml": 2,
    "sun2025/70b.yaml": 2,
    "sun2025/bf16.yaml": 16,
    "chen2025/w4a4.yaml": 80,
    "chen2025/w4a16.yaml": 80,
    "chen2025/w16a4.yaml": 80,
    "chen2025/w4a4_fc2_8bit.yaml": 80,
    "chen2025/w16a4_fc2_8bit.yaml": 80,
    "chen2025/bf16.yaml": 16,
    "chen2025/validation.yaml": 12,
}


def recipes_of(file: str) -> set[str]:
    return {e.precision.recipe for e in load_sweep(CONFIGS / file)}


def canonical(*recipes: str) -> set[str]:
    return {str(parse_recipe(recipe)) for recipe in recipes}


def test_every_file_is_known_and_says_how_to_run_it_and_what_to_expect():
    files = {str(path.relative_to(CONFIGS)) for path in CONFIGS.glob("*2*/*.yaml")}
    assert files == set(SWEEPS) | {f"{paper}/experiment.yaml" for paper in ("kumar2024", "sun2025", "chen2025")}
    for file in files:
        comment = "".join(line for line in (CONFIGS / file).read_text().splitlines(True) if line.startswith("#"))
        verb = "sweep" if file in SWEEPS else "train"
        assert f"#   precisionlm {verb} configs/{file} --out " in comment
        assert "\n# Expect" in comment


@pytest.mark.parametrize(("file", "rows"), SWEEPS.items())
def test_sweep_is_the_papers_grid_of_the_papers_models(file, rows):
    experiments = load_sweep(CONFIGS / file)
    assert len({(e.name, e.tokens, e.precision.recipe) for e in experiments}) == len(experiments) == rows
    for e in experiments:
        assert_is_preset(e)
        parse_recipe(e.precision.recipe).resolve(e.model.layers)


@pytest.mark.parametrize("paper", ["kumar2024", "sun2025", "chen2025"])
def test_single_run_is_a_preset(paper):
    assert_is_preset(load_experiment(CONFIGS / paper / "experiment.yaml"))


def assert_is_preset(e: Experiment) -> None:
    p = preset(e.name)
    assert e.model == p.model
    assert e.optimizer.learning_rate == pytest.approx(p.optimizer.learning_rate, rel=1e-6)
    assert e.optimizer == p.optimizer.model_copy(update={"learning_rate": e.optimizer.learning_rate})
    assert (e.training.batch_size, e.data.sequence_length) == (p.batch_size, p.sequence_length)


def test_kumars_budgets_and_operands():
    grid = load_sweep(CONFIGS / "kumar2024/grid.yaml")
    assert {e.training.steps for e in grid} == {6_250, 12_500, 25_000, 50_000, 100_000}
    bits = range(3, 13)
    one_operand = [f"W{b}" for b in bits] + [f"{o}=int{b}/tensor" for o, b in product(("A", "KV"), bits)]
    assert {e.precision.recipe for e in grid} == canonical("bf16", *one_operand)
    floats = {parse_recipe(e.precision.recipe) for e in load_sweep(CONFIGS / "kumar2024/float_weights.yaml")}
    assert sorted(recipe.commonest("w").format.bits for recipe in floats) == [3, 4, 5, 6, 7, 8, 12]


def test_kumars_validation_runs_cost_the_same():
    matched = load_sweep(CONFIGS / "kumar2024/compute_matched.yaml")
    bits = [4, 6, 8, 16, 32]
    cost = [non_embedding_parameters(e.model) * b for e, b in zip(matched, bits, strict=True)]
    assert cost == pytest.approx([220e6 * 32] * 5, rel=0.02)
    assert all(e.tokens == pytest.approx(16e9, rel=1e-5) for e in matched)
    for e, b in list(zip(matched, bits, strict=True))[:3]:
        recipe = parse_recipe(e.precision.recipe)
        assert {recipe.commonest(operand).format.bits for operand in ("w", "a", "q", "k", "v")} == {b}
    assert [e.training.dtype for e in matched] == ["bfloat16"] * 4 + ["float32"]


def sun_row(e: Experiment) -> tuple[int, int, int, int, str]:
    """N, D, E, M, B of one run; that P2, P4 (which takes P2's value) and P6 and nothing else are quantized alike, P6
    along the channels of a token, is checked on the way."""
    recipe = parse_recipe(e.precision.recipe)
    operands = {o: recipe.commonest(o) for o in ("a", "w", "dgrad_dy", "dgrad_w", "wgrad_dy", "wgrad_x")}
    assert operands["a"] is operands["dgrad_dy"] is operands["wgrad_dy"] is None
    assert e.precision.backward == "quantized" and operands["dgrad_w"] is None
    assert operands["wgrad_x"].scaling.per_token == (operands["w"].scaling.sharing != "tensor")
    plain = replace(operands["wgrad_x"].scaling, per_token=False)
    assert operands["w"] == replace(operands["wgrad_x"], scaling=plain)
    assert recipe.commonest("q") is recipe.commonest("k") is recipe.commonest("p") is None
    format_, scaling = operands["w"].format, operands["w"].scaling
    block = str(scaling.group) if scaling.sharing == "group" else scaling.sharing
    return non_embedding_parameters(e.model), e.tokens, format_.exponent, format_.mantissa, block


@pytest.mark.skipif(not SUN_RUNS.exists(), reason="../shared/sun2025_runs.csv, the paper's list of runs, is not here")
@pytest.mark.parametrize(
    ("fit", "files"),
    [("1", ["41m", "85m", "154m", "679m", "679m_e5m1"]), ("0", ["1.2b", "7b", "70b"])],
)
def test_suns_files_are_exactly_the_papers_list(fit, files):
    with SUN_RUNS.open() as file:
        listed = [
            (int(r["N"]), int(r["D"]), int(r["E"]), int(r["M"]), r["B"])
            for r in csv.DictReader(file)
            if r["fit"] == fit
        ]
    ours = [sun_row(e) for name in files for e in load_sweep(CONFIGS / f"sun2025/{name}.yaml")]
    assert sorted(ours) == sorted(listed)
    assert len(ours) == {"1": 359, "0": 12}[fit]


def test_chens_recipes():
    groups = ["-g32", "-g64", "-g128", "-g256", ""]
    for file, main_recipe in (("w4a4", "int4full"), ("w4a16", "W=int4full"), ("w16a4", "A=int4full")):
        assert recipes_of(f"chen2025/{file}.yaml") == canonical(*(main_recipe + g for g in groups))
    for file, main_recipe in (("w4a4_fc2_8bit", "int4full"), ("w16a4_fc2_8bit", "A=int4full")):
        wider = [f"{main_recipe}{g}@down:A=int8full{g}" for g in groups]
        assert recipes_of(f"chen2025/{file}.yaml") == canonical(*wider)
    budgets = sorted({round(e.tokens / 1e9, 2) for e in load_sweep(CONFIGS / "chen2025/w4a4.yaml")})
    assert budgets == [10, 20, 50, 100]


def test_leaks_are_as_the_papers_recipes_make_them(tokens_folder):
    """Kumar's per-tensor activations leak, weights never; Sun's and Chen's forward passes do not."""
    flags: dict[str, set[bool]] = {}
    for e in load_sweep(CONFIGS / "kumar2024/grid.yaml", ["--data.path", str(tokens_folder)])[:31]:
        kind = e.precision.recipe[0]
        flags.setdefault(kind, set()).add(leaks_future(prepare_run(e).program.structure))
    assert flags == {"b": {False}, "W": {False}, "A": {True}, "K": {True}}
    for file in ("sun2025/41m.yaml", "chen2025/w4a4.yaml"):
        for e in load_sweep(CONFIGS / file, ["--data.path", str(tokens_folder)])[:25]:
            assert not leaks_future(prepare_run(e).program.structure)


LARGE = 100  # rows; planning one takes about 0.1 s


@pytest.mark.parametrize(
    "file", [pytest.param(f, marks=pytest.mark.long) if n > LARGE else f for f, n in SWEEPS.items()]
)
def test_dry_run_plans_the_whole_file(file, tokens_folder, tmp_path, capsys):
    out = tmp_path / "runs"
    arguments = ["sweep", str(CONFIGS / file), "--out", str(out), "--dry-run", "--json"]
    assert main([*arguments, "--data.path", str(tokens_folder)]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert len(rows) == SWEEPS[file]
    assert all(row["status"] == "new" and row["flops"] > 6 * row["N_params"] * row["D_tokens"] for row in rows)
    assert not out.exists()


def test_a_dry_run_counts_hours_of_the_chip_asked_for(tokens_folder, tmp_path, capsys):
    words = ["sweep", str(CONFIGS / "sun2025/7b.yaml"), "--out", str(tmp_path), "--dry-run", "--data.path"]
    words += [str(tokens_folder), "--chip", "TPU v5e", "--mfu", "0.5"]
    assert main([*words, "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    for row in rows:
        assert row["chip_hours"] == pytest.approx(row["flops"] / (197e12 * 0.5 * 3600))
    assert main(words) == 0
    said = capsys.readouterr().out.splitlines()[-1]
    total = sum(row["chip_hours"] for row in rows)
    assert f"about {total:,.3g} hours of one TPU v5e at an assumed 50% of its bf16 peak" in said
    assert main([*words[:-4], "--chip", "H100"]) == 0
    assert "hours of one H100 SXM at an assumed 40%" in capsys.readouterr().out
    assert main([*words[:-4], "--chip", "H10"]) == 2
    assert "chip 'H10' is unknown; did you mean 'H100" in capsys.readouterr().err
