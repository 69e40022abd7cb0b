"""The arguments of verbs on a runs table as options of `precisionlm.api`, and what a fit of them would be."""

import argparse
from dataclasses import replace
from typing import Any

from precisionlm import api
from precisionlm.analysis.fitting.analysis import Analysis
from precisionlm.analysis.fitting.analyze import select
from precisionlm.analysis.fitting.choices import Choices
from precisionlm.analysis.fitting.objective import parse_objective
from precisionlm.cli.assignments import numbers, ranges
from precisionlm.cli.fit_arguments import check_work, columns_of


def fit_from(arguments: argparse.Namespace, frame: Any, law: str, columns: dict[str, str] | None = None) -> Analysis:
    """The fit that a verb's arguments ask for; `columns` in place of --columns."""
    found = api.fit(
        frame, law, **shared(arguments, columns), bootstrap=arguments.bootstrap, over=arguments.over,
        weights=arguments.weights, staged=getattr(arguments, "staged", False),
    )  # fmt: skip
    return replace(found, source=str(arguments.runs))


def shared(arguments: argparse.Namespace, columns: dict[str, str] | None = None) -> dict[str, Any]:
    """The options that `api.fit` and `api.compare` share."""
    return {
        "columns": columns_of(arguments) if columns is None else columns,
        "where": arguments.where,
        "drop_duplicates": arguments.drop_duplicates,
        "objective": arguments.objective,
        "starts": arguments.starts,
        **_decided(arguments),
    }


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
    return api.choices(**_decided(arguments))


def _decided(arguments: argparse.Namespace) -> dict[str, Any]:
    return {
        "fix": numbers("--fix", arguments.fix),
        "bound": ranges("--bound", arguments.bound, "NAME=LOW:HIGH, such as delta=-1:5"),
        "start": ranges("--start", arguments.start, "NAME=LOW:HIGH or NAME=VALUE"),
        "reference": arguments.reference or "",
    }
