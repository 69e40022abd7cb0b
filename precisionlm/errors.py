"""Errors that a user can act on, and the exit codes that scripts and schedulers rely on."""

import os

DEBUG = "PRECISIONLM_DEBUG"
DONE, BAD_INPUT, DIVERGED, PREEMPTED = 0, 2, 3, 75


class UserError(Exception):
    """Bad input: one line that says what was wrong, where, and what would be right. Exit code 2."""


class CannotWriteError(UserError):
    """A disk that takes no more: what comes after it would be refused too, so no batch goes on without it."""


class DivergedError(Exception):
    """Training left the finite numbers. A result, recorded as one. Exit code 3."""


class PreemptedError(Exception):
    """The machine is being taken away; state is saved and a retry continues. Exit code 75."""


def exit_code(error: BaseException) -> int | None:
    """The exit code of an error of ours; None for any other."""
    codes = {UserError: BAD_INPUT, DivergedError: DIVERGED, PreemptedError: PREEMPTED}
    return next((code for kind, code in codes.items() if isinstance(error, kind)), None)


def check_count(option: str, value: int | None, least: int, most: int) -> None:
    """Raises UserError for a whole number outside its range (both ends allowed); an absent one is let be."""
    if value is not None and not least <= value <= most:
        raise UserError(f"{option} {value}: must be {least} to {most:,}")


def debugging() -> bool:
    """Whether tracebacks are wanted beside the lines: PRECISIONLM_DEBUG=1."""
    return os.environ.get(DEBUG, "") not in ("", "0")


def nearest(word: str, valid: list[str]) -> str:
    """`; did you mean 'x'?` for the valid word closest to `word`, or the whole list if none is close."""
    import difflib

    close = difflib.get_close_matches(word, valid, n=1, cutoff=0.5)
    return f"did you mean '{close[0]}'?" if close else "valid: " + ", ".join(sorted(valid))
