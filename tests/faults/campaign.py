"""Breaks commands again and again, runs each to its end, and compares with the ones that nothing broke.

A history is one command in one folder and the faults that come to it. Everything random comes from the campaign's seed
and the history's number, so a history can be run again alone.
"""

import fcntl
import json
import os
import random
import shutil
import socket
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from ..compiled_fast import COMPILED_FAST
from .jobs import Job, jobs, leftovers, record
from .judge import problem_of
from .ledger import Ledger
from .strikes import CTRL_C, DAMAGE, KILL, PEER, SOFT, TERM, Strike
from .workers import Ended, Worker

_FRESH_TRIES = 3  # of a fault whose moment did not come


@dataclass(frozen=True)
class Fault:
    """kind: of KINDS; moment: of the job's; where: of the moment's calls, as a share of them; delay (ms)."""

    kind: str
    moment: str
    where: float
    delay: int


@dataclass
class History:
    """What came of a history. struck: of each fault in turn how the command ended; lost: steps (or documents, files)
    that were saved and made again; problems: everything that must not be."""

    number: int
    job: str
    faults: list[Fault]
    struck: list[dict[str, Any]] = field(default_factory=list)
    lost_steps: int = 0
    lost_runs: int = 0
    unequal: int = 0
    problems: list[str] = field(default_factory=list)
    wall_seconds: float = 0.0


class Campaign:
    """All histories of a seed, under one folder that later calls go on with."""

    def __init__(self, folder: Path, seed: int):
        self.folder, self.seed = folder, seed
        folder.mkdir(parents=True, exist_ok=True)
        self.jobs = jobs(folder)

    def unbroken(self, name: str) -> tuple[dict[str, Any], dict[str, int]]:
        """Of a job that nothing breaks, which is done once: what it leaves, and how often its targets are called."""
        job, folder = self.jobs[name], self.folder / "unbroken" / name
        for other in job.needs:
            self.unbroken(other)
        path = self.folder / f"unbroken {name}.json"
        with (self.folder / f".lock {name}").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)  # another part may be at it
            if not path.exists():
                shutil.rmtree(folder, ignore_errors=True)
                job.lay_out(folder)
                ended, worker = self._run(job, folder, None, None)
                if worker is not None:
                    worker.let_go()  # it has the lock too
                assert ended.code == 0, f"{name}: exit code {ended.code}: {ended.said}"
                found = record(job, folder)
                assert found, name
                calls = {target: ended.calls[target] for target in job.targets if ended.calls.get(target)}
                partial = path.with_suffix(".partial")
                partial.write_text(json.dumps([found, calls]))
                partial.rename(path)
        expected, calls = json.loads(path.read_text())
        return expected, calls

    def run(self, number: int, job_name: str, faults: list[Fault]) -> History:
        """One history: all its faults, and its commands run to their ends. Its folder stays where there were
        problems."""
        history = History(number, job_name, faults)
        folder = self.folder / f"history{number}"
        shutil.rmtree(folder, ignore_errors=True)
        began = time.monotonic()
        _Life(self, history, folder).all()
        history.wall_seconds = time.monotonic() - began
        if not history.problems:
            shutil.rmtree(folder, ignore_errors=True)
        return history

    def _run(self, job: Job, folder: Path, strike: Strike | None, worker: Worker | None) -> tuple[Ended, Worker | None]:
        """One command, by a worker that lives or by new ones; the worker that is left, if any. Of several processes the
        last is struck, and it is the first whose end is told, with its own words and those of the struck one."""
        words = job.words_in(folder)
        if job.processes == 1:
            last = strike is not None and strike.kind not in SOFT
            if worker is None or last:
                if worker is not None:
                    worker.let_go()
                worker = Worker(self.folder / "cache")
            worker.begin(words, job.targets, strike, last)
            ended = worker.end(strike)
            if not worker.alive:
                worker.let_go()
            return ended, worker if worker.alive else None
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            coordinator = f"127.0.0.1:{free.getsockname()[1]}"
        workers = [Worker(self.folder / "cache") for _ in range(job.processes)]
        for i, each in enumerate(workers):
            more = ["--coordinator", coordinator, "--processes", str(job.processes), "--process", str(i)]
            each.begin([*words, *more], job.targets, strike if i == job.processes - 1 else None, last=True)
        struck = workers[-1].end(strike)
        first = workers[0].end(None)
        for each in workers:
            each.let_go()
        said = f"{first.said}\n{struck.said}"
        left = first.left + struck.left
        return Ended(first.code, struck.struck, said, struck.calls, left), None


