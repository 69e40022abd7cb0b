"""Why a run could not be trained: failed.json, until it is tried again."""

from typing import Any, Literal

from precisionlm.errors import CannotWriteError, UserError
from precisionlm.storage.result import Result
from precisionlm.storage.run_directory import RunDirectory

_NAME = "failed.json"


def record_failure(directory: RunDirectory, reason: str) -> None:
    """One line that says why. Raises UserError."""
    directory.write_json(_NAME, {"reason": " ".join(reason.split())[:500]})


def failed_alone(directory: RunDirectory, error: BaseException) -> Literal["failed"]:
    """Record an error that is of one run, which stops no other. Raises all others."""
    if not isinstance(error, UserError) or isinstance(error, CannotWriteError):
        raise error
    record_failure(directory, str(error))
    return "failed"


def read_failure(directory: RunDirectory) -> str | None:
    """The reason; None for a run that has not failed. Raises UserError where it cannot be read."""
    found: Any = directory.read_json(_NAME)
    return None if found is None else str(found.get("reason", "")) if isinstance(found, dict) else ""


def forget_failure(directory: RunDirectory) -> None:
    """The run is to be tried again; a result that cannot be read, for which it counts as failed, is moved aside."""
    (directory.path / _NAME).unlink(missing_ok=True)
    try:
        Result.read(directory)
    except UserError:
        Result.set_aside(directory)
