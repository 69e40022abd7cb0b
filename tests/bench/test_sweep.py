"""bench sweep: the grid, whole jobs of other programs' making and of our own, packed steps alone."""

import json
import math
import sys
from dataclasses import replace

import jax
import pytest
import yaml

from precisionlm.bench import packed
from precisionlm.bench.grid import RECIPES, run_tree, sweep_tree, torch_arguments
from precisionlm.bench.jobs import HERE, Job, Place, Trained, seconds_in_steps, trained
from precisionlm.bench.sweep import Asked, as_rows, as_table, bench_sweep, multiplied
from precisionlm.bench.tokens import random_dataset
from precisionlm.cli.main import main
from precisionlm.config import build
from precisionlm.data.source import Dataset
from precisionlm.errors import UserError
from precisionlm.sweep.grid import load_sweep
from precisionlm.training.step import bound


def silent(text):
    pass


def lines(*seconds, loss=6.24):
    first = {"step": 1, "loss": loss, "wall_seconds": 1.0}
    return (first, *({"step": i + 2, "loss": loss, "wall_seconds": 1.0, "seconds": s} for i, s in enumerate(seconds)))


def test_the_grid_is_precisions_of_one_structure_then_seeds(tmp_path):
    file = tmp_path / "sweep.yaml"
    file.write_text(yaml.safe_dump(sweep_tree(["0.44M", "14M"], 17, 5e6, tmp_path), sort_keys=False))
    points = load_sweep(file)
    assert len(points) == 2 * 17 and len(set(RECIPES)) == 16
    assert {e.model.width for e in points} == {96, 384} and {e.training.steps for e in points} == {610}
    assert [e.training.seed for e in points[:17]] == [0] * 16 + [1]
    assert len({bound(e, "cpu")[0] for e in points[:16]}) == 1
    assert build(run_tree("14M", 16, 5e6, tmp_path), "test") == points[-1]


def test_the_peer_is_asked_for_the_same_run(tmp_path):
    asked = torch_arguments("tiny", RECIPES.index("W3A8KV4"), 20 * 1024, random_dataset(tmp_path, 512, 30_000))
    assert asked["bits"] == {"w": 3, "a": 8, "kv": 4} and asked["steps"] == 20 and asked["width"] == 64
    assert asked["dtype"] == "uint16" and asked["data"].endswith("train.bin")


def test_random_data_is_enough_for_every_token_to_come_once(tmp_path):
    for i, tokens in enumerate((1, 100_000, 999_999)):
        (tmp_path / str(i)).mkdir()
        meta = Dataset.open(random_dataset(tmp_path / str(i), 512, tokens)).meta
        assert meta.train.tokens > tokens and meta.validation.tokens >= 1024


def test_a_step_of_a_pack_counts_once_and_steps_of_single_runs_each():
    pack = [Trained(3, lines(0.5, 0.5, 0.25), {}), Trained(3, lines(0.5, 0.5), {}), Trained(3, lines(0.5), {})]
    assert seconds_in_steps(pack) == 1.25
    assert seconds_in_steps([replace(run, together=1) for run in pack]) == 1.25 + 1.0 + 0.5


def test_the_rest_is_reckoned_by_the_first_and_the_median_of_the_others():
    assert multiplied([10.0], 4) == 40.0
    assert multiplied([10.0, 2.0, 3.0, 40.0], 5) == 10.0 + 4 * 3.0


FAKE = """
import json, sys
from pathlib import Path
verb, given, *words = sys.argv[1:]
if verb == "train":
    sys.exit("error: not today")
if verb == "sweep":
    assert words[0] == "--out" and "--pack" not in words
    print("WARNING: Finished XLA compilation of jit(step) in 1.5 sec", file=sys.stderr)
    for i in range(RUNS):
        folder = Path(words[1]) / str(i)
        folder.mkdir(parents=True)
        (folder / "result.json").write_text(json.dumps({"status": "done"}))
        lines = [{"step": k, "loss": LOSS, "seconds": 1e-4} for k in range(20)]
        (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + chr(10) for line in lines))
"""


def another_version(folder, runs, loss):
    (folder / "precisionlm").mkdir(parents=True)
    (folder / "precisionlm" / "__init__.py").touch()
    text = FAKE.replace("RUNS", str(runs)).replace("LOSS", str(loss))
    (folder / "precisionlm" / "__main__.py").write_text(text)
    return folder


@pytest.mark.parametrize(
    ("runs", "loss", "error"),
    [(4, 6.24, ""), (4, 0.1, "loss 0.100 on uniform random tokens"), (3, 6.24, "3 of 4 runs came to their end")],
)
def test_another_version_trains_the_same_grid(runs, loss, error, tmp_path):
    asked = Asked(("tiny",), 4, 20 * 1024, jobs=(), baseline=another_version(tmp_path, runs, loss))
    (job,) = bench_sweep(asked, silent)
    assert job.error.startswith(error) and bool(job.error) == bool(error) and job.tokens == 4 * 20 * 1024
    if not error:
        assert job.in_steps == pytest.approx(4 * 20 * 1e-4) and job.compile_seconds == 1.5 and job.programs == 1
        assert 0 < job.table_seconds < job.seconds and job.rate == job.tokens / job.seconds
        assert job.error in as_table([job])


