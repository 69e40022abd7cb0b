"""How far a command has come: what it has saved must not be done again."""

import json
import random
import re
from pathlib import Path
from typing import Any

from precisionlm.storage.run_directory import read_metrics

from .jobs import DOCUMENTS, ENDED_DOCUMENT, Job
from .strikes import CTRL_C, TERM

_SAVED = re.compile("saved at step|runs is saved")


class Ledger:
    """What a command has saved in a folder, before it is started again: nothing of that may be done once more."""

    def __init__(self, job: Job, folder: Path):
        self._job, self._folder = job, folder
        self._damaged: dict[Path, tuple[int, int]] = {}  # checkpoints, by inodes and their times
        self._before: dict[str, Any] = {}

    def begin(self) -> None:
        """A command is about to start."""
        self._before = {"steps": self._saved_steps(), "starts": self._starts(), "files": self._files()}
        self._before["documents"] = self._journal()

    def lost(self, kind: str | None, code: int, calls: dict[str, int], said: str) -> dict[str, int]:
        """What the command that has ended did again although it was saved, or gave up although it said that it is
        saved: name → steps, documents or files."""
        found = {}
        for run, starts in self._starts().items():
            new = starts[len(self._before["starts"].get(run, [])) :]
            if new and (again := self._before["steps"].get(run, 0) - new[0]) > 0:
                found[run] = again
        if kind in (TERM, CTRL_C) and code == 75 and _SAVED.search(said):
            steps = self._saved_steps()
            for directory in (self._folder / "runs").glob("*/metrics.jsonl"):
                run = directory.parent.name
                begun = len(self._starts().get(run, [])) > len(self._before["starts"].get(run, []))
                if not begun or (directory.parent / "result.json").exists():
                    continue  # nothing was made of it, or everything
                made = max((line["step"] for line in read_metrics(directory) if "loss" in line), default=0)
                saved = max(steps.get(run, 0), self._starts()[run][-1])  # what it began from was no damage
                if made > saved:
                    found[f"{run}, asked to stop"] = made - saved
        for name, inode in self._before["files"].items():
            if self._files().get(name) != inode:
                found[name] = 1
        if self._job.kind == "data" and code == 0 and calls:
            again = calls.get(ENDED_DOCUMENT, 0) - (DOCUMENTS - self._before["documents"])
            if again > 0:
                found["documents"] = again
        return found

    def damage(self, rng: random.Random) -> str:
        """Damage the newest checkpoint, or the journal of a preparation; what was done, nothing where there is none."""
        journal = self._folder / ".runs.partial" / "journal.json"
        if journal.exists():
            journal.write_bytes(journal.read_bytes()[: rng.randrange(journal.stat().st_size)])
            return "journal cut short"
        found = [path for path in self._checkpoints() if path not in self._sound_out()]
        if not found:
            return ""
        newest = max(found, key=lambda path: (path.stat().st_mtime, int(path.name)))
        files = sorted(path for path in newest.rglob("*") if path.is_file() and path.stat().st_size)
        # What holds the state; orbax's own marks beside it are not read.
        files = [path for path in files if path.name != "commit_success.txt" and "state" in path.parts]
        files = [
            path for path in files if not path.name.startswith("_sharding") and "array_metadatas" not in path.parts
        ]
        path = rng.choice(files)
        size = path.stat().st_size
        how = rng.choice(("removed", "cut short", "emptied", "zeroed"))
        if how == "removed":
            path.unlink()
        elif how == "cut short":
            path.write_bytes(path.read_bytes()[: rng.randrange(size)])
        else:
            path.write_bytes(b"" if how == "emptied" else bytes(size))
        self._damaged[newest] = _of(newest)
        return f"{newest.relative_to(self._folder)}: {path.relative_to(newest)} {how}"

    def _sound_out(self) -> list[Path]:
        return [path for path, of in self._damaged.items() if path.exists() and _of(path) == of]

    def _checkpoints(self) -> list[Path]:
        runs = self._folder / "runs"
        own = (*runs.glob("*/checkpoints/*"), *runs.glob("packs/*/checkpoints/*"))
        unfinished = [path for path in own if not (path.parents[1] / "result.json").exists()]
        return [path for path in unfinished if path.name.isdigit()]

    def _saved_steps(self) -> dict[str, int]:
        """Run → step of the newest checkpoint that nobody has damaged, of the run's own or of its pack's."""
        found: dict[str, int] = {}
        damaged = self._sound_out()
        packs: dict[Path, int] = {}
        for path in self._checkpoints():
            if path in damaged:
                continue
            if path.parents[2].name == "packs":
                packs[path.parent] = max(packs.get(path.parent, 0), int(path.name))
            else:
                run = path.parents[1].name
                found[run] = max(found.get(run, 0), int(path.name))
        for folder, number in packs.items():
            position = json.loads((folder / str(number) / "position" / "metadata").read_text())
            for slot in filter(None, position["slots"]):
                found[slot["run_id"]] = max(found.get(slot["run_id"], 0), slot["step"])
        return found

    def _starts(self) -> dict[str, list[int]]:
        paths = (self._folder / "runs").glob("*/segments.jsonl")
        return {path.parent.name: [line["step"] for line in read_metrics(path)] for path in paths}

    def _files(self) -> dict[str, int]:
        """Results after training, by their inodes."""
        found = (self._folder / "runs").glob("*/ptq/[!.]*.json") if self._job.kind == "ptq" else ()
        return {str(path.relative_to(self._folder)): path.stat().st_ino for path in found}

    def _journal(self) -> int:
        """Documents that a preparation has noted."""
        try:
            tree = json.loads((self._folder / ".runs.partial" / "journal.json").read_text())
        except (OSError, ValueError):
            return 0
        return sum(tree["position"]["counts"].values())


def _of(folder: Path) -> tuple[int, int]:
    stat = folder.stat()
    return stat.st_ino, stat.st_ctime_ns
