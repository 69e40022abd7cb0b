"""Every law on every table through every verb: a fit, or one line that says which column is missing."""

import gzip
import json

import pytest

from precisionlm.analysis import laws
from precisionlm.analysis.figures.papers import of_constants
from precisionlm.analysis.fitting.analyze import select
from precisionlm.analysis.laws import alternatives
from precisionlm.analysis.table.files import read
from precisionlm.cli.main import main
from precisionlm.errors import UserError

PUBLIC = ("chinchilla_epoch.csv", "quest_qat.csv", "quartet_fp4.csv")
# What says in these tables what a law asks for by other names.
NAMED = {
    "frantar": {"quest_qat.csv": "P=P_key", "quartet_fp4.csv": "P=fwd_scheme"},
    "sun": {"quest_qat.csv": "E=0,M=w_bits-1,log2B=128"},
    "chen": {"quest_qat.csv": "G=128*(w_bits < 16)+(w_bits == 16)"},
    "chen_gap": {"quest_qat.csv": "G=128"},
    "quartet": {"quest_qat.csv": "backward=0"},
    "kumar_neff": {"quest_qat.csv": "P_kv=16"},
}
FITS = {  # laws whose columns a table has, with those named above
    "chinchilla_epoch.csv": {"chinchilla", "chinchilla_tied", "kaplan"},
    "quartet_fp4.csv": {"chinchilla", "chinchilla_tied", "kaplan", "frantar", "quartet"},
    "quest_qat.csv": {"chinchilla", "chinchilla_tied", "kaplan", "kumar", "kumar_unified", "kumar_neff", "kumar_neff_w",
                      "kumar_additive", "kumar_deff", "kumar_tied", "kumar_untied", "kumar_multiplicative",
                      "kumar_free_power_w", "sun", "chen", "chen_gap", "frantar", "quartet", "gaussian_mse"},
}  # fmt: skip


@pytest.fixture
def call(capsys):
    """A function: words -> (exit code, output, errors), as from a shell."""

    def run(*words):
        code = main([str(word) for word in words])
        found = capsys.readouterr()
        return code, found.out, found.err

    return run


@pytest.mark.parametrize("table", PUBLIC)
def test_every_law_on_every_table(call, public, table):
    fitted = set()
    for law in laws.LAWS:
        named = NAMED.get(law, {}).get(table)
        code, out, errors = call("fit", "--runs", public(table), "--law", law, "--dry-run", "--json",
                                 *(["--columns", named] if named else []))  # fmt: skip
        if code == 0:
            assert json.loads(out)["fits"][0]["rows_used"] > 0
            fitted.add(law)
        else:
            assert code == 2 and len(errors.splitlines()) == 1, (law, errors)
            assert "needs column" in errors or "needs one column of" in errors or "no column" in errors, (law, errors)
    assert FITS[table] <= fitted


@pytest.mark.parametrize("verb", ["report", "figures", "plan", "compare"])
def test_the_other_verbs_say_the_same(call, public, tmp_path, monkeypatch, verb):
    monkeypatch.chdir(tmp_path)
    for table in PUBLIC:
        for law in ("kumar", "kumar_unified", "sun", "chen_gap", "quartet", "frantar", "ouyang"):
            choice = ["--laws", f"{law},chinchilla"] if verb == "compare" else ["--law", law]
            code, _, errors = call(verb, "--runs", public(table), *choice, "--dry-run")
            assert code == 0 or (code == 2 and len(errors.splitlines()) == 1 and "column" in errors), (law, errors)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", [law.name for law in alternatives.LAWS])
def test_a_law_without_the_factors_of_a_figure_does_without_it(name):
    law = laws.get(name)
    assert of_constants(law, {p.name: p.start[0] for p in law.parameters}) == {}