class _Life:
    """A history under way. A command that ends whole before its next fault is compared, and begun anew."""

    def __init__(self, campaign: Campaign, history: History, folder: Path):
        self._campaign, self._history, self._folder = campaign, history, folder
        self._job = campaign.jobs[history.job]
        self._expected, self._calls = campaign.unbroken(history.job)
        self._rng = random.Random(f"{campaign.seed}.{history.number}.damage")
        self._worker: Worker | None = None
        self._begin()

    def _begin(self) -> None:
        shutil.rmtree(self._folder, ignore_errors=True)
        self._job.lay_out(self._folder)
        self._ledger = Ledger(self._job, self._folder)

    def all(self) -> None:
        try:
            for fault in self._history.faults:
                if self._history.problems:
                    break  # what comes after a problem would only repeat it
                self._come(fault)
            if not self._history.problems:
                self._finish()
        finally:
            if self._worker is not None:
                self._worker.let_go()

    def _come(self, fault: Fault) -> None:
        for attempt in range(_FRESH_TRIES):
            strike = self._strike(fault, attempt)
            if fault.moment == "compilation" or attempt:  # in a warm process nothing is compiled
                self._let_go()
            ended = self._command(strike)
            if self._history.problems:
                return
            done = ""
            if ended.struck and fault.kind == DAMAGE:
                done = self._ledger.damage(self._rng)
            if ended.struck and (done or fault.kind != DAMAGE):
                self._history.struck.append(asdict(strike) | {"code": ended.code, "damage": done})
                if ended.code == 0:
                    self._compare(ended)
                    if not self._history.problems:
                        self._begin()
                return
            if not ended.struck:
                self._compare(ended)
                if self._history.problems:
                    return
            self._begin()
        self._problem(f"{fault}: its moment did not come in {_FRESH_TRIES} commands")

    def _strike(self, fault: Fault, attempt: int) -> Strike:
        """By how often the functions of a moment are called where nothing breaks; tried again, at the call itself, and
        at last at the first one. Where there was no checkpoint to damage, some calls later."""
        counts = self._calls
        targets = [target for target in self._job.moments[fault.moment] if target in counts]
        at = int(fault.where * sum(counts[target] for target in targets))
        for target in targets:
            if at < counts[target]:
                nth = 1 if attempt == 2 else at + 1
                if fault.kind == DAMAGE:
                    nth = (at + 2 * attempt) % counts[target] + 1
                return Strike(fault.kind, target, nth, 0 if attempt else fault.delay)
            at -= counts[target]
        raise AssertionError(fault)

    def _command(self, strike: Strike | None) -> Ended:
        self._ledger.begin()
        ended, self._worker = self._campaign._run(self._job, self._folder, strike, self._worker)
        kind = strike.kind if strike is not None and ended.struck else None
        if problem := problem_of(kind, self._job, ended):
            self._problem(f"{strike}: {problem}; it said {ended.said[-3000:]!r}")
        for what, count in self._ledger.lost(kind, ended.code, ended.calls, ended.said).items():
            self._history.lost_steps += count
            self._problem(f"{strike}: {count} lost of {what}")
        return ended

    def _finish(self) -> None:
        ended = self._command(None)
        if ended.code:
            self._history.lost_runs += 1
        else:
            self._compare(ended)

    def _compare(self, ended: Ended) -> None:
        """What a command that has ended whole has left, with what it should have."""
        found, expected = record(self._job, self._folder), self._expected
        if missing := [name for name in expected if name not in found]:
            self._history.lost_runs += len(missing)
            self._problem(f"lost: {missing}; it said {ended.said[-3000:]!r}")
        if different := [name for name in found if name in expected and found[name] != expected[name]]:
            self._history.unequal += len(different)
            self._problem(f"not equal: {different}")
        if more := [name for name in found if name not in expected]:
            self._problem(f"more than there should be: {more}")
        if left := leftovers(self._folder):
            self._problem(f"left over: {left}")

    def _let_go(self) -> None:
        if self._worker is not None:
            self._worker.let_go()
            self._worker = None

    def _problem(self, text: str) -> None:
        self._history.problems.append(f"after {len(self._history.struck)} faults: {text}")


