"""What a finished run leaves: result.json, read and written here alone."""

import sys
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from precisionlm.errors import UserError
from precisionlm.storage.run_directory import RunDirectory

_NAME = "result.json"


class Result(BaseModel):
    """status: done, or diverged with its reason. row: the run's own columns of the runs table (`columns`).
    evaluations: the columns of each of its evaluations; numbers that are not finite are None. segments: under what each
    of its starts ran (`training.provenance`); none in files of versions that kept none."""

    model_config = ConfigDict(frozen=True, strict=True, extra="forbid")

    status: Literal["done", "diverged"]
    reason: str
    row: dict[str, Any]
    evaluations: list[dict[str, Any]]
    segments: list[dict[str, Any]] = []

    @staticmethod
    def read(directory: RunDirectory) -> "Result | None":
        """The result of a run; None where it is not finished. Raises UserError where the file cannot be read."""
        content = directory.read_json(_NAME)
        if content is None:
            return None
        try:
            return Result.model_validate(content)
        except ValidationError as error:
            found = error.errors()[0]
            where = ".".join(map(str, found["loc"])) or "the file"
            raise UserError(f"{directory.path / _NAME}: no result of a run: {where}: {found['msg']}") from None

    def write(self, directory: RunDirectory) -> None:
        """Complete or not at all. Raises UserError."""
        directory.write_json(_NAME, self.model_dump())

    @staticmethod
    def set_aside(directory: RunDirectory) -> None:
        """A result that cannot be read is one no more; it stays beside, for people."""
        (directory.path / _NAME).replace(directory.path / f"{_NAME}.damaged")


def finished_at(folder: Path) -> Result:
    """The result of a run that finished training. Raises UserError where there is none or it cannot be read."""
    result = Result.read(RunDirectory.at(folder))
    if result is None or result.status != "done":
        raise UserError(f"{folder} is not the directory of a finished run")
    return result


def finished_under(root: Path) -> list[RunDirectory]:
    """Run directories at or under a folder that have a result, by path."""
    return [RunDirectory.at(path.parent) for path in sorted(Path(root).rglob(_NAME))]


def finished_runs(root: Path, recipe: str | None = None) -> list[Path]:
    """Run directories at or under a folder that finished training, of one recipe (its canonical spelling) if asked. One
    whose result cannot be read is left out with a line on standard error. Raises UserError if there is none."""
    found = []
    for directory in finished_under(root):
        try:
            result = Result.read(directory)
        except UserError as error:
            print(f"left out: {error}", file=sys.stderr)
            continue
        if result and result.row.get("run_id", directory.path.name) != directory.path.name:
            print(f"left out: {directory.path}: a copy of run {result.row['run_id']}", file=sys.stderr)
        elif result and result.status == "done" and recipe in (None, result.row.get("recipe")):
            found.append(directory.path)
    if not found:
        raise UserError(f"{root} holds no finished run" + (f" trained at '{recipe}'" if recipe else ""))
    return found
