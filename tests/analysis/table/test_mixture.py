"""Rows of mixed precision are left out and counted, never taken for what most of their values have."""

import pandas as pd
import pytest

from precisionlm.analysis.fitting.analyze import select
from precisionlm.errors import UserError

RECIPES = ("bf16", "W8A8", "W4A4", "W4A4@down:A8", "W3A3")


@pytest.fixture
def frame():
    rows = [(n, d, r, *b) for n in (3e7, 1e8, 3e8) for d in (1e9, 4e9) for r, b in
            zip(RECIPES, ((16.0, 16.0), (8.0, 8.0), (4.0, 4.0), (4.0, 4.0), (3.0, 3.0)), strict=True)]  # fmt: skip
    return pd.DataFrame(rows, columns=["N_params", "D_tokens", "recipe", "w_bits", "a_bits"]).assign(val_loss=3.0)


def test_a_share_below_one_is_a_mixture(frame):
    shares = frame.assign(w_share=1.0, a_share=[0.6 if "@" in r else 1.0 for r in frame.recipe])
    table = select("kumar", shares)
    assert len(table) == 24 and list(table.excluded.values()) == [6]
    assert "a_bits" in next(iter(table.excluded))
    # A law that reads the weights alone may use them: they are whole.
    assert len(select("kumar_neff_w", shares)) == 30
    # A mean width of the user's own stands for the mixture.
    mean = select("kumar_neff_a", shares.assign(mean_width=[5.6 if "@" in r else 4.0 for r in frame.recipe]),
                  {"P_a": "mean_width"})  # fmt: skip
    assert len(mean) == 30


def test_where_every_row_is_a_mixture_the_line_says_what_to_name(frame):
    mixed = frame[frame.recipe == "W4A4@down:A8"].assign(a_share=0.6)
    with pytest.raises(UserError, match=r"6 x a_bits describes only a share.*--columns P_a=COLUMN may name a mean"):
        select("kumar_neff_a", mixed)
    mean = select("kumar_neff_a", mixed, {"P_a": "a_share*a_bits + (1 - a_share)*8"})
    assert mean.columns["P_a"] == pytest.approx(5.6)


def test_a_recipe_with_exceptions_is_a_mixture_where_shares_are_unknown(frame):
    table = select("kumar", frame)
    assert len(table) == 24 and list(table.excluded.values()) == [6]
    assert len(select("frantar", frame)) == 30  # every recipe is a level of its own
