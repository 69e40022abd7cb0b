"""The verbs that work on a runs table: fit, compare, plan, figures, report."""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from precisionlm.analysis import (
    figures,
    figures_chen,
    figures_forms,
    figures_kumar,
    figures_sun,
    figures_table,
    laws,
)
from precisionlm.analysis import report as reports
from precisionlm.analysis import table as tables
from precisionlm.analysis.analyze import Analysis, analyze
from precisionlm.analysis.cli_plan import add_plan_arguments, describe, plan
from precisionlm.analysis.compare import as_table, compare, own_columns
from precisionlm.analysis.decisions import decisions
from precisionlm.analysis.laws.base import Law
from precisionlm.analysis.objective import parse_objective
from precisionlm.errors import UserError


def add_verbs(subparsers: Any) -> None:
    """Register the verbs on an argparse subparsers object; each sets `run`, a function of the parsed arguments."""
    _add_fit(subparsers)
    _add_compare(subparsers)
    _add_plan(subparsers)
    _add_figures(subparsers)
    _add_report(subparsers)


def _verb(subparsers: Any, name: str, text: str, example: str) -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = subparsers.add_parser(
        name, help=text.split(". ")[0], description=text, epilog=f"example: {example}",
        formatter_class=argparse.RawDescriptionHelpFormatter if "\n" in example else argparse.HelpFormatter,
    )  # fmt: skip
    return parser


def add_table_arguments(parser: argparse.ArgumentParser, required: bool = True) -> None:
    """Arguments that say which rows of which file."""
    parser.add_argument("--runs", metavar="FILE", required=required, help="runs table, .csv or .parquet")
    parser.add_argument(
        "--columns", metavar="S=COL,...", help="the law's symbol = column of the file, where they differ"
    )
    parser.add_argument("--where", metavar="EXPR", help="a boolean column, or an expression such as 'w_bits >= 4'")


def add_fit_arguments(parser: argparse.ArgumentParser, bootstrap: int) -> None:
    """Arguments that say how to fit."""
    parser.add_argument("--objective", default="huber:1e-3", help="huber:DELTA or squares (log residuals), or relative")
    parser.add_argument("--starts", type=int, default=500, help="starting points (default 500)")
    parser.add_argument(
        "--bootstrap", type=int, default=bootstrap, metavar="N", help=f"refits for intervals (default {bootstrap})"
    )
    parser.add_argument(
        "--over", choices=("row", "run", "cell"), default="run", help="what the bootstrap resamples (default run)"
    )
    parser.add_argument("--weights", action="store_true", help="weight rows by the loss's standard error")


def _add_fit(subparsers: Any) -> None:
    parser = _verb(
        subparsers, "fit",
        "Fit a scaling law to a runs table. Prints the constants with intervals, how well they are determined, and "
        "which rows were used.",
        "precisionlm fit --runs runs.csv --law kumar --bootstrap 1000 --json",
    )  # fmt: skip
    add_table_arguments(parser)
    parser.add_argument("--law", required=True, help="name of the law, such as chinchilla, kumar, sun, chen, frantar")
    add_fit_arguments(parser, bootstrap=0)
    parser.add_argument("--staged", action="store_true", help="fit the base on unquantized runs first, the rest after")
    parser.add_argument("--fix", metavar="NAME=VALUE,...", help="constants to keep at a value")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.set_defaults(run=run_fit)


def _add_report(subparsers: Any) -> None:
    parser = _verb(
        subparsers, "report",
        "Write one self-contained HTML page about a runs table: constants with intervals, figures, warnings, "
        "decisions and, for several laws, their comparison on held-out runs. Figures "
        "are also written beside it as SVG and PNG.",
        "precisionlm report --runs runs.parquet --law kumar -o report.html",
    )  # fmt: skip
    add_table_arguments(parser)
    parser.add_argument("--law", default="kumar", help="law or laws, separated by commas (default kumar)")
    add_fit_arguments(parser, bootstrap=500)
    parser.add_argument("-o", "--out", default="report.html", help="the page to write (default report.html)")
    parser.add_argument("--title", default="Precision scaling laws")
    parser.add_argument("--json", action="store_true", help="print paths and findings as one JSON object")
    parser.set_defaults(run=run_report)


def _add_figures(subparsers: Any) -> None:
    parser = _verb(
        subparsers,
        "figures",
        "Draw the figures of a law's paper, as SVG and PNG. From published constants, or from a fit of your runs, "
        "which adds the figures of the runs themselves with bands.",
        "precisionlm figures --law kumar --published -o figures",
    )
    parser.add_argument("--law", required=True, help="name of the law: a member of the kumar family, sun, chen, ...")
    add_table_arguments(parser, required=False)
    add_fit_arguments(parser, bootstrap=500)
    parser.add_argument("--published", action="store_true", help="use the constants its paper prints")
    parser.add_argument("-o", "--out", default="figures", help="folder to write to (default figures)")
    parser.add_argument("--json", action="store_true", help="print the paths as one JSON object")
    parser.set_defaults(run=run_figures)


