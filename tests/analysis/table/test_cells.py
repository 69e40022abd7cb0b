"""Cells as numbers and as text."""

import numpy as np
import pandas as pd
import pytest

from precisionlm.analysis.table.cells import Columns, numbers, texts
from precisionlm.errors import UserError


def test_numbers_from_text():
    frame = pd.DataFrame({"x": ["1,000,000", "2.5", "none", "-", None, "1e3", "inf"]})
    np.testing.assert_array_equal(numbers(frame, "x"), [1e6, 2.5, np.nan, np.nan, np.nan, 1e3, np.inf])


@pytest.mark.parametrize(
    ("cell", "message"),
    [
        ("30M", "column x, row 2: '30M' is not a number; write 30e6"),
        ("1.5 B", "'1.5 B' is not a number; write 1.5e9"),
        ("3,21", "'3,21' is not a number; is that a decimal comma[?] write 3.21"),
        ("1 000 000", "'1 000 000' is not a number; write 1000000"),
        ("1_000", "'1_000' is not a number; write 1000"),
        ("thirty", "'thirty' is not a number$"),
    ],
)
def test_what_is_no_number_says_what_to_write(cell, message):
    with pytest.raises(UserError, match=message):
        numbers(pd.DataFrame({"x": ["1", cell, "2"]}), "x")


def test_texts_are_levels():
    frame = pd.DataFrame({"x": [16.0, "16", " bf16 ", None, np.nan, "", "None"]}, dtype=object)
    assert texts(frame, "x").tolist() == ["16", "16", "bf16", None, None, None, "None"]


def test_columns_of_an_expression():
    frame = pd.DataFrame({"flag": [True, None, False], "n": pd.array([1, None, 3], "Int64"), "t": ["a", None, "b"],
                          "when": pd.to_datetime(["2024-01-02", None, "2025-01-01"])})  # fmt: skip
    columns = Columns(frame)
    np.testing.assert_array_equal(columns["flag"], [1, np.nan, 0])
    np.testing.assert_array_equal(columns["n"], [1, np.nan, 3])
    assert columns["t"].tolist()[::2] == ["a", "b"] and columns["when"][0] == "2024-01-02"
    assert list(columns) == ["flag", "n", "t", "when"] and len(columns) == 4
