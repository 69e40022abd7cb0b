"""The loss gap: one definition for laws and figures, from the pairing that the table knows or from its rows."""

from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest

from precisionlm.analysis import laws
from precisionlm.analysis.figures.curves import observed_gaps
from precisionlm.analysis.table.derive import gaps
from precisionlm.analysis.table.read import prepare
from precisionlm.errors import UserError


def run(loss, w=16.0, post=np.nan, **more):
    row = {"run_id": f"{w}", "N_params": 3e7, "D_tokens": 1e9, "seed": 0, "w_bits": w, "ptq_bits": post,
           "evaluation": "trained" if np.isnan(post) else "ptq", "val_loss": loss}  # fmt: skip
    return row | more


def test_a_trained_row_is_compared_with_unquantized_runs_and_a_ptq_row_with_its_own_run():
    frame = pd.DataFrame([run(3.0), run(3.5, post=3.0), run(3.2, w=4.0), run(3.3, w=4.0, post=3.0)])
    np.testing.assert_allclose(gaps(frame, {}), [np.nan, 0.5, 0.2, 0.1])
    np.testing.assert_allclose(gaps(frame.set_axis([0, 0, 0, 0]), {}), [np.nan, 0.5, 0.2, 0.1])
    without_ids = frame.drop(columns="run_id")
    np.testing.assert_allclose(gaps(without_ids, {}), [np.nan, 0.5, 0.2, 0.1])


def test_runs_that_differ_in_their_schedule_are_no_partners_where_a_better_one_is_there():
    frame = pd.DataFrame(
        [run(3.0, schedule="wsd", run_id="a"), run(2.8, schedule="cosine", run_id="b"),
         run(3.2, w=4.0, schedule="wsd", run_id="c"), run(3.2, w=4.0, schedule="linear", run_id="d"),
         run(3.2, w=4.0, schedule="wsd", run_id="e", seed=7)]
    )  # fmt: skip
    np.testing.assert_allclose(gaps(frame, {}), [np.nan, np.nan, 0.2, 0.3, np.nan])


def test_a_checkpoint_on_the_way_is_compared_with_itself_alone():
    way = {"evaluation": "checkpoint", "D_tokens": 5e8, "intermediate": True, "delta": np.nan, "delta_to": None}
    frame = pd.DataFrame([run(3.0), run(3.5, **way), run(3.7, post=3.0, delta=0.2, delta_to="16/checkpoint",
                          D_tokens=5e8, intermediate=True), run(3.9, post=2.0, D_tokens=5e8, intermediate=True),
                          run(3.1, post=3.0, intermediate=False)])  # fmt: skip
    np.testing.assert_allclose(gaps(frame, {}), [np.nan, np.nan, 0.2, np.nan, 0.1])
    table = prepare(laws.get("kumar_ptq"), frame)
    assert list(table.rows) == [2, 4] and list(table.columns["D"]) == [5e8, 1e9]
    table = prepare(laws.get("kumar"), frame.assign(a_bits=16.0, kv_bits=16.0))
    assert list(table.rows) == [0, 4]
    assert table.excluded["of an intermediate checkpoint: law kumar is of whole runs"] == 2


def test_the_paired_difference_of_the_table_is_the_gap():
    frame = pd.DataFrame([run(3.0, delta=np.nan, delta_to=None, delta_se=np.nan),
                          run(3.5, post=3.0, delta=0.48, delta_to="16/trained", delta_se=0.001),
                          run(3.2, w=4.0, delta=np.nan, delta_to=None, delta_se=np.nan)])  # fmt: skip
    np.testing.assert_allclose(gaps(frame, {}), [np.nan, 0.48, 0.2])
    table = prepare(laws.get("kumar_ptq"), frame)
    assert table.observed.tolist() == [0.48] and table.error.tolist() == [0.001]
    huber = frame.drop(columns="delta_to").assign(delta=1e-3)  # a column of that name alone is something else
    np.testing.assert_allclose(gaps(huber, {}), [np.nan, 0.5, 0.2])


def test_rows_that_nothing_was_done_to_have_no_gap_to_fit(tiny_runs):
    table = prepare(laws.get("kumar_ptq"), tiny_runs)
    assert len(table) == 10 and np.isfinite(table.columns["P_post"]).all()
    assert table.excluded == {
        "gap is missing": 4, "gap is not positive": 2, "ptq_bits says that nothing is quantized: no gap": 8,
    }  # fmt: skip


def test_another_loss_can_be_named_for_a_law_of_the_gap(tiny_runs):
    frame = tiny_runs.assign(nats=tiny_runs.val_loss + 1, gap=9.0)
    law = laws.get("kumar_ptq")
    expected = prepare(law, tiny_runs).observed
    np.testing.assert_allclose(prepare(law, frame, {"loss": "nats"}).observed, expected)
    np.testing.assert_allclose(prepare(law, tiny_runs.rename(columns={"val_loss": "loss"})).observed, expected)
    assert (prepare(law, frame).observed == 9).all()
    np.testing.assert_allclose(
        prepare(law, frame.assign(mine=expected.mean()), {"gap": "mine"}).observed, expected.mean()
    )


def test_what_is_missing_for_a_gap_is_named(tiny_runs):
    with pytest.raises(
        UserError, match=r"law chen_gap: no column 'gap', and none .* without column val_loss; the table"
    ):
        prepare(laws.get("chen_gap"), tiny_runs.drop(columns="val_loss").assign(w_group=32.0))
    with pytest.raises(UserError, match=r"law ouyang needs column ptq_bits \(P_post\)"):
        prepare(laws.get("ouyang"), tiny_runs.drop(columns="ptq_bits"))


def test_figures_show_the_same_gap(tiny_runs):
    table = prepare(laws.get("kumar"), tiny_runs)
    shown = observed_gaps(SimpleNamespace(law=table.law, result=SimpleNamespace(table=table)), "P_post")
    expected = np.where(np.isfinite(table.columns["P_post"]), gaps(tiny_runs, {}), np.nan)
    np.testing.assert_array_equal(shown, expected)
    assert np.isfinite(shown).sum() == 12