def _add_compare(subparsers: Any) -> None:
    parser = _verb(
        subparsers,
        "compare",
        "Compare scaling laws on the same rows by their error on runs left out: each (N, D) pair in turn, the largest "
        "N, the largest D. Differences to the best law come with paired intervals.",
        "precisionlm compare --runs runs.csv --laws chinchilla,kumar,sun --json",
    )
    add_table_arguments(parser)
    parser.add_argument("--laws", required=True, metavar="A,B,...", help="names of two or more laws")
    parser.add_argument("--objective", default="huber:1e-3", help="huber:DELTA or squares (log residuals), or relative")
    parser.add_argument("--starts", type=int, default=200, help="starting points per law (default 200)")
    parser.add_argument("--folds", type=int, default=10, help="folds over (N, D) pairs (default 10)")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.set_defaults(run=run_compare)


def _add_plan(subparsers: Any) -> None:
    parser = _verb(
        subparsers,
        "plan",
        "Decide: the size, tokens and bits of least loss under a budget; critical data; the loss at a point; sizes of "
        "equal loss; which runs to add next. Constants are published ones or a fit of your own runs, with intervals.",
        "precisionlm plan --law kumar --published --compute 1e21 --json",
    )
    parser.add_argument("--law", required=True, help="name of the law, such as kumar, sun, chinchilla")
    add_table_arguments(parser, required=False)
    add_fit_arguments(parser, bootstrap=500)
    add_plan_arguments(parser)
    parser.set_defaults(run=run_plan)


def fit_from(
    arguments: argparse.Namespace, frame: Any, law: str, resamples: int | None = None,
    columns: dict[str, str] | None = None,
) -> Analysis:  # fmt: skip
    """The fit that a verb's arguments ask for; `columns` in place of --columns."""
    renamed = tables.parse_columns(arguments.columns) if columns is None else columns
    return analyze(
        frame, law, renamed, arguments.where, parse_objective(arguments.objective),
        arguments.starts, arguments.bootstrap if resamples is None else resamples, arguments.over,
        fixed=parse_values(getattr(arguments, "fix", None)), staged=getattr(arguments, "staged", False),
        weighted=arguments.weights,
    )  # fmt: skip


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
        "warnings": list(dict.fromkeys(analysis.warnings)), "seconds": result.seconds,
    }  # fmt: skip
    if analysis.bootstrap:
        boot = analysis.bootstrap
        out["intervals"] = {k: list(v) for k, v in boot.intervals.items()}
        out["standard_errors"] = boot.errors
        out["bootstrap"] = {"resamples": boot.resamples, "finished": len(boot.samples), "over": boot.over,
                            "groups": boot.groups, "seconds": boot.seconds}  # fmt: skip
    if analysis.stages:
        out["stages"] = [as_json(Analysis(stage)) for stage in analysis.stages]
    return out


def dump(data: Any) -> None:
    """One JSON object on standard output; numbers that JSON lacks become null."""
    print(json.dumps(_finite(data), indent=2))


def _finite(data: Any) -> Any:
    if isinstance(data, dict):
        return {str(k): _finite(v) for k, v in data.items()}
    if isinstance(data, list | tuple):
        return [_finite(v) for v in data]
    if isinstance(data, float) and data - data != 0:
        return None
    return data


def run_fit(arguments: argparse.Namespace) -> int:
    """`precisionlm fit`."""
    analysis = fit_from(arguments, tables.read(arguments.runs), arguments.law)
    if arguments.json:
        dump(as_json(analysis))
    else:
        print_fit(analysis)
    return 0


def print_fit(analysis: Analysis) -> None:
    """Constants and how far to trust them, for a terminal."""
    result = analysis.result
    print(f"{analysis.law.name}: {analysis.law.title}")
    print(f"status {result.status.value}   {result.objective} = {result.objective_value:.10g}   R² {result.r2:.4f}   "
          f"rms log residual {result.rms_log:.4g}   condition {result.condition:.2g}")  # fmt: skip
    print(f"{result.share:.0%} of {result.starts} starts reached it in {result.seconds:.1f} s")
    excluded = "; ".join(f"{count} x {reason}" for reason, count in result.table.excluded.items())
    print(f"rows used {result.rows_used}, excluded {result.rows_excluded}" + (f" ({excluded})" if excluded else ""))
    for p in analysis.law.parameters:
        low_high = analysis.intervals.get(p.name) if p.name in result.free else None
        interval = f"  [{low_high[0]:.4g}, {low_high[1]:.4g}]" if low_high else ""
        held = "" if p.name in result.free else "  held"
        print(f"  {p.name:<11} {result.params[p.name]:<12.6g}{interval:<26}{held}  {p.meaning}")
    for warning in dict.fromkeys(analysis.warnings):
        print(f"warning: {warning}", file=sys.stderr)


