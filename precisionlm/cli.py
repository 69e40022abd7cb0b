"""The command line: every verb parses, calls one function, prints. Exit codes: `precisionlm.errors`."""

import argparse
import json
import logging
import os
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any

from precisionlm.cli_tools import add_tools
from precisionlm.errors import BAD_INPUT, DIVERGED, DONE, PREEMPTED, DivergedError, PreemptedError, UserError
from precisionlm.verbs import add_verb


def main(arguments: list[str] | None = None) -> int:
    """Run one command; returns its exit code."""
    # Imported libraries talk at INFO and WARNING about their own workings; a user reads ours.
    logging.getLogger("absl").setLevel(logging.ERROR)
    parser = build_parser()
    args, rest = parser.parse_known_args(arguments)
    try:
        if rest and not args.overrides:
            raise UserError(f"{args.command}: unknown argument '{rest[0]}'; see precisionlm {args.command} --help")
        args.rest = rest
        return args.run(args)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return BAD_INPUT
    except DivergedError as error:
        print(f"diverged: {error}", file=sys.stderr)
        return DIVERGED
    except PreemptedError as error:
        print(f"preempted: {error}", file=sys.stderr)
        return PREEMPTED
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return DONE


def build_parser() -> argparse.ArgumentParser:
    """The parser of every verb."""
    from precisionlm import __version__
    from precisionlm.analysis import cli as analysis

    parser = argparse.ArgumentParser(
        prog="precisionlm",
        description="What numeric precision costs a language model, and the best precision for a budget.",
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"precisionlm {__version__}")
    verbs = parser.add_subparsers(required=True, metavar="VERB")

    data = verbs.add_parser("data", help="Prepare training text", allow_abbrev=False)
    data_verbs = data.add_subparsers(required=True, metavar="VERB")
    prepare = add_verb(
        data_verbs,
        "prepare",
        _data_prepare,
        "Turn text into packed tokens: train a byte-level BPE tokenizer (or take one), encode, split off validation.",
        "precisionlm data prepare stdlib --out data/stdlib --vocab-size 2048",
    )
    prepare.add_argument(
        "source",
        nargs="+",
        help="files, folders, globs, .jsonl[.gz|.zst], packed .u16/.bin files, hf:DATASET, or stdlib (Python's source)",
    )
    prepare.add_argument("--out", required=True, type=Path, help="folder to make")
    prepare.add_argument("--vocab-size", type=int, help="entries of the tokenizer to train")
    prepare.add_argument("--tokenizer", type=Path, help="tokenizer.json to use instead of training one")
    prepare.add_argument("--eos-id", type=int, help="end-of-text id of that tokenizer, if it cannot be told")
    prepare.add_argument("--validation", nargs="+", help="validation text of its own instead of a split")
    prepare.add_argument("--validation-every", type=int, default=128, help="one document in this many is validation")
    prepare.add_argument("--text-field", default="text", help="field of jsonl records")
    prepare.add_argument("--max-tokens", type=int, help="stop after this many training tokens")
    prepare.add_argument("--dry-run", action="store_true", help="find the files, check the arguments, write nothing")
    prepare.add_argument("--json", action="store_true", help="print meta.json")

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
    sweep = add_verb(
        verbs,
        "sweep",
        _sweep,
        "Train every experiment of a grid that is not finished yet. Overrides as for train.",
        "precisionlm sweep configs/demo_sweep.yaml --out runs --dry-run",
        overrides=True,
    )
    sweep.add_argument("config", type=Path, help="sweep YAML: an experiment and a grid")
    for verb in (train, sweep):
        verb.add_argument("--out", required=True, type=Path, help="folder of run directories")
        verb.add_argument("--dry-run", action="store_true", help="check everything, print sizes and FLOPs, run nothing")
        verb.add_argument("--json", action="store_true", help="print the outcome as JSON")
        several = verb.add_argument_group(
            "several processes", "Start the same command once a host; --out must be a folder that all of them share."
        )
        several.add_argument(
            "--distributed", action="store_true", help="find the others through Slurm, GKE or a TPU pod"
        )
        several.add_argument("--coordinator", metavar="HOST:PORT", help="of process 0, instead of --distributed")
        several.add_argument("--processes", type=int, metavar="N", help="how many there are")
        several.add_argument("--process", type=int, metavar="I", help="which one this is, from 0")

    ptq = add_verb(
        verbs,
        "ptq",
        _ptq,
        "Quantize the weights of finished runs after training and evaluate them; rows of the same table.",
        "precisionlm ptq runs --bits 3,4,6 --recipe bf16",
    )
    ptq.add_argument("runs", type=Path, help="a run directory or a folder of them")
    ptq.add_argument("--bits", default="3,4,6", help="formats of the weights: bits or int4/g128, e2m1, mxfp4, …")
    ptq.add_argument("--method", default="rtn", help="rtn: round to nearest")
    ptq.add_argument("--recipe", help="only runs trained at this recipe")
    ptq.add_argument("--dry-run", action="store_true", help="list what would be quantized")
    ptq.add_argument("--json", action="store_true", help="print the evaluations as JSON")

    table = add_verb(
        verbs,
        "table",
        _table,
        "Collect run directories into one table, a row a (run, evaluation): Parquet and CSV.",
        "precisionlm table runs -o runs.parquet",
    )
    table.add_argument("runs", type=Path, nargs="?", help="folder of run directories")
    table.add_argument("-o", "--output", type=Path, default=Path("runs.parquet"), help="table to write")
    table.add_argument("--columns", action="store_true", help="print what every column means, and its unit")
    table.add_argument("--json", action="store_true", help="print counts as JSON")

    demo = add_verb(
        verbs,
        "demo",
        _demo,
        "The whole way on real text, in minutes on two CPU cores: prepare data, train a grid of tiny models at three "
        "precisions,\nquantize after training, collect the table, fit a law, write a report.",
        "precisionlm demo --out demo_out",
    )
    demo.add_argument("--out", type=Path, default=Path("demo_out"), help="folder to fill")
    demo.add_argument("--scale", type=float, default=1.0, help="tokens of every run, times this")
    demo.add_argument("--dry-run", action="store_true", help="print the runs it would make, make none")
    demo.add_argument("--json", action="store_true", help="print what was found as JSON")

    add_tools(verbs)
    analysis.add_verbs(verbs)
    return parser


