"""docs/notebooks: the cells run in order, what Jupyter would show of each can be shown, and files hold no outputs."""

import ast
import json
import re
import warnings

import matplotlib.pyplot as plt
import pytest

from .pages import ROOT

NOTEBOOKS = sorted((ROOT / "docs/notebooks").glob("*.ipynb"))


def cells(path, kind):
    return ["".join(c["source"]) for c in json.loads(path.read_text())["cells"] if c["cell_type"] == kind]


def shown(cell, namespace):
    """Run a cell; the value of its last line, if that is an expression."""
    tree = ast.parse(cell)
    last = tree.body.pop() if isinstance(tree.body[-1], ast.Expr) else None
    exec(compile(tree, "cell", "exec"), namespace)
    return eval(compile(ast.Expression(last.value), "cell", "eval"), namespace) if last else None


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_it_runs(path, capsys):
    plt.switch_backend("agg")
    namespace = {}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        values = [shown(cell, namespace) for cell in cells(path, "code")]
        assert all(repr(value) for value in values)
        assert plt.get_fignums()
        for number in plt.get_fignums():
            plt.figure(number).savefig("/dev/null", format="png")
    plt.close("all")
    assert "95 % interval" in capsys.readouterr().out and namespace["decision"].N > 0


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_it_is_small(path):
    content = json.loads(path.read_text())
    assert len(content["cells"]) <= 15 and path.stat().st_size < 20_000
    assert all(not cell["outputs"] for cell in content["cells"] if cell["cell_type"] == "code")
    for target in re.findall(r"\]\(([^)\s]+)\)", "\n".join(cells(path, "markdown"))):
        assert (path.parent / target).exists(), target
