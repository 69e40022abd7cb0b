"""Sections of strict, frozen configuration, and what is said of a key or a value that is wrong."""

from collections.abc import Iterator, Mapping
from difflib import get_close_matches
from typing import Any, TypeVar, get_args, get_origin

from pydantic import BaseModel, ConfigDict, ValidationError
from pydantic_core import ErrorDetails

from precisionlm.errors import UserError, nearest

T = TypeVar("T", bound=BaseModel)

_MOST = 8  # errors that are told at once


class Section(BaseModel):
    """A part of the tree: frozen, unknown keys are errors, no silent conversion of types."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


def validated(section: type[T], tree: dict[str, Any], source: str, words: Mapping[str, str] = {}) -> T:
    """A tree as a section. words: keys of other projects → the key path that is meant. Raises UserError with the file
    and, for everything that is wrong, the key path and what would be right: unknown keys first."""
    try:
        return section.model_validate(tree)
    except ValidationError as error:
        raise UserError(f"{source}: {_explained(section, error.errors(), words)}") from None


def _explained(section: type[BaseModel], details: list[ErrorDetails], words: Mapping[str, str]) -> str:
    order = ("extra_forbidden", "model_type", "", "missing")
    details = sorted(details, key=lambda d: order.index(d["type"] if d["type"] in order else ""))
    hinted: set[str] = set()  # a missing key that stands there under another name is said once
    lines = []
    for detail in details:
        line, meant = _explain(section, detail, words)
        path = ".".join(map(str, detail["loc"]))
        if detail["type"] == "missing" and any(word == path or word.startswith(f"{path}.") for word in hinted):
            continue
        hinted |= {meant} if meant else set()
        lines.append(line)
    more = len(lines) - _MOST
    return " · ".join(lines[:_MOST]) + (f" · and {more} more" if more > 0 else "")


def _explain(section: type[BaseModel], detail: ErrorDetails, words: Mapping[str, str]) -> tuple[str, str | None]:
    """What is wrong, and the path of the key that was meant, if there is one."""
    path = [str(part) for part in detail["loc"]]
    where = ".".join(path)
    if detail["type"] == "extra_forbidden":
        meant = _meant(section, path, words)
        here = ".".join([*path[:-1], ""])
        hint = (
            f"did you mean '{meant.removeprefix(here)}'?"
            if meant
            else nearest(path[-1], list(_keys_at(section, path[:-1])))
        )
        return f"unknown key '{where}'; {hint}", meant
    if detail["type"] == "missing":
        return f"key '{where}' is missing", None
    if detail["type"] == "model_type":
        meant = words.get(where)
        hint = f"; did you mean '{meant}'?" if meant else ""
        keys = ", ".join(_keys_at(section, path))
        return f"{where} = {_short(detail['input'])}: must be a section with keys of {keys}{hint}", None
    message = detail["msg"].removeprefix("Value error, ")
    message = message[0].lower() + message[1:]
    if detail["type"] == "value_error":
        return (f"{where}: {message}" if where else message), None
    shown = "a section" if isinstance(detail["input"], dict) else _short(detail["input"])
    return f"{where} = {shown}: {message}", None


def _meant(section: type[BaseModel], path: list[str], words: Mapping[str, str]) -> str | None:
    """The key path of which this is another project's word, a near miss, or the name in another section."""
    here, key = path[:-1], path[-1]
    prefix = ".".join([*here, ""])
    there = words.get(key.lower())
    if there is None and not get_close_matches(key, list(_keys_at(section, here)), n=1, cutoff=0.8):
        there = next((found for found in key_paths(section) if found.rpartition(".")[2] == key), None)
    if there is None:
        close = get_close_matches(key, list(_keys_at(section, here)), n=1, cutoff=0.5)
        return prefix + close[0] if close else None
    return there


def key_paths(section: type[BaseModel]) -> Iterator[str]:
    """The path of every key that is no section itself, in the tree's order."""
    for name in section.model_fields:
        inner = section_of(section.model_fields[name].annotation)
        if inner is None:
            yield name
        else:
            yield from (f"{name}.{path}" for path in key_paths(inner))


def section_of(annotation: Any) -> type[BaseModel] | None:
    """The section that a field is; None for a value, or several sections."""
    if get_origin(annotation) is tuple:
        return None
    for kind in get_args(annotation) or (annotation,):
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            return kind
    return None


def _short(value: Any) -> str:
    try:
        text = str(value)
    except ValueError:  # an integer of thousands of digits
        return "a huge number"
    return text if len(text) <= 80 else f"{text[:77]}…"


def _keys_at(section: type[BaseModel], path: list[str]) -> dict[str, Any]:
    for part in path:
        if part.isdigit():  # a place in a list of sections
            continue
        annotation: Any = section.model_fields[part].annotation
        while not isinstance(annotation, type) or get_args(annotation):
            annotation = get_args(annotation)[0]
        section = annotation
        assert isinstance(section, type) and issubclass(section, BaseModel)
    return section.model_fields
