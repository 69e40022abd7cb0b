"""What the verbs on a runs table share: which rows, how to fit, what would be fitted, and how a fit prints as JSON."""

import argparse
from dataclasses import asdict
from typing import Any

from precisionlm.analysis.fitting.analyze import Analysis, analyze, select
from precisionlm.analysis.fitting.grouping import OVER
from precisionlm.analysis.fitting.objective import parse_objective
from precisionlm.analysis.table import read as tables
from precisionlm.errors import UserError
from precisionlm.json_text import dumps


def add_table_arguments(parser: argparse.ArgumentParser, required: bool = True) -> None:
    """Arguments that say which rows of which file."""
    parser.add_argument("--runs", metavar="FILE", required=required, help="runs table, .csv or .parquet")
    parser.add_argument(
        "--columns", metavar="S=COL,...", help="the law's symbol = column of the file, where they differ"
    )
    parser.add_argument("--where", metavar="EXPR", help="a boolean column, or an expression such as 'w_bits >= 4'")


def add_fit_arguments(parser: argparse.ArgumentParser, bootstrap: int) -> None:
    """Arguments that say how to fit."""
    parser.add_argument(
        "--objective", default="huber:1e-3", help="huber:DELTA or squares (log residuals), relative or nats (squares)"
    )
    parser.add_argument("--starts", type=int, default=500, help="starting points (default 500)")
    parser.add_argument(
        "--bootstrap", type=int, default=bootstrap, metavar="N", help=f"refits for intervals (default {bootstrap})"
    )
    parser.add_argument(
        "--over", choices=OVER, default="auto",
        help="rows that share their noise, for intervals: the data decide (auto), or row, run, seed or (N, D) cell",
    )  # fmt: skip
    parser.add_argument("--weights", action="store_true", help="weight rows by the loss's standard error")
    add_dry_run(parser)


def add_dry_run(parser: argparse.ArgumentParser) -> None:
    """The argument --dry-run of a verb that fits."""
    parser.add_argument("--dry-run", action="store_true", help="check rows and columns, print them, fit nothing")


def names_of(text: str) -> list[str]:
    """`a,b` -> [a, b]."""
    return [name.strip() for name in text.split(",") if name.strip()]


def fit_from(arguments: argparse.Namespace, frame: Any, law: str, columns: dict[str, str] | None = None) -> Analysis:
    """The fit that a verb's arguments ask for; `columns` in place of --columns."""
    renamed = tables.parse_columns(arguments.columns) if columns is None else columns
    return analyze(
        frame, law, renamed, arguments.where, parse_objective(arguments.objective),
        arguments.starts, arguments.bootstrap, arguments.over, fixed=parse_values(getattr(arguments, "fix", None)),
        staged=getattr(arguments, "staged", False), weighted=arguments.weights,
    )  # fmt: skip


def preview(
    arguments: argparse.Namespace, frame: Any, law: str, columns: dict[str, str] | None = None
) -> dict[str, Any]:
    """What `fit_from` would fit, as plain data; checks everything that can be checked without fitting."""
    renamed = tables.parse_columns(arguments.columns) if columns is None else columns
    objective = parse_objective(arguments.objective)
    fixed = parse_values(getattr(arguments, "fix", None))
    table = select(law, frame, renamed, arguments.where)
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


def parse_values(text: str | None) -> dict[str, float]:
    """`alpha=0.5,E=1.7` -> {name: value}."""
    values = {}
    for part in (text or "").split(","):
        if part.strip():
            name, _, value = part.partition("=")
            try:
                values[name.strip()] = float(value)
            except ValueError as problem:
                raise UserError(f"--fix '{part}': expected NAME=VALUE with a number") from problem
    return values


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
