"""What the verbs on a runs table share: which rows, how to fit, what would be fitted, and how a fit prints as JSON."""

import argparse
from dataclasses import asdict
from typing import Any

from precisionlm.analysis.fitting.analyze import Analysis, analyze, select
from precisionlm.analysis.fitting.choices import Choices
from precisionlm.analysis.fitting.grouping import OVER
from precisionlm.analysis.fitting.objective import parse_objective
from precisionlm.cli.assignments import assignments, numbers, ranges
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


def check_work(arguments: argparse.Namespace) -> None:
    """Raises UserError for numbers of starts, refits or folds that cannot be meant."""
    ranges = {"starts": (1, 1_000_000), "bootstrap": (0, 1_000_000), "folds": (2, 10_000)}
    check_counts(arguments, **{name: ends for name, ends in ranges.items() if hasattr(arguments, name)})


def names_of(text: str) -> list[str]:
    """`a,b` -> [a, b]."""
    return [name.strip() for name in text.split(",") if name.strip()]


def fit_from(arguments: argparse.Namespace, frame: Any, law: str, columns: dict[str, str] | None = None) -> Analysis:
    """The fit that a verb's arguments ask for; `columns` in place of --columns."""
    check_work(arguments)
    renamed = columns_of(arguments) if columns is None else columns
    return analyze(
        frame, law, renamed, arguments.where, parse_objective(arguments.objective),
        arguments.starts, arguments.bootstrap, arguments.over, choices=choices_of(arguments),
        staged=getattr(arguments, "staged", False), weighted=arguments.weights,
        drop_duplicates=arguments.drop_duplicates,
    )  # fmt: skip


def preview(
    arguments: argparse.Namespace, frame: Any, law: str, columns: dict[str, str] | None = None
) -> dict[str, Any]:
    """What `fit_from` would fit, as plain data; checks everything that can be checked without fitting."""
    check_work(arguments)
    renamed = columns_of(arguments) if columns is None else columns
    objective = parse_objective(arguments.objective)
    choices = choices_of(arguments)
    table = select(law, frame, renamed, arguments.where, choices, arguments.drop_duplicates)
    fixed = choices.fixed_of(table.law)
    return {
        "law": table.law.name, "formula": table.law.title, "objective_name": str(objective),
        "parameters": [name for name in table.law.names if name not in fixed], "held": fixed,
        "rows_used": len(table), "rows_excluded": sum(table.excluded.values()), "excluded": table.excluded,
        "starts": arguments.starts, "bootstrap": getattr(arguments, "bootstrap", 0), "warnings": list(table.warnings),
    }  # fmt: skip


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


def choices_of(arguments: argparse.Namespace) -> Choices:
    """What the arguments --fix, --bound, --start and --reference decide."""
    return Choices(
        bounds=ranges("--bound", arguments.bound, "NAME=LOW:HIGH, such as delta=-1:5"),
        starts=ranges("--start", arguments.start, "NAME=LOW:HIGH or NAME=VALUE"),
        fixed=numbers("--fix", arguments.fix),
        reference=arguments.reference or "",
    )


def as_json(analysis: Analysis) -> dict[str, Any]:
    """A fit as plain data; objective is the minimised sum."""
    result = analysis.result
    out: dict[str, Any] = {
        "law": analysis.law.name, "formula": analysis.law.title, "params": result.params,
        "objective": result.objective_value, "objective_name": str(result.objective), "status": result.status.value,
        "rows_used": result.rows_used, "rows_excluded": result.rows_excluded, "excluded": result.table.excluded,
        "fitted": list(result.free), "starts": result.starts, "share_at_optimum": result.share,
        "gradient_cosine": result.gradient, "condition": result.condition, "r2": result.r2,
        "rms_log_residual": result.rms_log, "correlation": result.correlation.tolist(),
        "findings": [asdict(finding) for finding in analysis.findings], "identified": analysis.identified,
        "intervals": {k: list(v) for k, v in analysis.intervals.items()}, "intervals_from": analysis.intervals_from,
        "standard_errors": analysis.standard_errors, "warnings": list(dict.fromkeys(analysis.warnings)),
        "seconds": result.seconds,
    }  # fmt: skip
    if analysis.bootstrap:
        boot = analysis.bootstrap
        out["bootstrap"] = {"resamples": boot.resamples, "finished": len(boot.samples), "over": boot.over,
                            "groups": boot.groups, "seconds": boot.seconds}  # fmt: skip
    if analysis.stages:
        out["stages"] = [as_json(Analysis(stage)) for stage in analysis.stages]
    return out


def dump(data: Any) -> None:
    """One JSON object on standard output."""
    print(dumps(data, indent=2))