def test_a_table_without_any_one_column(tiny_runs):
    frame = tiny_runs.assign(w_group=32.0, w_exponent=0.0, w_mantissa=3.0, dgrad_dy_bits=16.0, delta=0.1, delta_to="x",
                             wgrad_dy_bits=16.0, width=64, val_tokens=100, ptq_method="none", D_unique=1e5,
                             optimizer="adamw", fwd_format="int4", bwd_format="bf16")  # fmt: skip
    for column in ("run_id", "recipe", "evaluation", "N_params", "D_tokens", "val_loss", "w_bits", "a_bits", "kv_bits",
                   "ptq_bits", "w_group", "w_exponent", "w_mantissa", "width", "dgrad_dy_bits"):  # fmt: skip
        for law in laws.LAWS:
            try:
                select(law, frame.drop(columns=column))
            except UserError as problem:
                assert column in str(problem) or "no row of" in str(problem), (law, column)
                assert "\n" not in str(problem)


def test_packed_and_oddly_named_tables(call, public, tmp_path):
    frame = read(public("quest_qat.csv"))
    odd = frame.assign(N_params=frame["N_params"] / 1e6).rename(
        columns={"N_params": "N (M), no emb", "loss": "final loss"}
    )
    (tmp_path / "odd.CSV.gz").write_bytes(gzip.compress(odd.to_csv(index=False, sep=";", decimal=",").encode()))
    words = ["fit", "--runs", tmp_path / "odd.CSV.gz", "--law", "kumar_neff_w", "--dry-run", "--json"]
    named = "N=`N (M), no emb`*1e6,loss=final loss"
    where = "`N (M), no emb` > 50 & ~(w_format == 'fp4')"
    code, out, _ = call(*words, "--columns", named, "--where", where)
    expected = len(frame[(frame["N_params"] > 5e7) & (frame["w_format"] != "fp4")])
    assert code == 0 and json.loads(out)["fits"][0]["rows_used"] == expected
    code, _, errors = call(*words, "--columns", "N=`N (M), no emb`,loss=final loss")
    assert code == 2 and "--columns 'N=`N (M), no emb`*1e6'" in errors
    code, _, errors = call(*words, "--columns", "N=N (M), no emb")
    assert code == 2 and len(errors.splitlines()) == 1


def test_duplicates_are_kept_or_dropped_by_choice(call, tiny_runs, tmp_path):
    import pandas as pd

    pd.concat([tiny_runs, tiny_runs.iloc[:3]]).to_csv(tmp_path / "twice.csv", index=False)
    words = ["--runs", tmp_path / "twice.csv", "--dry-run", "--json"]
    for verb, law in (("fit", "--law=kumar"), ("compare", "--laws=kumar,kumar_unified"), ("report", "--law=kumar")):
        kept = json.loads(call(verb, law, *words)[1])["fits"][0]
        assert kept["rows_used"] == 27 and any("3 rows repeat" in w for w in kept["warnings"])
        dropped = json.loads(call(verb, law, *words, "--drop-duplicates")[1])["fits"][0]
        assert dropped["rows_used"] == 24 and dropped["excluded"] == {"duplicate of an earlier row": 3}


@pytest.mark.parametrize(
    ("option", "text", "message"),
    [
        ("--where", "w_bits.to_csv('{out}')", "is not allowed"),
        ("--where", "@pd.to_pickle(1, '{out}')", "cannot be read"),
        ("--where", "w_bit > 3", "no column 'w_bit'; did you mean 'w_bits'?"),
        ("--where", "w_bits", "gives no true or false per row"),
        ("--columns", "P_w=w_bits.to_csv('{out}')", "is not allowed"),
        ("--columns", "N=N_param", "no column 'N_param'; did you mean 'N_params'?"),
        ("--columns", "bits=w_bits", "none of the laws|has no symbol 'bits'"),
    ],
)
def test_expressions_do_nothing_but_select(call, tiny_runs, tmp_path, option, text, message):
    tiny_runs.to_csv(tmp_path / "runs.csv", index=False)
    written = tmp_path / "written"
    for verb, law in (("fit", "--law=kumar"), ("compare", "--laws=kumar,chinchilla"), ("plan", "--law=kumar")):
        code, _, errors = call(
            verb, law, "--runs", tmp_path / "runs.csv", option, text.format(out=written), "--dry-run"
        )
        assert code == 2 and len(errors.splitlines()) == 1 and option in errors
        assert any(part in errors for part in message.split("|")), errors
    assert not written.exists()
