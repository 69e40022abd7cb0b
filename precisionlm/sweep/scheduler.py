"""Train what is left of a sweep: runs of one program together where that pays, the others one after the other."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import jax

from precisionlm.errors import CannotWriteError, DivergedError, PreemptedError, UserError
from precisionlm.packing import saved
from precisionlm.packing.ahead import Ahead
from precisionlm.packing.engine import Keep, train_pack
from precisionlm.packing.prepare import Prepared
from precisionlm.packing.program import PackShape, run_mesh
from precisionlm.packing.size import choose, with_remat
from precisionlm.precision.recipe import Quantization
from precisionlm.progress import Reporter
from precisionlm.storage.claim import BusyError
from precisionlm.storage.failure import forget_failure, read_failure, record_failure
from precisionlm.storage.run_directory import RunDirectory
from precisionlm.sweep.rows import Row, packed_with, status_of
from precisionlm.training.execute import train
from precisionlm.training.run import Run, prepare_run
from precisionlm.training.step import train_step

_STEPS = range(8, 17)  # of a dispatch: more gain nothing, and what waits for its end waits longer


@dataclass(frozen=True)
class Options:
    """pack: runs of a pack on each device, 1 for none, None for what pays; keep: what finished members of a pack leave;
    ptq: the formats of weights in which they are evaluated too; retry_failed: whether runs that have failed are tried
    again."""

    pack: int | None = None
    keep: Keep = field(default_factory=Keep)
    ptq: tuple[Quantization, ...] = ()
    retry_failed: bool = False


@dataclass(frozen=True)
class Group:
    """Rows trained after each other: on `shape` as a pack, or one by one without. why: in words."""

    rows: list[Row]
    runs: list[Run]
    shape: PackShape | None
    why: str

    @property
    def text(self) -> str:
        """What it is, for a line of a plan."""
        e = self.rows[0].run.experiment
        how = "one by one" if self.shape is None else f"packs of {self.shape.runs}"
        return f"N {self.rows[0].non_embedding:,}, {len(self.rows)} runs, batch {e.batch_tokens:,}: {how} ({self.why})"


@dataclass
class SweepOutcome:
    """Run ids by what became of them, and the training-step executables that the sweep compiled."""

    done: list[str] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)
    diverged: list[str] = field(default_factory=list)
    busy: list[str] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)
    compilations: int = 0


def groups_of(rows: Sequence[Row], options: Options, begun: frozenset[str] = frozenset()) -> list[Group]:
    """The rows that are left, by what they share: program, batch and data; packs are as large as if all rows were, so
    that a sweep that is stopped gives the same numbers. begun: what packs have saved already (`packing.saved.begun`),
    which packs go on with, and be it one run after the other."""
    families: dict[Any, list[tuple[Row, Run]]] = {}
    programs: list[Any] = []  # in an order that all processes share
    for row in rows:
        run = _on_one_device(row.run) if options.pack != 1 or row.run.run_id in begun else None
        key = (False, row.run.program) if run is None else (True, *packed_with(run))
        if key not in programs:
            programs.append(key)
        families.setdefault(key, []).append((row, run or row.run))
    found = []
    for key in programs:
        every, devices = families[key], jax.local_devices()
        family = [
            (row, run) for row, run in every if not row.finished and (row.status != "failed" or options.retry_failed)
        ]
        if not family:
            continue
        first = family[0][1]
        choice = choose(first, -(-len(every) // len(devices)), options.pack) if key[0] else None
        if choice is None or (choice.runs == 1 and begun.isdisjoint(row.run.run_id for row, _ in family)):
            family.sort(key=lambda pair: pair[0].run.experiment.training.steps)  # shorter ones leave trunks to longer
            why = choice.why if choice else "asked for" if options.pack == 1 else "not to be packed"
            found.append(Group([row for row, _ in family], [row.run for row, _ in family], None, why))
            continue
        runs = [with_remat(run, choice.remat) for _, run in family]
        e = first.experiment
        steps = dispatch_steps([run.experiment.training.steps for _, run in every])
        shape = PackShape(
            runs[0].program,
            run_mesh(devices),
            choice.runs * len(devices),
            steps,
            e.training.batch_size,
            e.data.sequence_length,
        )
        found.append(Group([row for row, _ in family], runs, shape, choice.why))
    return found


def _on_one_device(run: Run) -> Run | None:
    """The run for one device of its own, if that is the same run and a pack can do all that it asks for."""
    e = run.experiment
    alone = jax.process_count() == 1 and e.mesh.replica in (1, -1) and e.mesh.fsdp in (1, -1) and e.mesh.tensor == 1
    plain = e.training.eval_every is None and e.checkpoint.folder is None and e.precision.execution == "simulated"
    track = e.tracking
    silent = not (track.wandb_project or track.profile_from or track.log_hlo or track.quantization_every)
    if not (alone and plain and silent):
        return None
    return prepare_run(e, jax.local_devices()[:1])


def dispatch_steps(lengths: Sequence[int]) -> int:
    """Steps of a dispatch, so that at the ends of runs as few as can be are made for nothing."""
    return min(_STEPS, key=lambda k: (sum(-steps % k for steps in lengths) / sum(lengths), -k))


def run_sweep(
    rows: Sequence[Row],
    out: Path,
    report: Reporter,
    interrupted: Callable[[], bool],
    options: Options = Options(),
    say: Callable[[str], None] = lambda line: None,
) -> SweepOutcome:
    """Train what is not finished and what nobody else trains. A diverged run is a result; one that fails is recorded
    with its reason, and the others go on.

    Raises PreemptedError as soon as `interrupted` says so, also between runs; the same call continues.
    """
    outcome = SweepOutcome(skipped=[row.run.run_id for row in rows if row.finished])
    groups = groups_of(rows, options, saved.begun(out))
    for row in rows:
        if row.status == "failed":
            if options.retry_failed:
                forget_failure(RunDirectory(out, row.run.run_id))
            else:
                outcome.failed.append(row.run.run_id)
    total = sum(row.flops - row.shared for group in groups for row in group.rows) or 1.0
    begun = 0.0
    for group in groups:
        say(group.text)
    report(0.0, "compiling")
    packs = [None if group.shape is None else (group.shape, group.runs[0]) for group in groups]
    with Ahead(packs, options.ptq) as ahead:
        for i, group in enumerate(groups):
            share = sum(row.flops - row.shared for row in group.rows) / total
            within = partial(_within, report, begun, share)
            if group.shape is None:
                _one_by_one(group, out, within, interrupted, outcome, say)
            else:
                job = _Job(group, out, within, interrupted, options, outcome, say)
                _together(job, partial(ahead.take, i), partial(ahead.trace_after, i))
            begun += share
    return outcome


def _within(report: Reporter, begun: float, share: float, part: float, text: str) -> None:
    report(begun + share * part, text)


@dataclass(frozen=True)
class _Job:
    """A group that is being trained, and what it is trained with."""

    group: Group
    out: Path
    report: Reporter
    interrupted: Callable[[], bool]
    options: Options
    outcome: SweepOutcome
    say: Callable[[str], None]


def _together(job: _Job, prepare: Callable[[], Prepared], under_way: Callable[[], None]) -> None:
    """As a pack, its tail as a narrower one; where it does not fit the memory, as smaller ones. under_way: called once
    steps are made."""
    group, shape, left = job.group, job.group.shape, list(job.group.runs)
    total, before, now = sum(run.experiment.training.steps for run in left), 0, 0
    assert shape is not None

    def steps(made: int, runs: int, loss: float) -> None:
        nonlocal now
        now = before + made
        if not math.isnan(loss):
            under_way()
        shown = "" if math.isnan(loss) else f"  mean loss {loss:.3f}"
        job.report(min(1.0, now / total), f"N {group.rows[0].non_embedding:,} x {runs} runs{shown}")

    while True:
        job.outcome.compilations += 1
        try:
            trained = train_pack(prepare(), left, job.out, job.options.keep, steps, job.interrupted)
            for run_id, status in trained.outcome.items():
                getattr(job.outcome, status).append(run_id)
                if status == "failed":
                    job.say(f"failed: run {run_id}: {read_failure(RunDirectory(job.out, run_id))}")
            left = [run for run in left if run.run_id not in trained.outcome]
            if trained.narrower is None:
                return
            job.say(f"{len(left)} runs are left; packs of {trained.narrower} now")
            shape, before = replace(shape, runs=trained.narrower), now
            prepare = partial(Prepared, shape, left[0], job.options.ptq)
            continue
        except (UserError, PreemptedError):
            raise
        except Exception as error:
            smaller = shape.runs // 2 // shape.devices.size * shape.devices.size
            if "RESOURCE_EXHAUSTED" not in str(error) or not smaller:
                for run in left:
                    _fail(run, job.out, error, job.outcome, job.say)
                return
        job.say(f"packs of {shape.runs} do not fit the memory; packs of {smaller} now")
        shape = replace(shape, runs=smaller)
        prepare = partial(Prepared, shape, left[0], job.options.ptq)


def _one_by_one(
    group: Group,
    out: Path,
    report: Reporter,
    interrupted: Callable[[], bool],
    outcome: SweepOutcome,
    say: Callable[[str], None],
) -> None:
    before = train_step(group.rows[0].run.program)._cache_size()
    for i, row in enumerate(group.rows):
        if interrupted():
            raise PreemptedError(f"{i} of {len(group.rows)} runs are finished; the same command continues with others")
        e = row.run.experiment
        text = f"N {row.non_embedding:,} D {e.tokens:,} {row.run.recipe}"
        report(i / len(group.rows), text)
        progress = partial(_report_run, report, i / len(group.rows), 1 / len(group.rows), text)
        try:
            getattr(outcome, train(e, out, progress, interrupted).status).append(row.run.run_id)
        except DivergedError:
            outcome.diverged.append(row.run.run_id)
        except BusyError:
            outcome.busy.append(row.run.run_id)
        except (PreemptedError, CannotWriteError):
            raise
        except Exception as error:
            _fail(row.run, out, error, outcome, say)
    outcome.compilations += train_step(group.rows[0].run.program)._cache_size() - before


def _fail(run: Run, out: Path, error: Exception, outcome: SweepOutcome, say: Callable[[str], None]) -> None:
    """Record why a run could not be trained."""
    directory = RunDirectory(out, run.run_id)
    if (status := status_of(directory)) in ("done", "diverged"):  # a member that ended before its pack failed
        getattr(outcome, status).append(run.run_id)
        return
    reason = str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {error}"
    directory.create()
    record_failure(directory, reason)
    say(f"failed: run {run.run_id}: {' '.join(reason.split())[:300]}")
    outcome.failed.append(run.run_id)


def _report_run(report: Reporter, begin: float, share: float, text: str, step: int, steps: int, loss: float) -> None:
    report(begin + share * step / steps, text + ("  compiling" if math.isnan(loss) else f"  loss {loss:.3f}"))
