"""docs/api.md: its example runs, and every name on it is there, with a docstring."""

import importlib
import re

import pytest

from .pages import ROOT, fenced

PAGE = (ROOT / "docs/api.md").read_text()


@pytest.mark.long
def test_its_example_runs(kumar_runs, tmp_path, monkeypatch, capsys):
    kumar_runs(ptq=False).to_parquet(tmp_path / "runs.parquet")
    monkeypatch.chdir(tmp_path)
    (example,) = [block.text for block in fenced(PAGE) if block.language == "python"]
    for whole, tiny in {"resamples=200": "resamples=5, starts=20", '"kumar"]': '"chinchilla_tied"], starts=5'}.items():
        assert whole in example  # laws of few constants compile in less time
        example = example.replace(whole, tiny)
    exec(compile(example, "api.md", "exec"), {})
    printed = capsys.readouterr().out
    assert "'alpha'" in printed and "'chinchilla_tied'" in printed


@pytest.mark.parametrize("name", re.findall(r"^::: (\S+)$", PAGE, re.MULTILINE))
def test_every_name_is_documented(name):
    module, _, own = name.rpartition(".")
    assert getattr(importlib.import_module(module), own).__doc__
