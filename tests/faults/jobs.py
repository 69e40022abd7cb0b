"""The commands that are broken, each on a tiny experiment: their words, their moments, what they leave and must leave.

A moment is a name for functions: a strike comes at one of their calls, so at a place that is the same every time.
"""

import hashlib
import json
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from precisionlm.storage.run_directory import read_metrics

TIMES = ("seconds", "wall_seconds")  # of a line of metrics.jsonl
RECIPES = ("W4", "W3", "W6")  # of one structure, so that they can be one program
DOCUMENTS = 60

_P = "precisionlm."
_COMPILE = "jax._src.compiler.compile_or_get_cached"
_WRITES = ("os.fsync", "os.replace", "os.rename")
_TRAIN = {
    "preparation": (_P + "training.execute.prepare_run", _P + "training.execute.set_up"),
    "audit": (_P + "training.execute.audited", _P + "training.auditing._traced_step"),
    "compilation": (_COMPILE,),
    "training": (_P + "training.loop.place", _P + "training.loop.Recorder.settle"),
    "saving": (_P + "storage.checkpoint.Checkpoints.save", _P + "storage.checkpoint.Checkpoints._save"),
    "evaluation": (_P + "training.evaluate.place",),
    "result": (_P + "training.execute.conclude", _P + "storage.result.Result.write"),
    "any write": _WRITES,
}
_PEER = {name: of for name, of in _TRAIN.items() if name not in ("result", "any write")}  # the first process writes
_PACKED = {
    "preparation": (_P + "packing.engine.claimed", _P + "packing.saved.record"),
    "audit": (_P + "packing.member.audited",),
    "compilation": (_P + "packing.prepare.Prepared.compile", _COMPILE),
    "training": (_P + "packing.engine._Pack._dispatch", _P + "packing.engine._Pack._settle"),
    "saving": (_P + "packing.saved.Checkpointed.save", _P + "storage.checkpoint.Checkpoints._save"),
    "evaluation": (_P + "packing.reached.evaluate_members",),
    "result": (_P + "packing.member.Member.finish", _P + "packing.saved.discard_finished"),
    "any write": _WRITES,
}
ENDED_DOCUMENT = _P + "data.writer.SplitWriter.end"
_PREPARE = {
    "preparation": (_P + "data.prepare._tokenizer", _P + "data.encode.Coder._finish"),
    "encoding": (_P + "data.writer.SplitWriter.append", ENDED_DOCUMENT),
    "saving": (_P + "data.prepare._Packing._note", _P + "data.prepare.write_journal"),
    "result": (_P + "data.writer.SplitWriter.finish",),
    "any write": _WRITES,
}
_PTQ = {
    "preparation": (_P + "ptq.evaluate.plan_run", _P + "ptq.evaluate.params_at"),
    "compilation": (_COMPILE,),
    "quantization": (_P + "ptq.walk._quantize_block", _P + "ptq.evaluate.quantized"),
    "evaluation": (_P + "training.evaluate.place",),
    "result": (_P + "ptq.evaluate.record",),
    "any write": _WRITES,
}
_TABLE = {
    "preparation": (_P + "sweep.collect._checked", _P + "storage.evaluation.Evaluation.read"),
    "result": (_P + "sweep.collect.with_differences", _P + "whole_file.sync"),
    "any write": _WRITES,
}
MOMENTS = list(dict.fromkeys(name for of in (_TRAIN, _PACKED, _PREPARE, _PTQ, _TABLE) for name in of))


@dataclass(frozen=True)
class Job:
    """name; words: of the command, without what it writes to; moments: name → dotted functions; kind: of what it leaves
    (runs, data, ptq, table); copies: runs that it begins with; needs: jobs whose unbroken results it works on."""

    name: str
    words: tuple[str, ...]
    moments: dict[str, tuple[str, ...]]
    kind: str = "runs"
    copies: Path | None = None
    processes: int = 1
    needs: tuple[str, ...] = ("prepare",)

    @property
    def targets(self) -> list[str]:
        """All functions of its moments."""
        return [target for of in self.moments.values() for target in of]

    def lay_out(self, folder: Path) -> None:
        """What the command finds before its first start."""
        folder.mkdir(parents=True)
        if self.copies is not None:
            shutil.copytree(self.copies, folder / "runs")

    def words_in(self, folder: Path) -> list[str]:
        """The command in a folder that was laid out."""
        runs = str(folder / "runs")
        options = {"runs": ["--out", runs], "data": ["--out", runs], "ptq": [], "table": ["-o", f"{folder}/t.parquet"]}
        return [*(runs if word == "RUNS" else word for word in self.words), *options[self.kind]]


