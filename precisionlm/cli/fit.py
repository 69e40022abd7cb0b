"""The verbs that work on a runs table: fit, compare, plan; figures and report are in `cli.figures`.

A verb reads the table and looks the law up before it imports what fits, so that what is wrong with them is told
at once.
"""

import argparse
import sys
from typing import TYPE_CHECKING, Any

from precisionlm.analysis.fitting.words import LEAST_ROWS
from precisionlm.cli.figures import add_figures, add_report
from precisionlm.cli.fit_arguments import (
    OBJECTIVES,
    add_choices,
    add_dry_run,
    add_fit_arguments,
    add_table_arguments,
    columns_of,
    dump,
    names_of,
    show_plan,
    table_and_laws,
)
from precisionlm.cli.plan_arguments import add_plan_arguments, plan_options
from precisionlm.cli.verbs import add_verb
from precisionlm.errors import UserError

if TYPE_CHECKING:
    from precisionlm.analysis.fitting.analysis import Analysis
    from precisionlm.analysis.fitting.compare import Comparison


def add_verbs(subparsers: Any) -> None:
    """Register the verbs on an argparse subparsers object."""
    add_fit(subparsers)
    _add_compare(subparsers)
    _add_plan(subparsers)
    add_figures(subparsers)
    add_report(subparsers)


def add_fit(subparsers: Any) -> None:
    """Register the verb fit."""
    parser = add_verb(
        subparsers, "fit", run_fit,
        "Fit a scaling law to a runs table. Prints the constants with intervals, how well they are determined, and "
        "which rows were used.",
        "precisionlm fit --runs runs.csv --law kumar --bootstrap 1000 --json",
    )  # fmt: skip
    add_table_arguments(parser)
    parser.add_argument(
        "--law",
        required=True,
        help="name of the law, such as chinchilla, kumar, sun, chen, frantar; or FILE.py:NAME, one of your own",
    )
    add_fit_arguments(parser, bootstrap=0)
    parser.add_argument("--staged", action="store_true", help="fit the base on unquantized runs first, the rest after")
    parser.add_argument(
        "--profile", metavar="NAME,...", help="profile intervals of constants, of P (optimal bits) or of D_crit"
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object")


def _add_compare(subparsers: Any) -> None:
    parser = add_verb(
        subparsers,
        "compare",
        run_compare,
        "Compare scaling laws on the same rows by their error on runs left out: each (N, D) pair in turn, the largest "
        "N, the largest D. Differences to the best law come with paired intervals.",
        "precisionlm compare --runs runs.csv --laws chinchilla,kumar,sun --json",
    )
    add_table_arguments(parser)
    parser.add_argument("--laws", required=True, metavar="A,B,...", help="names of two or more laws, or FILE.py:NAME")
    parser.add_argument("--objective", default="huber:1e-3", help=OBJECTIVES)
    parser.add_argument("--starts", type=int, default=200, help="starting points per law (default 200)")
    add_dry_run(parser)
    add_choices(parser)
    parser.add_argument("--folds", type=int, default=10, help="folds over (N, D) pairs, 2 or more (default 10)")
    parser.add_argument(
        "--held-out", type=int, default=LEAST_ROWS, metavar="ROWS",
        help=f"rows to hold out at the largest N and D at least: the next largest are added (default {LEAST_ROWS})",
    )  # fmt: skip
    parser.add_argument("--json", action="store_true", help="print one JSON object")


def _add_plan(subparsers: Any) -> None:
    parser = add_verb(
        subparsers,
        "plan",
        run_plan,
        "Decide: the size, tokens and bits of least loss under a budget; critical data; the loss at a point; sizes of "
        "equal loss; which runs to add next. Constants are published ones or a fit of your own runs, with intervals.",
        "precisionlm plan --law kumar --published --compute 1e21 --json",
    )
    parser.add_argument("--law", required=True, help="name of the law, such as kumar, sun, chinchilla")
    add_table_arguments(parser, required=False)
    add_fit_arguments(parser, bootstrap=500)
    add_plan_arguments(parser)


def run_fit(arguments: argparse.Namespace) -> int:
    """`precisionlm fit`."""
    frame = table_and_laws(arguments, [arguments.law])
    from precisionlm.cli.fit_from import fit_from, preview
    from precisionlm.cli.profile import profiles

    if arguments.dry_run:
        return show_plan(arguments, [preview(arguments, frame, arguments.law)])
    analysis = fit_from(arguments, frame, arguments.law)
    found = profiles(analysis, names_of(arguments.profile)) if arguments.profile else {}
    if arguments.json:
        dump(analysis.to_dict() | ({"profiles": found} if found else {}))
        return 0
    _show(analysis)
    for name, profile in found.items():
        ends = "[{:.4g}, {:.4g}]".format(*profile["interval"])
        print(f"  profile of {name}: {profile['value']:.6g} {ends}  {profile['meaning']}")
    return 0


def run_compare(arguments: argparse.Namespace) -> int:
    """`precisionlm compare`."""
    names = names_of(arguments.laws)
    frame = table_and_laws(arguments, names)
    from precisionlm import api
    from precisionlm.analysis.fitting.compare import check_symbols, own_columns
    from precisionlm.cli.fit_from import preview, shared

    renamed = columns_of(arguments)
    check_symbols(names, renamed)
    if arguments.dry_run:
        return show_plan(
            arguments, [preview(arguments, frame, law, columns=own_columns(law, renamed)) for law in names]
        )
    comparison = api.compare(frame, names, **shared(arguments), folds=arguments.folds, held_out=arguments.held_out)
    if arguments.json:
        dump(comparison.to_dict())
    else:
        _show(comparison)
    return 0


def _show(found: "Analysis | Comparison") -> None:
    print(found)
    for warning in found.warnings:
        print(f"warning: {warning}", file=sys.stderr)


def run_plan(arguments: argparse.Namespace) -> int:
    """`precisionlm plan`."""
    if arguments.published and (arguments.runs or arguments.with_fit):
        raise UserError("--published and a fit (--runs, --with-fit) exclude each other")
    if arguments.with_fit and not arguments.runs:
        raise UserError("--with-fit needs --runs FILE")
    frame = table_and_laws(arguments, [arguments.law])
    from precisionlm import api
    from precisionlm.cli.fit_from import fit_from, preview

    if arguments.dry_run:
        return show_plan(arguments, [preview(arguments, frame, arguments.law)] if frame is not None else [])
    fitted = fit_from(arguments, frame, arguments.law) if frame is not None else None
    found = api.plan(fitted or arguments.law, **plan_options(arguments))
    if arguments.json:
        dump(found.to_dict())
    else:
        print(found)
    return 0
