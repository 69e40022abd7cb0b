"""The verbs through argparse, as a script would call them."""

import argparse
import json

import pytest

from precisionlm.cli.fit import add_verbs
from precisionlm.errors import UserError


@pytest.fixture
def call(capsys):
    """A function: words -> (exit code, standard output)."""

    def run(*words):
        parser = argparse.ArgumentParser("precisionlm")
        add_verbs(parser.add_subparsers(required=True))
        arguments = parser.parse_args([str(w) for w in words])
        code = arguments.run(arguments)
        return code, capsys.readouterr().out

    return run


@pytest.fixture
def tiny_csv(tiny_runs, tmp_path):
    path = tmp_path / "runs.csv"
    tiny_runs.to_csv(path, index=False)
    return path


def test_fit_json_has_the_promised_keys(call, tiny_csv):
    code, out = call("fit", "--runs", tiny_csv, "--law", "chinchilla_tied", "--objective", "squares", "--starts", 32,
                     "--bootstrap", 50, "--json")  # fmt: skip
    data = json.loads(out)
    assert code == 0 and data["law"] == "chinchilla_tied" and data["rows_used"] == 12 and data["rows_excluded"] == 12
    assert set(data["params"]) == {"A", "B", "E", "alpha"} and len(data["intervals"]["alpha"]) == 2
    assert data["status"] == "not-identified" and set(data["identified"]) == set(data["params"])
    assert {"kind", "constants", "text"} == set(data["findings"][0])
    assert isinstance(data["objective"], float) and data["objective_name"] == "squares"


def test_fit_renames_columns_and_selects_rows(call, tiny_runs, tmp_path):
    path = tmp_path / "runs.parquet"
    tiny_runs.rename(columns={"N_params": "size", "val_loss": "nats"}).to_parquet(path)
    _, out = call("fit", "--runs", path, "--law", "chinchilla", "--columns", "N=size,D=D_tokens,loss=nats", "--where",
                  "recipe == 'bf16'", "--starts", 16, "--json")  # fmt: skip
    assert json.loads(out)["rows_used"] == 4


def test_fit_prints_constants_for_people(call, tiny_csv):
    _, out = call("fit", "--runs", tiny_csv, "--law", "kumar", "--starts", 16)
    assert "gamma_w" in out and "rows used 24, excluded 0" in out


def test_fit_fixes_constants(call, tiny_csv):
    _, out = call("fit", "--runs", tiny_csv, "--law", "kumar", "--starts", 16, "--fix", "alpha=0.5", "--json")
    assert json.loads(out)["params"]["alpha"] == 0.5
    with pytest.raises(UserError, match="NAME=VALUE"):
        call("fit", "--runs", tiny_csv, "--law", "kumar", "--fix", "alpha")


@pytest.mark.parametrize(
    ("words", "fits"),
    [
        (["fit", "--law", "chinchilla_tied", "--fix", "alpha=0.5"], ["chinchilla_tied"]),
        (["report", "--law", "kumar,chinchilla_tied", "-o", "page.html"], ["kumar", "chinchilla_tied"]),
        (["figures", "--law", "kumar", "-o", "drawn"], ["kumar"]),
        (["compare", "--laws", "chinchilla_tied,kaplan"], ["chinchilla_tied", "kaplan"]),
        (["plan", "--law", "kumar", "--compute", "1e12"], ["kumar"]),
    ],
)
def test_a_dry_run_says_what_would_be_fitted(call, tiny_csv, tmp_path, monkeypatch, words, fits):
    monkeypatch.chdir(tmp_path)
    before = sorted(tmp_path.iterdir())
    planned = json.loads(call(*words, "--runs", tiny_csv, "--dry-run", "--json")[1])["fits"]
    assert [fit["law"] for fit in planned] == fits
    assert all(fit["rows_used"] in (12, 24) and fit["rows_used"] + fit["rows_excluded"] == 24 for fit in planned)
    assert "alpha" in planned[0]["held" if "--fix" in words else "parameters"]
    assert "nothing was fitted" in call(*words, "--runs", tiny_csv, "--dry-run")[1]
    with pytest.raises(UserError, match="--where 'wide'"):
        call(*words, "--runs", tiny_csv, "--dry-run", "--where", "wide")
    assert sorted(tmp_path.iterdir()) == before


