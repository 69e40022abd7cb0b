"""The verbs that draw: figures and report."""

import argparse
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from precisionlm.analysis import laws
from precisionlm.analysis.decisions.summary import decisions
from precisionlm.analysis.figures import chen, draw, forms, kumar, stepwise, sun
from precisionlm.analysis.figures import rows as figure_rows
from precisionlm.analysis.fitting.analyze import Analysis
from precisionlm.analysis.fitting.compare import as_table, check_symbols, compare, own_columns
from precisionlm.analysis.fitting.objective import parse_objective
from precisionlm.analysis.laws.base import Law
from precisionlm.analysis.report.report import write_report
from precisionlm.analysis.table import read as tables
from precisionlm.cli.fit_arguments import (
    add_fit_arguments,
    add_table_arguments,
    columns_of,
    dump,
    fit_from,
    names_of,
    preview,
    show_plan,
)
from precisionlm.cli.verbs import add_verb
from precisionlm.errors import UserError


def add_figures(subparsers: Any) -> None:
    """Register the verb figures."""
    parser = add_verb(
        subparsers,
        "figures",
        run_figures,
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


def add_report(subparsers: Any) -> None:
    """Register the verb report."""
    parser = add_verb(
        subparsers, "report", run_report,
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


def run_figures(arguments: argparse.Namespace) -> int:
    """`precisionlm figures`."""
    if arguments.published == bool(arguments.runs):
        raise UserError("figures needs either --published or --runs FILE")
    if arguments.published:
        law = laws.get(arguments.law)
        if not law.published:
            raise UserError(f"law {law.name} has no published constants; give --runs FILE")
        if arguments.dry_run:
            return show_plan(arguments, [])
        drawn = paper_figures(law, law.published[0].as_dict())
        if not drawn:
            raise UserError(f"law {law.name} has no figures without runs; give --runs FILE")
    else:
        frame = tables.read(arguments.runs)
        if arguments.dry_run:
            return show_plan(arguments, [preview(arguments, frame, arguments.law)])
        analysis = fit_from(arguments, frame, arguments.law)
        drawn = draw.of_fit(analysis) | paper_figures(analysis.law, analysis.result.params)
        drawn |= figure_rows.draw(frame) | observed_map(analysis)
        if arguments.law == "sun":
            drawn |= forms.draw(frame) | stepwise.draw(frame)
    paths = draw.write_all(drawn, Path(arguments.out))
    if arguments.json:
        dump({"law": arguments.law, "figures": [str(p) for p in paths]})
    else:
        print("\n".join(str(p) for p in paths))
    return 0


def paper_figures(law: Law, params: dict[str, float]) -> dict[str, Figure]:
    """The figures of the law's own paper, for these constants."""
    if law.name.startswith("kumar"):
        return kumar.draw(law, params)
    painters = {"sun": sun.draw, "chen": chen.draw, "chen_gap": chen.draw}
    return painters[law.name](law, params) if law.name in painters else {}


def observed_map(analysis: Analysis) -> dict[str, Figure]:
    """Kumar's map of added loss over P_w x P_post beside the observed one, where the rows have two of each."""
    columns = analysis.result.table.columns
    if not {"P_w", "P_post"} <= set(columns) or analysis.law.is_gap:
        return {}
    gap = draw.observed_gaps(analysis)
    known = np.isfinite(gap)
    if min((len(np.unique(columns[k][known])) for k in ("P_w", "P_post")), default=0) < 2:
        return {}
    rows = (columns["P_w"], columns["P_post"], gap, columns["N"], columns["D"])
    return {"fig07_21_added_loss_map": kumar.added_loss_map(analysis.law, analysis.result.params, rows)}


def run_report(arguments: argparse.Namespace) -> int:
    """`precisionlm report`."""
    frame = tables.read(arguments.runs)
    names = list(dict.fromkeys(names_of(arguments.law)))
    renamed = columns_of(arguments)
    check_symbols(names, renamed)
    if arguments.dry_run:
        return show_plan(
            arguments, [preview(arguments, frame, law, columns=own_columns(law, renamed)) for law in names]
        )
    fits = [fit_from(arguments, frame, law, columns=own_columns(law, renamed)) for law in names]
    comparison = None
    if len(fits) > 1 and len({fit.law.is_gap for fit in fits}) == 1:  # a loss and a gap are different columns
        objective = parse_objective(arguments.objective)
        compared = compare(
            frame, names, renamed, arguments.where, objective, min(arguments.starts, 200),
            drop_duplicates=arguments.drop_duplicates,
        )  # fmt: skip
        comparison = as_table(compared)
    advice = [line for fit in fits for line in decisions(fit)]
    summary = write_report(frame, fits, Path(arguments.out), arguments.title, comparison, advice)
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
