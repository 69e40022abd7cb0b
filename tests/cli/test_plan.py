"""The verb plan: formats and widths by name, numbers with units, intervals and cautions, the input that is at fault."""

import json

import numpy as np
import pandas as pd
import pytest

from precisionlm.analysis import laws
from precisionlm.cli.main import main


@pytest.fixture
def plan(capsys):
    """A function: words -> (exit code, standard output, standard error)."""

    def run(*words):
        code = main(["plan", *(str(word) for word in words)])
        return code, *capsys.readouterr()

    return run


QUEST = ("--law", "frantar", "--published", "--size", "1e8", "--tokens", "1e10")


@pytest.mark.parametrize(
    ("words", "level"),
    [
        (["--at", "P=4"], "4"),
        (["--bits", "4"], "4"),
        (["--format", "int4"], "4"),
        (["--format", "fp4"], "fp4"),
        (["--at", "P=fp4"], "fp4"),
        (["--at", "P=2noh"], "2NOH"),
        (["--format", "bf16"], "16"),
    ],
)
def test_a_format_is_what_its_name_says(plan, words, level):
    code, out, _ = plan(*QUEST, *words, "--json")
    data = json.loads(out)
    published = laws.get("frantar").published[0].as_dict()
    size = 1e8 * published.get(f"eff_{level}", 1.0)
    loss = published["A"] / size ** published["alpha"] + published["B"] / 1e10 ** published["beta"] + published["E"]
    assert code == 0 and data["loss"] == pytest.approx(loss, rel=1e-9)
    assert data["format"] == level and data["columns"]["P"] == level  # no position of a level anywhere


def test_four_bits_are_not_two(plan):
    assert json.loads(plan(*QUEST, "--at", "P=4", "--json")[1])["loss"] == pytest.approx(2.957, abs=5e-4)
    assert json.loads(plan(*QUEST, "--at", "P=2", "--json")[1])["loss"] == pytest.approx(3.218, abs=5e-4)


def test_a_budget_is_weighed_over_all_formats(plan):
    _, out, _ = plan("--law", "frantar", "--published", "--compute", "1e19", "--json")
    data = json.loads(out)
    losses = [row["loss"] for row in data["formats"]]
    assert len(losses) == 17 and losses == sorted(losses) and data["loss"] == losses[0]
    assert data["format"] == data["formats"][0]["format"] and 6 * data["N"] * data["D"] * data["P"] / 16 == (
        pytest.approx(1e19))  # fmt: skip
    _, out, _ = plan("--law", "frantar", "--published", "--compute", "1e19", "--format", "fp4")
    assert "fp4" in out and "the same budget in" not in out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--law", "kumar", "--compute", "1e21", "--bits", "3"], "law kumar is undefined at P_a = 3 alone"),
        (["--law", "kumar", "--compute", "1e21", "--bits", "0"], "--bits 0: must be a positive number"),
        (["--law", "kumar", "--compute", "1e21", "--tokens", "nan"], "--tokens nan"),
        (["--law", "kumar", "--compute", "1e15", "--size", "1e9", "--inference-tokens", "1e13"], "--inference-tokens"),
        (["--law", "kumar", "--compute", "1e3", "--size", "1e9", "--tokens", "1e9", "--bits", "8"], "nothing is left"),
        (["--law", "frantar", "--compute", "1e21", "--bits", "5"], "--bits 5: law frantar has constants of each P"),
        (["--law", "frantar", "--compute", "1e21", "--at", "P=fp5"], "did you mean 'fp4'"),
        (["--law", "frantar", "--compute", "1e21", "--format", "e9m9"], "knows no P 'e9m9'"),
        (["--law", "chinchilla", "--compute", "1e21", "--format", "fp4"], "reads no format; --bits says what"),
        (["--law", "sun", "--compute", "1e21", "--format", "e9m9"], "no number format"),
        (["--law", "chen_gap", "--compute", "1e21"], "gap alone"),
        (
            ["--law", "kumar", "--compute", "1e21", "--at", "P_post=four"],
            "expected a number, bits of the weights after",
        ),
    ],
)
def test_the_input_at_fault_is_named(plan, words, message):
    code, out, err = plan("--published", *words)
    assert code == 2 and out == "" and err.count("\n") == 1 and message in err


