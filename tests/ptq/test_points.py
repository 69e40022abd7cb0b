"""Checkpoints on the way of a run are quantized too, and compared with themselves."""

import json

import jax
import numpy as np
import pytest

from precisionlm.cli.main import main
from precisionlm.config import build
from precisionlm.errors import UserError
from precisionlm.ptq.calibration import Calibration
from precisionlm.ptq.evaluate import Options, plan_run, quantize_run
from precisionlm.ptq.method import parse_steps, weight_quantization
from precisionlm.sweep.collect import collect
from precisionlm.training.execute import train

from ..conftest import tiny_tree

ONE = jax.devices()[:1]
W3 = [weight_quantization("W3")]


@pytest.fixture(scope="module")
def wsd(tokens_folder, tmp_path_factory):
    """A run at bf16 with its trunk's state of step 16 of 20 and a checkpoint of step 10."""
    tree = tiny_tree(tokens_folder)
    tree["precision"] = {"recipe": "bf16"}
    tree["optimizer"] |= {"schedule": "wsd", "warmup_steps": 4}
    tree["training"] |= {"steps": 20}
    tree["checkpoint"] = {"trunk": True, "every_steps": 10}
    return train(build(tree, "test"), tmp_path_factory.mktemp("wsd")).path


def test_points_are_rows_of_their_own_tokens_and_partners(wsd):
    options = Options("all", None, Calibration(16))
    said = []
    rows = quantize_run(wsd, "gptq", W3, said.append, options=options)
    assert len(rows) == 3 and said
    said.clear()
    assert quantize_run(wsd, "gptq", W3, said.append, options=options) == rows and not said
    table, left_out = collect(wsd.parent)
    assert not left_out
    ptq = table[table["evaluation"] == "ptq"].sort_values("steps")
    assert list(ptq["steps"]) == [10, 16, 20] and list(ptq["D_tokens"]) == [n * 8 * 32 for n in (10, 16, 20)]
    assert list(ptq["intermediate"]) == [True, True, False]
    assert list(ptq["decay_share"]) == pytest.approx([0, 0, 0.2]) and list(ptq["final_lr_fraction"])[:2] == [1, 1]
    assert list(ptq["delta_to"]) == [f"{wsd.name}/{what}" for what in ("checkpoint", "checkpoint", "trained")]
    plain = table[table["evaluation"] != "ptq"].set_index("steps")
    for _, row in ptq.iterrows():
        np.testing.assert_allclose(row["delta"], row["val_loss"] - plain.loc[row["steps"], "val_loss"], atol=1e-6)
        assert row["delta_se"] > 0
    assert len(set(plain["val_loss"])) == 3 and plain["delta"].isna().all()
    assert set(ptq["ptq_calibration_tokens"]) == {16 * 32} and set(ptq["ptq_calibration_seed"]) == {0}
    assert set(ptq["ptq_damping"].round(6)) == {0.01} and set(ptq["ptq_fallbacks"]) == {""}
    assert ptq["ptq_calibration"].iloc[0] == f"train {ptq['dataset'].iloc[0]}"


def test_the_command_takes_methods_formats_and_steps(wsd, capsys):
    words = ["ptq", str(wsd), "--method", "rtn,awq", "--weights", "W4,mxfp4", "--steps", "16", "--json"]
    words += ["--calibration", "16", "--at", "A8KV8"]
    assert main([*words, "--dry-run"]) == 0
    planned = json.loads(capsys.readouterr().out)
    assert [(row["method"], row["steps"], row["left"]) for row in planned] == [("rtn", [16], 2), ("awq", [16], 2)]
    assert main(words) == 0
    rows = json.loads(capsys.readouterr().out)
    assert len(rows) == 4 and {row["eval_recipe"] for row in rows} == {"A8KV8"}
    assert {row["ptq_format"] for row in rows} == {"int4", "mxfp4"} and len({row["val_loss"] for row in rows}) == 4
    assert main([*words, "--dry-run"]) == 0
    assert {row["left"] for row in json.loads(capsys.readouterr().out)} == {0}


@pytest.mark.parametrize(
    ("method", "weights", "options", "message"),
    [
        ("gtpq", "W4", Options(), "did you mean 'gptq'"),
        ("gptq+qpe", "W4", Options(), "did you mean 'qep'"),
        ("gptq+qep+qep", "W4", Options(), "'qep' comes twice"),
        ("rtn+seq", "W4", Options(), "leave away seq"),
        ("awq+seq", "W4", Options(), "leave away seq"),
        ("awq", "int4/had16", Options(), "leave one of them away"),
        ("gptq", "W4-g128", Options(), "group size 128 does not divide"),
        ("gptq", "W4", Options("last", None, Calibration(10**6)), "the training split has"),
        ("gptq", "W4", Options("last", None, Calibration(9)), "9 calibration sequences do not divide over 8 devices"),
        ("rtn", "W4", Options((7,)), "no checkpoint of step 7; kept: 10, 16, 20"),
        ("rtn", "W4", Options("last", "W4A8"), "quantizes weights too"),
        ("rtn", "W4", Options("last", "A=int8/lac"), "needs learned scales"),
    ],
)
def test_what_cannot_be_done_is_one_line_before_anything_is_loaded(wsd, method, weights, options, message):
    with pytest.raises(UserError, match=message) as error:
        plan_run(wsd, method, [weight_quantization(weights)], options)
    assert "\n" not in str(error.value)


def test_steps_are_words_or_numbers():
    assert parse_steps("all") == "all" and parse_steps("20,10,20") == (10, 20)
    with pytest.raises(UserError, match="last, all, or numbers"):
        parse_steps("10,x")
