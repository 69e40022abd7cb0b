"""The command line: every verb parses, calls one function, prints. Exit codes: `precisionlm.errors`."""

import argparse
import logging
import math
import os
import shlex
import sys
from pathlib import Path

from precisionlm.cli.boundary import guarded
from precisionlm.cli.config import add_config
from precisionlm.cli.data import add_data
from precisionlm.cli.doctor import add_doctor
from precisionlm.cli.hub import add_hub
from precisionlm.cli.ptq import add_ptq
from precisionlm.cli.runs import add_runs
from precisionlm.cli.sweep import add_sweep
from precisionlm.cli.table import add_table
from precisionlm.cli.tools import add_tools
from precisionlm.cli.training import add_training
from precisionlm.cli.verbs import Parser, add_verb, print_runs, without_overrides
from precisionlm.cli.watch import add_watch
from precisionlm.cluster.children import end_with_parent
from precisionlm.errors import DEBUG, DONE, UserError
from precisionlm.json_text import dumps


def main(arguments: list[str] | None = None) -> int:
    """Run one command; returns its exit code. Raises SystemExit after --help and --version alone."""
    end_with_parent()
    return guarded(lambda: _run(sys.argv[1:] if arguments is None else arguments))


def _run(arguments: list[str]) -> int:
    # Imported libraries talk at INFO and WARNING about their own workings; a user reads ours.
    logging.getLogger("absl").setLevel(logging.ERROR)
    if DEBUG not in os.environ:  # these log, with a traceback, what they raise as well and we say in one line
        for library in ("gcsfs", "s3fs", "fsspec", "google", "aiobotocore", "botocore"):
            logging.getLogger(library).setLevel(logging.CRITICAL)
    words, overrides = without_overrides(arguments)
    args, rest = build_parser().parse_known_args(words)
    for name, value in vars(args).items():
        if value == []:  # what argparse makes of --name=--
            raise UserError(f"{args.command}: --{name.replace('_', '-')} needs a value")
    unknown = [*rest, *overrides]
    if unknown and not args.overrides:
        raise UserError(f"{args.command}: unknown argument '{unknown[0]}'; see precisionlm {args.command} --help")
    args.rest = unknown
    args.typed = shlex.join(["precisionlm", *arguments])
    code: int = args.run(args)
    return code


def build_parser() -> argparse.ArgumentParser:
    """The parser of every verb."""
    from precisionlm import __version__
    from precisionlm.cli.fit import add_verbs
    from precisionlm.cli.study import add_predictions, add_publish

    parser = Parser(
        prog="precisionlm",
        description="What numeric precision costs a language model, and the best precision for a budget.",
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"precisionlm {__version__}")
    verbs = parser.add_subparsers(required=True, metavar="VERB")

    add_config(verbs)
    add_data(verbs)
    add_training(verbs)
    add_ptq(verbs)
    add_hub(verbs)
    add_sweep(verbs)
    add_watch(verbs)
    add_runs(verbs)

    add_table(verbs)

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

    add_doctor(verbs)
    add_tools(verbs)
    add_verbs(verbs)
    add_predictions(verbs)
    add_publish(verbs)
    return parser


def _demo(args: argparse.Namespace) -> int:
    from precisionlm.cli.demo import preview, run_demo

    if not 0 < args.scale < math.inf:
        raise UserError(f"--scale {args.scale:g}: must be a positive number")
    if args.dry_run:
        return print_runs(preview(args.scale), args.json)
    found = run_demo(args.out, args.scale)
    print(dumps(found) if args.json else "\n".join(found["lines"]))
    return DONE


if __name__ == "__main__":
    sys.exit(main())