# --- which faults ---

# Of a thousand: how many of each kind come to each job.
SHARES: dict[str, dict[str, int]] = {
    "prepare": {KILL: 40, TERM: 20, CTRL_C: 40, "full disk": 40, DAMAGE: 20},
    "prepare, workers": {KILL: 10, TERM: 10, CTRL_C: 10, "full disk": 10},
    "train": {KILL: 110, TERM: 80, CTRL_C: 80, "full disk": 80, DAMAGE: 60},
    "train, 2 processes": {PEER: 30},
    "sweep": {KILL: 30, TERM: 25, CTRL_C: 25, "full disk": 25, DAMAGE: 15},
    "sweep, packed": {KILL: 20, TERM: 15, CTRL_C: 15, "full disk": 15, DAMAGE: 15},
    "ptq": {KILL: 25, TERM: 20, CTRL_C: 25, "full disk": 25},
    "table": {KILL: 20, TERM: 15, CTRL_C: 15, "full disk": 15},
}
_OF_A_HISTORY = 5
_DAMAGED = ("training", "saving", "evaluation", "encoding")  # moments at which there may be a checkpoint


def planned(of: dict[str, Job], faults: int, seed: int) -> list[tuple[str, list[Fault]]]:
    """So many faults, in the shares of SHARES and every moment in turn, as histories (job, faults) in random order. All
    of a history come to the same folder; those that leave the interpreter alive come one after the other."""
    rng = random.Random(seed)
    total = sum(sum(kinds.values()) for kinds in SHARES.values())
    slots = [(job, kind) for job, kinds in SHARES.items() for kind, count in kinds.items() for _ in range(count)]
    chosen = [slots[i * total // faults % total] for i in range(faults)]
    by_job: dict[str, list[Fault]] = {}
    seen: dict[tuple[str, str], int] = {}
    for job, kind in chosen:
        moments = [name for name in of[job].moments if kind != DAMAGE or name in _DAMAGED]
        n = seen[job, kind] = seen.get((job, kind), -1) + 1
        where = rng.random() if kind != DAMAGE else 0.5 + rng.random() / 2
        delay = rng.choice((0, 0, 1, 3, 10, 30))
        by_job.setdefault(job, []).append(Fault(kind, moments[n % len(moments)], where, delay))
    histories = []
    for job, those in by_job.items():
        rng.shuffle(those)
        for i in range(0, len(those), _OF_A_HISTORY):
            soft_first = rng.random() < 0.5
            few = sorted(those[i : i + _OF_A_HISTORY], key=lambda f: (f.kind in SOFT) != soft_first)
            histories.append((job, few))
    rng.shuffle(histories)
    return histories


def environment() -> None:
    """What must be set before JAX is imported."""
    os.environ["JAX_PLATFORMS"] = "cpu"
    os.environ["XLA_FLAGS"] = COMPILED_FAST
    os.environ.pop("PRECISIONLM_DEBUG", None)
