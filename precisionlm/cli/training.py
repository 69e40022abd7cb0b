"""The verbs that run models: train, sweep, evaluate."""

import argparse
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any

from precisionlm.cli.verbs import add_verb, loss_text, print_runs
from precisionlm.errors import DIVERGED, DONE, UserError
from precisionlm.json_text import dumps


def add_training(verbs: Any) -> None:
    """Register train, sweep and evaluate."""
    train = add_verb(
        verbs,
        "train",
        _train,
        "Train one model at one precision; resume it if it was begun, skip it if it is finished. The run directory is "
        "OUT/<run id>.\nAny key of the configuration can be given as --section.key VALUE.",
        "precisionlm train configs/demo.yaml --out runs --training.steps 50 --precision.recipe W4A8",
        overrides=True,
    )
    train.add_argument("config", type=Path, help="experiment YAML")
    train.add_argument(
        "--weights-only",
        metavar="RUN",
        help="begin with the weights of a finished run, whatever its recipe",
    )
    sweep = add_verb(
        verbs,
        "sweep",
        _sweep,
        "Train every experiment of a grid that is not finished yet. Overrides as for train.",
        "precisionlm sweep configs/formats.yaml --out runs --dry-run",
        overrides=True,
    )
    sweep.add_argument("config", type=Path, help="sweep YAML: an experiment and a grid")
    sweep.add_argument(
        "--pack", default="auto", metavar="auto|N", help="train N runs of one structure as one program (1: none)"
    )
    sweep.add_argument(
        "--keep", choices=("weights", "none"), default="weights", help="what a packed run leaves beside its results"
    )
    sweep.add_argument("--ptq", metavar="W3,W4-g128,…", help="evaluate packed runs with their weights rounded to these")
    sweep.add_argument("--retry-failed", action="store_true", help="try again what failed")
    for verb in (train, sweep):
        verb.add_argument("--out", required=True, type=Path, help="folder of run directories")
        verb.add_argument("--dry-run", action="store_true", help="check everything, print sizes and FLOPs, run nothing")
        verb.add_argument("--json", action="store_true", help="print the outcome as JSON")
        verb.add_argument("--chip", help="with --dry-run: hours of this chip (H100 SXM, TPU v5e, …; the one at hand)")
        verb.add_argument("--mfu", type=float, default=0.4, help="at this share of its bf16 peak (an assumption: 0.4)")
        several = verb.add_argument_group(
            "several processes", "Start the same command once a host; --out must be a folder that all of them share."
        )
        several.add_argument(
            "--distributed", action="store_true", help="find the others through Slurm, GKE or a TPU pod"
        )
        several.add_argument("--coordinator", metavar="HOST:PORT", help="of process 0, instead of --distributed")
        several.add_argument("--processes", type=int, metavar="N", help="how many there are")
        several.add_argument("--process", type=int, metavar="I", help="which one this is, from 0")

    evaluate = add_verb(
        verbs,
        "evaluate",
        _evaluate,
        "Evaluate finished runs again, at another recipe or on more tokens, without training; further rows of the same "
        "table.\nWhat was evaluated before is not done again. Overrides as for train, of what decides an evaluation.",
        "precisionlm evaluate runs --precision.recipe W4A8 --training.eval_tokens 4000000",
        overrides=True,
    )
    evaluate.add_argument("runs", type=Path, nargs="+", metavar="RUN", help="a run directory or a folder of them")
    evaluate.add_argument("--dry-run", action="store_true", help="check everything, list what would be evaluated")
    evaluate.add_argument("--json", action="store_true", help="print the evaluations as JSON")


def _train(args: argparse.Namespace) -> int:
    from precisionlm.cluster.preemption import Interruption

    with Interruption() as signalled:  # before the imports that take seconds
        from precisionlm.cluster.processes import is_first, on_all
        from precisionlm.model.presets import load_experiment
        from precisionlm.sweep.rows import plan
        from precisionlm.training.execute import train

        given = ["--training.weights_from", args.weights_only] if args.weights_only else []
        experiment = load_experiment(args.config, args.rest + given)
        with _joined(args, signalled, [experiment]) as interrupted:
            _warn([experiment])
            if args.dry_run:
                rows = on_all(lambda: plan([experiment], args.out))
                return _print_plan(rows, args) if is_first() else DONE
            with _reporting("train") as report:
                outcome = train(
                    experiment,
                    args.out,
                    lambda step, steps, loss: report(step / steps, f"step {step}/{steps} loss {loss:.4f}"),
                    interrupted,
                )
    if is_first():
        _print_outcome(outcome, args.json)
    return DIVERGED if outcome.result.status == "diverged" else DONE


def _sweep(args: argparse.Namespace) -> int:
    from precisionlm.cluster.preemption import Interruption

    with Interruption() as signalled:
        from precisionlm.cluster.processes import is_first, on_all
        from precisionlm.sweep.grid import load_sweep
        from precisionlm.sweep.rows import plan
        from precisionlm.sweep.scheduler import run_sweep

        options = _sweep_options(args)
        experiments = load_sweep(args.config, args.rest)
        with _joined(args, signalled, experiments) as interrupted:
            _warn(experiments)
            rows = on_all(lambda: plan(experiments, args.out))
            if args.dry_run:
                return _print_plan(rows, args) if is_first() else DONE
            with _reporting("sweep") as report:
                outcome = run_sweep(rows, args.out, report, interrupted, options, _say)
    if is_first():
        counts = {
            "trained now": outcome.done,
            "finished before": outcome.skipped,
            "diverged": outcome.diverged,
            "busy elsewhere": outcome.busy,
            "failed": outcome.failed,
        }
        shown = [f"{len(ids)} {what}" for what, ids in counts.items() if ids or what == "trained now"]
        text = f"{len(rows)} runs: {', '.join(shown)}; {outcome.compilations} training steps compiled"
        print(dumps(vars(outcome)) if args.json else text)
    return DONE


