"""The verb that trains a grid: sweep, and its status."""

import argparse
import os
import re
from collections.abc import Sequence
from typing import Any

from precisionlm.cli.jobs import add_job_arguments, joined, planned, reporting_first, say, warn
from precisionlm.cli.verbs import add_verb, print_runs
from precisionlm.errors import BAD_INPUT, DONE, UserError
from precisionlm.json_text import dumps

_HELP = """\
Train every experiment of a grid that is not finished yet. Overrides as for train.

A sweep file (docs/sweeps.md has all keys):
  experiment: configs/demo.yaml        # an experiment's file or its tree
  grid:
    tokens: [1e6, 4e6]                 # D, rounded to whole steps
    precision.recipe: [bf16, W4A8]     # any key path
  seeds: 2

A run that fails is recorded with its reason and stops no other; --retry-failed tries it again. Exit code 2 where all
of them have failed.

Several workers may share one folder: each passes over the runs that others hold. `precisionlm sweep status FILE --out
OUT` says where every run stands, while they train."""


def add_sweep(verbs: Any) -> None:
    """Register sweep."""
    example = "precisionlm sweep configs/formats.yaml --out runs --data.path data/stdlib --dry-run"
    sweep = add_verb(verbs, "sweep", _sweep, _HELP, example, overrides=True)
    sweep.usage = "precisionlm sweep [status] FILE --out OUT [options] [--section.key VALUE …]"
    sweep.add_argument("config", metavar="FILE", help="sweep YAML; `status FILE`: how far it is")
    sweep.add_argument("file", nargs="?", help=argparse.SUPPRESS)
    sweep.add_argument(
        "--pack", default="auto", metavar="auto|N", help="train N runs of one structure as one program (1: none)"
    )
    sweep.add_argument(
        "--keep", choices=("weights", "none"), default="weights", help="what a packed run leaves beside its results"
    )
    sweep.add_argument(
        "--ptq",
        metavar="W3,W4-g128,…",
        help="beside evaluate.ptq: evaluate runs with weights rounded to these",
    )
    sweep.add_argument("--retry-failed", action="store_true", help="try again what failed")
    sweep.add_argument(
        "--shard",
        metavar="I/N",
        help="only part I, from 0, of N, dealt out by FLOPs; auto: as Slurm's array or SkyPilot says; auto/N: also as "
        "Kubernetes' indexed job says",
    )
    add_job_arguments(sweep)


def _sweep(args: argparse.Namespace) -> int:
    if args.config == "status":
        return _status(args)
    if args.file is not None:
        raise UserError(f"sweep takes one file; what is '{args.file}'?")
    from precisionlm.cluster.preemption import Interruption

    with Interruption() as signalled:  # before the imports that take seconds
        from precisionlm.sweep.grid import read_sweep

        sweep = read_sweep(args.config, args.rest)  # what is wrong with it is told before JAX is there
        from precisionlm.cluster.processes import is_first, on_all
        from precisionlm.sweep.rounding import check_fit, round_finished
        from precisionlm.sweep.rows import plan
        from precisionlm.sweep.workers import work

        options = _options(args, sweep.ptq)
        with joined(args, signalled, sweep.experiments) as interrupted:
            warn(sweep.experiments)
            rows = on_all(lambda: plan(sweep.experiments, args.out))
            on_all(lambda: _check_budget(sweep, rows, str(args.config)))
            on_all(lambda: check_fit(rows, options.ptq))
            if args.shard is not None:
                rows = _dealt(rows, args.shard)
            if args.dry_run:
                return _print_plan(rows, options, sweep.budget, args) if is_first() else DONE
            with reporting_first("sweep") as report:
                outcome = work(rows, args.out, report, interrupted, options, say)
                round_finished(rows, args.out, options.ptq, report, interrupted, say)
    if is_first():
        _print_outcome(len(rows), outcome, args.json)
    return BAD_INPUT if rows and len(outcome.failed) == len(rows) else DONE


