"""`precisionlm bench sweep`: a grid of small runs as whole jobs, packed, unpacked, as separate commands, by another
version of the program, and in PyTorch, each as a user starts it and with nothing compiled before."""

import json
import shutil
import statistics
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml

from precisionlm.bench.grid import batch_tokens, run_tree, steps_of, sweep_tree, torch_arguments, vocabulary_of
from precisionlm.bench.jobs import HERE, Job, Place, Trained, seconds_in_steps, trained
from precisionlm.bench.tokens import learned, random_dataset
from precisionlm.data.source import Dataset
from precisionlm.errors import UserError

JOBS = ("packed", "unpacked", "separate")


@dataclass(frozen=True)
class Asked:
    """sizes: names; runs: of each size; tokens: of a run, about; data: a prepared folder, None for random tokens;
    jobs: of JOBS; baseline: source tree of another version; torch: a Python that has PyTorch; measured: separate
    commands that are run of each size, by which all are reckoned; rounds: times that every job is done."""

    sizes: tuple[str, ...]
    runs: int
    tokens: float
    data: Path | None = None
    jobs: tuple[str, ...] = JOBS
    baseline: Path | None = None
    torch: str | None = None
    measured: int = 3
    rounds: int = 1

    def check(self) -> None:
        """Raises UserError for what cannot be measured."""
        if unknown := [name for name in self.jobs if name not in JOBS]:
            raise UserError(f"--jobs {unknown[0]}: valid: {', '.join(JOBS)}")
        if not (self.jobs or self.baseline or self.torch):
            raise UserError(f"--jobs: nothing to measure; valid: {', '.join(JOBS)}")
        if self.torch is not None and shutil.which(self.torch) is None:
            raise UserError(f"--torch {self.torch}: no such program")
        if self.baseline is not None and not (self.baseline / "precisionlm" / "__main__.py").is_file():
            raise UserError(f"--baseline {self.baseline}: holds no source tree of precisionlm")


