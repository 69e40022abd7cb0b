"""What a table does not say about precision is missing, never "unquantized"."""

import numpy as np
import pandas as pd
import pytest

from precisionlm.analysis import laws
from precisionlm.analysis.fitting.analyze import select
from precisionlm.analysis.table.formats import gaussian_error
from precisionlm.analysis.table.precision import after_training, quantized
from precisionlm.analysis.table.read import prepare
from precisionlm.errors import UserError


def runs(rows, **columns):
    """`rows` runs on a grid of sizes and tokens, with further columns."""
    i = np.arange(rows)
    frame = pd.DataFrame({"N_params": [3e7, 6e7, 1e8] * (rows // 3), "D_tokens": 1e9 * (1 + i // 3)})
    return frame.assign(val_loss=4 - 0.1 * i, **columns)


W4 = {"w_bits": [16.0] * 3 + [4.0] * 3, "a_bits": 16.0}


@pytest.mark.parametrize("lost", [np.nan, -1.0, 0.0])
def test_a_group_that_is_missing_is_excluded_unless_the_row_is_unquantized(lost):
    frame = runs(6, **W4, w_group=[lost] * 3 + [32.0, lost, 128.0])
    table = prepare(laws.get("chen"), frame)
    assert table.columns["G"].tolist() == [1, 1, 1, 32, 128] and sum(table.excluded.values()) == 1
    (reason,) = table.excluded
    assert "w_group is missing" in reason if np.isnan(lost) else "w_group is below 1" in reason
    silent = prepare(laws.get("chen"), frame.drop(columns=["w_bits", "a_bits"]))
    assert silent.columns["G"].tolist() == [32, 128] and sum(silent.excluded.values()) == 4


def test_an_unquantized_row_has_no_scale_whatever_its_group_says():
    frame = runs(6, **W4, w_group=[np.inf, 32.0, 1.0, 32.0, np.inf, 64.0], width=512, w_exponent=0, w_mantissa=3)
    assert prepare(laws.get("chen"), frame).columns["G"].tolist() == [1, 1, 1, 32, 512, 64]
    assert prepare(laws.get("sun"), frame).columns["log2B"].tolist() == [0, 0, 0, 5, 13.1567, 6]


def test_the_group_of_an_operand_that_is_not_quantized_is_not_read_for_another():
    frame = runs(6, w_bits=16.0, a_bits=[16.0] * 3 + [4.0] * 3, w_group=np.inf, a_group=64.0, width=512)
    table = prepare(laws.get("chen"), frame.assign(w_bits=[16.0] * 3 + [16.0, 16.0, 4.0]))
    assert table.columns["G"].tolist() == [1, 1, 1, 512] and list(table.excluded.values()) == [2]
    assert prepare(laws.get("chen"), frame, {"G": "a_group"}).columns["G"].tolist() == [1, 1, 1, 64, 64, 64]


@pytest.mark.parametrize("lost", [None, " ", "nan"])
def test_a_blank_format_is_no_level(lost):
    frame = runs(6, recipe=["bf16", "bf16", "W4", lost, "W4", "bf16"])
    table = select("frantar", frame)
    assert [name for name in table.law.names if name.startswith("eff_")] == ["eff_W4"]
    assert table.excluded == {"recipe is missing": 1} and len(table) == 5


@pytest.mark.parametrize("lost", [np.nan, -1.0])
def test_missing_bits_are_excluded(lost):
    frame = runs(6, w_bits=[16.0, 4.0, 8.0, 16.0, 4.0, lost])
    assert sum(prepare(laws.get("kumar_neff_w"), frame).excluded.values()) == 1


def test_missing_bits_make_no_reference_of_a_row():
    frame = pd.concat([runs(3, w_bits=16.0, w_group=1.0), runs(3, w_bits=4.0, w_group=32.0)], ignore_index=True)
    frame["val_loss"] = [3.0, 2.9, 2.8, 3.2, 3.1, 3.0]
    lost = frame.iloc[:3].assign(w_bits=np.nan, val_loss=9.0)
    alone = prepare(laws.get("chen_gap"), frame)
    np.testing.assert_allclose(alone.observed, 0.2)
    np.testing.assert_allclose(prepare(laws.get("chen_gap"), pd.concat([frame, lost], ignore_index=True)).observed, 0.2)


def test_missing_passes_and_exponents_are_excluded():
    frame = runs(6, fwd_format=["bf16", "mxfp4", None, "fp16", "BF16", "mxfp4"], bwd_format="bf16")
    table = prepare(laws.get("quartet"), frame)
    assert table.columns["forward"].tolist() == [0, 1, 0, 0, 1] and table.excluded == {"fwd_quantized is missing": 1}
    floats = runs(6, w_bits=4.0, w_exponent=[0.0, 2.0, np.nan, 2.0, 0.0, 0.0])
    assert prepare(laws.get("gaussian_mse"), floats).excluded == {"w_gmse is missing": 1}
    named = runs(6, w_bits=4.0, w_format=["int4", "fp4", "e2m1", "int", "mystery", None])
    error = prepare(laws.get("gaussian_mse"), named)
    assert error.excluded == {"w_gmse is missing": 2}
    assert error.columns["gmse"][0] == error.columns["gmse"][3] != error.columns["gmse"][1] == error.columns["gmse"][2]


def test_formats_of_any_width_have_an_error_at_once():
    exponent, mantissa = [8.0, 1e30, -3.0, 2.5, 2.0, np.inf], [23.0, 3.0, 1.0, 1.0, -5.0, 1.0]
    wide = prepare(laws.get("gaussian_mse"), runs(6, w_bits=32.0, w_exponent=exponent, w_mantissa=mantissa))
    assert wide.rows.tolist() == [0, 1] and wide.excluded == {"w_gmse is missing": 4}
    assert gaussian_error(16, 8, 7) == gaussian_error(16, 6, 7) and gaussian_error(2000) == gaussian_error(17)
    assert gaussian_error(32, 8, 23) < 1e-9 < gaussian_error(16, 8, 7)


def test_empty_post_training_bits_mean_none_only_where_nothing_says_otherwise():
    frame = pd.DataFrame({"ptq_bits": [np.nan, np.nan, np.nan, 4.0, 16.0, 16.0],
                          "evaluation": ["trained", "ptq", "trained", "ptq", "trained", "ptq"],
                          "ptq_method": ["none", "rtn", "gptq", "rtn", None, "rtn"]})  # fmt: skip
    np.testing.assert_array_equal(after_training(frame), [np.inf, np.nan, np.nan, 4, np.inf, 16])
    foreign = pd.DataFrame({"after": [np.nan, 4.0, 16.0]})
    np.testing.assert_array_equal(after_training(foreign, "after"), [np.nan, 4, np.inf])
    np.testing.assert_array_equal(after_training(foreign), np.inf)


def test_rows_quantized_after_training_are_nothing_to_a_law_without_that_term():
    frame = runs(6, ptq_bits=[np.nan, 4.0, np.nan, np.nan, 16.0, 3.0])
    table = prepare(laws.get("chinchilla"), frame)
    assert table.excluded == {"quantized after training: law chinchilla has no term for it": 2}


def test_mixed_precision_is_not_read_as_its_commonest_part():
    frame = runs(6, **W4, a_share=[1.0, 1.0, np.nan, 1.0, 0.7, 0.7], kv_bits=16.0)
    assert prepare(laws.get("kumar"), frame).excluded == {
        "a_bits describes only a share of its values: mixed precision, of which --columns P_a=COLUMN may name a mean": 2
    }


def test_what_a_row_says_about_its_operands():
    frame = pd.DataFrame({"w_bits": [16, 4, np.nan, np.nan, -1], "w_format": ["bf16", None, "int4", None, None],
                          "a_scale": ["none", "tensor", "none", "none", "none"]})  # fmt: skip
    np.testing.assert_array_equal(quantized(frame, ("w",)), [0, 1, 1, np.nan, np.nan])
    np.testing.assert_array_equal(quantized(frame, ("w", "a")), [0, 1, 1, np.nan, np.nan])
    assert np.isnan(quantized(frame, ("kv",))).all()


def test_a_table_of_missing_precision_says_what_is_missing():
    with pytest.raises(UserError, match="law chen: no row of 6 can be used: 6 x w_group is missing"):
        prepare(laws.get("chen"), runs(6, w_group=np.nan))