def _options(args: argparse.Namespace, of_file: Sequence[Any]) -> Any:
    from precisionlm.packing.engine import Keep
    from precisionlm.ptq.method import weight_quantization
    from precisionlm.sweep.scheduler import Options

    if args.pack != "auto" and not re.fullmatch("0*[1-9][0-9]{0,5}", args.pack):
        raise UserError(f"--pack {args.pack}: auto, or how many runs are trained together, such as 16 (1: none)")
    pack = None if args.pack == "auto" else int(args.pack)
    given = [weight_quantization(word) for word in (args.ptq or "").split(",") if word]
    return Options(pack, Keep(args.keep == "weights"), tuple(dict.fromkeys([*of_file, *given])), args.retry_failed)


def _check_budget(sweep: Any, rows: Sequence[Any], source: str) -> None:
    import jax

    from precisionlm.cluster.hardware import chip_of

    if sweep.budget is not None:
        sweep.budget.check(rows, source, chip_of(jax.devices()[0].device_kind))


def _dealt(rows: Sequence[Any], text: str) -> list[Any]:
    """The rows of a shard, the same one on all processes of the job. Raises UserError."""
    from precisionlm.cluster.processes import gather, on_all
    from precisionlm.sweep.shards import deal, parse_shard

    shard = on_all(lambda: parse_shard(text, os.environ))
    if len({tuple(one) for one in gather([shard.index, shard.count])}) > 1:
        raise UserError(f"--shard {text}: the processes of one job would train different parts; give --shard i/n")
    dealt = deal(rows, shard)
    say(f"part {shard.index} of {shard.count}: {len(dealt)} of {len(rows)} runs")
    return dealt


def _print_outcome(runs: int, outcome: Any, as_json: bool) -> None:
    counts = {
        "trained now": outcome.done,
        "finished before": outcome.skipped,
        "diverged": outcome.diverged,
        "busy elsewhere": outcome.busy,
        "failed": outcome.failed,
    }
    shown = [f"{len(ids)} {what}" for what, ids in counts.items() if ids or what == "trained now"]
    text = f"{runs} runs: {', '.join(shown)}; {outcome.compilations} training steps compiled"
    print(dumps(vars(outcome)) if as_json else text)


def _print_plan(rows: Sequence[Any], options: Any, budget: Any, args: argparse.Namespace) -> int:
    """Rows, the groups that are left with the size of their packs and why, executables, FLOPs and hours of a chip, by
    the budget's chip and utilization where the arguments name none."""
    from precisionlm.packing.saved import begun
    from precisionlm.sweep.scheduler import groups_of

    chip = args.chip or (budget.chip if budget else None)
    mfu = budget.mfu if budget and args.mfu is None else args.mfu
    groups = groups_of(rows, options, begun(args.out))
    entries = planned(rows, chip, mfu)
    nothing = {"group": None, "pack": None, "why": "not to be trained"}
    together = {
        row.run.run_id: {"group": number, "pack": group.shape.runs if group.shape else 1, "why": group.why}
        for number, group in enumerate(groups)
        for row in group.rows
    }
    left = [entry for entry in entries if entry["run_id"] in together]
    cost = f"{sum(entry['flops'] - entry['shared'] for entry in left):.3g} FLOPs"
    if left and left[0]["chip"]:
        cost += f", {sum(entry['chip_hours'] for entry in left):,.3g} hours of one {left[0]['chip']}"
    to_train = f"to train: {len(left)} runs, {len(groups)} training steps to compile, {cost}"
    entries = [entry | together.get(entry["run_id"], nothing) for entry in entries]
    return print_runs(entries, args.json, [*(group.text for group in groups), to_train])


def _status(args: argparse.Namespace) -> int:
    from precisionlm.sweep.grid import read_sweep
    from precisionlm.sweep.status import lines, standings, summary

    if args.file is None:
        raise UserError("sweep status needs the sweep's file: precisionlm sweep status FILE --out OUT")
    found = standings(read_sweep(args.file, args.rest).experiments, args.out)
    if args.json:
        print(dumps({"runs": [one.row for one in found], "summary": vars(summary(found))}))
    else:
        print("\n".join(lines(found)))
    return DONE
