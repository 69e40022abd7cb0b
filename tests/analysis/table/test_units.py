"""Millions given as 30, tokens in billions, perplexities: said, with the column and what would be right."""

import re

import numpy as np
import pandas as pd
import pytest

from precisionlm.analysis import laws
from precisionlm.analysis.table.read import prepare, read
from precisionlm.analysis.table.units import factor_in_name
from precisionlm.errors import UserError

CHINCHILLA = laws.get("chinchilla")
SIZES, BUDGETS = np.repeat([1.3e9, 2.7e9, 7e9, 1.3e10], 3), np.tile([2.6e10, 6e10, 3e11], 4)


def warned(columns=None, **changes):
    """The doubts about units in a table of 1.3B to 13B parameters, some of whose columns are changed."""
    frame = pd.DataFrame({"N_params": SIZES, "D_tokens": BUDGETS, "val_loss": np.linspace(2.6, 2.0, 12)} | changes)
    found = prepare(CHINCHILLA, frame, columns).warnings
    return " | ".join(w for w in found if "only" not in w)


def test_counts_are_not_doubted(public):
    assert warned() == ""
    assert warned(flops=6 * SIZES * BUDGETS / 4) == ""  # 16-bit-equivalent FLOPs at 4 bits
    assert warned(flops=np.nan, vocab_size=-1.0) == "" and warned(flops="many", vocab_size=None) == ""
    assert warned({"N": "size_m*1e6"}, size_m=SIZES / 1e6) == ""
    for name in ("chinchilla_epoch.csv", "quest_qat.csv", "quartet_fp4.csv"):
        assert not [w for w in prepare(CHINCHILLA, read(public(name))).warnings if "--columns" in w]


def test_characters_and_tiny_models_are_not_doubted():
    assert warned(N_params=SIZES / 1e5, D_tokens=BUDGETS / 1e4, vocab_size=65) == ""
    assert warned(N_params=SIZES / 1e5, D_tokens=BUDGETS / 1e4, val_loss=np.linspace(8, 6, 12)) == ""


@pytest.mark.parametrize(
    ("columns", "changes", "message"),
    [
        ({"N": "params_m"}, {"params_m": SIZES / 1e6}, "column params_m says millions .*--columns 'N=params_m[*]1e6'"),
        ({"N": "N (M)"}, {"N (M)": SIZES / 1e6}, r"column N \(M\) says millions .*--columns 'N=`N \(M\)`[*]1e6'"),
        # no word in the name: FLOPs tell
        (None, {"N_params": SIZES / 1e6, "C": 6 * SIZES * BUDGETS}, "column C is 1e6 times 6 N D: is N_params in"),
        (None, {"D_tokens": BUDGETS / 1e6, "flops": 4 * SIZES * BUDGETS}, "is D_tokens in millions.*D=D_tokens[*]1e6"),
        (None, {"N_params": SIZES / 1e6, "D_tokens": BUDGETS / 1e6, "compute": 6 * SIZES * BUDGETS},
         "1e12 times 6 N D: is N_params in millions and D_tokens in millions.*N=N_params[*]1e6,D=D_tokens[*]1e6"),
        # neither: tokens per parameter tell
        (None, {"N_params": SIZES / 1e6}, "parameter: is N_params in millions[?] --columns 'N=N_params[*]1e6'"),
        (None, {"D_tokens": BUDGETS / 1e6}, "tokens per parameter: is D_tokens in (millions|billions)[?]"),
        # both in one unit: no model that small has that loss
        (None, {"N_params": SIZES / 1e6, "D_tokens": BUDGETS / 1e6}, "do not reach 2.3 nats/token: are N_params"),
        (None, {"N_params": np.r_[SIZES[:11], 13000.0]}, "column N_params jumps from 13000 to 1.3e.09: two units"),
        ({"loss": "ppl"}, {"ppl": np.linspace(14, 8, 12)}, "column ppl is named after perplexity"),
        ({"loss": "eval_bits"}, {"eval_bits": np.linspace(3, 2, 12)}, "column eval_bits is named after bits"),
    ],
)  # fmt: skip
def test_other_units_are_doubted(columns, changes, message):
    found = warned(columns, **changes)
    assert re.search(message, found), found


def test_small_runs_are_runs():
    sizes, budgets = np.repeat([576, 5_000, 40_000, 320_000], 3), np.tile([4_096, 32_768, 262_144], 4)
    tiny = {"N_params": sizes, "D_tokens": budgets, "val_loss": np.linspace(6, 5, 12)}
    assert warned(**tiny) == ""
    own = tiny | {"N_params": 576, "N_total": 9_000, "D_tokens": 4_096, "batch_tokens": 256}
    assert "cannot be a count" not in warned(**own)
    for column, wrong in (("N_total", 9e8), ("batch_tokens", 300), ("batch_tokens", 1)):
        with pytest.raises(UserError, match="cannot be a count"):
            warned(**own | {column: wrong})
    for column, wrong in (("N_params", np.r_[576.5, sizes[1:]]), ("D_tokens", np.r_[3, budgets[1:]])):
        with pytest.raises(UserError, match=f"column {column}, row 1: .* cannot be a count"):
            warned(**tiny | {column: wrong})


def test_what_cannot_be_a_count_is_refused_with_the_remedy():
    with pytest.raises(UserError, match=r"column N \(M\), rows 1, .*30e6, not 30.*in millions: --columns 'N=`N \(M\)`"):
        warned({"N": "N (M)"}, **{"N (M)": SIZES / 1e9})
    with pytest.raises(UserError, match=r"column D_tokens, .*2e9, not 2\).*billions: --columns 'D=D_tokens[*]1e9'"):
        warned(D_tokens=BUDGETS / 1e9)


def test_words_of_units_in_names():
    found = {name: factor_in_name(name) for name in
             ("params_m", "N (M)", "size in millions", "tokens_B", "D [1e9]", "N_params", "N", "M", "D_tokens",
              "b_m")}  # fmt: skip
    assert found == {"params_m": 1e6, "N (M)": 1e6, "size in millions": 1e6, "tokens_B": 1e9, "D [1e9]": 1e9,
                     "N_params": None, "N": None, "M": None, "D_tokens": None, "b_m": 1e6}  # fmt: skip
