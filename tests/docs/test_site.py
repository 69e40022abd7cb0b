"""The pages as a site, and the README's picture."""

import re
import runpy
import subprocess
import sys

import pytest

from precisionlm.analysis import load_runs

from .pages import ROOT


def test_the_site_builds_without_a_warning(tmp_path):
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path / "site")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert 'id="precisionlm.config.load"' in (tmp_path / "site/api/index.html").read_text()


def test_the_picture_shows_the_numbers_of_the_study():
    script = runpy.run_path(str(ROOT / "docs/study/rounding.py"))
    points = script["points"](load_runs("study-2026"))
    names = {442_368: "0.44M", 1_812_480: "1.8M", 6_225_920: "6M", 14_155_776: "14M"}
    study = (ROOT / "docs/study.md").read_text()
    for (size, before), rows in points.groupby(["N_params", "before"]):
        what = "before the decay" if before else "after it"
        line = re.search(rf"^\| {re.escape(f'{names[size]} {what}')}(?: \(at 0.8 D\))? \|(.*)\|$", study, re.MULTILINE)
        printed = [float(cell) for cell in line[1].split("|") if cell.strip()]
        assert len(printed) == len(rows) >= 4
        assert rows["delta"].to_numpy() == pytest.approx(printed, abs=6e-4)
    lines = script["draw"](points).axes[0].get_lines()
    assert sum(len(line.get_xdata()) for line in lines) == len(points) == 37


def test_the_tables_of_the_study_are_those_that_its_script_prints():
    script = runpy.run_path(str(ROOT / "docs/study/tables.py"))
    study = (ROOT / "docs/study.md").read_text().splitlines()
    runs = script["trained"]()
    assert len(runs) > 800
    for name in ("noise", "costs_alone", "three_times", "together", "per_bit", "floats", "groups", "recipes", "after"):
        # growth and group_powers are of fits
        for line in "\n".join(script[name](runs)).splitlines():
            assert line in study, name


def test_the_second_picture_of_the_study_shows_its_tables():
    script = runpy.run_path(str(ROOT / "docs/study/costs.py"))
    left, right = script["draw"]().axes
    assert [line.get_label() for line in right.get_lines()][:2] == ["a token, 6M", "a tensor, 6M"]
    assert left.get_lines()[0].get_ydata() == pytest.approx([0.307, 0.621, 1.050], abs=1e-3)
