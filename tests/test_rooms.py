"""Who may import whom: rooms stand on floors, imports go down or stay on the floor, and nothing goes in a circle."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from precisionlm.analysis.laws import LAWS

ROOT = Path(__file__).resolve().parents[1]

# From the ground up. A name is a room or one file of it; the longest that fits a module says where it stands.
FLOORS: tuple[tuple[str, ...], ...] = (
    (
        "errors",
        "words",
        "json_text",
        "yaml_text",
        "whole_file",
        "terminal",
        "progress",
        "columns",
        "expressions",
        "outages",
        "analysis.table",
    ),
    ("precision", "cluster", "sections", "analysis.laws"),
    ("config", "identity", "analysis.table.read", "analysis.table.symbols", "analysis.fitting"),
    ("data", "model", "storage", "analysis.decisions", "analysis.predictions"),
    ("training", "analysis.figures"),
    ("compiling", "packing", "ptq", "hub", "analysis.report"),
    ("sweep", "bench", "watching", "doctor", "analysis.publishing"),
    ("api",),
    ("cli",),
)
ONLY_HERE = {"aqt": ("precision/dot_general.py",), "orbax": ("storage/checkpoint.py",)}
NOT_IN_ANALYSIS = (
    "training",
    "model",
    "data",
    "sweep",
    "ptq",
    "storage",
    "cluster",
    "compiling",
    "cli",
    "bench",
    "hub",
    "doctor",
    "api",
)


def modules() -> dict[str, Path]:
    """Dotted name below precisionlm → file; packages by their __init__.py."""
    found = {}
    for path in sorted((ROOT / "precisionlm").rglob("*.py")):
        parts = path.relative_to(ROOT / "precisionlm").with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


MODULES = modules()


def imported(path: Path) -> Iterator[str]:
    """Every name that a file imports, at its top or inside functions: `package.module` or `package.module.name`."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: imports are absolute"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def own_imports(name: str) -> set[str]:
    """The project's modules that a module imports; a package's __init__ holds no code that others need."""
    found = set()
    for target in imported(MODULES[name]):
        inside = target.removeprefix("precisionlm.")
        if inside != target:
            found.add(inside if inside in MODULES else inside.rpartition(".")[0])
    return found - {""}


def floor(name: str) -> int:
    """The floor on which a module stands."""
    fitting = [(len(room), i) for i, rooms in enumerate(FLOORS) for room in rooms if f"{name}.".startswith(f"{room}.")]
    assert fitting, f"{name} is in no room: give it a floor here and a line in docs/architecture.md"
    return max(fitting)[1]


PLACED = [name for name in MODULES if name not in ("", "__main__", "analysis")]


@pytest.mark.parametrize("name", PLACED)
def test_imports_go_down_or_stay_on_the_floor(name):
    above = {target: floor(target) for target in own_imports(name) if floor(target) > floor(name)}
    assert not above, f"{name} stands on floor {floor(name)}"


def test_no_circles():
    done: set[str] = set()

    def visit(name: str, way: tuple[str, ...]) -> None:
        assert name not in way, " → ".join((*way[way.index(name) :], name))
        if name not in done:
            for target in own_imports(name):
                visit(target, (*way, name))
            done.add(name)

    for name in MODULES:
        visit(name, ())


@pytest.mark.parametrize("library", ONLY_HERE)
def test_a_library_has_one_door(library):
    users = {
        str(path.relative_to(ROOT / "precisionlm"))
        for path in MODULES.values()
        if any(target.split(".")[0] == library for target in imported(path))
    }
    assert users <= set(ONLY_HERE[library]) and users


def test_analysis_stands_alone():
    for name in MODULES:
        if name.startswith("analysis"):
            strangers = {t for t in own_imports(name) if t.split(".")[0] in NOT_IN_ANALYSIS}
            assert not strangers, f"{name} imports {strangers}"


def test_no_law_is_named_outside_of_laws():
    """Code elsewhere asks a law for what it knows (hooks of `base.Law`); sentences and examples of help may name it."""
    for name, path in MODULES.items():
        if not name.startswith("analysis.laws"):
            texts = {n.value for n in ast.walk(ast.parse(path.read_text())) if isinstance(n, ast.Constant)}
            lists = [[word.strip() for word in text.split(",")] for text in texts if isinstance(text, str)]
            named = {word for words in lists if all(map(str.isidentifier, words)) for word in words} & set(LAWS)
            assert not named, f"{name} names {named}"


def test_every_room_is_there():
    for rooms in FLOORS:
        for room in rooms:
            assert room in MODULES, f"{room} stands on a floor but is no module"


@pytest.mark.parametrize("path", sorted((ROOT / "docs").glob("*.md")), ids=lambda path: path.stem)
def test_what_docs_name_is_there(path):
    named = set(re.findall(r"`((?:tests|launch|configs|docs|precisionlm)/[\w./]+)`", path.read_text()))
    assert not [name for name in named if not (ROOT / name).exists() and "NAME" not in name]
