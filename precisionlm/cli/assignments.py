"""Options that are lists of NAME=VALUE, such as --fix alpha=0.5,E=1.7 or --columns 'N=`N (M), all`*1e6'."""

from collections.abc import Iterator

from precisionlm.errors import UserError

_OPEN, _CLOSED = "([{", ")]}"


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
    """The same with numbers for values."""
    found = {}
    for name, value in assignments(option, text, expected).items():
        try:
            found[name] = float(value)
        except ValueError as problem:
            raise UserError(f"{option} '{name}={value}': expected {expected}") from problem
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
