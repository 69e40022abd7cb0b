"""The page and its figures: self-contained, escaped, written whole or not at all."""

import re

import pytest

from precisionlm.analysis.fitting.analyze import analyze
from precisionlm.analysis.report.report import write_report
from precisionlm.errors import UserError


def test_report_is_self_contained_and_says_what_it_found(tiny_runs, tmp_path):
    analysis = analyze(tiny_runs, "kumar", starts=64, resamples=100)
    summary = write_report(tiny_runs, [analysis], tmp_path / "report.html")
    page = summary.path.read_text()
    assert not re.search(r'(src|href)="(https?:|//|[a-z]+\.)', page)
    assert page.count("<svg") == len(summary.figures) // 2 == 7
    assert "gamma_w" in page and analysis.result.status.value in page
    assert {p.suffix for p in summary.figures} == {".svg", ".png"}
    assert all(p.stat().st_size > 2000 for p in summary.figures)
    assert any("12 runs are too few to trust" in line for line in summary.lines)
    assert not list(tmp_path.glob("*.partial"))


def test_hostile_strings_stay_text(tiny_runs, tmp_path):
    attack = "<script>alert(1)</script>"
    frame = tiny_runs.assign(recipe=[attack, "$\\frac{", "_x{{7*7}}", "\u202e\u0007é"] * 6, name="</table>" + attack)
    analysis = analyze(frame, "kumar", starts=16, resamples=8)
    page = write_report(frame, [analysis], tmp_path / "r.html", title=attack).path.read_text()
    assert "<script" not in page and "&lt;script&gt;" in page and "{{7*7}}" in page


def test_unwritable_place_is_one_clear_line(tiny_runs, tmp_path):
    analysis = analyze(tiny_runs, "kumar", starts=16)
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot write"):
        write_report(tiny_runs, [analysis], tmp_path / "file" / "report.html")
    with pytest.raises(UserError, match="at least one fit"):
        write_report(tiny_runs, [], tmp_path / "r.html")