def _data_prepare(args: argparse.Namespace) -> int:
    from dataclasses import asdict

    from precisionlm.data.prepare import prepare, preview
    from precisionlm.progress import reporting

    given = {
        name: getattr(args, name)
        for name in (
            "vocab_size", "tokenizer", "eos_id", "validation", "validation_every", "text_field", "max_tokens",
        )
    }  # fmt: skip
    if args.dry_run:
        found = preview(args.source, args.out, **given)
        size = "of unknown size" if found["bytes"] is None else f"{found['bytes']:,} bytes"
        text = (
            f"{args.out}: {found['status']}; {found['files']} files, {size}, {found['vocab_size']:,} entries, "
            f"tokenizer {found['tokenizer']}; {found['split_rule']}; nothing was written"
        )
        print(json.dumps(found) if args.json else text)
        return DONE
    with reporting("prepare") as report:
        meta = prepare(
            args.source,
            args.out,
            **given,
            progress=lambda text, done, total: report(done / total if total else 0.0, text),
        )
    if args.json:
        print(json.dumps(asdict(meta)))
    else:
        print(
            f"{args.out}: {meta.train.tokens:,} training and {meta.validation.tokens:,} validation tokens of "
            f"{meta.train.documents + meta.validation.documents:,} documents, {meta.vocab_size:,} entries"
        )
    return DONE


def _train(args: argparse.Namespace) -> int:
    from precisionlm.training.preemption import Interruption

    with Interruption() as signalled:  # before the imports that take seconds
        from precisionlm.config import load
        from precisionlm.sweep.scheduler import plan
        from precisionlm.training.loop import train
        from precisionlm.training.processes import is_first, on_all

        experiment = load(args.config, args.rest)
        interrupted = _join(args, signalled)
        if args.dry_run:
            rows = on_all(lambda: plan([experiment], args.out))
            return _print_plan(rows, args.json) if is_first() else DONE
        with _reporting("train") as report:
            outcome = train(
                experiment,
                args.out,
                lambda step, steps, loss: report(step / steps, f"step {step}/{steps} loss {loss:.4f}"),
                interrupted,
            )
    if is_first():
        _print_outcome(outcome, args.json)
    return DIVERGED if outcome.result["status"] == "diverged" else DONE


def _print_outcome(outcome: Any, as_json: bool) -> None:
    row, evaluations = outcome.result["row"], outcome.result["evaluations"]
    if as_json:
        found = {"run_id": outcome.run_id, "run_dir": str(outcome.path), "status": outcome.status}
        print(json.dumps(found | {"result": outcome.result}))
        return
    print(f"{outcome.path}: {outcome.status}, N {row['N_params']:,}, D {row['D_tokens']:,}, {row['recipe']}")
    for evaluation in evaluations:
        print(
            f"  {evaluation['evaluation']} loss {evaluation['val_loss']:.4f} ± {evaluation['val_loss_se']:.4f} "
            "nats/token"
        )


def _join(args: argparse.Namespace, interrupted: Callable[[], bool]) -> Callable[[], bool]:
    """Meet the other processes, if the arguments name any; returns `interrupted` as all of them see it."""
    from precisionlm.training import processes

    processes.start(args.coordinator, args.processes, args.process, args.distributed)
    return processes.agreed(interrupted)


def _reporting(title: str) -> AbstractContextManager[Any]:
    """Progress, shown by process 0."""
    from precisionlm.progress import reporting
    from precisionlm.training.processes import is_first

    return reporting(title) if is_first() else nullcontext(lambda share, text: None)


