"""One self-contained HTML page: what was fitted on what, how far to trust it, and the figures, embedded."""

import io
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jinja2
import matplotlib
import pandas as pd
from markupsafe import Markup
from matplotlib.figure import Figure

from precisionlm.analysis.figures import draw
from precisionlm.analysis.fitting.analyze import Analysis
from precisionlm.errors import UserError

CAPTIONS = {
    "loss_vs_tokens": "Loss against training tokens: points are runs, lines the law, bands its 95 % interval.",
    "loss_vs_bits": "Loss against the bits of the weights in training.",
    "effective_parameters": "Share of the parameters that a training precision keeps, N_eff/N.",
    "ptq_gap": "Loss added by quantizing the weights after training, against tokens per parameter.",
    "residuals": "Predicted against observed, and what the law leaves unexplained.",
}
SHOWN = ("run_id", "name", "evaluation", "status", "N_params", "D_tokens", "recipe", "w_bits", "a_bits", "kv_bits",
         "ptq_method", "ptq_bits", "val_loss", "val_loss_se", "schedule", "learning_rate", "seed")  # fmt: skip
MOST_ROWS = 500


@dataclass(frozen=True)
class ReportSummary:
    """path: the page. figures: SVG and PNG files beside it. lines: findings for a terminal. warnings: all doubts."""

    path: Path
    figures: tuple[Path, ...]
    lines: tuple[str, ...]
    warnings: tuple[str, ...] = field(default=())


def write_report(
    runs: pd.DataFrame,
    fits: Sequence[Analysis],
    out: Path,
    title: str = "Precision scaling laws",
    comparison: dict[str, Any] | None = None,
    decisions: Sequence[str] = (),
) -> ReportSummary:
    """Write the page to `out` and its figures to the folder `figures` beside it.

    comparison: caption, head and rows of a table (`compare.as_table`). Whatever stands in `runs` is escaped. The page
    replaces an older one only when it is complete. Raises UserError if `out` cannot be written.
    """
    if not fits:
        raise UserError("a report needs at least one fit")
    out = Path(out)
    sections: list[dict[str, Any]] = []
    paths: list[Path] = []
    lines: list[str] = []
    warnings: list[str] = []
    for i, analysis in enumerate(fits):
        drawn = draw.of_fit(analysis)
        prefix = "" if len(fits) == 1 else f"{i + 1}_{analysis.law.name}_"
        paths += draw.write_all({prefix + k: v for k, v in drawn.items()}, out.parent / "figures")
        sections.append(_section(analysis, drawn))
        lines += findings(analysis)
        warnings += analysis.warnings
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("precisionlm.analysis.report"), autoescape=True, undefined=jinja2.StrictUndefined
    )
    page = environment.get_template("report.html").render(
        title=title, lines=lines, fits=sections, comparison=comparison, decisions=list(decisions), runs=_runs(runs)
    )
    try:
        partial = out.with_name(out.name + ".partial")
        partial.write_text(page, encoding="utf-8")
        os.replace(partial, out)
    except OSError as problem:
        raise UserError(f"{out}: cannot write the report ({problem.strerror})") from problem
    return ReportSummary(out, tuple(paths), tuple(lines), tuple(dict.fromkeys(warnings)))


def findings(analysis: Analysis) -> list[str]:
    """What a fit says, in a few plain sentences."""
    result, table = analysis.result, analysis.result.table
    used = f"{result.rows_used} rows used, {result.rows_excluded} left out" if result.rows_excluded else (
        f"all {result.rows_used} rows used")  # fmt: skip
    lines = [
        f"{analysis.law.name}: {result.status.value} on {int(table.cluster.max()) + 1} runs ({used}); it explains the "
        f"losses to {100 * result.rms_log:.2g} % (rms), R² {result.r2:.3f}."
    ]
    constants = []
    for name in [n for n in ("alpha", "beta", "E", "gamma_w", "gamma_a", "gamma_kv", "gamma_post") if n in result.free]:
        low, high = analysis.intervals.get(name, (math.nan, math.nan))
        between = f" [{low:.3g}, {high:.3g}]" if math.isfinite(low) else ""
        constants.append(f"{name} = {result.params[name]:.3g}{between}")
    if constants:
        lines.append("Constants with 95 % intervals: " + ", ".join(constants) + ".")
    lines += [kept for kept in (_kept(analysis),) if kept]
    lines += [f"Warning: {w}." for w in dict.fromkeys(analysis.warnings)]
    return lines


