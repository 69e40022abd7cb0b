"""Sections of strict, frozen configuration, and what is said of a key or a value that is wrong."""

from typing import Any, TypeVar, get_args

from pydantic import BaseModel, ConfigDict, ValidationError
from pydantic_core import ErrorDetails

from precisionlm.errors import UserError, nearest

T = TypeVar("T", bound=BaseModel)


class Section(BaseModel):
    """A part of the tree: frozen, unknown keys are errors, no silent conversion of types."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


def validated(section: type[T], tree: dict[str, Any], source: str) -> T:
    """A tree as a section. Raises UserError with the file, the key path, what is wrong and what would be right."""
    try:
        return section.model_validate(tree)
    except ValidationError as error:
        raise UserError(f"{source}: {_explain(section, error.errors()[0])}") from None


def _explain(section: type[BaseModel], detail: ErrorDetails) -> str:
    path = [str(part) for part in detail["loc"]]
    where = ".".join(path)
    if detail["type"] == "extra_forbidden":
        return f"unknown key '{where}'; {nearest(path[-1], list(_keys_at(section, path[:-1])))}"
    if detail["type"] == "missing":
        return f"key '{where}' is missing"
    if detail["type"] == "model_type":
        return (
            f"{where} = {_short(detail['input'])}: must be a section with keys of {', '.join(_keys_at(section, path))}"
        )
    message = detail["msg"].removeprefix("Value error, ")
    message = message[0].lower() + message[1:]
    if detail["type"] == "value_error":
        return f"{where}: {message}" if where else message
    shown = "a section" if isinstance(detail["input"], dict) else _short(detail["input"])
    return f"{where} = {shown}: {message}"


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
