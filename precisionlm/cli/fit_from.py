"""What the arguments of verbs on a runs table ask for: a fit, what would be fitted, and how a fit prints as JSON."""

import argparse
from dataclasses import asdict
from typing import Any

from precisionlm.analysis.fitting.analyze import Analysis, analyze, select
from precisionlm.analysis.fitting.choices import Choices
from precisionlm.analysis.fitting.objective import parse_objective
from precisionlm.cli.assignments import numbers, ranges
from precisionlm.cli.fit_arguments import check_work, columns_of


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
