"""Where metrics go besides metrics.jsonl, and what else a run writes down about its program. Process 0 only."""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol

import jax

from precisionlm.config import TrackingConfig
from precisionlm.errors import UserError
from precisionlm.storage.run_directory import MetricsLog


class Tracker(Protocol):
    """Takes numbers by name at a step."""

    def log(self, step: int, values: dict[str, float]) -> None: ...

    def close(self) -> None: ...


class _TensorBoard:
    def __init__(self, folder: Path):
        try:
            from tensorboardX import SummaryWriter
        except ImportError:
            raise UserError("tracking.tensorboard needs tensorboardX: pip install precisionlm[track]") from None
        self._writer = SummaryWriter(str(folder))

    def log(self, step: int, values: dict[str, float]) -> None:
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)

    def close(self) -> None:
        self._writer.close()


class _WeightsAndBiases:
    def __init__(self, project: str, run_id: str, config: dict[str, Any], folder: Path):
        try:
            import wandb
        except ImportError:
            raise UserError("tracking.wandb_project needs wandb: pip install precisionlm[track]") from None
        # The same id continues the same chart after a resume. WANDB_MODE=offline keeps everything in `folder`.
        self._run = wandb.init(project=project, id=run_id, resume="allow", config=config, dir=str(folder))

    def log(self, step: int, values: dict[str, float]) -> None:
        self._run.log(values, step=step)

    def close(self) -> None:
        self._run.finish()


def check_packages(config: TrackingConfig) -> None:
    """Raises UserError where a tracker that is asked for has no package here."""
    for asked, key, package in (
        (config.tensorboard, "tensorboard", "tensorboardX"),
        (config.wandb_project, "wandb_project", "wandb"),
    ):
        if asked and find_spec(package) is None:
            raise UserError(f"tracking.{key} needs {package}: pip install precisionlm[track]")


@contextmanager
def trackers(
    config: TrackingConfig, folder: Path, run_id: str, experiment: dict[str, Any], first: bool
) -> Iterator[list[Tracker]]:
    """The trackers that a configuration asks for; none where `first` (this is process 0) is false. Raises UserError
    where a package is missing."""
    found: list[Tracker] = []
    try:
        if first and config.tensorboard:
            found.append(_TensorBoard(folder / "tensorboard"))
        if first and config.wandb_project:
            found.append(_WeightsAndBiases(config.wandb_project, run_id, experiment, folder))
        yield found
    finally:
        for tracker in found:
            tracker.close()


class TrackedLog:
    """A metrics log whose lines also go to trackers; numbers that are not finite stay out of those."""

    def __init__(self, log: MetricsLog, trackers: list[Tracker]):
        self._log, self._trackers = log, trackers
        self.flush = log.flush

    def write(self, line: dict[str, Any]) -> None:
        """One line, with its `step`."""
        self._log.write(line)
        values = {name: value for name, value in line.items() if name != "step" and math.isfinite(value)}
        for tracker in self._trackers:
            tracker.log(line["step"], values)


class ProfileWindow:
    """A trace of steps `profile_from` … `profile_from + profile_steps - 1` for XProf or Perfetto, under `folder`."""

    def __init__(self, config: TrackingConfig, folder: Path, first: bool):
        self._begin, self._first = config.profile_from, first
        self._end = (config.profile_from or 0) + config.profile_steps
        self._folder, self._open = folder / "profile", False

    def due(self, step: int) -> bool:
        """Whether the trace begins or ends before a step, alike on all processes."""
        return self._begin is not None and step in (self._begin, self._end)

    def before(self, step: int) -> None:
        """Call before each step at which the trace is due."""
        if self._first and step == self._begin:
            jax.profiler.start_trace(str(self._folder))
            self._open = True
        else:
            self.close()

    def close(self) -> None:
        """End an open trace, after what was dispatched has run."""
        if self._open:
            jax.effects_barrier()
            jax.profiler.stop_trace()
            self._open = False
