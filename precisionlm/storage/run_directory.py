"""The run directory is the record: config.yaml, segments.jsonl, metrics.jsonl, audit.json, result.json, evaluations/,
ptq/, checkpoints/."""

import json
import os
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from precisionlm.errors import CannotWriteError, UserError
from precisionlm.json_text import dumps
from precisionlm.whole_file import written

_KEPT = "; what was saved before is kept"


class RunDirectory:
    """Paths and atomic writes of one run."""

    def __init__(self, root: Path, run_id: str):
        self.path = root / run_id
        self.metrics = self.path / "metrics.jsonl"

    @staticmethod
    def at(path: Path) -> "RunDirectory":
        """The run directory at a path."""
        return RunDirectory(path.parent, path.name)

    def create(self) -> None:
        """Make it if it is not there. Raises UserError."""
        with _writing(self.path):
            self.path.mkdir(parents=True, exist_ok=True)

    def clear_partial(self) -> None:
        """Remove what killed processes left half-written; for the owner of the run alone."""
        for partial in (*self.path.glob(".*.partial*"), *self.path.glob("evaluations/.*.partial*")):
            partial.unlink(missing_ok=True)

    def write_text(self, name: str, text: str) -> None:
        """Complete or not at all, and on disk when this returns. Raises UserError."""
        self.write_bytes(name, text.encode())

    def write_bytes(self, name: str, content: bytes) -> None:
        """As `write_text`."""
        _write(self.path / name, content)

    def write_json(self, name: str, content: Any) -> None:
        """JSON, complete or not at all; numbers that are not finite become null. Raises UserError."""
        self.write_text(name, dumps(content, indent=1) + "\n")

    def read_json(self, name: str) -> Any:
        """The file's content; None if it is not there. Raises UserError where it cannot be read."""
        try:
            return json.loads((self.path / name).read_text())
        except (FileNotFoundError, NotADirectoryError):
            return None
        except OSError as error:
            raise UserError(f"{self.path / name}: cannot be read: {error.strerror}") from None
        except (ValueError, RecursionError):
            raise UserError(f"{self.path / name}: no JSON, so cut short or damaged; restore or remove it") from None


class MetricsLog:
    """metrics.jsonl, open to append: a line a step or evaluation. Its methods raise UserError if they cannot write."""

    def __init__(self, path: Path):
        self._path = path
        with _writing(path):
            self._file = path.open("a")
        self._shown = time.monotonic()

    def write(self, line: dict[str, Any]) -> None:
        """Append one line; others see it within a second or with the next line after that."""
        with _writing(self._path):
            self._file.write(dumps(line) + "\n")
            if time.monotonic() - self._shown > 1.0:
                self._file.flush()
                self._shown = time.monotonic()

    def flush(self) -> None:
        """To the disk: a checkpoint of a step must not outlive the lines before it."""
        with _writing(self._path):
            self._file.flush()
            os.fsync(self._file.fileno())

    def close(self) -> None:
        """Flush and close."""
        with _writing(self._path):
            self._file.close()


def read_metrics(path: Path) -> Iterable[dict[str, Any]]:
    """The lines of a metrics.jsonl or segments.jsonl; a last line cut short by a kill is left out."""
    if not path.exists():
        return
    for text in path.read_text().splitlines():
        try:
            yield json.loads(text)
        except json.JSONDecodeError:
            return


def last_metrics(path: Path, size: int = 1 << 16) -> list[dict[str, Any]]:
    """The whole lines in JSON in the last `size` bytes of a metrics.jsonl, which may grow meanwhile."""
    try:
        with path.open("rb") as file:
            start = max(0, file.seek(0, os.SEEK_END) - size)
            file.seek(start)
            content = file.read()
    except OSError:
        return []
    lines = content.split(b"\n")[1 if start else 0 : -1]
    return [found for line in lines if line and (found := _line(line)) is not None]


def _line(text: bytes) -> dict[str, Any] | None:
    """A line of a metrics.jsonl; None for a damaged one."""
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) and isinstance(found.get("step"), int) else None


def has_evaluation(path: Path, step: int) -> bool:
    """Whether a metrics.jsonl holds the evaluation after `step` steps."""
    return any(line["step"] == step and "val_loss" in line for line in read_metrics(path))


def trim_metrics(path: Path, resumed_step: int) -> None:
    """Drop the lines after the step that a run resumes from. Raises UserError where one up to it is missing."""
    kept = [line for line in read_metrics(path) if line["step"] <= resumed_step]
    if [line["step"] for line in kept if "loss" in line] != list(range(1, resumed_step + 1)):
        raise UserError(
            f"{path} does not hold each of the {resumed_step} steps of the newest checkpoint: damaged or replaced; "
            "restore it, or delete the run directory to train anew"
        )
    _write(path, _lines(kept))


def copy_metrics(source: Path, target: Path, last_step: int) -> None:
    """The lines up to a step as the beginning of another run's metrics.jsonl."""
    kept = [line for line in read_metrics(source) if line["step"] <= last_step]
    _write(target, _lines(kept))


def _lines(metrics: list[dict[str, Any]]) -> bytes:
    return "".join(dumps(line) + "\n" for line in metrics).encode()


def _write(path: Path, content: bytes) -> None:
    with written(path, _KEPT) as partial:
        partial.write_bytes(content)


@contextmanager
def _writing(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise CannotWriteError(f"{path}: cannot be written: {error.strerror}{_KEPT}") from None