def test_report_verb_writes_the_page(call, tiny_csv, tmp_path):
    out_path = tmp_path / "out" / "page.html"
    _, out = call("report", "--runs", tiny_csv, "--law", "chinchilla_tied", "--starts", 16, "--bootstrap", 20, "-o",
                  out_path, "--json")  # fmt: skip
    assert out_path.is_file() and json.loads(out)["report"] == str(out_path)


def test_report_of_several_laws_compares_and_decides(call, tiny_csv, tmp_path):
    out_path = tmp_path / "page.html"
    _, out = call("report", "--runs", tiny_csv, "--law", "kumar,chinchilla_tied", "--columns", "P_w=w_bits",
                  "--starts", 16, "--bootstrap", 10, "-o", out_path, "--json")  # fmt: skip
    advice, page = json.loads(out)["decisions"], out_path.read_text()
    assert "Comparison of laws" in page and "squared error above the best" in page and "<h2>Decisions" in page
    assert sum("x the largest run" in line for line in advice) == 6
    assert sum("bits after training" in line for line in advice) == 3
    largest = 6 * 160_000 * 1_500_000
    assert f"kumar, {largest:.2g} FLOPs (1 x the largest run)" in advice[0] and "] bits" in advice[0]
    with pytest.raises(UserError, match="none of the laws"):
        call("report", "--runs", tiny_csv, "--law", "kumar", "--columns", "Q=w_bits", "-o", out_path)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--law", "kumer"], "did you mean 'kumar'"),
        (["--law", "kumar", "--objective", "l1"], "objective 'l1' is unknown"),
        (["--law", "kumar", "--where", "bits > 3"], "--where 'bits > 3'"),
        (["--law", "kumar", "--starts", "0"], "--starts 0"),
    ],
)
def test_bad_words_are_one_clear_line(call, tiny_csv, words, message):
    with pytest.raises(UserError, match=message):
        call("fit", "--runs", tiny_csv, *words)


def test_plan_published_json(call):
    _, out = call("plan", "--law", "kumar", "--published", "--compute", "1e21", "--json")
    data = json.loads(out)
    assert data["P"] == pytest.approx(7.00, abs=0.005) and {"N", "D", "loss"} <= set(data)
    equal = {row["P"]: row for row in data["iso_cost"]}
    assert equal[3.0]["N"] is None and equal[16.0]["N"] * equal[16.0]["D"] * 6 == pytest.approx(1e21)
    assert min(row["loss"] for row in equal.values() if row["loss"]) == equal[7.0]["loss"] >= data["loss"] - 1e-9
    assert "3.47 without" in " ".join(data["notes"])
    _, out = call("plan", "--law", "kumar", "--published", "--compute", "1e21", "--no-offsets", "--json")
    assert json.loads(out)["P"] == pytest.approx(3.47, abs=0.005)


def test_plan_for_people(call):
    _, out = call("plan", "--law", "sun", "--published", "--compute", "1e24", "--block", 128)
    assert "format                            E2.1M1.91, 128 elements per scale" in out
    assert "non-embedding parameters N" in out and "16-bit-equivalent FLOPs" in out
    _, out = call("plan", "--law", "sun", "--published", "--critical", "--size", "1e9", "--format", "e4m3")
    assert "2.7329e+13" in out
    _, out = call("plan", "--law", "kumar", "--published", "--size", "1e9", "--tokens", "1e11", "--bits", "3")
    assert "law kumar is undefined at P_a = 3 alone" in out
    _, out = call("plan", "--law", "kumar", "--published", "--iso-loss", "3.0", "--tokens", "13e9")
    assert "P = 3     law kumar is undefined at P_a = 3 alone" in out


