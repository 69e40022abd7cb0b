"""The page and its figures: self-contained, escaped, written whole or not at all."""

import hashlib
import re
import shlex

import numpy as np
import pandas as pd
import pytest

from precisionlm.analysis.decisions.summary import decisions
from precisionlm.analysis.fitting.analyze import analyze
from precisionlm.analysis.fitting.fit import fit
from precisionlm.analysis.report.report import write_report
from precisionlm.cli.main import main
from precisionlm.errors import UserError
from precisionlm.training.provenance import package_version


def test_report_is_self_contained_and_says_what_it_found(tiny_runs, tmp_path):
    analysis = analyze(tiny_runs, "kumar", starts=8, resamples=20)
    summary = write_report(tiny_runs, [analysis], tmp_path / "report.html")
    page = summary.path.read_text()
    assert not re.search(r'(src|href)="(https?:|//|[a-z]+\.)', page)
    assert page.count("<svg") == len(summary.figures) // 2 == 7
    assert "gamma_w" in page and analysis.result.status.value in page
    assert {p.suffix for p in summary.figures} == {".svg", ".png"}
    assert all(p.stat().st_size > 2000 for p in summary.figures)
    assert any("12 runs are too few to trust" in line for line in summary.lines)
    assert not list(tmp_path.glob("*.partial"))


def markup(page):
    """A page without the one script that is its own and the data for that, which hold no text as markup."""
    data, script = page[page.index('<script type="application/json"') : page.rindex("</script>")].split("</script>")
    assert "<" not in data.partition(">")[2] and script.lstrip().startswith('<script>"use strict";')
    return page.replace(data, "").replace(script, "")


def test_hostile_strings_stay_text(tiny_runs, tmp_path):
    attack = "<script>alert(1)</script>"
    frame = tiny_runs.assign(recipe=[attack, "$\\frac{", "_x{{7*7}}", "\u202e\u0007é"] * 6, name="</table>" + attack)
    analysis = analyze(frame, "kumar", starts=8, resamples=8)
    page = write_report(frame, [analysis], tmp_path / "r.html", title=attack).path.read_text()
    page = markup(page)
    assert "<script" not in page and "&lt;script&gt;" in page and "{{7*7}}" in page


def test_unwritable_place_is_one_clear_line(tiny_runs, tmp_path):
    analysis = analyze(tiny_runs, "chinchilla_tied", starts=4)
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot be written"):
        write_report(tiny_runs, [analysis], tmp_path / "file" / "report.html")
    with pytest.raises(UserError, match="at least one fit"):
        write_report(tiny_runs, [], tmp_path / "r.html")


def test_a_report_of_two_laws_fits_each_once_and_says_what_made_it(tiny_runs, tmp_path, monkeypatch):
    fitted = []

    def counted(table, *arguments, **named):
        fitted.append(table.law.name)
        return fit(table, *arguments, **named)

    for module in ("analyze", "compare"):
        monkeypatch.setattr(f"precisionlm.analysis.fitting.{module}.fit", counted)
    frame = tiny_runs[tiny_runs["evaluation"] == "trained"].rename(columns={"val_loss": "my_nats"})
    path, out = tmp_path / "runs.csv", tmp_path / "page.html"
    frame.to_csv(path, index=False)
    words = ["report", "--runs", str(path), "--law", "chinchilla_tied,kumar_neff_w", "--columns", "loss=my_nats",
             "--starts", "8", "--bootstrap", "0", "-o", str(out)]  # fmt: skip
    assert main(words) == 0
    assert sorted(fitted) == ["chinchilla_tied", "kumar_neff_w"]
    page = out.read_text()
    assert "Comparison of laws" in page and page.count("Observed against predicted for runs") == 2
    assert f"<code>precisionlm {shlex.join(words)}</code>" in page and f"<code>{package_version()}</code>" in page
    assert hashlib.sha256(path.read_bytes()).hexdigest() in page
    assert page.count("Fitted to <code>my_nats</code>") == 2 and "<th>my_nats</th>" in page
    assert f"{frame['my_nats'].iloc[0]:.6g}" in page


def test_decisions_carry_what_plan_says(tiny_runs):
    analysis = analyze(tiny_runs, "kumar", starts=8, resamples=20)
    said = decisions(analysis)
    assert len(said) == 6 and all("Beware" in line for line in said)
    budgets, critical = said[:3], said[3:]
    assert all(f"the fit is {analysis.result.status.value}" in line for line in said)
    assert "times the largest in the table: an extrapolation" in budgets[2]
    low = [line for line in critical if "more training makes it worse" in line]
    assert low and all("[" in line or "do not determine" in line for line in low)


def test_decisions_of_formats_name_one():
    rows = [{"N_params": n, "D_tokens": d, "recipe": name,
             "val_loss": 406.4 * (n * x) ** -0.34 + 410.7 * d**-0.28 + 1.69}
            for n in (3e7, 1e8, 3e8) for d in (1e9, 3e9, 1e10)
            for name, x in (("bf16", 1.0), ("int4", 0.7))]  # fmt: skip
    frame = pd.DataFrame(rows)
    frame["val_loss"] *= np.exp(1e-3 * np.random.default_rng(0).normal(size=len(frame)))
    said = decisions(analyze(frame, "frantar", starts=8))
    assert len(said) == 3 and all("tokens in int4 (4 bits)" in line for line in said)