def run_report(arguments: argparse.Namespace) -> int:
    """`precisionlm report`."""
    frame = tables.read(arguments.runs)
    names = list(dict.fromkeys(law.strip() for law in arguments.law.split(",") if law.strip()))
    renamed = tables.parse_columns(arguments.columns)
    for symbol in renamed:
        if not any(own_columns(law, {symbol: ""}) for law in names):
            raise UserError(f"--columns: none of the laws {', '.join(names)} has a symbol '{symbol}'")
    fits = [fit_from(arguments, frame, law, columns=own_columns(law, renamed)) for law in names]
    comparison = None
    if len(fits) > 1 and len({fit.law.is_gap for fit in fits}) == 1:  # a loss and a gap are different columns
        objective = parse_objective(arguments.objective)
        comparison = as_table(compare(frame, names, renamed, arguments.where, objective, min(arguments.starts, 200)))
    advice = [line for fit in fits for line in decisions(fit)]
    summary = reports.write_report(frame, fits, Path(arguments.out), arguments.title, comparison, advice)
    if arguments.json:
        dump(
            {
                "report": str(summary.path),
                "figures": [str(p) for p in summary.figures],
                "findings": list(summary.lines),
                "decisions": advice,
            }
        )
    else:
        print("\n".join([*summary.lines, *advice, f"report: {summary.path}"]))
    return 0


def run_compare(arguments: argparse.Namespace) -> int:
    """`precisionlm compare`."""
    comparison = compare(
        tables.read(arguments.runs), [name.strip() for name in arguments.laws.split(",") if name.strip()],
        tables.parse_columns(arguments.columns), arguments.where, parse_objective(arguments.objective),
        arguments.starts, arguments.folds,
    )  # fmt: skip
    if arguments.json:
        dump({
            "rows_used": comparison.rows, "rows_excluded": sum(comparison.excluded.values()),
            "ranking": [s.fit.law.name for s in comparison.scores],
            "laws": [as_json(Analysis(s.fit)) | {"held_out_rms_log": s.held_out} for s in comparison.scores],
            "squared_error_above_best": {k: list(v) for k, v in comparison.differences.items()},
            "warnings": list(comparison.warnings),
        })  # fmt: skip
        return 0
    shown = as_table(comparison)
    rows = [shown["head"], *shown["rows"]]
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    print(shown["caption"])
    print("\n".join("  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)).rstrip() for row in rows))
    for warning in comparison.warnings:
        print(f"warning: {warning}", file=sys.stderr)
    return 0


def run_plan(arguments: argparse.Namespace) -> int:
    """`precisionlm plan`."""
    if arguments.published and (arguments.runs or arguments.with_fit):
        raise UserError("--published and a fit (--runs, --with-fit) exclude each other")
    if arguments.with_fit and not arguments.runs:
        raise UserError("--with-fit needs --runs FILE")
    fitted = fit_from(arguments, tables.read(arguments.runs), arguments.law) if arguments.runs else None
    result = plan(arguments, fitted)
    if arguments.json:
        dump(result)
    else:
        print(describe(result))
    return 0


def run_figures(arguments: argparse.Namespace) -> int:
    """`precisionlm figures`."""
    if arguments.published == bool(arguments.runs):
        raise UserError("figures needs either --published or --runs FILE")
    if arguments.published:
        law = laws.get(arguments.law)
        if not law.published:
            raise UserError(f"law {law.name} has no published constants; give --runs FILE")
        drawn = paper_figures(law, law.published[0].as_dict())
        if not drawn:
            raise UserError(f"law {law.name} has no figures without runs; give --runs FILE")
    else:
        frame = tables.read(arguments.runs)
        analysis = fit_from(arguments, frame, arguments.law)
        drawn = figures.of_fit(analysis) | paper_figures(analysis.law, analysis.result.params)
        drawn |= figures_table.draw(frame) | observed_map(analysis)
        if arguments.law == "sun":
            drawn |= figures_forms.draw(frame)
    paths = figures.write_all(drawn, Path(arguments.out))
    if arguments.json:
        dump({"law": arguments.law, "figures": [str(p) for p in paths]})
    else:
        print("\n".join(str(p) for p in paths))
    return 0


def paper_figures(law: Law, params: dict[str, float]) -> dict[str, Figure]:
    """The figures of the law's own paper, for these constants."""
    if law.name.startswith("kumar"):
        return figures_kumar.draw(law, params)
    painters = {"sun": figures_sun.draw, "chen": figures_chen.draw, "chen_gap": figures_chen.draw}
    return painters[law.name](law, params) if law.name in painters else {}


def observed_map(analysis: Analysis) -> dict[str, Figure]:
    """Kumar's map of added loss over P_w x P_post beside the observed one, where the rows have two of each."""
    columns = analysis.result.table.columns
    if not {"P_w", "P_post"} <= set(columns) or analysis.law.is_gap:
        return {}
    gap = figures.observed_gaps(analysis)
    known = np.isfinite(gap)
    if min((len(np.unique(columns[k][known])) for k in ("P_w", "P_post")), default=0) < 2:
        return {}
    rows = (columns["P_w"], columns["P_post"], gap, columns["N"], columns["D"])
    return {"fig07_21_added_loss_map": figures_kumar.added_loss_map(analysis.law, analysis.result.params, rows)}
