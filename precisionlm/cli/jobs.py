"""What train and sweep share: their arguments, the other processes, progress, warnings, the plan of a dry run."""

import argparse
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any

from precisionlm.cluster.hardware import ASSUMED_MFU, chip_hours, chip_named, chip_of
from precisionlm.errors import UserError


def add_job_arguments(verb: argparse.ArgumentParser) -> None:
    """Where results go, dry runs, several processes."""
    verb.add_argument("--out", required=True, type=Path, help="folder of run directories")
    verb.add_argument("--dry-run", action="store_true", help="check everything, print sizes and FLOPs, run nothing")
    verb.add_argument("--json", action="store_true", help="print the outcome as JSON")
    verb.add_argument("--chip", help="with --dry-run: hours of this chip (H100 SXM, TPU v5e, …; the one at hand)")
    verb.add_argument("--mfu", type=float, help=f"at this share of its bf16 peak (an assumption: {ASSUMED_MFU})")
    several = verb.add_argument_group(
        "several processes", "Start the same command once a host; --out must be a folder that all of them share."
    )
    several.add_argument("--distributed", action="store_true", help="find the others through Slurm, GKE or a TPU pod")
    several.add_argument("--coordinator", metavar="HOST:PORT", help="of process 0, instead of --distributed")
    several.add_argument("--processes", type=int, metavar="N", help="how many there are")
    several.add_argument("--process", type=int, metavar="I", help="which one this is, from 0")
    several.add_argument(
        "--start-timeout", type=float, metavar="SECONDS", default=300.0, help="for all of them to come (300)"
    )


@contextmanager
def joined(
    args: argparse.Namespace, signalled: Callable[[], bool], experiments: Sequence[Any]
) -> Iterator[Callable[[], bool]]:
    """Meet the other processes, if the arguments name any; whether a signal or the cloud's notice has come to any of
    them, as all of them see it."""
    from precisionlm.cluster import processes
    from precisionlm.cluster.cloud_notice import CloudNotice
    from precisionlm.cluster.executables import keep_executables

    if not args.start_timeout > 0:
        raise UserError(f"--start-timeout {args.start_timeout:g}: must be above 0")
    where = processes.address(args.coordinator, args.processes, args.process, args.distributed, args.start_timeout)
    with processes.joined(where, args.start_timeout) as lifeline, ExitStack() as until_done:
        keep_executables()
        asked = [signalled]
        for cloud in sorted({e.checkpoint.notice for e in experiments if e.checkpoint.notice and not args.dry_run}):
            asked.append(processes.on_all(partial(until_done.enter_context, CloudNotice(cloud))))
        yield processes.agreed(lifeline, lambda: any(ask() for ask in asked))


def reporting_first(title: str) -> AbstractContextManager[Any]:
    """Progress, shown by process 0."""
    from precisionlm.cluster.processes import is_first
    from precisionlm.progress import reporting

    return reporting(title) if is_first() else nullcontext(lambda share, text: None)


def say(line: str) -> None:
    """A line on standard error, by process 0."""
    from precisionlm.cluster.processes import is_first

    if is_first():
        print(line, file=sys.stderr, flush=True)


def warn(experiments: Sequence[Any]) -> None:
    """What is allowed but hardly meant, a line each on standard error, by process 0."""
    from precisionlm.training.optimizer import warmup_warning

    for line in dict.fromkeys(filter(None, map(warmup_warning, experiments))):
        say(f"warning: {line}")


def planned(rows: Sequence[Any], chip_name: str | None, mfu: float | None) -> list[dict[str, Any]]:
    """A dry run's entry for every row: sizes, FLOPs, hours of a chip (of the one at hand where none is named). Raises
    UserError."""
    import jax

    share = ASSUMED_MFU if mfu is None else mfu
    if not 0 < share <= 1:
        raise UserError(f"--mfu {share:g}: must be above 0 and at most 1")
    chip = chip_named(chip_name) if chip_name else chip_of(jax.devices()[0].device_kind)
    return [
        {
            "run_id": row.run.run_id,
            "status": row.status,
            "N_params": row.non_embedding,
            "D_tokens": row.run.experiment.tokens,
            "recipe": str(row.run.recipe),
            "flops": row.flops,
            "shared": row.shared,
            "chip": chip.name if chip else None,
            "mfu": share if chip else None,
            "chip_hours": chip_hours(chip, row.flops - row.shared, share) if chip else None,
        }
        for row in rows
    ]
