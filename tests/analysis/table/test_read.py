"""Reading a runs table: every row is used or counted with its reason; bad input is one clear line."""

import numpy as np
import pandas as pd
import pytest

from precisionlm.analysis import laws
from precisionlm.analysis.fitting.analyze import select
from precisionlm.analysis.table.read import prepare, read, where_mask
from precisionlm.errors import UserError

CHINCHILLA = laws.get("chinchilla")


def runs(**changes):
    frame = pd.DataFrame(
        {
            "N_params": [3e7, 6e7, 1e8] * 3,
            "D_tokens": [1e9] * 3 + [2e9] * 3 + [4e9] * 3,
            "val_loss": np.linspace(4, 3, 9),
        }
    )
    return frame.assign(**changes)


def test_every_row_is_used_or_counted():
    frame = runs(status=["done"] * 7 + ["diverged", "running"], val_loss=[np.nan, -1.0, *np.linspace(4, 3, 7)])
    table = prepare(CHINCHILLA, frame)
    assert table.excluded == {
        "status is diverged": 1, "status is running": 1, "val_loss is missing": 1, "val_loss is not positive": 1,
    }  # fmt: skip
    assert len(table) + sum(table.excluded.values()) == len(frame)
    assert list(table.rows) == [2, 3, 4, 5, 6]


def test_rows_without_a_status_are_counted_too():
    status = pd.Series(["done"] * 6 + [None, " ", "failed"])
    for column in (status, status.astype(object), status.astype("category")):
        found = prepare(CHINCHILLA, runs(status=column)).excluded
        assert found == {"status is failed": 1, "status is missing": 2}


def test_duplicates_are_counted_and_seeds_are_kept():
    frame = pd.concat([runs(seed=0), runs(seed=0).iloc[:2], runs(seed=1).iloc[:2]], ignore_index=True)
    kept = prepare(CHINCHILLA, frame)
    assert len(kept) == 13 and kept.excluded == {}
    assert "2 rows repeat an earlier one exactly" in kept.warnings[0] and "--drop-duplicates" in kept.warnings[0]
    dropped = prepare(CHINCHILLA, frame, drop_duplicates=True)
    assert dropped.excluded == {"duplicate of an earlier row": 2} and dropped.warnings == ()


def test_the_same_result_of_a_run_is_a_duplicate_and_an_index_column_hides_none(tiny_runs):
    twice = pd.concat([tiny_runs, tiny_runs.assign(name="again")], ignore_index=True)
    assert prepare(laws.get("kumar"), twice, drop_duplicates=True).excluded == {"duplicate of an earlier row": 24}
    indexed = pd.concat([runs(), runs()], ignore_index=True).assign(**{"Unnamed: 0": range(18)})
    assert "9 rows repeat" in prepare(CHINCHILLA, indexed).warnings[0]


def test_evaluations_a_law_says_nothing_about_are_counted(tiny_runs):
    table = prepare(CHINCHILLA, tiny_runs)
    assert table.excluded == {"evaluation is ptq: law chinchilla has no post-training term": 12}


def test_further_evaluations_of_a_run_count_once(tiny_runs):
    runs = tiny_runs.assign(val_tokens=1000)
    more = runs[runs.evaluation == "trained"].assign(val_tokens=4000, val_loss=lambda f: f.val_loss + 0.01)
    other = runs[runs.recipe == "W4A8"].assign(evaluation="recipe", val_loss=99.0)
    law = laws.get("kumar")
    table = prepare(law, pd.concat([runs, more, other], ignore_index=True))
    assert len(table.observed) == len(runs) and (table.observed < 99).all()
    assert table.excluded["the same run was evaluated on more tokens"] == len(more)
    assert table.excluded["evaluation is recipe: not at the precision trained at"] == len(other)
    assert len(prepare(law, pd.concat([runs, more], ignore_index=True), where="val_tokens == 1000").observed) == len(
        runs
    )
    gap = laws.get("kumar_ptq")
    wrong = runs[runs.recipe == "bf16"].assign(evaluation="recipe", ptq_bits=np.nan, val_loss=99.0)
    np.testing.assert_array_equal(
        prepare(gap, pd.concat([runs, wrong], ignore_index=True)).observed, prepare(gap, runs).observed
    )


def test_ptq_of_low_precision_runs_is_left_to_the_unified_law(tiny_runs):
    extra = tiny_runs[tiny_runs.recipe == "W4A8"].assign(evaluation="ptq", ptq_bits=3.0)
    table = prepare(laws.get("kumar"), pd.concat([tiny_runs, extra], ignore_index=True))
    assert table.excluded == {"post-training quantization of a run trained below 16 bits needs law kumar_unified": 4}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"N_params": [30.0, 60.0, 100.0] * 3}, r"column N_params, rows 1, 2, 3, 4, 5 and 4 more: 30 .*30e6, not 30"),
        ({"N_params": [3e7] * 8 + [30.0]}, r"column N_params, row 9: 30 parameters cannot be a count"),
        ({"D_tokens": [1.5] * 9}, r"column D_tokens.*give D in tokens"),
        ({"val_loss": [60.0] * 9}, r"perplexity"),
        ({"N_params": ["thirty"] + [3e7] * 8}, r"column N_params, row 1: 'thirty' is not a number"),
        ({"N_total": [2e7] * 9}, r"row.*N_params is larger than N_total"),
        ({"N_total": [3e7] + [9e8] * 8}, r"row 1: N_params equals N_total there and not elsewhere"),
        ({"val_loss": [np.nan] * 9}, r"no row of 9 can be used: .*val_loss is missing"),
    ],
)
def test_bad_tables_name_rows_and_columns(changes, message):
    with pytest.raises(UserError, match=message):
        prepare(CHINCHILLA, runs(**changes))


