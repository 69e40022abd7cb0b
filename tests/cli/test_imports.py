"""What a command imports before it has something to compute: help and errors wait for no library that takes seconds."""

import json
import os
import subprocess
import sys

import pytest

SECONDS = ("jax", "flax", "optax", "orbax", "grain", "scipy", "matplotlib")  # to import one of them
TABLES = ("pandas", "pyarrow")

# Prints, after `import precisionlm` and after each command, its exit code, its last line and what it had imported.
_WATCH = """
import contextlib, io, json, sys
import precisionlm
heavy, commands = json.loads(sys.argv[1])
def imported():
    return [name for name in heavy if name in sys.modules]
rows = [(0, precisionlm.__version__, imported(), sorted(m for m in sys.modules if m.startswith("precisionlm.")))]
from precisionlm.__main__ import start
for command in commands:
    sys.argv = ["precisionlm", *command]
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            code = start()
        except SystemExit as end:
            code = end.code or 0
    rows.append((code, (out.getvalue() + err.getvalue()).strip().splitlines()[-1], imported(), []))
print(json.dumps(rows))
"""


def watched(heavy, commands, folder):
    """The rows that `_WATCH` prints for commands that run in turn in one fresh process."""
    done = subprocess.run(
        [sys.executable, "-c", _WATCH, json.dumps([heavy, commands])], cwd=folder, capture_output=True, text=True,
        timeout=120, env=os.environ | {"PYTHONPATH": os.getcwd()},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_help_imports_no_library(tmp_path):
    (_, version, nothing, own), *helps = watched(
        [*SECONDS, *TABLES, "numpy", "pydantic", "yaml", "rich", "tokenizers"],
        [
            ["--help"],
            ["--version"],
            ["train", "--help"],
            ["fit", "--help"],
            ["bench", "precision", "--help"],
            ["trian"],
        ],
        tmp_path,
    )
    assert version and nothing == []
    assert len(own) <= 1  # `import precisionlm` reads no room
    assert [row[:1] + row[2:3] for row in helps] == [[0, []]] * 5 + [[2, []]]


ERRORS = {
    "train bad.yaml --out runs": "bad.yaml: ",
    "train none.yaml --out runs": "none.yaml: cannot be read",
    "sweep none.yaml --out runs": "none.yaml: cannot be read",
    "sweep bad.yaml --out runs": "bad.yaml: ",
    "sweep status none.yaml --out runs": "none.yaml: cannot be read",
    "compile bad.yaml --topology v5e:2x2": "bad.yaml: ",
    "evaluate none": "no finished run",
    "ptq none --method rtn --weights W4": "no finished run",
    "ptq none --method gtpq --weights W4": "gptq",
    "export none --out here": "not the directory of a finished run",
    "import none --data data": "none: no folder of a model",
    "generate none": "not the directory of a finished run",
    "watch none": "none: no run directory",
    "runs none": "none: no run directory",
    "curves none -o c.png": "none: no run directory",
    "precision explain W4Q": "cannot read 'W4Q'",
    "data prepare none --out data --vocab-size 300": "names no file",
    "data inspect none": "holds no prepared data",
}
ERRORS_OF_TABLES = {
    "table none": "no finished run",
    "fit --runs none.csv --law kumar": "none.csv: no such file",
    "fit --runs runs.csv --law kumr": "did you mean 'kumar'",
    "compare --runs runs.csv --laws kumar,snu": "did you mean 'sun'",
    "plan --law kumr --published --compute 1e21": "did you mean 'kumar'",
    "figures --law kumr --published": "did you mean 'kumar'",
    "report --runs none.csv": "none.csv: no such file",
}


@pytest.mark.parametrize(("errors", "heavy"), [(ERRORS, (*SECONDS, *TABLES)), (ERRORS_OF_TABLES, SECONDS)])
def test_errors_wait_for_no_library(errors, heavy, tmp_path):
    (tmp_path / "bad.yaml").write_text("model: {layers: 2, widht: 32}\n")
    (tmp_path / "runs.csv").write_text("N_params,D_tokens,val_loss\n1e6,1e8,3.0\n")
    _, *rows = watched(heavy, [command.split() for command in errors], tmp_path)
    for (command, expected), (code, line, imported, _) in zip(errors.items(), rows, strict=True):
        assert code == 2 and expected in line, command
        assert imported == [], command
