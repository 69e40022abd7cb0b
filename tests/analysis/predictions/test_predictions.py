"""Predictions are read back against the runs they are about: right ones score as right, wrong and lost ones as such."""

import numpy as np
import pandas as pd
import pytest

from precisionlm.analysis.fitting.analyze import analyze
from precisionlm.analysis.laws import get
from precisionlm.analysis.predictions.match import Runs
from precisionlm.analysis.predictions.predict import Cells, predict
from precisionlm.analysis.predictions.score import score
from precisionlm.errors import UserError

PARAMS = {"A": 400.0, "B": 2000.0, "E": 1.7, "alpha": 0.34, "beta": 0.37}


def runs(noise=0.0, seeds=1, start=0):
    """Two sweeps of 6 sizes and 5 budgets under cosine, with the loss of a Chinchilla law."""
    rows = [
        {"run_id": f"r{i}-{j}-{s}", "name": "small" if i < 3 else "large", "evaluation": "trained", "status": "done",
         "N_params": int(1e6 * 2**i), "D_tokens": 8192 * int(2500 * 3**j), "batch_tokens": 8192, "seed": s,
         "schedule": "cosine", "recipe": "bf16", "w_bits": 16.0, "a_bits": 16.0, "kv_bits": 16.0, "ptq_method": "none"}
        for i in range(6) for j in range(5) for s in range(seeds)
    ]  # fmt: skip
    frame = pd.DataFrame(rows)
    loss = get("chinchilla").predict(PARAMS, {"N": frame.N_params.to_numpy(), "D": frame.D_tokens.to_numpy()})
    rng = np.random.default_rng(start)
    return frame.assign(val_loss=loss * np.exp(noise * rng.normal(size=len(frame))))


def predictions(frame, **changed):
    """What the law itself says of every row, ± 0.1 %."""
    told = frame[["N_params", "D_tokens", "schedule"]].drop_duplicates().reset_index(drop=True)
    value = get("chinchilla").predict(PARAMS, {"N": told.N_params.to_numpy(), "D": told.D_tokens.to_numpy()})
    own = {"law": "chinchilla", "quantity": "val_loss", "predicted": value, "lower": value * 0.999,
           "upper": value * 1.001}  # fmt: skip
    return told.assign(**own).assign(**changed)


def test_the_law_itself_scores_as_right_and_a_shifted_one_does_not():
    frame = runs()
    (group, *blocks) = score(predictions(frame), frame).groups
    assert (group.scored, group.with_interval, group.inside) == (30, 30, 30) and group.max_relative < 1e-12
    assert group.half_width == pytest.approx(0.001)
    assert {b.block: b.scored for b in blocks} == {"small": 15, "large": 15}
    told = predictions(frame)
    shifted = told.assign(**{c: told[c] * 1.02 for c in ("predicted", "lower", "upper")})
    found = score(shifted, frame)
    assert found.groups[0].inside == 0
    assert found.groups[0].mean_relative == pytest.approx(0.02) == found.groups[0].max_relative
    assert found.verdicts == ["bf16 within 2.00% (30 losses, law chinchilla)",
                              "losses inside their interval: 0 of 30 (0%, law chinchilla)"]  # fmt: skip


def test_every_seed_is_scored_and_a_whole_step_of_tokens_is_the_same_budget():
    frame = runs(seeds=3)
    told = predictions(frame).assign(D_tokens=lambda p: p.D_tokens + 4000.0)
    (group, *_) = score(told, frame).groups
    assert group.scored == 90 and len({pair.cell for pair in group.worst}) == 3
    found = score(told, frame.assign(status=["diverged"] + ["done"] * 89))
    assert (found.groups[0].scored, found.groups[0].failed) == (89, 1)
    assert found.unmatched[0].why == "1 of 3 runs: diverged"
    with pytest.raises(UserError, match=r"N_params=1000000, .*: no row has D_tokens"):
        score(told.assign(D_tokens=told.D_tokens + 400), frame)


def test_what_is_missing_ambiguous_or_failed_is_named_and_not_scored():
    frame = runs()
    frame.loc[1, "status"], frame.loc[1, "val_loss"] = "diverged", np.nan
    frame = pd.concat([frame, frame.iloc[[2]].assign(run_id="again", learning_rate=1.0)], ignore_index=True)
    told = predictions(runs())
    told.loc[0, "N_params"] = 77
    found = score(told, frame)
    assert [(u.problem, u.why) for u in found.unmatched] == [
        ("missing", "no row has N_params 77 with what is named before it"),
        ("failed", "1 of 1 runs: diverged"),
        ("ambiguous", "2 rows fit: they differ in learning_rate"),
    ]
    assert found.unmatched[0].cell == "N_params=77, D_tokens=20480000, schedule=cosine"
    (group, *_) = found.groups
    assert (group.scored, group.missing, group.failed, group.ambiguous) == (27, 1, 1, 1)


def test_a_recipe_is_found_however_it_is_spelled():
    frame = runs().assign(recipe=["W=int4full,A=int4full-g32"] * 15 + ["W4A4"] * 15)
    for spelled in ("int4full-g32", "W=int4full,A=int4full-g32", "A4W4"):
        assert score(predictions(frame, recipe=spelled), frame).groups[0].scored == 15, spelled


def test_a_word_that_all_rows_have_is_one_even_where_it_could_be_a_missing_number():
    (group, *_) = score(predictions(runs(), ptq_method="none"), runs()).groups
    assert group.scored == 30