def test_the_budget_is_split_and_its_units_are_said(plan):
    _, out, _ = plan("--law", "kumar", "--published", "--compute", "1e23", "--inference-tokens", "1e13", "--json")
    data = json.loads(out)
    assert data["training_flops"] + data["serving_flops"] == pytest.approx(1e23)
    assert data["serving_flops"] == pytest.approx(2 * data["N"] * 1e13 * data["P"] / 16)
    assert data["units"]["N"] == "non-embedding parameters"
    assert any("serving 1e+13 tokens is paid from the budget: 72% of it" in note for note in data["notes"])
    undefined = {row["P"]: row["why"] for row in data["iso_cost"] if row["N"] is None}
    assert "P_a = 3 alone" in undefined[3.0]
    _, out, _ = plan("--law", "kumar", "--published", "--compute", "1e23", "--inference-tokens", "1e13")
    for words in ("16-bit-equivalent FLOPs", "of it serving, 2 N T r(P)", "non-embedding parameters N", "bits P"):
        assert words in out


def test_the_format_behind_a_width_is_said(plan):
    _, out, _ = plan("--law", "sun", "--published", "--compute", "1e24", "--json")
    data = json.loads(out)
    assert data["format"] == "E2.1M1.91, 128 elements per scale"
    assert "128 elements per scale are assumed; --block says otherwise" in data["notes"]
    _, out, _ = plan("--law", "sun", "--published", "--compute", "1e24", "--format", "mxfp4", "--json")
    data = json.loads(out)
    assert data["format"] == "E2M1, 32 elements per scale" and data["P"] == 4.0
    assert not any("assumed" in note for note in data["notes"])


@pytest.fixture(scope="module")
def few_csv(tmp_path_factory):
    """Two sizes and two budgets: not enough for five constants."""
    rows = [{"N_params": n, "D_tokens": d, "val_loss": 400 * n**-0.34 + 400 * d**-0.28 + 1.7 + 1e-3 * i}
            for i, (n, d) in enumerate([(1e7, 1e9), (1e7, 4e9), (1e8, 1e9), (1e8, 4e9)])]  # fmt: skip
    path = tmp_path_factory.mktemp("few") / "runs.csv"
    pd.DataFrame(rows).to_csv(path, index=False)
    return path


def test_what_the_data_leave_open_has_no_narrow_interval(plan, few_csv):
    words = ("--law", "chinchilla", "--runs", few_csv, "--starts", "16", "--bootstrap", "20", "--compute", "1e20")
    _, out, _ = plan(*words, "--json")
    data = json.loads(out)
    assert data["status"] != "converged"
    assert any(data["intervals"][k][1] is None for k in ("N", "D"))  # infinite
    said = " ".join(data["notes"])
    assert "the data do not determine N, D" in said and "not identified" in said and "times the largest" in said
    _, out, _ = plan(*words)
    assert f"status {data['status']}" in out and "the data do not determine" in out


def test_a_fit_of_formats_says_the_format(plan, tmp_path):
    rows, rng = [], np.random.default_rng(0)
    for n in (3e7, 1e8, 3e8, 1e9):
        for d in (1e9, 3e9, 1e10, 3e10):
            for name, share, bits in (("bf16", 1.0, 16.0), ("mxfp4", 0.65, 4.0), ("odd name", 0.9, 8.0)):
                loss = 406.4 * (n * share) ** -0.34 + 410.7 * d**-0.28 + 1.69
                rows.append({"N_params": n, "D_tokens": d, "recipe": name, "w_bits": bits, "a_bits": bits,
                             "val_loss": loss * np.exp(1e-3 * rng.normal())})  # fmt: skip
    pd.DataFrame(rows).to_csv(tmp_path / "runs.csv", index=False)
    words = ("--law", "frantar", "--runs", tmp_path / "runs.csv", "--starts", "16", "--bootstrap", "0")
    data = json.loads(plan(*words, "--compute", "1e21", "--json")[1])
    assert {row["format"]: row["P"] for row in data["formats"]} == {"bf16": 16.0, "mxfp4": 4.0, "odd name": 8.0}
    low, high = data["intervals"]["N"]  # linearised: no bootstrap was asked for
    assert low < data["N"] < high < 10 * low
    found = json.loads(plan(*words, "--next", "2", "--quantity", "alpha", "--json")[1])["next"]
    assert {run["columns"]["P"] for run in found} <= {"bf16", "mxfp4", "odd name"}
