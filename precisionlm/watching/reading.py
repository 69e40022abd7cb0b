"""How a run does, from its directory alone: nothing is written and no device is asked, so it may be on any machine that
sees the folder."""

import math
import re
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from precisionlm.cluster.hardware import model_flops_utilization
from precisionlm.config import Experiment, load
from precisionlm.errors import UserError
from precisionlm.storage.run_directory import RunDirectory
from precisionlm.sweep.status import Standing, standing_of
from precisionlm.training.provenance import segments
from precisionlm.watching.follow import Follower, Record
from precisionlm.watching.spikes import Spike, gradient_outliers, loss_spikes

RECENT = 100  # steps whose median time is the speed
_RUN_ID = re.compile("[0-9a-f]{12}")
_QUIET = 60.0  # seconds without a line that are nothing unusual


@dataclass(frozen=True)
class Reading:
    """One run now. What is not known is None.

    loss: of the last step, smoothed over the last RECENT steps, and of the last evaluation (nats/token);
    tokens_per_second: of the median of the last RECENT steps; mfu: its model FLOPs over the devices' bf16 peak;
    goodput: share of the run's wall time in steps; seconds_left: at the wall-clock pace of the last RECENT steps,
    evaluations and checkpoints among them included; checkpoint_step and its age (s); quiet_seconds: since a running
    run wrote its last line; worst_site: the operand of the largest relative quantization error at the last measurement,
    that error, and the same operand's at the first one.
    """

    run_id: str
    folder: str
    name: str
    recipe: str
    state: str
    reason: str
    holder: dict[str, Any] | None
    device: str | None
    starts: int
    step: int
    steps: int
    loss: float | None = None
    smoothed: float | None = None
    val_loss: float | None = None
    val_step: int | None = None
    tokens_per_second: float | None = None
    mfu: float | None = None
    goodput: float | None = None
    seconds_left: float | None = None
    checkpoint_step: int | None = None
    checkpoint_age: float | None = None
    quiet_seconds: float | None = None
    skipped_steps: int = 0
    loss_spikes: list[Spike] = field(default_factory=list)
    gradient_outliers: list[Spike] = field(default_factory=list)
    worst_site: str | None = None
    worst_error: float | None = None
    worst_error_at_first: float | None = None

    @property
    def is_quiet(self) -> bool:
        """Whether a running run has written nothing for longer than evaluations and compilations usually take."""
        return self.quiet_seconds is not None and self.quiet_seconds > _QUIET

    @property
    def row(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


class Watched:
    """A run that is looked at again and again. Raises UserError where its config.yaml cannot be read."""

    def __init__(self, folder: Path):
        self._directory = RunDirectory.at(folder.absolute())
        self._experiment = load(folder / "config.yaml")
        self._follower = Follower(self._directory.metrics)

    def now(self) -> tuple[Reading, Record]:
        """How it does, and the record that this is of. Raises UserError where a result cannot be read."""
        standing = standing_of(self._directory.path.name, self._experiment, self._directory)
        self._follower.read()
        record = self._follower.record
        return _reading(self._directory, self._experiment, standing, record, self._follower.changed), record


def run_folders(roots: Sequence[Path], traces: Sequence[str] = ("config.yaml",)) -> list[Path]:
    """Run directories among the paths, and at most two folders below them, by path: folders with a run's name and one
    of these files. Raises UserError for a path that is not there."""
    found: dict[Path, None] = {}
    for root in roots:
        if not root.is_dir():
            raise UserError(f"{root}: no run directory, nor a folder of them")
        for above in ("", "*/", "*/*/"):
            for folder in sorted({path.parent for trace in traces for path in root.glob(above + trace)}):
                if _RUN_ID.fullmatch(folder.absolute().name):
                    found.setdefault(folder)
    return list(found)


def _reading(directory: RunDirectory, e: Experiment, standing: Standing, record: Record, changed: float) -> Reading:
    starts = segments(directory)
    device = str(starts[-1]["device"]) if starts else None
    step = record.steps[-1] if record.steps else standing.step
    rate = e.batch_tokens / float(np.median(record.seconds[-RECENT:])) if record.seconds else None
    running = standing.state == "running"
    saved, age = _newest_checkpoint(directory, e) if running or standing.state == "begun" else (None, None)
    return Reading(
        directory.path.name,
        str(directory.path),
        e.name,
        e.precision.recipe,
        standing.state,
        standing.reason,
        standing.holder,
        device,
        len(starts),
        step,
        e.training.steps,
        loss=_last(record.losses),
        smoothed=_mean(record.losses[-RECENT:]),
        val_loss=_last([loss for _, loss in record.evaluations]),
        val_step=record.evaluations[-1][0] if record.evaluations else None,
        tokens_per_second=rate,
        mfu=_utilization(device, rate, standing, e),
        goodput=_goodput(record),
        seconds_left=_seconds_left(record, e.training.steps) if running else None,
        checkpoint_step=saved,
        checkpoint_age=age,
        quiet_seconds=max(0.0, time.time() - changed) if running and math.isfinite(changed) else None,
        skipped_steps=record.skipped,
        loss_spikes=loss_spikes(record.steps, record.losses),
        gradient_outliers=gradient_outliers(record.steps, record.norms),
        **_worst(record),
    )


def _last(values: Sequence[float]) -> float | None:
    return values[-1] if values and math.isfinite(values[-1]) else None


def _mean(values: Sequence[float]) -> float | None:
    finite = [value for value in values if math.isfinite(value)]
    return sum(finite) / len(finite) if finite else None


def _utilization(device: str | None, rate: float | None, standing: Standing, e: Experiment) -> float | None:
    """None for chips whose peak is not known."""
    if device is None or rate is None:
        return None
    kind, _, count = device.rpartition(" x ")
    return model_flops_utilization(kind, rate * standing.flops / e.tokens / int(count))


def _goodput(record: Record) -> float | None:
    wall = _last(record.wall_seconds)
    return sum(record.seconds) / wall if wall else None


def _seconds_left(record: Record, steps: int) -> float | None:
    wall = record.wall_seconds[-RECENT:]
    if len(wall) < 2 or not math.isfinite(wall[-1] - wall[0]):
        return None
    return (steps - record.steps[-1]) * (wall[-1] - wall[0]) / (len(wall) - 1)


def _newest_checkpoint(directory: RunDirectory, e: Experiment) -> tuple[int | None, float | None]:
    """(step, age in seconds) of the newest; None where there is none or the place cannot be asked."""
    try:
        from precisionlm.storage.checkpoint import folder_of, steps_in  # with JAX, only for a run that goes on

        folder = folder_of(directory, e.checkpoint)
        steps = steps_in(folder)
        return (steps[0], time.time() - (folder / str(steps[0])).stat().mtime) if steps else (None, None)
    except (OSError, ImportError):
        return None, None


def _worst(record: Record) -> dict[str, Any]:
    if not record.errors:
        return {}
    _, errors = record.errors[-1]
    site = max(errors, key=lambda name: errors[name] if math.isfinite(errors[name]) else math.inf)
    first = record.errors[0][1].get(site)
    return {"worst_site": site, "worst_error": errors[site], "worst_error_at_first": first}
