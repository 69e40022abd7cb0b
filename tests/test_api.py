"""The Python API: it gives what the command line gives, to the last digit, and takes files and data frames alike."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
import pytest

import precisionlm
from precisionlm import Recipe, UserError, api, compare, fit, load_runs, plan, quantize
from precisionlm.analysis import laws
from precisionlm.analysis.fitting import fit as low_level
from precisionlm.analysis.table.read import prepare
from precisionlm.cli.main import main
from precisionlm.json_text import dumps
from precisionlm.precision.quantize import fake_quantize

STUDY = "name == 'study-base' and schedule == 'wsd'"
TRAINED = f"{STUDY} and evaluation == 'trained'"


def printed(capsys, *words):
    """What a verb prints with --json, without the seconds it took."""
    assert main([*map(str, words), "--json"]) == 0
    return timeless(json.loads(capsys.readouterr().out))


def timeless(found):
    if isinstance(found, dict):
        return {key: timeless(value) for key, value in found.items() if key != "seconds"}
    return [timeless(value) for value in found] if isinstance(found, list) else found


def plain(found):
    """The same of a result of the API."""
    return timeless(json.loads(found.to_json()))


PUBLIC = {
    "chinchilla": ("chinchilla_epoch.csv", {"loss": "loss"}, "in_published_fit"),
    "frantar": ("quest_qat.csv", {"P": "P_key"}, "group in ('quest_int_wa', 'bf16')"),
}


@pytest.mark.parametrize("law", PUBLIC)
def test_fits_of_public_tables_are_those_of_the_command_line(law, public, capsys):
    name, columns, where = PUBLIC[law]
    path = public(name)
    found = fit(path, law, columns=columns, where=where, starts=16, bootstrap=20)
    pairs = ",".join(f"{symbol}={column}" for symbol, column in columns.items())
    words = ("--columns", pairs, "--where", where, "--starts", 16, "--bootstrap", 20)
    assert plain(found) == printed(capsys, "fit", "--runs", path, "--law", law, *words)
    assert found.source == str(path) and found.status in repr(found)


def test_a_family_takes_the_member_that_the_rows_determine(capsys):
    found = fit("study-2026", "kumar", where=TRAINED, starts=8)
    assert plain(found) == printed(capsys, "fit", "--runs", "study-2026", "--law", "kumar", "--where", TRAINED,
                                   "--starts", 8)  # fmt: skip
    assert found.status == "converged" and "n_a" not in found.params
    # Without that choice a fit has constants that no row tells: there is no other way to a fit than through it.
    with pytest.raises(UserError, match="law kumar is a family"):
        low_level.fit(prepare(laws.get("kumar"), load_runs("study-2026"), where=STUDY))


@pytest.mark.parametrize("verb", ["fit", "compare"])
def test_every_option_means_what_it_means_on_the_command_line(verb, monkeypatch, capsys):
    calls = []

    def called(frame, *rest, **named):
        calls.append((rest, named))
        raise UserError("seen")

    monkeypatch.setattr(api, {"fit": "analyze", "compare": "_compare"}[verb], called)
    shared = {"columns": {"N": "N_total"}, "where": TRAINED, "drop_duplicates": True, "objective": "squares",
              "starts": 8, "fix": {"E": 2.7}, "bound": {"gamma_w": (1.0, 4.0)},
              "start": {"alpha": (0.3, 0.6), "n_w": 1}, "reference": "bf16"}  # fmt: skip
    words = [
        "--columns",
        "N=N_total",
        "--where",
        TRAINED,
        "--drop-duplicates",
        "--objective",
        "squares",
        "--starts",
        "8",
        "--fix",
        "E=2.7",
        "--bound",
        "gamma_w=1:4",
        "--start",
        "alpha=0.3:0.6,n_w=1",
        "--reference",
        "bf16",
    ]
    more = {"bootstrap": 10, "over": "row", "weights": True, "staged": True}
    more_words = ["--bootstrap", "10", "--over", "row", "--weights", "--staged"]
    if verb == "compare":
        more, more_words = {"folds": 3, "held_out": 5}, ["--folds", "3", "--held-out", "5"]
    asked = {"fit": "kumar", "compare": ["kumar", "frantar"]}[verb]
    law = {"fit": ["--law", "kumar"], "compare": ["--laws", "kumar,frantar"]}[verb]
    for options, line in (({}, []), (shared | more, words + more_words)):
        with pytest.raises(UserError, match="seen"):
            getattr(api, verb)("study-2026", asked, **options)
        assert main([verb, "--runs", "study-2026", *law, *line]) == 2
    ours, typed = calls[0::2], calls[1::2]
    assert ours[1] == typed[1] and ours[0][0][3:] == typed[0][0][3:] and ours[0][1] == typed[0][1]


def test_comparisons_are_those_of_the_command_line(capsys):
    names = ["chinchilla", "chinchilla_tied"]
    found = compare("study-2026", names, where=TRAINED, starts=8, folds=4)
    words = ("--where", TRAINED, "--starts", 8, "--folds", 4)
    assert plain(found) == printed(capsys, "compare", "--runs", "study-2026", "--laws", ",".join(names), *words)
    assert found.best == found.table.index[0] and found.best in repr(found)
    assert max(map(len, str(found).split("\n")[:3])) <= 120  # the caption is as wide as a terminal


def test_plans_are_those_of_the_command_line(capsys):
    words = ("plan", "--law", "kumar", "--published", "--compute", "1e21", "--at", "P_kv=16")
    assert plain(plan("kumar", compute=1e21, at={"P_kv": 16})) == printed(capsys, *words)
    fitted = fit("study-2026", "chinchilla", where=TRAINED, starts=8, bootstrap=20)
    words = ("--where", TRAINED, "--starts", 8, "--bootstrap", 20, "--size", "1e7", "--tokens", "1e8")
    found = plan(fitted, size=1e7, tokens=1e8)
    assert plain(found) == printed(capsys, "plan", "--law", "chinchilla", "--runs", "study-2026", *words)
    low, high = found.intervals["loss"]
    assert low <= found.loss <= high and found.loss == pytest.approx(fitted.predict(N=1e7, D=1e8), rel=1e-12)
    assert "a fit of" in repr(found) and found.N == 1e7 and found.D == 1e8 and not plan("sun", compute=1e20).intervals


def test_predictions_broadcast_and_levels_have_names(tiny_runs):
    found = fit(tiny_runs, "frantar", starts=8)
    loss = found.predict(N=[[1e5], [1e6]], D=1e6, P=["bf16", "W4A8"])
    assert loss.shape == (2, 2) and (loss[:, 0] < loss[:, 1]).all() and (loss[0] > loss[1]).all()
    np.testing.assert_allclose(found.rows["predicted"], np.exp(found.rows["log_residual"]) * found.rows["measured"])
    assert found.constants.loc["alpha", "value"] == found.params["alpha"]
    for wrong, message in (
        ({"N": 1e5, "D": 1e6, "P": "bf16", "Q": 1}, "no symbol 'Q'"),
        ({"N": 1e5, "P": "bf16"}, "give a value of D"),
        ({"N": 1e5, "D": 1e6, "P": "W5"}, "knows no P 'W5'"),
        ({"N": "many", "D": 1e6, "P": "bf16"}, "expected numbers"),
    ):
        with pytest.raises(UserError, match=message):
            found.predict(**wrong)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: fit("none.csv", "kumar"), "none.csv: no such file"),
        (lambda: fit("study-2026", "kumr"), "did you mean 'kumar'"),
        (lambda: fit("study-2026", "chinchilla", starts=0), "--starts 0"),
        (lambda: compare("study-2026", ["kumar"]), "two different laws"),
        (lambda: plan("kumar", compute=-1.0), "--compute -1"),
        (lambda: plan("kumar", next=2), "needs a fit"),
        (lambda: quantize(np.ones((4, 4)), "int44x", 0), "int44x"),
        (lambda: quantize(np.ones((4, 4)), "mxfp4", 0), "32 does not divide the 4 values along axis 0"),
        (lambda: quantize(np.ones(4), "int4", 1), r"axis 1 of an array of shape \(4,\)"),
        (lambda: quantize(np.ones(4), "int4", 0, operand="x"), "operand 'x'"),
        (lambda: quantize(np.ones(4), "W=int4/lsq", 0), "learned in training"),
        (lambda: quantize(np.ones(4), "int4-sr", 0), "key="),
    ],
)
def test_bad_input_is_one_line(call, message):
    with pytest.raises(UserError, match=message):
        call()


@pytest.mark.parametrize("precision", ["W4A8", "int4/g32", "e4m3", "mxfp4", "nvfp4", "W=int3/mse", "W=int4/b32"])
def test_an_array_is_quantized_as_training_does(precision):
    w = jax.random.normal(jax.random.key(0), (64, 96), jnp.float32)
    (q,) = set(Recipe.parse(precision).resolve(3)["qkv"]["w"])
    expected = jax.jit(lambda w: fake_quantize(w, 0, q.scaling, q.format.grid(), "qkv.w"))(w)
    found = quantize(w, precision, 0)
    assert isinstance(found, jax.Array) and isinstance(quantize(np.asarray(w), precision, 0), np.ndarray)
    np.testing.assert_array_equal(found, expected)
    np.testing.assert_array_equal(quantize(np.asarray(w, float), Recipe.parse(precision), -2), expected)


def test_recipes_say_what_operands_get():
    recipe = Recipe.parse("W4A8@first:bf16")
    assert repr(recipe) == "Recipe.parse('W4A8@*[0]:bf16')" and recipe == Recipe.parse(str(recipe))
    assert (str(recipe.commonest("w")), str(recipe.commonest("a"))) == ("int4", "int8") and recipe.quantized()
    x = np.linspace(-1, 1, 33)
    assert (quantize(x, "bf16", 0) == x.astype(np.float32)).all()
    assert len(np.unique(quantize(x, recipe, 0))) == 15 and len(np.unique(quantize(x, recipe, 0, operand="a"))) == 33
    turned = quantize(np.eye(32, dtype=np.float32), "W=int8/had32", 0)
    np.testing.assert_allclose(turned, np.eye(32), atol=0.02)
    noise = quantize(np.full(1000, 0.3), "W=int2/tensor/sr", 0, key=jax.random.key(1))
    assert noise.mean() == pytest.approx(0.3, abs=0.05)


def test_the_package_says_what_it_has():
    assert set(precisionlm.__all__) <= set(dir(precisionlm))
    assert all(getattr(precisionlm, name) for name in precisionlm.__all__)
    with pytest.raises(AttributeError, match="no attribute 'fitt'"):
        _ = precisionlm.fitt
    assert isinstance(load_runs("study-2026"), pd.DataFrame) and dumps(plan("sun", compute=1e20).to_dict())