def test_a_job_that_fails_says_why_and_the_others_go_on(tmp_path):
    place = Place(tmp_path, another_version(tmp_path / "source", 1, 6.24))
    with pytest.raises(UserError, match=r"^exit code 1: error: not today$"):
        place.precisionlm("train", "run.yaml")
    asked = Asked(("tiny",), 1, 20 * 1024, jobs=(), baseline=place.source, torch=sys.executable, measured=1)
    baseline, torch = bench_sweep(asked, silent)
    assert baseline.error == ""
    if not torch.error:  # where PyTorch is installed
        assert torch.seconds > torch.compile_seconds > 0
    else:
        assert torch.error.startswith("exit code 1: ModuleNotFoundError")


def test_the_table_has_ratios_side_by_side():
    jobs = [
        Job("packed", 16, 1000, 2.0, 0.5, 1.8, 3.0, 4, 9.0, 16),
        Job("separate", 16, 1000, 20.0, 0.5, 5.0, 9.0, 3, 9.0, 3),
    ]
    packed_row, separate_row = as_rows(jobs)
    assert packed_row["steps_share"] == 0.9 and separate_row["ratio"] == 0.1
    text = as_table([*jobs, replace(jobs[0], name="torch", error="exit code 1")])
    assert (
        "| packed | 16 (16) | 2.0 | 0.001 | 1.00 | 90% |" in text
        and "| separate | 16 (3) | 20.0 | 0.000 | 10.00 |" in text
    )
    assert "| torch | 16 (16) | exit code 1 |" in text and "the first command of a size counts once" in text
    assert "nothing compiled before" in text.splitlines()[0] and "counts once" not in as_table(jobs[:1])


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--sizes", "tiny,1.8M"], "one grid has one vocabulary, these have tiny 512, 1.8M 8,192"),
        (["--sizes", "2M"], "--size 2M"),
        (["--jobs", "paked"], "--jobs paked: valid: packed, unpacked, separate"),
        (["--jobs", ""], "--jobs: nothing to measure"),
        (["--runs", "0"], "--runs 0: must be 1 to 10,000"),
        (["--tokens", "0"], "--tokens 0: must be a positive number"),
        (["--baseline", "/nowhere"], "--baseline /nowhere: holds no source tree of precisionlm"),
        (["--torch", "/no/python"], "--torch /no/python: no such program"),
        (["--data", "/nowhere"], "/nowhere holds no prepared data"),
        (["--steps-only", "--runs", "9"], "--runs 9: a positive multiple of the 8 devices"),
        (["--steps-only", "--runs", "8", "--dispatch", "0"], "--dispatch 0: must be 1 to 10,000"),
    ],
)
def test_what_cannot_be_measured_is_one_line(words, message, capsys):
    assert main(["bench", "sweep", *words]) == 2
    said = capsys.readouterr()
    assert message in said.err and said.err.count("\n") == 1 and said.out == ""


def test_data_that_would_be_met_twice_is_refused(tmp_path):
    data = random_dataset(tmp_path, 512, 30_000)
    with pytest.raises(UserError, match="a run takes 1,048,576, none of them twice"):
        bench_sweep(Asked(("tiny",), 1, 2**20, data), silent)


@pytest.mark.long
def test_packed_steps_alone(monkeypatch):
    monkeypatch.setattr(jax, "local_devices", lambda: jax.devices()[:1])
    (row,) = packed.bench_packed(["tiny"], 2, 2, None, 1, silent)
    assert row["error"] == "" and row["remat"] == "none" and row["runs"] == 2 and row["temporary"] > 0
    assert row["low"] == row["tokens_per_second"] == pytest.approx(2 * 1024 / (row["ms"] / 1e3))
    assert math.log(512) - 0.1 < row["loss"] < math.log(512) + 0.5
    assert "| tiny | 2 | 2 | none |" in packed.as_table([row])
    assert "no memory" in packed.as_table([row | {"error": "no memory"}])


@pytest.mark.long
def test_whole_jobs_of_this_version(capsys):
    words = f"--sizes tiny --runs 3 --tokens 30720 --measured 2 --baseline {HERE} --json".split()
    assert main(["bench", "sweep", *words]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert [(row["job"], row["measured"], row["error"]) for row in rows] == [
        ("packed", 3, ""), ("unpacked", 3, ""), ("separate", 2, ""), ("baseline", 3, ""),
    ]  # fmt: skip
    for row in rows:
        assert 0 < row["steps_share"] < 1 and row["compile_seconds"] > 0 and row["programs"] > 0
        assert row["loss"] == pytest.approx(math.log(512), abs=0.1) and row["tokens"] == 3 * 30720
        assert row["jax_version"] == jax.__version__


def test_runs_that_did_not_finish_are_no_runs(tmp_path):
    for name, status in (("a", "done"), ("b", "diverged")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "result.json").write_text(json.dumps({"status": status}))
    (tmp_path / "c").mkdir()
    assert [math.isnan(run.last_loss) for run in trained(tmp_path)] == [True]
