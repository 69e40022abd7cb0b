"""One self-contained HTML page: what was fitted on what, how far to trust it, and the figures, embedded."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd
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
from precisionlm.analysis.report.answer import Answer, answer, told
from precisionlm.analysis.report.findings import constants, findings
from precisionlm.analysis.report.interactive import interactive, names_of
from precisionlm.analysis.report.page import drawing, rendered
from precisionlm.analysis.report.residuals import farthest, standardised
from precisionlm.errors import UserError
from precisionlm.whole_file import written

SHOWN = ("run_id", "name", "evaluation", "status", "N_params", "D_tokens", "recipe", "w_bits", "a_bits", "kv_bits",
         "ptq_method", "ptq_bits", "val_loss", "val_loss_se", "schedule", "learning_rate", "seed")  # fmt: skip
MOST_ROWS, MOST_COLUMNS = 5000, 20
FEW = 8  # rows up to which a column of one value stays a column


@dataclass(frozen=True)
class ReportSummary:
    """path: the page. figures: SVG and PNG files beside it. answers: what each fit says of the precision to train at.
    lines: findings for a terminal. warnings: all doubts."""

    path: Path
    figures: tuple[Path, ...]
    answers: tuple[Answer, ...]
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
    svg = {path.stem: drawing(path) for path in paths if path.suffix == ".svg"}
    names, answers = names_of(runs), [answer(analysis, recipes) for analysis in fits]
    residuals = [standardised(analysis) for analysis in fits]
    sections = [
        _section(a) | {"figures": [{"svg": svg[prefix + k], "caption": CAPTIONS[k]} for k in made],
                       "prices": _prices(said), "farthest": farthest(a, far, recipes, names[a.result.table.rows])}
        for a, prefix, made, said, far in zip(fits, prefixes, drawn, answers, residuals, strict=True)
    ]  # fmt: skip
    lines = [line for analysis in fits for line in findings(analysis)]
    drawn_by_script = [
        interactive(a, recipes, names[a.result.table.rows], far) for a, far in zip(fits, residuals, strict=True)
    ]
    page = rendered({
        "title": title, "answers": answers, "lines": lines, "fits": sections,
        "comparison": checked.table if checked else None, "decisions": list(decisions), "units": UNITS,
        "runs": _runs(runs, fits, recipes), "provenance": dict(provenance or {}),
        "learning": {"svg": svg["learning"], "caption": CAPTIONS["learning"]} if learning else None,
    }, drawn_by_script)  # fmt: skip
    with written(out) as partial:
        partial.write_text(page, encoding="utf-8")
    warnings = tuple(dict.fromkeys(warning for analysis in fits for warning in analysis.warnings))
    return ReportSummary(out, tuple(paths), tuple(answers), tuple(lines), warnings)


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
        "constants": [[row[k] for k in ("name", "value", "interval", "remark", "published", "meaning")]
                      for row in constants(analysis)],
        "intervals": analysis.intervals_from
        + (f"; {len(boot.samples)} of {boot.resamples} refits finished" if boot else ""),
    }  # fmt: skip


def _prices(said: Answer) -> dict[str, Any]:
    rows = [[price.recipe, str(price.runs), f"{price.added:.3g}", f"{price.low:.2g} … {price.high:.2g}"]
            if math.isfinite(price.low) and math.isfinite(price.high)
            else [price.recipe, str(price.runs), told(price.added, price.low, price.high), ""]
            for price in said.prices]  # fmt: skip
    return {"where": said.where, "head": ["recipe", "rows", "added", "95 % interval"], "rows": rows}


def _runs(frame: pd.DataFrame, fits: Sequence[Analysis], recipes: Recipes) -> dict[str, Any]:
    """The first rows of the table: known columns, those that the laws were fitted to, and else the first ones. Those
    that are the same in all rows are told once."""
    fitted = [name for a in fits if (name := a.result.table.target) in frame.columns]
    known = list(dict.fromkeys([c for c in SHOWN if c in frame.columns] + fitted))
    others = [str(c) for c in frame.columns if c not in known]
    head = known if len(known) >= 6 else [*known, *others[: MOST_COLUMNS - len(known)]]
    alike = [c for c in head if len(frame) > FEW and c not in fitted and frame[c].nunique(dropna=False) == 1]
    shown = frame[[c for c in head if c not in alike]].head(MOST_ROWS)
    shown = shown.assign(**{"shown as": recipes.labels[:MOST_ROWS]})
    rows = [[_cell(v) for v in row] for row in shown.itertuples(index=False)]
    return {
        "head": [str(c) for c in shown.columns],
        "rows": rows,
        "same": [(str(c), _cell(frame[c].iloc[0]) or "empty") for c in alike],
        "total": len(frame),
        "hidden": len(frame) > MOST_ROWS,
    }


def _cell(value: Any) -> str:
    if isinstance(value, float):
        return "" if math.isnan(value) else f"{value:.6g}"
    return "" if value is None else str(value)
