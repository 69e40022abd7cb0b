"""docs/tutorial.md: its files are valid as written, and its commands run in order, with fewer and smaller runs."""

import os
import re
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from precisionlm.sweep.grid import read_sweep

from ..compiled_fast import COMPILED_FAST
from .pages import ROOT, fenced

PAGE = (ROOT / "docs/tutorial.md").read_text()
TINY = {
    "    - {model.width: 32, model.mlp_width: 96}\n": "",
    "tokens: [1.5e5, 3e5, 6e5, 1.2e6]": "tokens: [2e4, 4e4]",
    "eval_tokens: 50000": "eval_tokens: 2000",
    "--bootstrap 200": "--bootstrap 5 --starts 20",
}


def files(text: str) -> dict[str, str]:
    """The files that a page writes: blocks whose first line names one."""
    blocks = [block.text for block in fenced(text) if block.language == "yaml"]
    return {re.match(r"# (\S+)\n", text)[1]: text for text in blocks}


def typed(text: str) -> list[str]:
    """What a reader types, block by block."""
    return [block.text for block in fenced(text) if block.language == "sh"]


def test_its_sweep_is_the_one_it_speaks_of(tmp_path):
    (tmp_path / "sweep.yaml").write_text(files(PAGE)["sweep.yaml"])
    runs = len(read_sweep(tmp_path / "sweep.yaml").experiments)
    assert runs == int(re.search(r"(\d+) runs", PAGE)[1])


@pytest.mark.long
def test_its_commands_run_in_order(tmp_path):
    page = PAGE
    for whole, tiny in TINY.items():
        assert whole in page
        page = page.replace(whole, tiny)
    for name, text in files(page).items():
        (tmp_path / name).write_text(text)
    program = tmp_path / "bin/precisionlm"
    program.parent.mkdir()
    program.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m precisionlm "$@"\n')
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    environment = os.environ | {
        "PATH": f"{program.parent}:{os.environ['PATH']}",
        "PYTHONPATH": str(ROOT),
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": COMPILED_FAST,
    }
    for block in typed(page):
        done = subprocess.run(
            ["bash", "-euo", "pipefail", "-c", block], cwd=tmp_path, env=environment, capture_output=True, text=True,
            timeout=600,
        )  # fmt: skip
        assert done.returncode == 0, f"{block}\n{done.stdout}\n{done.stderr}"
    assert Path(tmp_path / "report.html").stat().st_size > 10_000
