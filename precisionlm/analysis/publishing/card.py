"""The data card of a published runs table: README.md, Markdown under the front matter that Hugging Face reads.

Whatever comes from a table is text in it: no cell becomes a link, a tag or a new line of the card.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd
import yaml

from precisionlm.analysis.fitting.analysis import Analysis
from precisionlm.analysis.publishing.croissant import dtype, meaning
from precisionlm.analysis.report.findings import constants

_MARKS = re.compile(r"([\\`*\[\]<>|#&~]|(?<!\w)_|_(?!\w))")
_MOST = 20  # values of a column that are listed
# What the card says of where the losses come from.
_DATA = ("dataset", "mixture", "validation", "tokenizer", "vocab_size", "sequence_length")
_MADE = ("device", "jax_version", "package_version", "schema", "execution")


@dataclass(frozen=True)
class Fit:
    """A fit of the published table: the command that makes it again, and what it found."""

    command: str
    analysis: Analysis


@dataclass(frozen=True)
class Card:
    """What a card is made from. about: one sentence; files: name, contentSize, sha256; corpora: what prepared folders
    say of themselves (name → value); cleaned: column → cells that had a path of the machine."""

    title: str
    about: str
    license: str | None
    files: Sequence[Mapping[str, str]]
    corpora: Sequence[Mapping[str, Any]]
    fits: Sequence[Fit]
    cleaned: Mapping[str, int]


def plain(value: Any) -> str:
    """A value as text of one line that Markdown and HTML leave as it is."""
    words = "".join(c if c.isprintable() else " " for c in str(value)).split()
    return _MARKS.sub(r"\\\1", " ".join(words))


def card(frame: pd.DataFrame, of: Card) -> str:
    """The text of README.md."""
    front = {"license": of.license or "unknown", "pretty_name": of.title, "tags": ["precisionlm", "scaling-laws",
             "quantization"], "configs": [{"config_name": "runs", "data_files": of.files[0]["name"]}]}  # fmt: skip
    parts = [
        ["---", yaml.safe_dump(front, sort_keys=False, allow_unicode=True).rstrip(), "---"],
        [f"# {plain(of.title)}"],
        [plain(of.about)],
        ["## Files", "", *_table(("file", "bytes", "sha256"), ((f["name"], f["contentSize"].removesuffix(" B"),
                                                               f["sha256"]) for f in of.files))],
        ["    import pandas as pd", f'    runs = pd.read_parquet("{of.files[0]["name"]}")'],
        ["## Rows", "", *_counts(frame)],
        ["## Text", "", *_distinct(frame, _DATA), *_corpora(of.corpora)],
        ["## Machines and versions", "", *_distinct(frame, _MADE), *_spent(frame)],
        ["## What is left out", "", *_left_out(frame, of)],
        *([["## Fits", "", "Each command makes the fit again, with the files here.", "", *_fits(of.fits)]]
          if of.fits else []),
        ["## Columns", "", *_table(("column", "type", "rows", "meaning"), _columns(frame))],
        ["## License", "", plain(of.license) if of.license else "Not stated by who published this table."],
    ]  # fmt: skip
    return "\n\n".join("\n".join(part) for part in parts) + "\n"


def _counts(frame: pd.DataFrame) -> list[str]:
    """Rows and runs of every name, evaluation and status: a run that failed is a row too."""
    keys = [c for c in ("name", "evaluation", "status") if c in frame.columns]
    if not keys:
        return [f"{len(frame):,} rows."]
    found = frame.assign(**{c: frame[c].astype(object).where(frame[c].notna(), "") for c in keys})
    grouped = found.groupby(keys, sort=True)
    runs = grouped["run_id"].nunique() if "run_id" in found.columns else grouped.size()
    rows = [
        (*(key if isinstance(key, tuple) else (key,)), size, run)
        for (key, size), run in zip(grouped.size().items(), runs, strict=True)
    ]
    return _table((*keys, "rows", "runs"), rows)


def _distinct(frame: pd.DataFrame, columns: Iterable[str]) -> list[str]:
    """The values of columns, and of how many rows each is."""
    rows: list[tuple[Any, ...]] = []
    for column in (c for c in columns if c in frame.columns):
        counts = frame[column].dropna().astype(str).value_counts(sort=False)
        counts = counts[counts.index != ""].sort_index()
        rows += [(column, value, count) for value, count in list(counts.items())[:_MOST]]
        rows += [(column, f"and {len(counts) - _MOST} more", "")] if len(counts) > _MOST else []
    return _table(("column", "value", "rows"), rows)


def _corpora(corpora: Sequence[Mapping[str, Any]]) -> list[str]:
    return [line for corpus in corpora for line in ("", *_table(("of the text", ""), corpus.items()))]


def _spent(frame: pd.DataFrame) -> list[str]:
    """Costs of the runs, each counted once."""
    if "run_id" not in frame.columns:
        return []
    ends = frame[frame["evaluation"] == "trained"] if "evaluation" in frame.columns else frame
    runs = ends.drop_duplicates("run_id")
    told = {"flops": ("{:.3g} FLOPs by formula", 1.0), "wall_seconds": ("{:,.2f} hours of training", 3600.0)}
    said = [text.format(float(runs[c].sum()) / unit) for c, (text, unit) in told.items() if c in runs.columns]
    return ["", f"All {len(runs)} runs together: {', '.join(said)}."] if said else []


def _left_out(frame: pd.DataFrame, of: Card) -> list[str]:
    diverged = int((frame["status"] == "diverged").sum()) if "status" in frame.columns else 0
    lines = [f"No run: those that diverged ({diverged} rows) stay in the table, with their status."]
    for column, count in of.cleaned.items():
        lines.append(f"Paths of the machine were cut to their last part in {count} cells of `{plain(column)}`.")
    for fit in of.fits:
        for reason, count in fit.analysis.result.table.excluded.items():
            lines.append(f"Of the fit of {plain(fit.analysis.law.name)}: {count} rows, {plain(reason)}.")
    return [f"- {line}" for line in lines]


def _fits(fits: Sequence[Fit]) -> list[str]:
    lines = []
    for fit in fits:
        result = fit.analysis.result
        lines += [f"    {' '.join(fit.command.split())}", ""]
        found = f"{result.status.value}, {result.rows_used} rows, R² {result.r2:.4f}"
        between = f"95 % intervals: {plain(fit.analysis.intervals_from)}"
        lines += [f"{plain(fit.analysis.law.title)}: {found}; {between}.", ""]
        rows = [(c["name"], c["value"], c["interval"], c["remark"], c["meaning"]) for c in constants(fit.analysis)]
        lines += [*_table(("constant", "value", "95 % interval", "", "meaning"), rows), ""]
    return lines[:-1]


def _columns(frame: pd.DataFrame) -> list[tuple[str, str, int, str]]:
    return [(str(c), dtype(frame, str(c)), int(frame[c].notna().sum()), meaning(str(c))) for c in frame.columns]


def _table(head: Sequence[str], rows: Iterable[Sequence[Any]]) -> list[str]:
    lines = [f"| {' | '.join(head)} |", f"|{' --- |' * len(head)}"]
    return lines + [f"| {' | '.join(map(plain, row))} |" for row in rows]