def bench_sweep(asked: Asked, say: Callable[[str], None]) -> list[Job]:
    """A job for every way, that of median tokens/s of all rounds; the ways take turns. One that fails has its error in
    place of figures. On random tokens the loss is checked: it cannot fall below their entropy.

    Raises UserError for what cannot be measured at all: options, unknown sizes, too few tokens in a given folder.
    """
    asked.check()
    vocabulary = vocabulary_of(asked.sizes)
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        need = max(steps_of(size, asked.tokens) * batch_tokens(size) for size in asked.sizes)
        data = random_dataset(root, vocabulary, need) if asked.data is None else _enough(asked.data, need)
        jobs = [_round(asked, data, root / str(turn), say) for turn in range(asked.rounds)]
    found = [sorted(same, key=lambda job: -job.seconds)[len(same) // 2] for same in zip(*jobs, strict=True)]
    if asked.data is not None:
        return found
    return [replace(job, error=job.error or learned(job.loss, vocabulary)) for job in found]


def _enough(data: Path, need: int) -> Path:
    holds = Dataset.open(data).meta.train.tokens
    if holds < need:
        raise UserError(f"--data {data}: {holds:,} tokens to train on; a run takes {need:,}, none of them twice")
    return data.absolute()


def _round(asked: Asked, data: Path, root: Path, say: Callable[[str], None]) -> list[Job]:
    ways: dict[str, Callable[[Place, Job], Job]] = {
        "packed": lambda place, job: _sweep(asked, data, place, job, ["--pack", "auto"]),
        "unpacked": lambda place, job: _sweep(asked, data, place, job, ["--pack", "1"]),
        "separate": lambda place, job: _separate(asked, data, place, job),
    }
    ways = {name: way for name, way in ways.items() if name in asked.jobs}
    if asked.baseline is not None:
        ways["baseline"] = lambda place, job: _sweep(asked, data, place, job, [])
    if asked.torch is not None:
        ways["torch"] = lambda place, job: _torch(asked, data, place, job)
    tokens = asked.runs * sum(steps_of(size, asked.tokens) * batch_tokens(size) for size in asked.sizes)
    jobs = []
    for name, way in ways.items():
        place = Place(root / name, asked.baseline.absolute() if name == "baseline" and asked.baseline else HERE)
        place.root.mkdir(parents=True)
        job = Job(name, asked.runs * len(asked.sizes), tokens)
        try:
            job = way(place, job)
        except UserError as error:
            job = replace(job, error=str(error))
        say(f"{name}: {job.error or f'{job.seconds:.1f} s, {job.rate / 1e6:.3f} M tokens/s'}")
        jobs.append(job)
    return jobs


def _sweep(asked: Asked, data: Path, place: Place, job: Job, words: Sequence[str]) -> Job:
    file = place.root / "sweep.yaml"
    file.write_text(yaml.safe_dump(sweep_tree(asked.sizes, asked.runs, asked.tokens, data), sort_keys=False))
    sweep = place.precisionlm("sweep", str(file), "--out", str(place.out), *words)
    table = place.precisionlm("table", str(place.out), "-o", str(place.root / "runs.parquet"))
    runs = _all_of(place, job.runs)
    return replace(
        job,
        seconds=sweep.seconds + table.seconds,
        table_seconds=table.seconds,
        in_steps=seconds_in_steps(runs),
        compile_seconds=sum(sweep.compiled),
        programs=len(sweep.compiled),
        loss=min(run.last_loss for run in runs),
        measured=job.runs,
        about=runs[0].about,
    )


def _separate(asked: Asked, data: Path, place: Place, job: Job) -> Job:
    count, parts, steps = min(asked.measured, asked.runs), [], []
    for size in asked.sizes:
        commands = []
        for number in range(count):
            file = place.root / f"{size}-{number}.yaml"
            file.write_text(yaml.safe_dump(run_tree(size, number, asked.tokens, data), sort_keys=False))
            before = seconds_in_steps(trained(place.out))
            commands.append(place.precisionlm("train", str(file), "--out", str(place.out)))
            steps.append(seconds_in_steps(trained(place.out)) - before)
        parts.append(commands)
    table = place.precisionlm("table", str(place.out), "-o", str(place.root / "runs.parquet"))
    runs = _all_of(place, count * len(asked.sizes))
    by_size = [steps[i : i + count] for i in range(0, len(steps), count)]
    return replace(
        job,
        seconds=table.seconds + sum(multiplied([c.seconds for c in part], asked.runs) for part in parts),
        table_seconds=table.seconds,
        in_steps=sum(multiplied(part, asked.runs) for part in by_size),
        compile_seconds=sum(multiplied([sum(c.compiled) for c in part], asked.runs) for part in parts),
        programs=sum(len(c.compiled) for part in parts for c in part),
        loss=min(run.last_loss for run in runs),
        measured=len(runs),
        about=runs[0].about,
    )


def _torch(asked: Asked, data: Path, place: Place, job: Job) -> Job:
    count, peer = min(asked.measured, asked.runs), Path(__file__).with_name("torch_peer.py")
    python = str(Path(shutil.which(asked.torch or "") or "").absolute())
    start = f"import runpy; runpy.run_path({str(peer)!r}, run_name='__main__')"
    parts, said = [], []
    for size in asked.sizes:
        commands = []
        for number in range(count):
            arguments = json.dumps(torch_arguments(size, number, asked.tokens, data))
            commands.append(place.command([python, "-c", start, arguments]))
        parts.append(commands)
        said.append([json.loads(command.stdout) for command in commands])
    return replace(
        job,
        seconds=sum(multiplied([c.seconds for c in part], asked.runs) for part in parts),
        in_steps=sum(multiplied([s["others_s"] for s in part], asked.runs) for part in said),
        compile_seconds=sum(multiplied([s["first_step_s"] for s in part], asked.runs) for part in said),
        loss=min(s["loss"] for part in said for s in part),
        measured=count * len(asked.sizes),
        about=said[0][0]["about"],
    )


def multiplied(measured: Sequence[float], runs: int) -> float:
    """Of so many commands one after the other, by some of them: the first, which finds nothing compiled, and the median
    of the others for each that follows."""
    return measured[0] + (runs - 1) * statistics.median(measured[1:] or measured)


def _all_of(place: Place, count: int) -> list[Trained]:
    runs = trained(place.out)
    if len(runs) < count:
        raise UserError(f"{len(runs)} of {count} runs came to their end")
    return runs


def as_rows(jobs: Sequence[Job]) -> list[dict[str, Any]]:
    """What `--json` prints, a row a job; ratio: its tokens/s over those of the first job; steps_share: of the wall
    time, 0…1."""
    return [
        {
            "job": job.name,
            "runs": job.runs,
            "measured": job.measured,
            "tokens": job.tokens,
            "seconds": job.seconds,
            "table_seconds": job.table_seconds,
            "tokens_per_second": job.rate,
            "ratio": job.rate / jobs[0].rate,
            "steps_share": job.in_steps / job.seconds,
            "compile_seconds": job.compile_seconds,
            "programs": job.programs,
            "loss": job.loss,
            "error": job.error,
            **job.about,
        }
        for job in jobs
    ]


def as_table(jobs: Sequence[Job]) -> str:
    """A Markdown table; how it was measured above it."""
    about = next((job.about for job in jobs if job.about), {})
    lines = [
        f"{about.get('device', 'no device')}, jax {about.get('jax_version', '?')}; whole jobs, from the command to the "
        "table, with nothing compiled before",
        "",
        f"| job | runs (measured) | s | M tokens/s | {jobs[0].name} / this | in steps | compiling | programs | loss |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for job, row in zip(jobs, as_rows(jobs), strict=True):
        head = f"| {job.name} | {job.runs} ({job.measured}) |"
        if job.error:
            lines.append(f"{head} {job.error} | | | | | | |")
            continue
        lines.append(
            f"{head} {job.seconds:.1f} | {job.rate / 1e6:.3f} | {1 / row['ratio']:.2f} | {row['steps_share']:.0%} | "
            f"{job.compile_seconds:.1f} s | {job.programs or ''} | {job.loss:.3f} |"
        )
    if any(job.measured < job.runs for job in jobs if not job.error):
        lines += ["", "Where not all runs were measured, the first command of a size counts once, and the median of "
                  "the others for each of the rest."]  # fmt: skip
    return "\n".join(lines)
