"""The run directory is the record: config.yaml, metrics.jsonl, audit.json, result.json, checkpoints/, ptq/."""

import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any


class RunDirectory:
    """Paths and atomic writes of one run."""

    def __init__(self, root: Path, run_id: str):
        self.path = root / run_id
        self.checkpoints = self.path / "checkpoints"

    def write_text(self, name: str, text: str) -> None:
        """Complete or not at all."""
        target = self.path / name
        target.parent.mkdir(parents=True, exist_ok=True)
        partial = target.with_name(f".{target.name}.{os.getpid()}")
        partial.write_text(text)
        partial.replace(target)

    def write_json(self, name: str, content: Any) -> None:
        """JSON, complete or not at all."""
        self.write_text(name, json.dumps(content, indent=1) + "\n")

    def read_json(self, name: str) -> Any:
        """The file's content; None if it is not there."""
        try:
            return json.loads((self.path / name).read_text())
        except FileNotFoundError:
            return None


class MetricsLog:
    """metrics.jsonl: a line a step or evaluation. Reopened at a resume without the lines after the resumed step."""

    def __init__(self, path: Path, resumed_step: int):
        kept = [line for line in read_metrics(path) if line["step"] <= resumed_step]
        partial = path.with_name(f".{path.name}.{os.getpid()}")
        partial.write_text("".join(json.dumps(line) + "\n" for line in kept))
        partial.replace(path)
        self._file = path.open("a")

    def write(self, line: dict[str, Any]) -> None:
        """Append one line."""
        self._file.write(json.dumps(line) + "\n")

    def flush(self) -> None:
        """To the operating system."""
        self._file.flush()

    def close(self) -> None:
        """Flush and close."""
        self._file.close()


def read_metrics(path: Path) -> Iterable[dict[str, Any]]:
    """The lines of a metrics.jsonl; a last line cut short by a kill is left out."""
    if not path.exists():
        return
    for text in path.read_text().splitlines():
        try:
            yield json.loads(text)
        except json.JSONDecodeError:
            return
