"""Whole jobs as users start them, each a process of its own, and what their run directories say of them afterwards."""

import json
import os
import re
import statistics
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import precisionlm
from precisionlm.cluster.children import parental
from precisionlm.errors import UserError
from precisionlm.storage.run_directory import read_metrics

HERE = Path(precisionlm.__file__).resolve().parents[1]
_COMPILED = re.compile(r"Finished XLA compilation of .* in ([0-9.e+-]+) sec")
_LAST = 10  # steps whose mean loss is looked at


@dataclass(frozen=True)
class Place:
    """Where a job runs. root: an empty folder for all it writes, caches of compilers too; source: of the precisionlm
    that it runs (a folder that holds the package)."""

    root: Path
    source: Path = HERE

    @property
    def out(self) -> Path:
        """Of run directories."""
        return self.root / "runs"

    def precisionlm(self, *words: str) -> "Command":
        """Run a verb to its end."""
        return self.command([sys.executable, "-m", "precisionlm", *words])

    def command(self, words: Sequence[str]) -> "Command":
        """Run a command to its end. Raises UserError with the last line of what it said if it fails."""
        environment = os.environ | {
            "PYTHONPATH": os.pathsep.join(filter(None, (str(self.source), os.environ.get("PYTHONPATH")))),
            "JAX_COMPILATION_CACHE_DIR": str(self.root / "executables"),
            "JAX_LOG_COMPILES": "1",
            "TORCHINDUCTOR_CACHE_DIR": str(self.root / "inductor"),
            "TRITON_CACHE_DIR": str(self.root / "triton"),
        }
        began = time.perf_counter()
        # In a folder of its own: Python looks for packages where it is started first.
        with parental() as (variables, pass_fds):
            done = subprocess.run(
                words, env=environment | variables, pass_fds=pass_fds, cwd=self.root, capture_output=True, text=True
            )
        seconds = time.perf_counter() - began
        if done.returncode:
            lines = [line for line in done.stderr.splitlines() if line.strip()]
            raise UserError(f"exit code {done.returncode}: {' '.join(lines[-1:]).strip()[:200]}")
        compiled = tuple(float(found) for found in _COMPILED.findall(done.stderr))
        return Command(seconds, done.stdout, compiled)


@dataclass(frozen=True)
class Command:
    """seconds: wall time; compiled: seconds that XLA compiled each of its programs (several may be side by side)."""

    seconds: float
    stdout: str
    compiled: tuple[float, ...]


@dataclass(frozen=True)
class Job:
    """A grid trained in one way. runs: trained (count); seconds: wall time from the command to the table;
    table_seconds: of them, the table; in_steps: those that steps took; compile_seconds and programs: what XLA compiled;
    loss: the lowest mean of the last steps of a run (nats/token); measured: runs that were really trained, of which
    the rest is multiplied; error: why it has no figures, or why they are not to be trusted; about: device, versions."""

    name: str
    runs: int
    tokens: int
    seconds: float = float("nan")
    table_seconds: float = 0.0
    in_steps: float = float("nan")
    compile_seconds: float = float("nan")
    programs: int = 0
    loss: float = float("nan")
    measured: int = 0
    error: str = ""
    about: Mapping[str, Any] = field(default_factory=dict)

    @property
    def rate(self) -> float:
        """Tokens/s of the whole job."""
        return self.tokens / self.seconds


@dataclass(frozen=True)
class Trained:
    """A finished run. together: runs that were one program with it; lines: its metrics."""

    together: int
    lines: tuple[dict[str, Any], ...]
    about: dict[str, Any]

    @property
    def last_loss(self) -> float:
        """Mean of the last steps (nats/token)."""
        losses = [line["loss"] for line in self.lines if line.get("loss") is not None]
        return statistics.mean(losses[-_LAST:]) if losses else float("nan")


def trained(out: Path) -> list[Trained]:
    """The runs below a folder that came to their end, of this version's directories or of an older one's."""
    found = []
    for path in sorted(out.glob("*/result.json")):
        result = json.loads(path.read_text())
        if result.get("status", "done") != "done":
            continue
        segments = list(read_metrics(path.parent / "segments.jsonl"))
        together = max((segment.get("together", 1) for segment in segments), default=1)
        about = {key: segments[-1][key] for key in ("device", "jax_version", "package_version")} if segments else {}
        found.append(Trained(together, tuple(read_metrics(path.parent / "metrics.jsonl")), about))
    return found


def seconds_in_steps(runs: Iterable[Trained]) -> float:
    """Wall seconds in steps, by what runs recorded of them; the first ones after a start record none.

    Members of a pack all record what a step of the pack took, which counts once: a dispatch is known by its time, and
    as long as the most steps that a member made in it.
    """
    alone, dispatches = 0.0, Counter[float]()
    for run in runs:
        times = [line["seconds"] for line in run.lines if line.get("seconds") is not None]
        if run.together == 1:
            alone += sum(times)
        else:
            dispatches |= Counter(times)
    return alone + sum(seconds * steps for seconds, steps in dispatches.items())
