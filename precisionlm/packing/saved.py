"""The state of a pack on disk: one checkpoint for all its members, OUT/packs/<first run>/, and who is in which slot."""

import hashlib
import shutil
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax

from precisionlm.config import CheckpointConfig
from precisionlm.errors import UserError
from precisionlm.packing.program import PackShape, abstract_stack
from precisionlm.storage.checkpoint import Checkpoints, restore_state
from precisionlm.storage.result import Result
from precisionlm.storage.run_directory import RunDirectory

_FOLDER, _RECORD = "packs", "pack.json"


@dataclass(frozen=True)
class Slot:
    """A member of a saved pack: after how many steps, and its position (`loop.Beginning`)."""

    run_id: str
    step: int
    position: dict[str, Any]


@dataclass(frozen=True)
class SavedPack:
    """number: of its checkpoint; state: [R, ...], whole on every device; slots: R of them, None where no run was."""

    path: Path
    number: int
    state: Any
    slots: list[Slot | None]


def record(out: Path, shape: PackShape, run_ids: list[str]) -> None:
    """Write down which runs a pack has taken so far. Complete or not at all. Raises UserError."""
    directory = _directory(out, run_ids)
    content = {"program": _signature(shape), "slots": shape.runs, "runs": run_ids}
    directory.create()
    directory.write_json(_RECORD, content)


def newest(shape: PackShape, out: Path, run_ids: set[str]) -> SavedPack | None:
    """A saved pack of this program with any of these runs in it, the one with most of them if there are several. One
    whose record cannot be read is left out with a line on standard error."""
    found = []
    for path, content in _records(out):
        inside = run_ids & set(content["runs"])
        if content["program"] == _signature(shape) and inside:
            found.append((len(inside), path, content["slots"]))
    for _, path, slots in sorted(found, reverse=True):
        abstract = jax.tree.map(
            lambda leaf, slots=slots: jax.ShapeDtypeStruct((slots, *leaf.shape[1:]), leaf.dtype, sharding=shape.shared),
            abstract_stack(shape),
        )
        if (restored := restore_state(path / "checkpoints", abstract)) is not None:
            number, state, position = restored
            return SavedPack(path, number, state, [slot and Slot(**slot) for slot in position["slots"]])
    return None


def begun(out: Path) -> frozenset[str]:
    """The runs of all packs that are on disk: what was saved of them, only a pack goes on with."""
    return frozenset(run_id for _, content in _records(out) for run_id in content["runs"])


class Checkpointed:
    """The checkpoints of one pack, the newest two kept; use it as a context. run_ids: that it took at first; left: the
    pack that it goes on as, if any."""

    def __init__(self, out: Path, run_ids: list[str], left: SavedPack | None):
        directory = _directory(out, run_ids)
        self._path = directory.path
        self._number = left.number if left is not None and left.path == directory.path else 0
        if not self._number:  # of an earlier pack under this name, which nobody goes on with
            shutil.rmtree(directory.path / "checkpoints", ignore_errors=True)
        self._checkpoints = Checkpoints(directory.path / "checkpoints", CheckpointConfig())
        self.check = self._checkpoints.check

    def save(self, state: Any, slots: list[Slot | None]) -> None:
        """Start saving; the state may be donated as soon as this returns. Raises UserError."""
        self._number += 1
        self._checkpoints.save(self._number, state, {"slots": [slot and vars(slot) for slot in slots]})

    def replaces(self, left: SavedPack, run_ids: set[str]) -> None:
        """What was saved is on disk, and the pack before is given up unless runs of it are somebody else's. run_ids:
        that are ours, or wait to be."""
        if left.path != self._path and {slot.run_id for slot in left.slots if slot is not None} <= run_ids:
            self._checkpoints.wait()
            shutil.rmtree(left.path, ignore_errors=True)

    def __enter__(self) -> "Checkpointed":
        self._checkpoints.__enter__()
        return self

    def __exit__(self, *exception: object) -> None:
        self._checkpoints.__exit__(*exception)


def discard_finished(out: Path) -> None:
    """Remove the packs whose runs all have results."""
    for path, content in _records(out):
        if all(_has_result(RunDirectory(out, run_id)) for run_id in content["runs"]):
            shutil.rmtree(path, ignore_errors=True)


def _records(out: Path) -> Iterator[tuple[Path, dict[str, Any]]]:
    """(folder, record) of every pack; one that cannot be read is named on standard error."""
    for path in (out / _FOLDER).glob(f"*/{_RECORD}"):
        try:
            content = RunDirectory.at(path.parent).read_json(_RECORD)
        except UserError as error:
            print(f"left out: {error}", file=sys.stderr)
            continue
        names = content.get("runs") if isinstance(content, dict) else None
        if isinstance(names, list) and set(map(type, names)) <= {str} and {"program", "slots"} <= set(content):
            yield path.parent, content
        elif content is not None:  # a pack that another worker has just given up
            print(f"left out: {path}: no record of a pack; remove it", file=sys.stderr)


def _has_result(directory: RunDirectory) -> bool:
    """One that cannot be read is to be tried again."""
    try:
        return Result.read(directory) is not None
    except UserError:
        return False


def _directory(out: Path, run_ids: list[str]) -> RunDirectory:
    """Named by the first run, of which the pack has the claim."""
    return RunDirectory(out / _FOLDER, run_ids[0])


def _signature(shape: PackShape) -> str:
    """Equal for packs of which one can go on as the other."""
    p = shape.program
    return hashlib.sha256(repr((p.model, p.structure, p.dtype)).encode()).hexdigest()[:12]
