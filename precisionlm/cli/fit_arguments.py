"""The arguments that verbs on a runs table share: which rows, how to fit. Nothing that fits is imported for them."""

import argparse
from collections.abc import Sequence
from typing import Any

from precisionlm.analysis.fitting.words import OVER
from precisionlm.cli.assignments import assignments
from precisionlm.cli.verbs import check_counts
from precisionlm.json_text import dumps

OBJECTIVES = "huber:DELTA or squares (log residuals), relative or nats (squares)"


def add_table_arguments(parser: argparse.ArgumentParser, required: bool = True) -> None:
    """Arguments that say which rows of which file."""
    parser.add_argument(
        "--runs", metavar="FILE", required=required,
        help="runs table: .csv, .tsv (also .gz), .parquet; or a published one, such as study-2026",
    )  # fmt: skip
    parser.add_argument(
        "--columns",
        metavar="S=COL,...",
        help="what the law's symbols read where the file has other names: a column, an expression over columns "
        "('N=`N (M)`*1e6'), or a number for all rows (log2B=32: elements per scale, as in the column)",
    )
    parser.add_argument(
        "--where",
        metavar="EXPR",
        help="rows to use: a boolean column or an expression, such as \"w_bits >= 4 and recipe != 'bf16'\", "
        "'D_tokens / N_params < 500', 'w_bits in [4, 8]', 'w_group is not missing'",
    )
    parser.add_argument(
        "--drop-duplicates", action="store_true", help="leave out rows that repeat an earlier one (default: keep, warn)"
    )


def columns_of(arguments: argparse.Namespace) -> dict[str, str]:
    """--columns as symbol -> column or expression."""
    return assignments("--columns", arguments.columns, "SYMBOL=COLUMN pairs such as N=N_params,loss=val_loss")


def add_fit_arguments(parser: argparse.ArgumentParser, bootstrap: int) -> None:
    """Arguments that say how to fit."""
    parser.add_argument("--objective", default="huber:1e-3", help=OBJECTIVES)
    parser.add_argument("--starts", type=int, default=500, help="starting points (default 500)")
    parser.add_argument(
        "--bootstrap", type=int, default=bootstrap, metavar="N", help=f"refits for intervals (default {bootstrap})"
    )
    parser.add_argument(
        "--over", choices=OVER, default="auto",
        help="rows that share their noise, for intervals: the data decide (auto), or row, run, seed or (N, D) cell",
    )  # fmt: skip
    parser.add_argument("--weights", action="store_true", help="weight rows by the loss's standard error")
    add_choices(parser)
    add_dry_run(parser)


def add_choices(parser: argparse.ArgumentParser) -> None:
    """Arguments by which a user decides about a law's constants."""
    parser.add_argument("--fix", metavar="NAME=VALUE,...", help="constants to keep at a value")
    parser.add_argument("--bound", metavar="NAME=LOW:HIGH,...", help="bounds of constants, as in delta=-1:5")
    parser.add_argument(
        "--start", metavar="NAME=LOW:HIGH,...", help="ranges (or values) that starting points are spread over"
    )
    parser.add_argument(
        "--reference", metavar="LEVEL", help="level that the others are measured against, or SYMBOL=LEVEL,..."
    )


def add_dry_run(parser: argparse.ArgumentParser) -> None:
    """The argument --dry-run of a verb that fits."""
    parser.add_argument("--dry-run", action="store_true", help="check rows and columns, print them, fit nothing")


def table_and_laws(arguments: argparse.Namespace, names: Sequence[str]) -> Any:
    """The rows of --runs, as a data frame; None without it. Raises UserError also for a law that is none, before
    anything that fits is imported. Laws in files are read by whoever fits them."""
    from precisionlm.analysis import laws
    from precisionlm.analysis.table import files

    frame = files.read(arguments.runs) if arguments.runs else None
    for name in names:
        if not laws.is_own(name):
            laws.get(name)
    return frame


def check_work(arguments: argparse.Namespace) -> None:
    """Raises UserError for numbers of starts, refits or folds that cannot be meant."""
    ranges = {"starts": (1, 1_000_000), "bootstrap": (0, 1_000_000), "folds": (2, 10_000)}
    check_counts(arguments, **{name: ends for name, ends in ranges.items() if hasattr(arguments, name)})


def names_of(text: str) -> list[str]:
    """`a,b` -> [a, b]."""
    return [name.strip() for name in text.split(",") if name.strip()]


def show_plan(arguments: argparse.Namespace, fits: list[dict[str, Any]]) -> int:
    """The end of a dry run: which fits the verb would make."""
    if arguments.json:
        dump({"fits": fits})
        return 0
    for fit in fits:
        excluded = "; ".join(f"{count} x {reason}" for reason, count in fit["excluded"].items())
        print(f"{fit['law']}: {fit['formula']}")
        print(f"  parameters {', '.join(fit['parameters'])}")
        print(
            f"  rows used {fit['rows_used']}, excluded {fit['rows_excluded']}" + (f" ({excluded})" if excluded else "")
        )
        print(f"  {fit['starts']} starts, {fit['bootstrap']} bootstrap refits, objective {fit['objective_name']}")
        for warning in fit["warnings"]:
            print(f"  warning: {warning}")
    print(f"{len(fits)} fits; nothing was fitted or written")
    return 0


def dump(data: Any) -> None:
    """One JSON object on standard output."""
    print(dumps(data, indent=2))
