"""The one place where errors become an exit code and one line: what users, files and libraries can cause."""

import os
import sys
import traceback
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout

from precisionlm.errors import (
    BAD_INPUT,
    DEBUG,
    DIVERGED,
    DONE,
    PREEMPTED,
    DivergedError,
    PreemptedError,
    UserError,
    debugging,
)
from precisionlm.terminal import Plain, below

_LONGEST = 1500  # characters of a line: lists of valid names may be long, dumps of a library are longer


def guarded(run: Callable[[], int]) -> int:
    """What `run` returns; for an exception the exit code that `precisionlm.errors` has for it, after one line on
    standard error. With PRECISIONLM_DEBUG=1 the traceback comes before the line. Meanwhile nothing is printed that a
    terminal would obey."""
    with redirect_stdout(Plain(below(sys.stdout))), redirect_stderr(Plain(below(sys.stderr))):
        return _guarded(run)


def _guarded(run: Callable[[], int]) -> int:
    try:
        code = run()
        sys.stdout.flush()  # a full disk under `> file` shows here
        return code
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return DONE
    except (Exception, KeyboardInterrupt) as error:
        if debugging():
            traceback.print_exc()
        code, line = _told(error)
        print(one_line(line), file=sys.stderr)
        return code


def one_line(text: str) -> str:
    """White space as single blanks, nothing that a terminal would obey, and no longer than a person reads."""
    plain = "".join(c if c.isprintable() else "\ufffd" for c in " ".join(text.split()))
    return plain if len(plain) <= _LONGEST else f"{plain[: _LONGEST // 2]} … {plain[-_LONGEST // 2 :]}"


def _told(error: BaseException) -> tuple[int, str]:
    match error:
        case UserError():
            return BAD_INPUT, f"error: {error}"
        case DivergedError():
            return DIVERGED, f"diverged: {error}"
        case PreemptedError():
            return PREEMPTED, f"preempted: {error}"
        case KeyboardInterrupt():
            return PREEMPTED, "preempted: interrupted; the same command does what was not finished"
        case OSError():
            where = f"{error.filename}: " if error.filename is not None else ""
            return BAD_INPUT, f"error: {where}{error.strerror or error}"
        case MemoryError():
            return BAD_INPUT, "error: this machine has not enough memory for it"
        case RecursionError():
            return BAD_INPUT, "error: the input is nested too deeply"
        case ImportError(name=str(name)):
            return BAD_INPUT, f"error: the package {name} is needed and cannot be imported: {error}"
    if "RESOURCE_EXHAUSTED" in str(error):  # JAX's, of any type
        return BAD_INPUT, f"error: the devices have not enough memory for it: {error}"
    return BAD_INPUT, f"error: unforeseen {type(error).__name__}: {error} ({DEBUG}=1 shows where)"
