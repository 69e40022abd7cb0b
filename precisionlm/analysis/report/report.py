"""One self-contained HTML page: what was fitted on what, how far to trust it, and the figures, embedded."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jinja2
import pandas as pd
from markupsafe import Markup
from matplotlib.figure import Figure

from precisionlm.analysis.decisions.summary import UNITS
from precisionlm.analysis.figures import draw
from precisionlm.analysis.figures.checks import held_out
from precisionlm.analysis.figures.fitted import CAPTIONS, of_fit
from precisionlm.analysis.figures.learning import curves
from precisionlm.analysis.figures.recipes import Recipes, recipes_of
from precisionlm.analysis.fitting.analysis import Analysis
from precisionlm.analysis.fitting.comparison import LawScore
from precisionlm.analysis.fitting.held_out import Split
from precisionlm.analysis.report.findings import constants, findings
from precisionlm.errors import UserError
from precisionlm.terminal import harmless
from precisionlm.whole_file import written

SHOWN = ("run_id", "name", "evaluation", "status", "N_params", "D_tokens", "recipe", "w_bits", "a_bits", "kv_bits",
         "ptq_method", "ptq_bits", "val_loss", "val_loss_se", "schedule", "learning_rate", "seed")  # fmt: skip
MOST_ROWS, MOST_COLUMNS = 500, 20


@dataclass(frozen=True)
class ReportSummary:
    """path: the page. figures: SVG and PNG files beside it. lines: findings for a terminal. warnings: all doubts."""

    path: Path
    figures: tuple[Path, ...]
    lines: tuple[str, ...]
    warnings: tuple[str, ...] = field(default=())


@dataclass(frozen=True)
class HeldOut:
    """What laws say of rows kept out of their fits. table: caption, head and rows of a comparison, if there is one."""

    splits: Sequence[Split]
    scores: Mapping[str, LawScore]
    table: dict[str, Any] | None = None


def write_report(
    runs: pd.DataFrame,
    fits: Sequence[Analysis],
    out: Path,
    title: str = "Precision scaling laws",
    checked: HeldOut | None = None,
    decisions: Sequence[str] = (),
    provenance: Mapping[str, str] | None = None,
    metrics: Path | None = None,
) -> ReportSummary:
    """Write the page to `out` and its figures to the folder `figures` beside it.

    runs: the table as read, of which the fits are. checked: the same laws on rows left out. provenance: name -> value
    of what made the page, such as version, command, table and its hash. metrics: folder of run directories, whose
    learning curves are drawn. Whatever stands in `runs` is escaped. The page replaces an older one only when it is
    complete. Raises UserError if `out` cannot be written.
    """
    if not fits:
        raise UserError("a report needs at least one fit")
    out, recipes = Path(out), recipes_of(runs, fits)
    learning = curves(runs, recipes, metrics) if metrics else None
    drawn = [of_fit(analysis, recipes) | _held_out(analysis, checked) for analysis in fits]
    prefixes = ["" if len(fits) == 1 else f"{i}_{a.law.name}_" for i, a in enumerate(fits, 1)]
    files = {prefix + k: v for prefix, made in zip(prefixes, drawn, strict=True) for k, v in made.items()}
    paths = draw.write_all(files | ({"learning": learning} if learning else {}), out.parent / "figures")
    svg = {path.stem: _embedded(path) for path in paths if path.suffix == ".svg"}
    sections = [
        _section(a) | {"figures": [{"svg": svg[prefix + k], "caption": CAPTIONS[k]} for k in made]}
        for a, prefix, made in zip(fits, prefixes, drawn, strict=True)
    ]
    lines = [line for analysis in fits for line in findings(analysis)]
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("precisionlm.analysis.report"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        finalize=lambda value: harmless(value) if type(value) is str else value,
    )
    page = environment.get_template("report.html").render(
        title=title, lines=lines, fits=sections,
        comparison=checked.table if checked else None, decisions=list(decisions), units=UNITS,
        runs=_runs(runs, fits, recipes), provenance=dict(provenance or {}),
        learning={"svg": svg["learning"], "caption": CAPTIONS["learning"]} if learning else None,
    )  # fmt: skip
    with written(out) as partial:
        partial.write_text(page, encoding="utf-8")
    warnings = tuple(dict.fromkeys(warning for analysis in fits for warning in analysis.warnings))
    return ReportSummary(out, tuple(paths), tuple(lines), warnings)


def _held_out(analysis: Analysis, checked: HeldOut | None) -> dict[str, Figure]:
    score = checked.scores.get(analysis.law.name) if checked else None
    figure = held_out(score, checked.splits) if checked and score else None
    return {"held_out": figure} if figure else {}


def _section(analysis: Analysis) -> dict[str, Any]:
    result, law = analysis.result, analysis.law
    boot = analysis.bootstrap
    return {
        "name": law.name, "title": law.title, "source": law.source, "rows_used": result.rows_used,
        "runs": int(result.table.cluster.max()) + 1, "cells": int(result.table.cell.max()) + 1,
        "target": result.table.target, "excluded": result.table.excluded, "objective": str(result.objective),
        "value": f"{result.objective_value:.6g}", "starts": result.starts, "share": f"{100 * result.share:.0f} %",
        "status": result.status.value, "r2": f"{result.r2:.4f}", "rms": f"{result.rms_log:.3g}",
        "condition": f"{result.condition:.2g}", "warnings": list(dict.fromkeys(analysis.warnings)),
        "constants": constants(analysis),
        "intervals": analysis.intervals_from
        + (f"; {len(boot.samples)} of {boot.resamples} refits finished" if boot else ""),
    }  # fmt: skip


def _embedded(path: Path) -> Markup:
    """A figure's SVG for the page. Text is drawn as paths, so nothing from the table reaches the page as markup."""
    text = path.read_text(encoding="utf-8")
    return Markup(text[text.index("<svg") :])


def _runs(frame: pd.DataFrame, fits: Sequence[Analysis], recipes: Recipes) -> dict[str, Any]:
    """The first rows of the table: known columns, those that the laws were fitted to, and else the first ones."""
    fitted = [name for a in fits if (name := a.result.table.target) in frame.columns]
    known = list(dict.fromkeys([c for c in SHOWN if c in frame.columns] + fitted))
    others = [str(c) for c in frame.columns if c not in known]
    head = known if len(known) >= 6 else [*known, *others[: MOST_COLUMNS - len(known)]]
    shown = frame[head].head(MOST_ROWS).assign(**{"shown as": recipes.labels[:MOST_ROWS]})
    rows = [[_cell(v) for v in row] for row in shown.itertuples(index=False)]
    return {
        "head": [str(c) for c in shown.columns],
        "rows": rows,
        "total": len(frame),
        "hidden": len(frame) > MOST_ROWS,
    }


def _cell(value: Any) -> str:
    if isinstance(value, float):
        return "" if math.isnan(value) else f"{value:.6g}"
    return "" if value is None else str(value)