def test_plan_with_a_fit_carries_intervals(call, tiny_csv):
    words = ("plan", "--law", "kumar", "--with-fit", "--runs", tiny_csv, "--starts", 16, "--bootstrap", 40)
    _, out = call(*words, "--compute", "1e12", "--json")
    data = json.loads(out)
    low, high = data["intervals"]["P"]
    assert low <= data["P"] <= high and data["warnings"]
    _, out = call(*words, "--next", 2, "--quantity", "gamma_w", "--json")
    assert len(json.loads(out)["next"]) == 2


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--law", "kumar", "--published"], "needs --compute"),
        (["--law", "kaplan", "--published", "--no-offsets"], "no form without offsets"),
        (["--law", "kumar_unified", "--published", "--compute", "1e21"], "no published constants"),
        (["--law", "kumar", "--published", "--with-fit", "--compute", "1e21"], "exclude each other"),
        (["--law", "kumar", "--with-fit", "--compute", "1e21"], "needs --runs"),
        (["--law", "kumar", "--published", "--next", "2"], "needs a fit"),
        (["--law", "sun", "--published", "--critical", "--size", "1e9"], "give a value of E"),
        (["--law", "sun", "--published", "--compute", "1e21", "--format", "e9m9"], "no number format"),
        (["--law", "kumar", "--published", "--compute", "1e21", "--at", "Q=3"], "has the symbols"),
    ],
)
def test_plan_refuses_in_one_line(call, words, message):
    with pytest.raises(UserError, match=message):
        call("plan", *words)


def test_compare_json(call, kumar_runs, tmp_path):
    path = tmp_path / "runs.csv"
    kumar_runs(ptq=False).query("a_bits == 16 and kv_bits == 16").to_csv(path, index=False)
    _, out = call("compare", "--runs", path, "--laws", "chinchilla_tied,kumar_neff_w,kumar_additive", "--starts", 16,
                  "--json")  # fmt: skip
    data = json.loads(out)
    assert data["ranking"][0] == "kumar_neff_w" and data["rows_used"] == 140
    assert data["squared_error_above_best"]["chinchilla_tied"][1] > 0
    with pytest.raises(UserError, match="two different laws"):
        call("compare", "--runs", path, "--laws", "kumar", "--json")
    with pytest.raises(UserError, match="gap"):
        call("compare", "--runs", path, "--laws", "chinchilla,ouyang", "--columns", "P_post=w_bits")


def test_figures_verb(call, tiny_csv, tmp_path):
    _, out = call("figures", "--law", "chen_gap", "--published", "-o", tmp_path / "chen", "--json")
    assert len(json.loads(out)["figures"]) == 10
    assert all(p.stat().st_size > 5000 for p in (tmp_path / "chen").iterdir())
    call(
        "figures",
        "--law",
        "chinchilla_tied",
        "--runs",
        tiny_csv,
        "--starts",
        16,
        "--bootstrap",
        20,
        "-o",
        tmp_path / "own",
    )
    assert {p.name for p in (tmp_path / "own").glob("*.png")} == {
        "loss_vs_tokens.png", "recipes.png", "residuals.png", "correlations.png"
    }  # fmt: skip
    for words, message in (
        (["--law", "kumar"], "either --published or --runs"),
        (["--law", "kumar_unified", "--published"], "no published constants"),
        (["--law", "chinchilla", "--published"], "no figures without runs"),
    ):
        with pytest.raises(UserError, match=message):
            call("figures", *words)


@pytest.mark.long
@pytest.mark.parametrize(("law", "count"), [("kumar", 8), ("kumar_ptq", 1), ("sun", 6), ("chen", 6)])
def test_figures_of_the_papers(call, tmp_path, law, count):
    _, out = call("figures", "--law", law, "--published", "-o", tmp_path, "--json")
    assert len(json.loads(out)["figures"]) == 2 * count and all(p.stat().st_size > 5000 for p in tmp_path.iterdir())


@pytest.mark.long
def test_figures_of_a_fit_with_precision(call, tiny_csv, tmp_path):
    call("figures", "--law", "kumar", "--runs", tiny_csv, "--starts", 16, "--bootstrap", 20, "-o", tmp_path)
    names = {p.name for p in tmp_path.iterdir()}
    assert {"loss_vs_bits.png", "ptq_gap.svg", "effective_bits.png", "fig06_optimal_bits.png"} <= names
