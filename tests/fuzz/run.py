"""A case from call to verdict: no traceback, no hang, nothing half-written, an exit code that scripts know."""

import contextlib
import io
import os
import shutil
import signal
import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from precisionlm.cli.main import main

from .cases import Case

CODES = (0, 2, 3, 75)
SECONDS = 20


class Hang(BaseException):
    """No exception that a handler of ours takes for its own."""


def check(case: Case, world: Path) -> str:
    """Runs a case in a copy of the world; returns `ok` or `refused`. Raises AssertionError: what went wrong."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / "w"
        shutil.copytree(world, folder)
        for pattern, change in case.changes:
            for path in sorted(folder.glob(pattern))[:1]:
                path.write_bytes(change(path.read_bytes()))
        before = _files(folder)
        code, err = _call(case.words, folder)
        said = f"{case.words} → {code}\n{err[-2000:]}"
        assert code in CODES, said
        assert "Traceback" not in err and "unforeseen" not in err and "Warning:" not in err, said
        new = _files(folder) - before
        assert not [path for path in new if "partial" in path], said
        if code == 2:
            assert err.splitlines()[-1].startswith("error: ") and len(err.splitlines()[-1]) < 2000, said
            assert not new, f"{said}\nleft behind: {sorted(new)}"
        return "refused" if code else "ok"


def _files(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def _call(words: list[str], folder: Path) -> tuple[Any, str]:
    out, err = io.StringIO(), io.StringIO()
    with _at(folder), _limited(), contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        warnings.simplefilter("always")
        try:
            code: Any = main(words)
        except SystemExit as stop:  # --help
            code = stop.code
        except Hang:
            code = f"no end after {SECONDS} s"
    return code, err.getvalue()


@contextlib.contextmanager
def _at(folder: Path) -> Iterator[None]:
    with contextlib.chdir(folder), warnings.catch_warnings():
        yield


@contextlib.contextmanager
def _limited() -> Iterator[None]:
    def stop(*_: Any) -> None:
        raise Hang

    previous = signal.signal(signal.SIGALRM, stop)
    signal.alarm(SECONDS)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, previous)


def new_world(folder: Path, data: Path) -> Path:
    """The world under a folder; os.environ's debugging is off meanwhile."""
    from .world import make

    os.environ.pop("PRECISIONLM_DEBUG", None)
    folder.mkdir()
    make(folder, data)
    return folder
