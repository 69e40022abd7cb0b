"""The expression language: what users type means what pandas means by it, and nothing beyond it can be said."""

import warnings

import numpy as np
import pandas as pd
import pytest

from precisionlm.errors import UserError
from precisionlm.expressions import evaluate, missing, truth

COLUMNS = {
    "N": np.array([1e7, 3e7, 1e8, 3e8]),
    "D": np.array([1e9, 3e10, 1e9, 2e9]),
    "bits": np.array([4.0, np.nan, 8.0, 16.0]),
    "seed": np.array([0, 1, 0, 1]),
    "good": np.array([True, False, True, True]),
    "recipe": np.array(["bf16", "W4A4", None, "it's"], dtype=object),
    "N (M), all": np.array([10.0, 30.0, 100.0, 300.0]),
    "class": np.array([1, 2, 3, 4]),
}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("D / N < 500", [1, 0, 1, 1]),
        ("D/N <= 100 and bits > 4", [0, 0, 1, 1]),
        ("D/N <= 100 & bits > 4", [0, 0, 1, 1]),
        ("bits == 4 | bits == 16", [1, 0, 0, 1]),
        ("~(bits == 4) & good", [0, 0, 1, 1]),
        ("~good | seed == 0", [1, 1, 1, 0]),
        ("not good or seed == 0", [1, 1, 1, 0]),
        ("4 <= bits < 16", [1, 0, 1, 0]),
        ("bits in [4, 16]", [1, 0, 0, 1]),
        ("bits not in (4, 16)", [0, 1, 1, 0]),
        ("recipe in ['bf16', 'W4A4']", [1, 1, 0, 0]),
        ('recipe == "it\'s"', [0, 0, 0, 1]),
        ("recipe != 'bf16'", [0, 1, 1, 1]),
        ("recipe > 'a'", [1, 0, 0, 1]),
        ("bits is missing", [0, 1, 0, 0]),
        ("bits is not missing and recipe is not missing", [1, 0, 0, 1]),
        ("bits != 4", [0, 1, 1, 1]),
        ("`N (M), all` > 20 and `N (M), all` * 1e6 == N", [0, 1, 1, 1]),
        ("`class` == 2", [0, 1, 0, 0]),
        ("-N < -2e7", [0, 1, 1, 1]),
        ("N ** 0.5 > 1e4 - 1", [0, 0, 1, 1]),
        ("seed", [0, 1, 0, 1]),
        ("N < inf", [1, 1, 1, 1]),
        ("'&' == '|' or good", [1, 0, 1, 1]),
        ("good == True", [1, 0, 1, 1]),
        (r"recipe == '\d'", [0, 0, 0, 0]),
    ],
)
def test_values(text, expected):
    found = truth(evaluate(text, COLUMNS))
    assert found is not None and found.tolist() == [bool(x) for x in expected]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("recipe == 'w4a4'", [0, 1, 0, 0]),
        ("recipe == 'W4A4'", [0, 1, 0, 0]),
        ("'w4a4' == recipe", [0, 1, 0, 0]),
        ("recipe != 'w4a4'", [1, 0, 1, 1]),
        ("recipe in ['w4a4', 'none']", [1, 1, 0, 0]),
        ("recipe not in ['w4a4', 'none']", [0, 0, 1, 1]),
        ('recipe == "it\'s"', [0, 0, 0, 1]),
    ],
)
def test_a_text_may_be_spelled_otherwise_than_in_its_column(text, expected):
    spelled = {"recipe": lambda said: {"w4a4": "W4A4", "none": "bf16"}.get(said, said)}
    assert evaluate(text, COLUMNS, "where", spelled).tolist() == [bool(x) for x in expected]


def test_arithmetic_is_that_of_floats():
    np.testing.assert_allclose(evaluate("2 * bits + 1", COLUMNS), [9, np.nan, 17, 33])
    np.testing.assert_allclose(evaluate("N / (seed * 0)", COLUMNS), np.inf)
    assert evaluate("9**9**9**9", COLUMNS) == np.inf  # and not minutes of integers
    assert evaluate("32", COLUMNS).shape == () and evaluate("'fp4'", COLUMNS) == "fp4"


@pytest.mark.parametrize(
    "text",
    [
        "recipe.to_csv('x')", "__import__('os').system('x')", "print(1)", "(lambda: 1)()", "[x for x in N]", "N[0]",
        "{1: 2}", "f'{N}'", "b'a'", "N if good else D", "(y := 3)", "N @ D", "N // D", "...", "1j", "*N", "N,",
        "D.__class__", "good is good", "bits is None", "4 in bits", "'W' in recipe", "yield", "await N", "import os",
        "[1, 2]", "()", "",
    ],
)  # fmt: skip
def test_nothing_else_can_be_said(text):
    with pytest.raises(UserError, match=r"^expression "):
        evaluate(text, COLUMNS)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("bit > 4", "no column 'bit'; did you mean 'bits'?"),
        ("`N (M)` > 4", r"no column 'N \(M\)'; did you mean 'N \(M\), all'"),
        ("N (M), all > 20", r"the column 'N \(M\), all' is written in backticks"),
        ("bits = 4", "equality is written =="),
        ("recipe == 4", "recipe is text and 4 a number; text is written '4'"),
        ("bits == '4'", "'4' is text and bits a number"),
        ("recipe + 1", "'recipe' is no number"),
        ("bits and good", "'bits' is no true or false"),
        ("N.max() > 2", r"'N.max\(\)' is not allowed; allowed are columns"),
        ("`N (M), all`.max > 2", r"'`N \(M\), all`.max' is not allowed"),
        ("N >", "cannot be read"),
        ("(" * 900 + "N" + ")" * 900, "cannot be read"),
        ("N" * 3000, "longer than 2000 characters"),
        ("1" * 1900 + " < N", "cannot be read"),
        ("N > \0", "cannot be read"),
    ],
)  # fmt: skip
def test_errors_are_one_line_that_says_what_is_right(text, message):
    with pytest.raises(UserError, match=message) as caught:
        evaluate(text, COLUMNS)
    assert "\n" not in str(caught.value)


def test_missing_and_truth():
    mixed = np.array([None, np.nan, pd.NA, pd.NaT, " ", "x", 3, np.float64(2), True], dtype=object)
    assert missing(mixed).tolist() == [True] * 5 + [False] * 4
    words = truth(np.array(["True", "false", None, "1"], dtype=object))
    assert words is not None and words.tolist() == [True, False, False, True]
    assert truth(np.array(["yes"], dtype=object)) is None and truth(np.array([0.5])) is None


def test_it_says_the_same_as_pandas():
    frame = pd.DataFrame({k: v for k, v in COLUMNS.items() if k not in ("recipe", "class")})
    for text in ("N > 2e7 & D < 5e9", "N > 2e7 and D < 5e9 or seed == 1", "bits * 2 >= 8", "`N (M), all` in [10, 30]",
                 "~good", "D / N < 500 | bits == 8"):  # fmt: skip
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            expected = frame.eval(text)
        assert evaluate(text, COLUMNS).tolist() == expected.tolist(), text
