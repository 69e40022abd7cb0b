"""What an installation holds: every file that the package reads, its license, a version; no need of dev tools."""

import ast
import fnmatch
import re
import subprocess
import sys
import tomllib
from importlib.metadata import PackageNotFoundError
from pathlib import Path

import pytest

import precisionlm

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
ALONE = {ROOT / "precisionlm/bench/torch_peer.py"}  # a script that another Python runs
NAMES = {"pyyaml": "yaml", "orbax-checkpoint": "orbax", "aqtp": "aqt"}  # of distributions that import by another name


def distributions(lines: list[str]) -> set[str]:
    """Names of requirements, as they are imported."""
    names = {re.split(r"[\[<>=]", line)[0].lower() for line in lines}
    return {NAMES.get(name, name).replace("-", "_") for name in names}


def test_every_file_of_the_package_is_in_a_wheel():
    patterns = PROJECT["tool"]["setuptools"]["package-data"]["precisionlm"]
    files = [path.relative_to(ROOT / "precisionlm") for path in (ROOT / "precisionlm").rglob("*") if path.is_file()]
    data = [path for path in files if path.suffix not in (".py", ".pyc")]
    assert {"py.typed", "analysis/report/templates/report.html"} <= set(map(str, data))
    assert not [path for path in data if not any(fnmatch.fnmatch(str(path), pattern) for pattern in patterns)]
    folders = {path.parent for path in files if path.suffix == ".py"}
    assert not [folder for folder in folders if Path(folder / "__init__.py") not in files], "no package without it"


def test_what_is_imported_at_the_top_of_a_file_is_asked_for():
    """So an installation without dev tools runs every verb; what an extra brings is imported where it is used."""
    # With jax and pydantic come jaxlib, ml_dtypes and pydantic_core.
    asked = distributions(PROJECT["project"]["dependencies"]) | {"jaxlib", "ml_dtypes", "pydantic_core", "precisionlm"}
    standard = sys.stdlib_module_names
    for path in sorted(set((ROOT / "precisionlm").rglob("*.py")) - ALONE):
        for node in ast.parse(path.read_text()).body:
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            strangers = {name.split(".")[0] for name in names} - asked - standard
            assert not strangers, f"{path.relative_to(ROOT)}: {strangers}"


def test_the_license_is_what_is_stated():
    text = (ROOT / "LICENSE").read_text()
    assert text.split()[:3] == ["Apache", "License", "Version"] and "END OF TERMS AND CONDITIONS" in text
    assert PROJECT["project"]["license"] == "Apache-2.0"
    assert "license: Apache-2.0\n" in (ROOT / "CITATION.cff").read_text()


def test_the_version(monkeypatch):
    def absent(name: str) -> str:
        raise PackageNotFoundError(name)

    assert re.match(r"\d+\.\d+", precisionlm.__version__)
    monkeypatch.setattr("importlib.metadata.version", absent)
    assert precisionlm.__version__ == PROJECT["tool"]["setuptools_scm"]["fallback_version"]
    with pytest.raises(AttributeError, match="no attribute 'versoin'"):
        precisionlm.versoin  # noqa: B018
    assert subprocess.run(
        [sys.executable, "-m", "precisionlm", "--version"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.startswith("precisionlm ")


@pytest.mark.parametrize("name", ["CONTRIBUTING.md", "CHANGELOG.md"])
def test_what_it_names_is_there(name):
    text = (ROOT / name).read_text()
    for path in re.findall(r"\]\(([\w./]+)\)|`((?:precisionlm|tests|launch|docs)/[\w./]+)`", text):
        there = "".join(path)
        assert "NAME" in there or (ROOT / there).exists(), there
