"""What is the same run: everything that decides training is in the id, and nothing else."""

import pytest

from precisionlm.config import Experiment, apply_overrides, build
from precisionlm.errors import UserError
from precisionlm.identity import former_id, run_id
from precisionlm.model.presets import load_experiment
from precisionlm.ptq.evaluate import quantize_run
from precisionlm.ptq.method import weight_quantization
from precisionlm.sweep.rows import plan
from precisionlm.training.execute import train
from precisionlm.training.run import prepare_run

from .conftest import tiny_tree

# Ids of the tiny experiment. A new key, absent, must not change them: runs begun before would not be found again.
GOLDEN_ID, FORMER_ID = "b1f81227b483", "7ccd173350cb"


@pytest.fixture
def tree(tmp_path):
    return tiny_tree(tmp_path)


def of(tree, words="") -> Experiment:
    return build(apply_overrides(tree, words.split()), "test")


def identity(tree, words=""):
    return run_id(of(tree, words), "data")


def test_ids_of_before_are_found_again(tree):
    assert identity(tree) == GOLDEN_ID
    assert former_id(of(tree), "data") == FORMER_ID


@pytest.mark.parametrize(
    "words",
    [
        "--name other",
        "--mesh.fsdp 4",
        "--checkpoint.every_steps 3",
        "--tracking.quantization_every 4",
        "--training.unroll 2",
        "--training.deterministic true",
        "--training.accumulate 4",
        "--training.loss_chunks 4",
        "--training.remat full",
        "--training.eval_tokens 500",
        "--training.eval_every 5",
        "--training.eval_bf16 true",
        "--precision.recipe A8,W=int4",
        "--precision.recipe W4A8@down:A8",
        "--precision.recipe *:W4A8",
        "--precision.backward quantized",
        "--model.head_size 8",
        "--optimizer.warmup_steps 1",
        "--optimizer.warmup_fraction 0.1",
        "--optimizer.decay_fraction 0.3",
        "--optimizer.depth_scale 2",
        "--optimizer.scale_learning_rate 0.5",
    ],
)
def test_what_changes_no_result_changes_no_id(tree, words):
    assert identity(tree, words) == identity(tree)


def test_what_decides_the_result_is_in_the_id(tree):
    words = ["", "--training.seed 1", "--precision.recipe W3A8", "--optimizer.schedule wsd", "--model.qk_norm true"]
    words += ["--model.kv_heads 4", "--precision.backward unquantized", "--optimizer.warmup_steps 2"]
    words += ["--optimizer.depth_scale 8", "--training.on_nan skip", "--training.dtype bfloat16"]
    words += ["--precision.recipe W4@down:A8", "--precision.recipe W=int4/mse,A8", "--precision.recipe bf16"]
    words += ["--training.imported 0123456789ab", "--model.rope_scaling.factor 8"]
    found = {identity(tree, w) for w in words} | {run_id(of(tree), "other data")}
    assert len(found) == len(words) + 1


@pytest.mark.parametrize("recipe", ["W4,A=int8/tensor", "W4A8G8", "W=int4/sr,A8", "nvfp4"])
def test_scales_over_tokens_depend_on_what_is_computed_together(tree, recipe):
    words = f"--precision.recipe {recipe}"
    assert identity(tree, words) != identity(tree, f"{words} --training.accumulate 2")
    assert identity(tree, "--precision.recipe bf16 --precision.execution native") == identity(
        tree, "--precision.recipe bf16"
    )


def test_keys_that_have_an_effect_count(tree):
    wsd, learned = "--optimizer.schedule wsd", "--precision.recipe W=int4/lsq,A8"
    assert identity(tree, wsd) != identity(tree, f"{wsd} --optimizer.decay_fraction 0.3")
    assert identity(tree, learned) != identity(tree, f"{learned} --optimizer.scale_learning_rate 0.5")


def test_a_preset_is_its_numbers(tmp_path):
    (tmp_path / "a.yaml").write_text("preset: sun-41m\ndata: {path: d}\ntraining: {steps: 5}\n")
    one = load_experiment(tmp_path / "a.yaml")
    numbers = {"model": {"layers": 12, "width": 512, "heads": 8, "mlp_width": 1536, "vocab_size": 50304}}
    numbers |= {"optimizer": {"learning_rate": 3e-4, "warmup_steps": 500}}
    numbers |= {"data": {"path": "d", "sequence_length": 2048}, "training": {"steps": 5, "batch_size": 1024}}
    assert run_id(build(numbers, "test"), "data") == run_id(one, "data")


def test_runs_of_the_first_schema_are_refused_in_one_line(experiment, tmp_path):
    run = prepare_run(experiment)
    folder = tmp_path / run.former_id
    folder.mkdir()
    (folder / "config.yaml").write_text((tmp_path / "x").name)
    for attempt in (lambda: train(experiment, tmp_path), lambda: plan([experiment], tmp_path)):
        with pytest.raises(UserError, match="as schema 1 trained it"):
            attempt()
    outcome = train(experiment, tmp_path / "other")
    renamed = outcome.path.rename(tmp_path / "other" / run.former_id)
    with pytest.raises(UserError, match="was trained by schema 1"):
        quantize_run(renamed, "rtn", [weight_quantization("4")], lambda text: None)
