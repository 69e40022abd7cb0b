"""What the doctor finds: one line about one thing, and what to do about it."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

Status = Literal["ok", "warning", "problem"]
WORST_FIRST: tuple[Status, ...] = ("problem", "warning", "ok")


@dataclass(frozen=True)
class Finding:
    """status: ok; warning, what works but slowly, soon no more or untested; problem, what does not work. advice: what
    to do, empty where there is nothing to do."""

    name: str
    status: Status
    text: str
    advice: str = ""


def found_by(name: str, check: Callable[[], Finding]) -> Finding:
    """What a check finds. A doctor that falls over says nothing of the rest, so whatever a check raises is a problem
    of what it looks at."""
    try:
        return check()
    except Exception as error:
        return Finding(name, "problem", f"{type(error).__name__}: {error}", "PRECISIONLM_DEBUG=1 shows where")


def worst(findings: list[Finding]) -> Status:
    """Of all findings."""
    return next(status for status in WORST_FIRST if status == "ok" or status in {one.status for one in findings})
