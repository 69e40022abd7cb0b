"""Breaks `precisionlm train` and `sweep` at random moments, resumes them until they are done, and compares with runs
that nothing broke.

A history is one output folder: a command that is broken again and again, and at last left alone. Moments are hit by
watching what the command writes, not by hooks inside it.
"""

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from precisionlm.data.prepare import prepare
from precisionlm.data.request import Request
from precisionlm.storage.run_directory import read_metrics
from precisionlm.sweep.collect import collect

MOMENTS = ("start", "compilation", "training", "save", "evaluation", "between runs", "any write")
DISK_FULL = "disk full"
TIMES = ("seconds", "wall_seconds")  # of a line of metrics.jsonl
STEPS, EVAL_EVERY, SAVE_EVERY = 120, 30, 5
RECIPES = ("W4A8", "bf16")
_DEADLINE = 180.0  # seconds; a command that takes longer hangs


@dataclass(frozen=True)
class Fault:
    """What is done to a command. kind: SIGKILL, SIGTERM, or disk full (at any write)."""

    kind: str
    moment: str


@dataclass
class History:
    """What was done to one output folder, and how the command ended each time (exit codes)."""

    verb: str
    out: Path
    faults: list[Fault] = field(default_factory=list)
    codes: list[int] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)


class Campaign:
    """Commands on a tiny experiment under one folder; everything random comes from the seed."""

    def __init__(self, folder: Path, seed: int = 0):
        self.folder, self._rng = folder, random.Random(seed)
        text = folder / "text"
        text.mkdir(parents=True)
        for i in range(60):
            words = (f"word{(i * j) % 17} follows word{(i + j) % 13}." for j in range(150))
            (text / f"{i}.txt").write_text(" ".join(words))
        prepare(Request(text, vocab_size=270, validation_every=3), folder / "data")
        tree = {
            "model": {"layers": 1, "width": 32, "heads": 2, "mlp_width": 64},
            "data": {"path": str(folder / "data"), "sequence_length": 32},
            "optimizer": {"learning_rate": 3e-3},
            "precision": {"recipe": RECIPES[0]},
            "training": {"steps": STEPS, "batch_size": 8, "dtype": "float32", "remat": "none"}
            | {"eval_tokens": 20_000, "eval_every": EVAL_EVERY},
            "checkpoint": {"every_steps": SAVE_EVERY, "keep": 2},
        }
        self.configs = {"train": folder / "train.yaml", "sweep": folder / "sweep.yaml"}
        self.configs["train"].write_text(yaml.safe_dump(tree))
        grid = {"precision.recipe": list(RECIPES)}
        self.configs["sweep"].write_text(yaml.safe_dump({"experiment": tree, "grid": grid}))
        self._environment = os.environ | {
            "JAX_PLATFORMS": "cpu",
            "XLA_FLAGS": "--xla_backend_optimization_level=0",
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
            "PYTHONUNBUFFERED": "1",
        }
        self.expected: dict[str, Any] = {}

    def start(self, verb: str, out: Path, cached: bool = True, largest_file: int | None = None) -> subprocess.Popen:
        """The command, begun. cached: compiled steps are kept for the next start. largest_file: bytes that the system
        lets it write into one file, a stand-in for a full disk that needs no disk."""
        environment = dict(self._environment)
        if cached:
            environment["JAX_COMPILATION_CACHE_DIR"] = str(self.folder / "cache")
        program = "import resource, sys; from precisionlm.cli.main import main; "
        if largest_file is not None:
            program += f"resource.setrlimit(resource.RLIMIT_FSIZE, ({largest_file}, {largest_file})); "
        words = ["-c", program + "sys.exit(main())", verb, str(self.configs[verb]), "--out", str(out)]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        return subprocess.Popen([sys.executable, *words], env=environment, text=True, **pipes)

    def reference(self) -> None:
        """The unbroken runs of both verbs, which every history is compared with."""
        code, errors = end(self.start("sweep", self.folder / "unbroken"))
        assert code == 0, errors
        self.expected = _records(self.folder / "unbroken")
        assert len(self.expected) == len(RECIPES)

    def histories(self, faults: list[Fault], report: Callable[[str], None] = print) -> list[History]:
        """All faults, spread over as many histories as it takes: a command that finishes before its moment came ends a
        history, and the fault is tried on the next one."""
        left, done = list(faults), []
        while left:
            verb = "sweep" if left[0].moment == "between runs" else self._rng.choice(("train", "sweep"))
            history = History(verb, self.folder / f"history{len(done)}")
            done.append(history)
            while left and len(history.faults) < 6:
                if left[0].moment == "between runs" and verb == "train":
                    break
                code = self._strike(history, left[0])
                history.codes.append(code)
                if code == 0:
                    break
                history.faults.append(left.pop(0))
            self._finish(history)
            report(f"{history.out.name} {verb}: {_listing(history)}; {'; '.join(history.problems) or 'equal'}")
        return done

    def _strike(self, history: History, fault: Fault) -> int:
        """Start the command, do it, return the exit code; 0 where it finished first."""
        if fault.kind == DISK_FULL:
            size = int(10 ** self._rng.uniform(2.5, 4.5))
            code, errors = end(self.start(history.verb, history.out, cached=False, largest_file=size))
            lines = [line for line in errors.splitlines() if not line.startswith(history.verb)]  # of progress
            if code and (code != 2 or len(lines) != 1 or "cannot be written" not in lines[0]):
                history.problems.append(f"{DISK_FULL} ({size} bytes): exit code {code}, {errors[-300:]!r}")
            return code
        process = self.start(history.verb, history.out, cached=fault.moment != "compilation")
        try:
            struck = self._await(fault.moment, process, history.out)
            if struck:
                process.send_signal(getattr(signal, fault.kind))
            code, errors = end(process)
        finally:
            process.kill()
        # Before the command line is read and after the last result, SIGTERM ends a process with nothing to save.
        nothing = fault.moment == "start" or len(_records(history.out)) == len(self._wanted(history))
        allowed = {"SIGKILL": {-9}, "SIGTERM": {75, -15} if nothing else {75}}[fault.kind]
        if code not in allowed | {0}:
            history.problems.append(f"{fault.kind} in {fault.moment}: exit code {code}, {errors[-300:]!r}")
        return code

    def _await(self, moment: str, process: subprocess.Popen, out: Path) -> bool:
        """Sleep until the moment; False if the process ended before."""
        began, before = time.time(), set(out.glob("*/checkpoints/[0-9]*")) | set(out.glob("*/result.json"))
        delay = {"start": 2.0, "compilation": 2.0, "training": 1.5, "save": 0.03, "evaluation": 0.15}.get(moment, 0.3)
        skip = self._rng.randrange(4) if moment in ("save", "evaluation") else 0
        seen: set[Path] = set()
        while moment != "start" and process.poll() is None and len(seen) <= skip:
            seen |= set(_signs(moment, out, began)) - before
            time.sleep(0.001)
        time.sleep(self._rng.uniform(0, delay))
        return process.poll() is None

    def _wanted(self, history: History) -> tuple[str, ...]:
        return RECIPES if history.verb == "sweep" else RECIPES[:1]

    def _finish(self, history: History) -> None:
        """Let the command run to its end, and compare."""
        code, errors = end(self.start(history.verb, history.out))
        history.codes.append(code)
        if code:
            history.problems.append(f"lost: exit code {code} at the end, {errors[-300:]!r}")
            return
        found = _records(history.out)
        wanted = self._wanted(history)
        if sorted(found) != sorted(wanted):
            history.problems.append(f"lost: runs {sorted(found)} of {sorted(wanted)}")
        history.problems += [f"not equal: {r}" for r in found if found[r] != self.expected[r]]
        table, unfinished = collect(history.out)
        if unfinished or sorted(table["recipe"]) != sorted(wanted):
            history.problems.append(f"table: {len(table)} rows, unfinished {unfinished}")
        left = [p for pattern in ("*.orbax-checkpoint-tmp*", "*.partial") for p in history.out.rglob(pattern)]
        if left:
            history.problems.append(f"left over: {[str(p.relative_to(history.out)) for p in left]}")