def _sweep(args: argparse.Namespace) -> int:
    from precisionlm.training.preemption import Interruption

    with Interruption() as signalled:
        from precisionlm.sweep.grid import load_sweep
        from precisionlm.sweep.scheduler import plan, run_sweep
        from precisionlm.training.processes import is_first, on_all

        experiments = load_sweep(args.config, args.rest)
        interrupted = _join(args, signalled)
        rows = on_all(lambda: plan(experiments, args.out))
        if args.dry_run:
            return _print_plan(rows, args.json) if is_first() else DONE
        with _reporting("sweep") as report:
            outcome = run_sweep(rows, args.out, report, interrupted)
    if is_first():
        text = (
            f"{len(rows)} runs: {len(outcome.done)} trained now, {len(outcome.skipped)} finished before, "
            f"{len(outcome.diverged)} diverged; {outcome.compilations} training steps compiled"
        )
        print(json.dumps(vars(outcome)) if args.json else text)
    return DONE


def _print_plan(rows: list[Any], as_json: bool) -> int:
    entries = [
        {
            "run_id": row.run.run_id,
            "status": row.status,
            "N_params": row.non_embedding,
            "D_tokens": row.run.experiment.tokens,
            "recipe": str(row.run.recipe),
            "flops": row.flops,
        }
        for row in rows
    ]
    return _print_runs(entries, as_json)


def _print_runs(entries: list[dict[str, Any]], as_json: bool) -> int:
    if as_json:
        print(json.dumps(entries))
        return DONE
    print(f"{'run':12}  {'status':8}  {'N':>14}  {'D':>16}  {'FLOPs':>9}  recipe")
    for e in entries:
        sizes = f"{e['N_params']:14,}  {e['D_tokens']:16,}  {e['flops']:9.2e}"
        print(f"{e.get('run_id', ''):12}  {e.get('status', ''):8}  {sizes}  {e['recipe']}")
    print(f"{len(entries)} runs, {sum(e['flops'] for e in entries):.3g} FLOPs in all; nothing was run")
    return DONE


def _ptq(args: argparse.Namespace) -> int:
    from precisionlm.precision.recipe import parse_recipe
    from precisionlm.progress import reporting
    from precisionlm.ptq.evaluate import METHODS, finished_runs, quantize_run, weight_quantization
    from precisionlm.training.preemption import Interruption
    from precisionlm.training.run_directory import RunDirectory

    if args.method not in METHODS:
        raise UserError(f"--method {args.method}: valid are {', '.join(METHODS)}")
    quantizations = [weight_quantization(word) for word in args.bits.split(",")]
    folders = finished_runs(args.runs)
    if args.recipe:
        wanted = str(parse_recipe(args.recipe))
        folders = [
            folder
            for folder in folders
            if RunDirectory(folder.parent, folder.name).read_json("result.json")["row"]["recipe"] == wanted
        ]
        if not folders:
            raise UserError(f"{args.runs} holds no finished run trained at '{wanted}'")
    if args.dry_run:
        planned = [
            {"run_dir": str(folder), "method": args.method, "formats": [str(q) for q in quantizations]}
            for folder in folders
        ]
        lines = [f"{row['run_dir']}: {row['method']} to {', '.join(row['formats'])}" for row in planned]
        print(json.dumps(planned) if args.json else "\n".join([*lines, "nothing was quantized"]))
        return DONE
    found = []
    with reporting("ptq") as report, Interruption() as interrupted:
        for i, folder in enumerate(folders):
            rows = quantize_run(folder, args.method, quantizations, partial(report, i / len(folders)), interrupted)
            found += [{"run_dir": str(folder)} | row for row in rows]
    if args.json:
        print(json.dumps(found))
    else:
        for row in found:
            print(
                f"{row['run_dir']}  {row['ptq_method']} {row['ptq_bits']:g} bits  loss {row['val_loss']:.4f} ± "
                f"{row['val_loss_se']:.4f}"
            )
    return DONE


def _table(args: argparse.Namespace) -> int:
    from precisionlm.columns import describe
    from precisionlm.sweep.table import collect, write

    if args.columns:
        print(describe())
        return DONE
    if args.runs is None:
        raise UserError("table needs the folder of run directories; see precisionlm table --help")
    table, unfinished = collect(args.runs)
    paths = write(table, args.output)
    counts = {
        "rows": len(table),
        "runs": int(table["run_id"].nunique()),
        "diverged": int((table["status"] == "diverged").sum()),
        "unfinished": unfinished,
        "files": [str(path) for path in paths],
    }
    if args.json:
        print(json.dumps(counts))
    else:
        print(f"{' and '.join(map(str, paths))}: {counts['rows']} rows of {counts['runs']} runs")
        for folder in unfinished:
            print(f"  left out, not finished: {folder}")
    return DONE


def _demo(args: argparse.Namespace) -> int:
    from precisionlm.demo import preview, run_demo

    if not args.scale > 0:
        raise UserError(f"--scale {args.scale:g}: must be positive")
    if args.dry_run:
        return _print_runs(preview(args.scale), args.json)
    found = run_demo(args.out, args.scale)
    print(json.dumps(found) if args.json else "\n".join(found["lines"]))
    return DONE


if __name__ == "__main__":
    sys.exit(main())