def _sweep_options(args: argparse.Namespace) -> Any:
    from precisionlm.packing.engine import Keep
    from precisionlm.ptq.evaluate import weight_quantization
    from precisionlm.sweep.scheduler import Options

    if args.pack != "auto" and not (args.pack.isdigit() and int(args.pack)):
        raise UserError(f"--pack {args.pack}: auto, or how many runs are trained together, such as 16 (1: none)")
    pack = None if args.pack == "auto" else int(args.pack)
    ptq = tuple(weight_quantization(word) for word in (args.ptq or "").split(",") if word)
    return Options(pack, Keep(args.keep == "weights"), ptq, args.retry_failed)


def _say(line: str) -> None:
    """A line on standard error, by process 0."""
    from precisionlm.cluster.processes import is_first

    if is_first():
        print(line, file=sys.stderr, flush=True)


def _evaluate(args: argparse.Namespace) -> int:
    from precisionlm.cluster.preemption import Interruption

    with Interruption() as interrupted:
        from precisionlm.cluster.executables import keep_executables
        from precisionlm.progress import reporting
        from precisionlm.storage.result import finished_runs
        from precisionlm.training.finished import check_overrides, evaluate_finished, request

        check_overrides(args.rest)
        keep_executables()
        folders = dict.fromkeys(folder for root in args.runs for folder in finished_runs(root))
        asked = [request(folder, args.rest) for folder in folders]  # all of them, before anything is spent
        found = [{"run_dir": str(one.directory.path), "status": "done" if one.recorded else "new"} for one in asked]
        if args.dry_run:
            found = [row | one.settings for row, one in zip(found, asked, strict=True)]
        else:
            with reporting("evaluate") as report:
                for i, one in enumerate(asked):
                    report(i / len(asked), f"{one.directory.path.name} at {one.run.recipe}")
                    found[i] |= one.settings | evaluate_finished(one, interrupted)
    if args.json:
        print(dumps(found))
        return DONE
    for row in found:
        loss = "" if args.dry_run else f"  loss {loss_text(row)} on {row['val_tokens']:,} tokens"
        print(f"{row['run_dir']}  {row['status']}  {row['evaluation']} at {row['eval_recipe']}{loss}")
    if args.dry_run:
        print("nothing was evaluated")
    return DONE


@contextmanager
def _joined(
    args: argparse.Namespace, signalled: Callable[[], bool], experiments: Sequence[Any]
) -> Iterator[Callable[[], bool]]:
    """Meet the other processes, if the arguments name any; whether a signal or the cloud's notice has come to any of
    them, as all of them see it."""
    from precisionlm.cluster import processes
    from precisionlm.cluster.cloud_notice import CloudNotice
    from precisionlm.cluster.executables import keep_executables

    processes.start(args.coordinator, args.processes, args.process, args.distributed)
    keep_executables()
    asked = [signalled]
    with ExitStack() as until_done:
        for cloud in sorted({e.checkpoint.notice for e in experiments if e.checkpoint.notice and not args.dry_run}):
            asked.append(processes.on_all(partial(until_done.enter_context, CloudNotice(cloud))))
        yield processes.agreed(lambda: any(ask() for ask in asked))


def _reporting(title: str) -> AbstractContextManager[Any]:
    """Progress, shown by process 0."""
    from precisionlm.cluster.processes import is_first
    from precisionlm.progress import reporting

    return reporting(title) if is_first() else nullcontext(lambda share, text: None)


def _warn(experiments: Sequence[Any]) -> None:
    """What is allowed but hardly meant, a line each on standard error, by process 0."""
    from precisionlm.cluster.processes import is_first
    from precisionlm.training.optimizer import warmup_warning

    if is_first():
        for line in dict.fromkeys(filter(None, map(warmup_warning, experiments))):
            print(f"warning: {line}", file=sys.stderr)


def _print_outcome(outcome: Any, as_json: bool) -> None:
    row = outcome.result.row
    if as_json:
        found = {"run_id": outcome.run_id, "run_dir": str(outcome.path), "status": outcome.status}
        print(dumps(found | {"result": outcome.result.model_dump()}))
        return
    print(f"{outcome.path}: {outcome.status}, N {row['N_params']:,}, D {row['D_tokens']:,}, {row['recipe']}")
    for evaluation in outcome.result.evaluations:
        print(f"  {evaluation['evaluation']} loss {loss_text(evaluation)} nats/token")


def _print_plan(rows: list[Any], args: argparse.Namespace) -> int:
    import jax

    from precisionlm.cluster.hardware import chip_hours, chip_named, chip_of

    if not 0 < args.mfu <= 1:
        raise UserError(f"--mfu {args.mfu:g}: must be above 0 and at most 1")
    chip = chip_named(args.chip) if args.chip else chip_of(jax.devices()[0].device_kind)
    entries = [
        {
            "run_id": row.run.run_id,
            "status": row.status,
            "N_params": row.non_embedding,
            "D_tokens": row.run.experiment.tokens,
            "recipe": str(row.run.recipe),
            "flops": row.flops,
            "shared": row.shared,
            "chip": chip.name if chip else None,
            "mfu": args.mfu if chip else None,
            "chip_hours": chip_hours(chip, row.flops - row.shared, args.mfu) if chip else None,
        }
        for row in rows
    ]
    return print_runs(entries, args.json)