def _signs(moment: str, out: Path, began: float) -> Iterator[Path]:
    """What a command started at `began` (seconds) writes as the moment comes; one path each time."""
    name = {"compilation": "config.yaml", "training": "metrics.jsonl", "between runs": "result.json"}.get(moment)
    for path in out.glob(f"*/{name}" if name else "*/checkpoints/*"):
        step = path.name.split(".")[0]
        if moment == "save" and "orbax-checkpoint-tmp" not in path.name:
            continue
        if moment == "evaluation" and not (step.isdigit() and int(step) % EVAL_EVERY == 0):
            continue  # the evaluation begins while the checkpoint of its step is written
        try:
            if path.stat().st_mtime >= began:
                yield path.with_name(step) if moment == "evaluation" else path
        except FileNotFoundError:
            continue


def end(process: subprocess.Popen) -> tuple[int, str]:
    """(exit code, standard error)."""
    try:
        _, errors = process.communicate(timeout=_DEADLINE)
    finally:
        process.kill()
    return process.returncode, errors


def _records(out: Path) -> dict[str, Any]:
    """recipe → everything of a run that must not depend on how often it was broken: each line of metrics.jsonl but the
    seconds, and the evaluations."""
    found = {}
    for path in out.glob("*/result.json"):
        result = json.loads(path.read_text())
        lines = [
            {k: v for k, v in line.items() if k not in TIMES} for line in read_metrics(path.with_name("metrics.jsonl"))
        ]
        assert result["status"] == "done"
        found[result["row"]["recipe"]] = {"lines": lines, "evaluations": result["evaluations"]}
    for recipe, record in found.items():
        steps = [line["step"] for line in record["lines"] if "loss" in line]
        evaluations = [line["step"] for line in record["lines"] if "val_loss" in line]
        if steps != list(range(1, STEPS + 1)) or evaluations != list(range(EVAL_EVERY, STEPS, EVAL_EVERY)):
            record["lines"] = f"{recipe}: steps {steps}, evaluations {evaluations}"
    return found


def _listing(history: History) -> str:
    words = [f"{fault.kind} in {fault.moment}" for fault in history.faults]
    return ", ".join(f"{word} → {code}" for word, code in zip(words, history.codes, strict=False)) or "unbroken"


def table_of(histories: list[History]) -> str:
    """A line a (kind, moment): faults, runs lost, histories unequal to the unbroken run."""
    rows = [f"{'fault':10} {'moment':13} {'count':>5} {'lost runs':>9} {'bitwise equal':>13}"]
    pairs = [(fault, history) for history in histories for fault in history.faults]
    for fault in sorted({fault for fault, _ in pairs}, key=lambda f: (f.kind, MOMENTS.index(f.moment))):
        hit = [history for other, history in pairs if other == fault]
        lost = sum(any(p.startswith("lost") for p in history.problems) for history in hit)
        equal = "yes" if not any(history.problems for history in hit) else "NO"
        rows.append(f"{fault.kind:10} {fault.moment:13} {len(hit):5} {lost:9} {equal:>13}")
    problems = [f"{history.out.name}: {problem}" for history in histories for problem in history.problems]
    rows.append(f"{len(pairs)} faults in {len(histories)} commands, {len(problems)} problems")
    return "\n".join(rows + problems)