def test_missing_column_is_named():
    with pytest.raises(UserError, match=r"needs column val_loss \(loss\); the table has N_params, D_tokens"):
        prepare(CHINCHILLA, runs().drop(columns="val_loss"))


def test_columns_rename_and_unknown_symbols_are_refused():
    frame = runs().rename(columns={"N_params": "size", "D_tokens": "tokens"})
    assert len(prepare(CHINCHILLA, frame, {"N": "size", "D": "tokens"})) == 9
    with pytest.raises(UserError, match="no symbol 'M'"):
        prepare(CHINCHILLA, frame, {"M": "size"})


def test_a_column_named_as_the_symbol_is_found():
    assert len(prepare(CHINCHILLA, runs().rename(columns={"val_loss": "loss"}))) == 9


def test_one_cell_and_few_cells_are_warned_about():
    assert "one (N, D)" in prepare(CHINCHILLA, runs(N_params=3e7, D_tokens=1e9, seed=range(9))).warnings[0]
    assert "only 1 model sizes" in prepare(CHINCHILLA, runs(N_params=3e7)).warnings[0]


def test_mixed_conventions_of_a_model_are_warned_about():
    table = prepare(CHINCHILLA, runs(model=["a", "b", "c"] * 3, N_params=[3e7, 6e7, 1e8] * 2 + [3.3e7, 6e7, 1e8]))
    assert "model a has 2 different values of N_params" in " ".join(table.warnings)


def test_where_takes_a_column_or_an_expression():
    frame = runs(good=[True] * 4 + [False] * 5)
    assert where_mask(frame, "good").sum() == 4
    assert where_mask(frame, "N_params > 4e7 and good").sum() == 2
    assert prepare(CHINCHILLA, frame, where="good").excluded == {"--where good is not true": 5}
    for bad in ("god", "N_params +", "N_params * 2", "@__import__('os')"):
        with pytest.raises(UserError, match="--where"):
            where_mask(frame, bad)


def test_where_takes_recipes_as_a_configuration_has_them():
    frame = runs(recipe=["bf16", "W4A4", "W=int4full,A=int4full-g32", "a name of theirs", *["W8"] * 5])
    for where, rows in (
        ("recipe == 'A4W4'", [1]),
        ("recipe in ['int4full-g32', 'w 4']", [2]),
        ("recipe == 'a name of theirs'", [3]),
        ("recipe != 'int4full-g32' and recipe != 'W8'", [0, 1, 3]),
    ):
        assert np.flatnonzero(where_mask(frame, where)).tolist() == rows, where


def test_files(tmp_path):
    runs().to_csv(tmp_path / "t.csv", index=False)
    runs().to_parquet(tmp_path / "t.parquet")
    pd.testing.assert_frame_equal(read(tmp_path / "t.csv"), read(tmp_path / "t.parquet"))
    (tmp_path / "empty.csv").write_text("N_params,val_loss\n")
    (tmp_path / "broken.parquet").write_text("no")
    for name, message in (("none.csv", "no such file"), ("empty.csv", "no rows"), ("broken.parquet", "not a readable"),
                          ("t.xlsx", "ends in .csv, .tsv")):  # fmt: skip
        with pytest.raises(UserError, match=message):
            read(tmp_path / name)


def test_gaps_are_computed_against_the_unquantized_run(tiny_runs):
    table = prepare(laws.get("kumar_ptq"), tiny_runs, where="recipe == 'bf16'")
    first = tiny_runs[tiny_runs.recipe == "bf16"].iloc[:4]
    expected = first.val_loss.iloc[1] - first.val_loss.iloc[0]
    assert table.observed[0] == pytest.approx(expected)
    assert table.excluded["gap is missing"] == 4


CHANGES = {
    "missing": lambda column: np.nan, "text": lambda column: "x", "negative": lambda column: -1.0,
    "endless": lambda column: np.inf, "halved": lambda column: column.where(np.arange(len(column)) % 2 == 0),
    "words": lambda column: column.astype(str), "kinds": lambda column: column.astype("category"),
}  # fmt: skip


@pytest.mark.parametrize("change", CHANGES)
def test_whatever_a_column_holds_is_used_counted_or_one_line(tiny_runs, change):
    frame = tiny_runs.assign(
        w_group=32.0, w_exponent=0.0, w_mantissa=3.0, w_scale="group", w_share=1.0, width=64, val_tokens=100, delta=0.1,
        delta_to="other/trained", dgrad_dy_bits=16.0, fwd_format=tiny_runs.recipe, bwd_format="bf16", flops=1e15,
        vocab_size=300, ptq_method="none", model="m", seed=0,
    )  # fmt: skip
    for column in frame.columns:
        changed = frame.assign(**{column: CHANGES[change](frame[column])})
        for name in ("kumar", "kumar_ptq", "chen_gap", "frantar", "gaussian_mse"):
            try:
                table = select(name, changed)
            except UserError as problem:
                assert "\n" not in str(problem)
                continue
            assert len(table) + sum(table.excluded.values()) == len(frame)
            assert all(np.isfinite(v).all() for k, v in table.columns.items() if k != "P_post")
            assert np.isfinite(table.observed).all()
