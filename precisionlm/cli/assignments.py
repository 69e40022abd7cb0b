"""Options that are lists of NAME=VALUE, such as --fix alpha=0.5,E=1.7 or --columns 'N=`N (M), all`*1e6'."""

import math
import re
from collections.abc import Iterator

from precisionlm.errors import UserError

_OPEN, _CLOSED = "([{", ")]}"
_NUMBER = r"[-+]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][-+]?[0-9]+)?|[-+]?inf"
_ENTRY = re.compile(rf"([^=].*?)\s*=\s*({_NUMBER})(?:\s*:\s*({_NUMBER}))?\s*(?:,|$)")


def assignments(option: str, text: str | None, expected: str = "NAME=VALUE") -> dict[str, str]:
    """`a=1,b=c` -> {name: text}, split at commas outside quotes, backticks and brackets.

    Raises UserError, naming the option, for a part that is no assignment and for a name that is given twice.
    """
    found: dict[str, str] = {}
    for part in (part for part in _parts(text or "") if part.strip()):
        name, equals, value = (piece.strip() for piece in part.partition("="))
        if not (name and equals and value):
            raise UserError(f"{option} '{part.strip()}': expected {expected}")
        if name in found:
            raise UserError(f"{option} '{text}': {name} is given twice")
        found[name] = value
    return found


def numbers(option: str, text: str | None, expected: str = "NAME=VALUE with a number") -> dict[str, float]:
    """`alpha=0.5,E=1.7` -> {name: number}. Raises UserError as `ranges` does."""
    found = ranges(option, text, expected)
    for name, (low, high) in found.items():
        if low != high or not math.isfinite(low):
            raise UserError(f"{option} '{name}={low:g}:{high:g}': expected {expected}")
    return {name: low for name, (low, _) in found.items()}


def ranges(option: str, text: str | None, expected: str) -> dict[str, tuple[float, float]]:
    """`delta=-1:5,E=1.7` -> {name: (low, high)}; a single number is both ends.

    Only a number ends an entry, so that a name may hold what names of formats hold: `eff_W=e4m3,A=e4m3=0.5`. Raises
    UserError, naming the option, for a part that is no such entry, a name given twice and ends in the wrong order.
    """
    found: dict[str, tuple[float, float]] = {}
    rest = (text or "").lstrip(", ")
    while rest:
        entry = _ENTRY.match(rest)
        if entry is None:
            raise UserError(f"{option} '{rest.strip()}': expected {expected}")
        name, low, high = entry[1], float(entry[2]), float(entry[3] or entry[2])
        if name in found:
            raise UserError(f"{option} '{text}': {name} is given twice")
        if low > high:
            raise UserError(f"{option} {name}={low:g}:{high:g}: the lower end comes first")
        found[name], rest = (low, high), rest[entry.end() :].lstrip(", ")
    return found


def _parts(text: str) -> Iterator[str]:
    depth, quote, start = 0, "", 0
    for i, character in enumerate(text):
        if quote:
            quote = "" if character == quote else quote
        elif character in "'\"`":
            quote = character
        elif character in _OPEN + _CLOSED:
            depth += 1 if character in _OPEN else -1
        elif character == "," and depth <= 0:
            yield text[start:i]
            start = i + 1
    yield text[start:]