def test_a_run_that_diverged_before_its_tokens_failed_and_is_not_missing():
    frame = runs()
    frame.loc[4, ["status", "D_tokens"]] = "diverged", frame.D_tokens[4] - 8192 * 100
    found = score(predictions(runs()), frame)
    assert [(u.problem, u.why) for u in found.unmatched] == [("failed", "1 of 1 runs: diverged")]
    assert found.groups[0].scored == 29


def test_a_prediction_of_ptq_is_of_the_quantized_row_and_one_without_it_of_the_trained_row():
    frame = runs().head(2)
    after = frame.assign(evaluation="ptq", ptq_method="gptq", ptq_bits=3.0, ptq_format="int3",
                         val_loss=frame.val_loss + 0.25, delta=0.25, delta_to=frame.run_id + "/trained")  # fmt: skip
    before = after.assign(evaluation="ptq", D_tokens=after.D_tokens, intermediate=True, delta=9.0)
    table = pd.concat([frame.assign(intermediate=False), after.assign(intermediate=False), before], ignore_index=True)
    told = frame[["N_params", "D_tokens"]].assign(law="x", quantity="delta", predicted=0.2, lower=0.1, upper=0.3)
    found = score(told.assign(ptq_method="gptq", ptq_format="int3"), table)
    assert [(p.observed, p.inside) for p in found.pairs] == [(0.25, True)] * 2
    assert found.pairs[0].relative == pytest.approx(0.2)
    losses = score(told.assign(quantity="val_loss", ptq_method="none"), table)
    assert [p.observed for p in losses.pairs] == frame.val_loss.tolist()
    assert Runs(table).find({"ptq_method": "rtn"}).why.startswith("no row has ptq_method rtn")


def test_an_interval_that_is_not_stated_holds_nothing():
    frame = runs()
    (group, *_) = score(predictions(frame, lower=np.nan), frame).groups
    assert (group.scored, group.with_interval, group.inside) == (30, 0, 0)


@pytest.mark.parametrize(
    ("change", "line"),
    [
        (lambda p: p.drop(columns="quantity"), "quantity is missing"),
        (lambda p: p.assign(quantity="loss"), "quantity 'loss': must be val_loss or delta"),
        (lambda p: p[["law", "quantity", "predicted"]], "name no coordinate"),
        (lambda p: p.assign(predicted=[np.nan] + [1.0] * 29), "row 1: no value is predicted"),
        (lambda p: p.rename(columns={"N_params": "N_param"}), "name N_param, .*did you mean 'N_params'"),
    ],
)
def test_what_is_no_table_of_predictions_is_refused(change, line):
    with pytest.raises(UserError, match=line):
        score(change(predictions(runs())), runs())


def test_intervals_hold_95_percent_of_new_runs():
    inside = []
    for table in range(12):  # predictions of one fit miss together: 0.73 to 1 inside
        new = runs(noise=0.004, start=100 + table)
        fitted = analyze(runs(noise=0.004, seeds=2, start=table), "chinchilla", starts=20, where="N_params < 2e7")
        cells = Cells.of(new[["N_params", "D_tokens", "val_loss"]])
        assert cells.coordinates == ("N_params", "D_tokens")
        found = predict(fitted, cells)
        assert found.frame["interval"].iloc[0].startswith("95 % of a run: constants (linearised")
        assert (np.log(found.frame.upper / found.frame.lower) / 2 > 1.4 * 0.004).all()
        inside.append(score(found.frame, new).groups[0].inside / 30)
    assert 0.9 <= np.mean(inside) < 1.0


def test_laws_say_nothing_of_cells_beyond_them():
    fitted = analyze(runs(noise=0.003), "chinchilla", starts=40)
    cell = {"N_params": 3e6, "D_tokens": 3e7, "w_bits": 16, "a_bits": 16, "kv_bits": 16, "schedule": "wsd"}
    cells = Cells.of(pd.DataFrame([cell, cell | {"w_bits": 4}, cell | {"ptq_bits": 3.0}]))
    found = predict(fitted, cells)
    assert len(found.frame) == 1
    assert found.left_out == {"trained below 16 bits, which no row of the fit is": 1,
                              "quantized after training: law chinchilla has no term for it": 1}  # fmt: skip
    assert found.warnings == ("law chinchilla: cells of schedule wsd, which no row of the fit has",)
    with pytest.raises(UserError, match="predicts none of 1 cells: trained below 16 bits"):
        predict(fitted, Cells.of(pd.DataFrame([cell | {"w_bits": 4}])))
    with pytest.raises(UserError, match=r"cells: law chinchilla needs column D_tokens \(D\)"):
        predict(fitted, Cells.of(pd.DataFrame([{"N_params": 3e6}])))


def test_a_law_of_the_gap_predicts_delta():
    frame = runs().head(25)
    law, columns = get("kumar_ptq"), {"N": frame.N_params.to_numpy(), "D": frame.D_tokens.to_numpy()}
    params = {"C_T": 1e-3, "gamma_D": 0.5, "gamma_N": 0.3, "gamma_post": 0.6, "b": 0.0}
    rows = []
    for bits in (3.0, 4.0, 5.0):
        gap = law.predict(params, columns | {"P_post": np.full(len(frame), bits)})
        rows.append(frame.assign(evaluation="ptq", ptq_method="rtn", ptq_bits=bits, delta=gap, delta_to="x/trained"))
    table = pd.concat([frame, *rows], ignore_index=True)
    fitted = analyze(table, "kumar_ptq", starts=60, where="ptq_bits != 4")
    found = predict(fitted, Cells.of(rows[1][["N_params", "D_tokens", "ptq_method", "ptq_bits"]]))
    assert set(found.frame.quantity) == {"delta"} and len(found.frame) == 25
    (group, *_) = score(found.frame, table).groups
    assert group.scored == 25 and group.max_relative < 1e-4
