"""What a run's metrics.jsonl holds, read on from where it was left while the run goes on writing."""

import json
import math
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

_QUANTIZATION = "quantization/"


@dataclass
class Record:
    """By step, in order: losses (nats/token), gradient norms, wall_seconds (s since the run began); NaN where they were
    not finite. seconds: of those steps that have them (s). skipped: steps without a finite gradient (count).
    evaluations: (step, validation loss). errors: (step, site.operand → relative squared quantization error)."""

    steps: list[int] = field(default_factory=list)
    losses: list[float] = field(default_factory=list)
    norms: list[float] = field(default_factory=list)
    wall_seconds: list[float] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    skipped: int = 0
    evaluations: list[tuple[int, float]] = field(default_factory=list)
    errors: list[tuple[int, dict[str, float]]] = field(default_factory=list)

    def add(self, line: dict[str, Any]) -> None:
        """One line of metrics.jsonl."""
        step = line["step"]
        if "loss" in line:
            self.steps.append(step)
            self.losses.append(_number(line["loss"]))
            self.norms.append(_number(line.get("grad_norm")))
            self.wall_seconds.append(_number(line.get("wall_seconds")))
            self.skipped += line.get("finite", 1.0) != 1.0
            if line.get("seconds") is not None:
                self.seconds.append(line["seconds"])
        elif "val_loss" in line:
            self.evaluations.append((step, _number(line["val_loss"])))
        elif found := {
            name.removeprefix(_QUANTIZATION).removesuffix("/relative_mse"): _number(value)
            for name, value in line.items()
            if name.startswith(_QUANTIZATION) and name.endswith("/relative_mse")
        }:
            self.errors.append((step, found))


class Follower:
    """Reads a metrics.jsonl that grows. `record` is what was read; `changed` when the file last was (s since 1970).

    A run that resumes replaces the file by one without the steps after its checkpoint: then it is read anew.
    """

    def __init__(self, path: Path):
        self._path = path
        self._file, self._offset = 0, 0  # inode; bytes read
        self.record, self.changed = Record(), math.nan

    def read(self) -> None:
        """Every whole line that came since the last call. A file that is not there yet is an empty one."""
        try:
            with self._path.open("rb") as file:
                status = os.fstat(file.fileno())
                if status.st_ino != self._file or status.st_size < self._offset:
                    self._file, self._offset, self.record = status.st_ino, 0, Record()
                self.changed = status.st_mtime
                file.seek(self._offset)
                content = file.read()
        except OSError:
            return
        whole = content.rfind(b"\n") + 1
        self._offset += whole
        for text in content[:whole].splitlines():
            try:
                line = json.loads(text)
            except ValueError:
                continue  # damaged; whoever resumes the run says so
            if isinstance(line, dict) and isinstance(line.get("step"), int):
                self.record.add(line)


def _number(value: Any) -> float:
    return float(value) if isinstance(value, int | float) else math.nan
