"""docs/api.md: its example runs, and every name on it is there, with a docstring."""

import importlib
import re

import pytest

from .pages import ROOT, fenced

PAGE = (ROOT / "docs/api.md").read_text()


def test_its_example_runs(capsys):
    (example,) = [block.text for block in fenced(PAGE) if block.language == "python"]
    for whole, tiny in {"bootstrap=200": "bootstrap=20, starts=8", '_tied"]': '_tied"], starts=4, folds=2'}.items():
        assert whole in example
        example = example.replace(whole, tiny)
    exec(compile(example, "api.md", "exec"), {})
    printed = capsys.readouterr().out
    assert "rows used" in printed and "chinchilla" in printed and "'loss'" in printed


@pytest.mark.parametrize("name", re.findall(r"^::: (\S+)$", PAGE, re.MULTILINE))
def test_every_name_is_documented(name):
    module, _, own = name.rpartition(".")
    assert getattr(importlib.import_module(module), own).__doc__
