"""Tables as people export them: every dialect is read alike, or one line says what to change."""

import gzip

import pandas as pd
import pytest

from precisionlm.analysis import load_runs
from precisionlm.analysis.table.files import is_table, read
from precisionlm.columns import NAMES
from precisionlm.errors import UserError

EXPECTED = pd.DataFrame({"N (M), all": [30.0, 1000.5], "D": [2e9, 4e9], "loss": [3.212, 3.0], "recipe": ["W4", "bf16"]})
COMMA = '"N (M), all",D,loss,recipe\n30,2000000000,3.212,W4\n1000.5,4000000000,3.0,bf16\n'
PACKED = gzip.compress(COMMA.encode(), mtime=0)  # a time of packing would be another test in every worker


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("t.csv", COMMA),
        ("t.CSV", COMMA),
        ("mark.csv", "\ufeff" + COMMA),
        ("crlf.csv", COMMA.replace("\n", "\r\n")),
        ("blanks.csv", COMMA.replace(",D,", ", D ,").replace("W4", " W4")),
        ("thousands.csv", COMMA.replace("2000000000", '"2,000,000,000"').replace("1000.5", '"1,000.5"')),
        ("t.tsv", COMMA.replace(",", "\t").replace("\t all", ", all")),
        ("bars.csv", COMMA.replace(",", "|").replace("| all", ", all")),
        ("semicolons.csv", COMMA.replace(",", ";").replace("; all", ", all")),
        ("decimal.csv", COMMA.replace(",", ";").replace("; all", ", all").replace(".", ",")),
        ("both.csv", "N (M), all;D;loss;recipe\n30;2.000.000.000;3,212;W4\n1.000,5;4.000.000.000;3,0;bf16\n"),
        ("grouped.csv", "N (M), all;D;loss;recipe\n30;2,000,000,000;3.212;W4\n1,000.5;4,000,000,000;3.0;bf16\n"),
        ("t.csv.gz", PACKED),
        ("T.CSV.GZ", PACKED),
    ],
)
def test_dialects(tmp_path, name, content):
    path = tmp_path / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    found = read(path)
    pd.testing.assert_frame_equal(found.astype({"D": float}), EXPECTED, check_dtype=False)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("t.xlsx", "", r"ends in \.csv, \.tsv \(also \.gz, \.bz2, \.xz\) or \.parquet"),
        ("none.csv", None, "no such file"),
        ("empty.csv", "", "the table has no rows"),
        ("header.csv", "N,D\n", "the table has no rows"),
        ("wide.csv", "N,D\n1,2,3\n", "rows have more cells than the header"),
        ("ragged.csv", "N,D\n1,2\n1,2,3\n", r"Expected 2 fields in line 3, saw 3"),
        ("twice.csv", "N,D,N\n1,2,3\n", "two columns are called 'N'"),
        ("mixed.csv", "N;loss\n1;3.21\n2;3,2\n", r"'3,2' and '3\.21' stand in one column"),
        ("wide16.csv", "N,D\n1,2\n".encode("utf-16"), "UTF-16"),
        ("latin.csv", "N,é\n1,2\n".encode("latin-1"), "not text in UTF-8"),
        ("no.csv.gz", "N,D\n1,2\n", "not a readable runs table"),
        ("no.parquet", "no", "not a readable runs table"),
    ],
)
def test_what_cannot_be_read_is_one_line(tmp_path, name, content, message):
    if content is not None:
        (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(UserError, match=message) as caught:
        read(tmp_path / name)
    assert name in str(caught.value) and "\n" not in str(caught.value)


def test_text_with_a_point_beside_decimal_commas_stays_what_it_is(tmp_path):
    (tmp_path / "t.csv").write_text("key;rate;loss\n2.5;0.001;3,21\n4NOH;0.002;3,1\n")
    found = read(tmp_path / "t.csv")
    assert found["key"].tolist() == ["2.5", "4NOH"] and found["rate"].tolist() == [0.001, 0.002]
    assert found["loss"].tolist() == [3.21, 3.1]


def test_none_is_missing_among_numbers_and_a_word_among_words(tmp_path):
    (tmp_path / "t.csv").write_text("bits,format,scale\nNone,None,none\n4,W4,none\n")
    found = read(tmp_path / "t.csv")
    assert found["bits"].isna().tolist() == [True, False] and found["bits"].iloc[1] == 4.0
    assert found["format"].tolist() == ["None", "W4"] and found["scale"].tolist() == ["none", "none"]


def test_parquet_keeps_its_types_and_lists_become_text(tmp_path):
    frame = pd.DataFrame({"N": pd.array([1, None], "Int64"), "P": ["4", "16"], "layers": [[1, 2], [3]]})
    frame.to_parquet(tmp_path / "t.parquet")
    found = read(tmp_path / "t.parquet")
    assert found["P"].tolist() == ["4", "16"] and found["layers"].iloc[0].startswith("[1")
    assert not found.duplicated().any()


def test_names_of_tables():
    assert all(is_table(name) for name in ("a.csv", "b.TSV", "c.csv.xz", "d.Parquet"))
    assert not any(is_table(name) for name in ("a.gz", "b.parquet.gz.txt", "linear", "c.xlsx"))


def test_the_published_table_is_read_by_its_name_and_says_what_docs_say_of_it():
    found = load_runs("study-2026")
    assert set(found.columns) <= set(NAMES)
    counts = found.groupby(["name", "evaluation"]).size().to_dict()
    assert counts["study-rates", "trained"] == 16 and counts["study-base", "trained"] == 50
    assert counts["study-kumar", "trained"] == 396 and counts["study-kumar_token", "trained"] == 158
    assert counts["study-base", "checkpoint"] == 33 and counts["study-base", "ptq"] == 2088
    assert counts["study-groups", "trained"] == 135 and counts["study-held-out-second", "ptq"] == 24
    assert found.drop_duplicates("run_id").shape[0] == 1084


def test_other_names_are_files(tmp_path):
    (tmp_path / "t.csv").write_text(COMMA)
    assert load_runs(tmp_path / "t.csv").equals(read(tmp_path / "t.csv"))
    with pytest.raises(UserError, match=r"study-2025: a runs table ends in .*; a published one is called study-2026"):
        load_runs("study-2025")