def _write_once(text: Path) -> None:
    """Another part may be reading it."""
    partial = text.with_name(f"text.{os.getpid()}")
    if not text.exists():
        partial.mkdir(parents=True)
        for i in range(DOCUMENTS):
            words = (f"word{(i * j) % 17} follows word{(i + j) % 13}." for j in range(30))
            (partial / f"{i}.txt").write_text(" ".join(words))
        try:
            partial.rename(text)
        except OSError:
            shutil.rmtree(partial)


def _whole(path: Path, text: str) -> None:
    partial = path.with_suffix(f".{os.getpid()}")
    partial.write_text(text)
    partial.replace(path)


def jobs(folder: Path) -> dict[str, Job]:
    """All of them, by name; their texts and configurations are written under the folder."""
    text, data = folder / "text", folder / "unbroken" / "prepare" / "runs"
    _write_once(text)
    tree = {
        "model": {"layers": 1, "width": 32, "heads": 2, "mlp_width": 64},
        "data": {"path": str(data), "sequence_length": 32},
        "optimizer": {"learning_rate": 3e-3},
        "precision": {"recipe": "bf16"},
        "training": {"steps": 12, "batch_size": 4, "dtype": "float32", "remat": "none"}
        | {"eval_tokens": 1000, "eval_every": 4},
        "checkpoint": {"every_steps": 2, "keep": 2},
    }
    _whole(folder / "train.yaml", yaml.safe_dump(tree))
    plain = tree | {"training": tree["training"] | {"eval_every": None, "steps": 36}}  # type: ignore[operator]
    grid = {"precision.recipe": list(RECIPES)}
    _whole(folder / "packed.yaml", yaml.safe_dump({"experiment": plain, "grid": grid}))
    short = {"precision.recipe": list(RECIPES[:2])}
    _whole(folder / "sweep.yaml", yaml.safe_dump({"experiment": tree, "grid": short}))
    prepared = ("data", "prepare", str(text), "--vocab-size", "270", "--validation-every", "3")
    finished = folder / "unbroken" / "sweep" / "runs"
    one_by_one = _TRAIN | {"preparation": (*_TRAIN["preparation"], _P + "sweep.scheduler.train")}
    found = [
        Job("prepare", (*prepared, "--workers", "1"), _PREPARE, "data", needs=()),
        Job("prepare, workers", (*prepared, "--workers", "2"), _PREPARE, "data", needs=()),
        Job("train", ("train", str(folder / "train.yaml")), _TRAIN),
        Job("train, 2 processes", ("train", str(folder / "train.yaml")), _PEER, processes=2),
        Job("sweep", ("sweep", str(folder / "sweep.yaml"), "--pack", "1"), one_by_one),
        Job("sweep, packed", ("sweep", str(folder / "packed.yaml"), "--pack", "2"), _PACKED),
        Job("ptq", ("ptq", "RUNS", "--method", "rtn,gptq", "--weights", "4", "--calibration", "8"), _PTQ, "ptq",
            finished, needs=("sweep",)),
        Job("table", ("table", "RUNS"), _TABLE, "table", finished, needs=("sweep",)),
    ]  # fmt: skip
    return {job.name: job for job in found}


# --- what a command leaves ---


def record(job: Job, folder: Path) -> Any:
    """Everything that must not depend on how often the command was broken."""
    runs = folder / "runs"
    if job.kind == "data":
        return {str(path.relative_to(runs)): _hash(path) for path in sorted(runs.rglob("*")) if path.is_file()}
    if job.kind == "table":
        return {path.name: _hash(path) for path in sorted(folder.glob("t.*"))}
    if job.kind == "ptq":
        return {str(path.relative_to(runs)): _hash(path) for path in sorted(runs.glob("*/ptq/*"))}
    return {path.parent.name: _run(path.parent) for path in sorted(runs.glob("*/result.json"))}


def _run(directory: Path) -> dict[str, Any]:
    result = json.loads((directory / "result.json").read_text())
    metrics = read_metrics(directory / "metrics.jsonl")
    lines = [{name: value for name, value in line.items() if name not in TIMES} for line in metrics]
    sequences = {path.name: _hash(path) for path in sorted(directory.glob("evaluations/*.npz"))}
    found = {"status": result["status"], "evaluations": result["evaluations"], "lines": lines, "sequences": sequences}
    return json.loads(json.dumps(found))


def _hash(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def leftovers(folder: Path) -> list[str]:
    """Half-written files and folders."""
    patterns = ("*.orbax-checkpoint-tmp*", "*.partial", ".*.partial*", "packs/*")
    return sorted({str(path.relative_to(folder)) for pattern in patterns for path in folder.rglob(pattern)})
