"""Whether a command ended as it should, by what was done to it."""

import re
import signal

from .jobs import Job
from .strikes import DAMAGE, FULL_DISK, KILL, PEER
from .workers import Ended

_WHY = re.compile(r"(?<!\w)(?:error|preempted): .*")  # a Ctrl-C may come while a line is printed
_INTERRUPTIBLE = ("runs", "ptq")  # verbs that save what they have where they are asked to stop


def problem_of(kind: str | None, job: Job, ended: Ended) -> str:
    """What is wrong; nothing where all is as it should be. kind: of the fault that struck, None where none did."""
    if ended.left:
        return f"{ended.left} processes outlived the command"
    if ended.code >= 0 and "Traceback (most recent call last)" in ended.said:
        return f"a traceback, exit code {ended.code}"
    allowed = _codes(kind, job)
    if ended.code not in allowed:
        return f"exit code {ended.code}, not {' or '.join(map(str, sorted(allowed)))}"
    errors = _WHY.findall(ended.said)
    if ended.code in (2, 75) and len(errors) != job.processes and kind != PEER:
        return f"exit code {ended.code} with {len(errors)} lines that say why"
    if kind == FULL_DISK and ended.code == 2 and "written" not in errors[0]:
        return f"a full disk, told as {errors[0]!r}"
    return ""


def _codes(kind: str | None, job: Job) -> set[int]:
    """A command may end whole where the fault came too late to matter."""
    match kind:
        case None:
            return {0}
        case "term":
            return {0, 75} if job.kind in _INTERRUPTIBLE else {75, -signal.SIGTERM}
        case "ctrl-C":
            return {0, 75}
        case "full disk":
            return {0, 2}
        case "peer killed":
            return {0, 75}
    return {-signal.SIGKILL, 0} if kind in (KILL, DAMAGE) else {0}