def _kept(analysis: Analysis) -> str:
    """What the lowest width in the table keeps of the parameters."""
    name = next((x for x in ("w", "a", "kv") if f"gamma_{x}" in analysis.law.names), None)
    if name is None:
        return ""
    p, columns = analysis.result.params, analysis.result.table.columns
    low = float(columns[f"P_{name}"].min())

    def share(values: dict[str, Any]) -> Any:
        return (1 - math.e ** (-low / values[f"gamma_{name}"] + values.get(f"n_{name}", 0.0))) ** values.get(
            f"s_{name}", 1.0
        )

    text = f"At {low:g} bits (the lowest {name} width here) a model counts as {share(p):.2f} of its parameters"
    if analysis.bootstrap:
        draws = pd.DataFrame(analysis.bootstrap.samples, columns=list(analysis.law.names))
        kept = draws.apply(lambda row: share(dict(row)), axis=1)
        text += f" [{kept.quantile(0.025):.2f}, {kept.quantile(0.975):.2f}]"
    return text + "."


def _section(analysis: Analysis, drawn: dict[str, Figure]) -> dict[str, Any]:
    result, law = analysis.result, analysis.law
    printed = law.published[0].as_dict() if law.published else {}
    boot = analysis.bootstrap
    return {
        "name": law.name, "title": law.title, "source": law.source, "rows_used": result.rows_used,
        "runs": int(result.table.cluster.max()) + 1, "cells": int(result.table.cell.max()) + 1,
        "excluded": result.table.excluded, "objective": str(result.objective), "value": f"{result.objective_value:.6g}",
        "starts": result.starts, "share": f"{100 * result.share:.0f} %", "status": result.status.value,
        "r2": f"{result.r2:.4f}", "rms": f"{result.rms_log:.3g}", "condition": f"{result.condition:.2g}",
        "warnings": list(dict.fromkeys(analysis.warnings)),
        "constants": [
            {
                "name": p.name, "value": f"{result.params[p.name]:.5g}" + ("" if p.name in result.free else " (held)"),
                "interval": "{:.4g} … {:.4g}".format(*analysis.intervals[p.name])
                if p.name in result.free and analysis.intervals else "",
                "published": f"{printed[p.name]:g}" if p.name in printed else "", "meaning": p.meaning,
            }
            for p in law.parameters
        ],
        "bootstrap": f"percentile bootstrap over {boot.groups} {boot.over}s, {len(boot.samples)} of {boot.resamples} "
        "refits finished." if boot else "",
        "figures": [{"svg": _embed(f), "caption": CAPTIONS[n]} for n, f in drawn.items()],
    }  # fmt: skip


def _embed(figure: Figure) -> Markup:
    """The figure as inline SVG. Text is drawn as paths, so nothing from the table reaches the page as markup."""
    buffer = io.StringIO()
    with matplotlib.rc_context(draw.STYLE):
        figure.savefig(buffer, format="svg", metadata={"Date": None})
    text = buffer.getvalue()
    return Markup(text[text.index("<svg") :])


def _runs(frame: pd.DataFrame) -> dict[str, Any]:
    head = [c for c in SHOWN if c in frame.columns] or [str(c) for c in frame.columns[:16]]
    rows = [[_cell(v) for v in row] for row in frame[head].head(MOST_ROWS).itertuples(index=False)]
    return {"head": head, "rows": rows, "total": len(frame), "hidden": len(frame) > MOST_ROWS}


def _cell(value: Any) -> str:
    if isinstance(value, float):
        return "" if math.isnan(value) else f"{value:.6g}"
    return "" if value is None else str(value)
