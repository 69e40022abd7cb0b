"""What a symbol reads: a column by any name, an expression over columns, a number for all rows."""

import numpy as np
import pandas as pd
import pytest

from precisionlm.analysis import laws
from precisionlm.analysis.fitting.analyze import select
from precisionlm.analysis.fitting.compare import check_symbols, own_columns
from precisionlm.analysis.table.read import prepare
from precisionlm.errors import UserError

FRAME = pd.DataFrame({"N (M), all": [30.0, 60.0, 100.0] * 2, "D_tokens": [1e9] * 3 + [2e9] * 3, "x": [4.0, 3, 2] * 2,
                      "loss": [3.5, 3.4, 3.3, 3.2, 3.1, 3.0]})  # fmt: skip


@pytest.mark.parametrize("name", ["N (M), all", "`N (M), all`"])
def test_a_column_by_any_name(name):
    frame = FRAME.assign(**{"N (M), all": FRAME["N (M), all"] * 1e6})
    assert prepare(laws.get("chinchilla"), frame, {"N": name}).names["N"] == "N (M), all"


def test_an_expression_is_a_column():
    table = prepare(laws.get("kumar_neff_w"), FRAME, {"N": "`N (M), all`*1e6", "P_w": "x + 1"})
    assert table.columns["N"][0] == 3e7 and table.columns["P_w"].tolist() == [5, 4, 3] * 2
    assert table.frame["x + 1"].tolist() == [5, 4, 3] * 2


def test_a_number_stands_in_every_row():
    renamed = {"N": "`N (M), all` * 1e6", "log2B": "32", "E": "0", "M": "x - 1"}
    table = prepare(laws.get("sun"), FRAME, renamed)
    assert (table.columns["log2B"] == 5).all() and (table.columns["E"] == 0).all()
    assert table.columns["M"].tolist() == [3, 2, 1] * 2
    quartet = prepare(laws.get("quartet"), FRAME, {"N": "`N (M), all`*1e6", "forward": "x < 4", "backward": "0"})
    assert quartet.columns["forward"].tolist() == [0, 1, 1] * 2


def test_families_and_formats_read_expressions_too():
    assert "gamma_w" in select("kumar", FRAME, {"N": "`N (M), all`*1e6", "P_w": "x"}).law.names
    assert "eff_2" in select("frantar", FRAME, {"N": "`N (M), all`*1e6", "P": "x"}).law.names
    assert "eff_3" in select("frantar", FRAME.rename(columns={"x": "P"}), {"N": "`N (M), all`*1e6"}).law.names


@pytest.mark.parametrize("name", ["kumar", "kumar_unified", "chinchilla", "frantar", "chen_gap"])
def test_unknown_symbols_and_columns_are_one_line(name):
    with pytest.raises(UserError, match=f"law {name} has no symbol 'bits'; "):
        select(name, FRAME, {"bits": "x"})
    with pytest.raises(UserError, match=r"--columns N= 'size': no column 'size'; valid: .*N \(M\), all"):
        select(name, FRAME, {"N": "size"})


def test_a_symbol_of_no_compared_law_is_refused():
    check_symbols(["chinchilla", "kumar"], {"P_w": "x", "loss": "loss"})
    assert own_columns("chinchilla", {"P_w": "x", "loss": "loss"}) == {"loss": "loss"}
    assert own_columns("chen_gap", {"gap": "x"}) == {"gap": "x"}
    with pytest.raises(UserError, match="none of the laws chinchilla, kumar has a symbol 'G'; "):
        check_symbols(["chinchilla", "kumar"], {"G": "x"})


def test_nullable_columns_of_other_programs():
    frame = FRAME.assign(
        N=pd.array([30_000_000, 60_000_000, None] * 2, "Int64"), w_bits=pd.array([4, 8, 16] * 2, "Int8")
    )
    table = prepare(laws.get("kumar_neff_w"), frame, where="N is not missing and w_bits in [4, 8]")
    assert table.columns["N"].tolist() == [3e7, 6e7] * 2 and np.isfinite(table.observed).all()
