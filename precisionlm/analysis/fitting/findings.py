"""What a reader must know before using a fit: several findings at once, each with the constants that it concerns."""

from collections.abc import Iterable
from dataclasses import dataclass
from enum import Enum


class Status(Enum):
    """The gravest finding of a fit. Only non-finite input raises; everything else returns with one of these."""

    CONVERGED = "converged"
    ILL_CONDITIONED = "ill-conditioned"
    AT_BOUND = "at-bound"
    NOT_IDENTIFIED = "not-identified"
    NOT_CONVERGED = "not-converged"


FEW_GROUPS = "few-groups"
GRAVITY = tuple(status.value for status in Status)


@dataclass(frozen=True)
class Finding:
    """kind: a Status's value, or few-groups. constants: names of those it concerns. text: one plain sentence."""

    kind: str
    constants: tuple[str, ...]
    text: str


def status_of(findings: Iterable[Finding]) -> Status:
    """The gravest of the findings that are a status; converged without any."""
    kinds = [f.kind for f in findings if f.kind in GRAVITY]
    return Status(max(kinds, key=GRAVITY.index)) if kinds else Status.CONVERGED


def concerning(findings: Iterable[Finding], constants: Iterable[str]) -> tuple[Finding, ...]:
    """Those findings that concern at least one of the constants."""
    wanted = set(constants)
    return tuple(f for f in findings if wanted & set(f.constants))
