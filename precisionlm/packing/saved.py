"""The state of a pack on disk: one checkpoint for all its members, OUT/packs/<first run>/, and who is in which slot."""

import hashlib
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax

from precisionlm.config import CheckpointConfig
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
    """A saved pack of this program with any of these runs in it, the one with most of them if there are several. Raises
    UserError where it cannot be read."""
    found = []
    for path in (out / _FOLDER).glob(f"*/{_RECORD}"):
        directory = RunDirectory.at(path.parent)
        content = directory.read_json(_RECORD)
        inside = run_ids & set(content["runs"])
        if content["program"] == _signature(shape) and inside:
            found.append((len(inside), directory.path, content["slots"]))
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
    """The runs of all packs that are on disk: what was saved of them, only a pack goes on with. Raises UserError where
    a pack cannot be read."""
    found = [RunDirectory.at(path.parent).read_json(_RECORD) for path in (out / _FOLDER).glob(f"*/{_RECORD}")]
    return frozenset(run_id for content in found if content for run_id in content["runs"])


class Checkpointed:
    """The checkpoints of one pack, the newest two kept; use it as a context. run_ids: that it took at first; left: the
    pack that it goes on as, if any."""

    def __init__(self, out: Path, run_ids: list[str], left: SavedPack | None):
        directory = _directory(out, run_ids)
        self._number = left.number if left is not None and left.path == directory.path else 0
        if not self._number:  # of an earlier pack under this name, which nobody goes on with
            shutil.rmtree(directory.path / "checkpoints", ignore_errors=True)
        self._checkpoints = Checkpoints(directory.path / "checkpoints", CheckpointConfig())
        self.check = self._checkpoints.check

    def save(self, state: Any, slots: list[Slot | None]) -> None:
        """Start saving; the state may be donated as soon as this returns. Raises UserError."""
        self._number += 1
        self._checkpoints.save(self._number, state, {"slots": [slot and vars(slot) for slot in slots]})

    def __enter__(self) -> "Checkpointed":
        self._checkpoints.__enter__()
        return self

    def __exit__(self, *exception: object) -> None:
        self._checkpoints.__exit__(*exception)


def discard_finished(out: Path) -> None:
    """Remove the packs whose runs all have results."""
    for path in (out / _FOLDER).glob(f"*/{_RECORD}"):
        directory = RunDirectory.at(path.parent)
        runs = directory.read_json(_RECORD)["runs"]
        if all(Result.read(RunDirectory(out, run_id)) is not None for run_id in runs):
            shutil.rmtree(directory.path, ignore_errors=True)


def _directory(out: Path, run_ids: list[str]) -> RunDirectory:
    """Named by the first run, of which the pack has the claim."""
    return RunDirectory(out / _FOLDER, run_ids[0])


def _signature(shape: PackShape) -> str:
    """Equal for packs of which one can go on as the other."""
    p = shape.program
    return hashlib.sha256(repr((p.model, p.structure, p.dtype)).encode()).hexdigest()[:12]
