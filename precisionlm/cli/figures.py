"""The verbs that draw: figures and report. They import what draws when they run, so that no other verb waits for it."""

import argparse
import hashlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

from precisionlm.cli.fit_arguments import (
    add_fit_arguments,
    add_table_arguments,
    columns_of,
    dump,
    names_of,
    show_plan,
    table_and_laws,
)
from precisionlm.cli.verbs import add_verb
from precisionlm.errors import UserError

if TYPE_CHECKING:
    import pandas as pd

    from precisionlm.analysis.fitting.analysis import Analysis
    from precisionlm.analysis.report.report import HeldOut


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
    parser.add_argument("--law", required=True, help="name of the law")
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
    parser.add_argument("--law", help="law or laws, separated by commas (default kumar)")
    add_fit_arguments(parser, bootstrap=500)
    parser.add_argument("-o", "--out", default="report.html", help="the page to write (default report.html)")
    parser.add_argument("--metrics", type=Path, metavar="FOLDER", help="run directories, for learning curves")
    parser.add_argument("--title", default="Precision scaling laws")
    parser.add_argument("--json", action="store_true", help="print paths and findings as one JSON object")


def run_figures(arguments: argparse.Namespace) -> int:
    """`precisionlm figures`."""
    if arguments.published == bool(arguments.runs):
        raise UserError("figures needs either --published or --runs FILE")
    frame = table_and_laws(arguments, [arguments.law])
    from precisionlm.analysis import laws
    from precisionlm.analysis.figures import papers, rows
    from precisionlm.analysis.figures.draw import write_all
    from precisionlm.analysis.figures.fitted import of_fit
    from precisionlm.analysis.figures.recipes import recipes_of
    from precisionlm.cli.fit_from import fit_from, preview

    if arguments.published:
        law = laws.get(arguments.law)
        if not law.published:
            raise UserError(f"law {law.name} has no published constants; give --runs FILE")
        if arguments.dry_run:
            return show_plan(arguments, [])
        drawn = papers.of_constants(law, law.published[0].as_dict())
        if not drawn:
            raise UserError(f"law {law.name} has no figures without runs; give --runs FILE")
    else:
        if arguments.dry_run:
            return show_plan(arguments, [preview(arguments, frame, arguments.law)])
        analysis = fit_from(arguments, frame, arguments.law)
        recipes = recipes_of(frame, [analysis])
        drawn = of_fit(analysis, recipes) | papers.of_constants(analysis.law, analysis.result.params)
        drawn |= rows.draw(_usual_names(frame, analysis), recipes) | papers.of_runs(frame, analysis)
    paths = write_all(drawn, Path(arguments.out))
    if arguments.json:
        dump({"law": arguments.law, "figures": [str(p) for p in paths]})
    else:
        print("\n".join(str(p) for p in paths))
    return 0


def _usual_names(frame: "pd.DataFrame", analysis: "Analysis") -> "pd.DataFrame":
    """The table with size, tokens and loss under the names that tables of precisionlm have."""
    usual, names = {"N": "N_params", "D": "D_tokens", "loss": "val_loss"}, analysis.result.table.names
    return frame.rename(columns={names[s]: c for s, c in usual.items() if s in names and c not in frame.columns})


def run_report(arguments: argparse.Namespace) -> int:
    """`precisionlm report`."""
    from precisionlm.analysis.laws import USUAL

    names = list(dict.fromkeys(names_of(arguments.law or USUAL)))
    frame = table_and_laws(arguments, names)
    from precisionlm.analysis.fitting.compare import check_symbols, own_columns
    from precisionlm.cli.fit_from import fit_from, preview

    renamed = columns_of(arguments)
    check_symbols(names, renamed)
    if arguments.dry_run:
        return show_plan(
            arguments, [preview(arguments, frame, law, columns=own_columns(law, renamed)) for law in names]
        )
    from precisionlm.analysis.decisions.summary import decisions
    from precisionlm.analysis.report.report import write_report

    fits = [fit_from(arguments, frame, law, columns=own_columns(law, renamed)) for law in names]
    checked, doubts = _held_out(arguments, frame, dict(zip(names, fits, strict=True)), renamed)
    advice = [line for fit in fits for line in decisions(fit)]
    summary = write_report(
        frame, fits, Path(arguments.out), arguments.title, checked, advice, _provenance(arguments), arguments.metrics
    )
    if arguments.json:
        dump(
            {
                "report": str(summary.path),
                "figures": [str(p) for p in summary.figures],
                "answers": [
                    {"law": a.law, "text": a.text, "after": a.after, "sure": list(a.sure)} for a in summary.answers
                ],
                "findings": list(summary.lines),
                "decisions": advice,
                "warnings": doubts,
            }
        )
    else:
        answers = [line for answer in summary.answers for line in answer.lines]
        print("\n".join([*answers, *summary.lines, *doubts, *advice, f"report: {summary.path}"]))
    return 0


def _held_out(
    arguments: argparse.Namespace, frame: "pd.DataFrame", fits: "dict[str, Analysis]", renamed: dict[str, str]
) -> tuple["HeldOut | None", list[str]]:
    """The laws on rows left out, each refitted from the fit there is; None, and why, where no rows can be left out."""
    from precisionlm.analysis.fitting.compare import compare, score
    from precisionlm.analysis.fitting.comparison import as_table
    from precisionlm.analysis.fitting.held_out import make_splits
    from precisionlm.analysis.fitting.objective import parse_objective
    from precisionlm.analysis.report.report import HeldOut
    from precisionlm.cli.fit_from import choices_of

    objective, starts, choices = parse_objective(arguments.objective), min(arguments.starts, 200), choices_of(arguments)
    results = {name: fit.result for name, fit in fits.items()}
    try:
        if len(fits) > 1 and len({fit.law.is_gap for fit in fits.values()}) == 1:  # a loss and a gap are two columns
            found = compare(frame, list(fits), renamed, arguments.where, objective, starts, choices=choices,
                            drop_duplicates=arguments.drop_duplicates, fitted=results)  # fmt: skip
            scores = {s.fit.law.name: s for s in found.scores if s.fit}
            return HeldOut(found.splits, scores, as_table(found)), []
        name, result = next(iter(results.items()))
        others = [f"rows were held out for {name} alone: losses and gaps do not compare"] if len(fits) > 1 else []
        splits = make_splits(result.table, 10)
        return HeldOut(
            splits, {result.law.name: score(name, result.table, objective, starts, splits, choices, result)}
        ), others
    except UserError as problem:
        return None, [f"no rows were held out: {problem}"]


def _provenance(arguments: argparse.Namespace) -> dict[str, str]:
    """What made the page: version, command, table, and the hash of its bytes."""
    from precisionlm.analysis.table.files import located
    from precisionlm.training.provenance import package_version

    digest = hashlib.sha256(located(arguments.runs).read_bytes()).hexdigest()
    command = getattr(arguments, "typed", "")
    return {"precisionlm": package_version(), **({"command": command} if command else {}),
            "table": str(arguments.runs), "sha256 of the table": digest}  # fmt: skip
