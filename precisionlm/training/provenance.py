"""Under what a run was trained: a line for each start, in segments.jsonl of the run directory."""

import subprocess
from collections.abc import Sequence
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import precisionlm
from precisionlm.json_text import dumps
from precisionlm.storage.run_directory import RunDirectory, read_metrics

if TYPE_CHECKING:
    from jax.sharding import Mesh

_NAME = "segments.jsonl"

Segment = dict[str, Any]  # plain JSON; keys: `segment`


def segment(mesh: "Mesh", attention: str, step: int, together: int = 1) -> Segment:
    """The start that is now. time: UTC, ISO 8601; step: done before it (count); versions; device: kind x count; mesh:
    size of each axis; attention: its kernel, and why no fused one if none; processes (count); together: runs that were
    one program on these devices (count)."""
    import jax

    return {
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        "step": step,
        "jax_version": jax.__version__,
        "package_version": package_version(),
        "device": f"{mesh.devices.flat[0].device_kind} x {mesh.devices.size}",
        "mesh": {str(axis): size for axis, size in mesh.shape.items()},
        "attention": attention,
        "processes": jax.process_count(),
        "together": together,
    }


def append(directory: RunDirectory, new: Segment) -> None:
    """Add a start to the run's own. Complete or not at all. Raises UserError."""
    directory.write_text(_NAME, "".join(dumps(each) + "\n" for each in [*segments(directory), new]))


def segments(directory: RunDirectory) -> list[Segment]:
    """Every start of a run, in order."""
    return list(read_metrics(directory.path / _NAME))


def distinct(segments: Sequence[Segment], key: str) -> str:
    """The values of a key, in the order in which they came."""
    return "; ".join(dict.fromkeys(str(each[key]) for each in segments))


@cache
def package_version() -> str:
    """The version of precisionlm; with +COMMIT, and -dirty after changes, where its files are tracked by git."""
    folder = Path(precisionlm.__file__).parent
    described = _git(folder, "describe", "--always", "--dirty") if _git(folder, "ls-files", "__init__.py") else ""
    version = precisionlm.__version__
    return f"{version.partition('+')[0]}+{described}" if described else version


def _git(folder: Path, *words: str) -> str:
    """What git says; empty where there is no git or no checkout."""
    try:
        said = subprocess.run(["git", "-C", str(folder), *words], capture_output=True, text=True, timeout=30)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return said.stdout.strip() if said.returncode == 0 else ""
