"""A runs table as a folder for others: table, data card, Croissant metadata, the fits as a page with figures."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd

from precisionlm.analysis.publishing.card import Card, Fit, card
from precisionlm.analysis.publishing.clean import cleaned, typed
from precisionlm.analysis.publishing.croissant import metadata
from precisionlm.json_text import dumps
from precisionlm.whole_file import filled

TABLE, CSV, CARD, CROISSANT, REPORT, FIGURES = (
    "runs.parquet", "runs.csv", "README.md", "croissant.json", "report.html", "figures",
)  # fmt: skip
_ENCODING = {TABLE: "application/x-parquet", CSV: "text/csv"}


@dataclass(frozen=True)
class Stated:
    """What only the publisher can say; the folder says nothing of what is None. license: an SPDX identifier or a URL;
    date: ISO 8601."""

    title: str
    license: str | None = None
    url: str | None = None
    creator: str | None = None
    date: str | None = None

    def as_croissant(self) -> dict[str, str]:
        """Under the names of schema.org."""
        found = {"license": self.license, "url": self.url, "creator": self.creator, "datePublished": self.date}
        return {key: value for key, value in found.items() if value is not None}


@dataclass(frozen=True)
class Ready:
    """A table as it will be published. cleaned: column → cells from which a path of the machine was cut."""

    frame: pd.DataFrame
    cleaned: Mapping[str, int] = field(default_factory=dict)


def ready(frame: pd.DataFrame) -> Ready:
    """The table with documented types and without paths of the machine; fits are made of this one."""
    return Ready(*cleaned(typed(frame)))


def publish(
    table: Ready,
    out: Path,
    stated: Stated,
    fits: Sequence[Fit] = (),
    corpora: Sequence[Mapping[str, Any]] = (),
    decisions: Sequence[str] = (),
    made_by: str = "precisionlm",
) -> list[Path]:
    """Write the folder `out`, whole or not at all; returns its files.

    fits: of `table.frame`. corpora: what prepared folders say of themselves. made_by: name and version of what wrote
    it. A folder that an earlier call wrote is replaced. Raises UserError where `out` holds anything else, and where it
    cannot be written.
    """
    frame, about = table.frame, sentence(table.frame)
    with filled(out, ours) as folder:
        frame.to_parquet(folder / TABLE, index=False, compression="zstd")
        frame.to_csv(folder / CSV, index=False)
        files = [_described(folder / name) for name in (TABLE, CSV)]
        told = Card(stated.title, about, stated.license, files, corpora, fits, table.cleaned)
        (folder / CARD).write_text(card(frame, told), encoding="utf-8")
        content = metadata(frame, stated.title, about, files, stated.as_croissant())
        (folder / CROISSANT).write_text(dumps(content, indent=1) + "\n", encoding="utf-8")
        if fits:
            provenance = {"made by": made_by, "table": TABLE, f"sha256 of {TABLE}": files[0]["sha256"]}
            _report(frame, fits, folder, stated.title, decisions, provenance)
    return sorted(path for path in out.rglob("*") if path.is_file())


def ours(folder: Path) -> bool:
    """Whether a folder holds what `publish` writes and nothing else."""
    names, drawn = {path.name for path in folder.iterdir()}, (folder / FIGURES).glob("*")
    known = {TABLE, CSV, CARD, CROISSANT} <= names <= {TABLE, CSV, CARD, CROISSANT, REPORT, FIGURES}
    return known and all(path.suffix in (".svg", ".png") for path in drawn)


def sentence(frame: pd.DataFrame) -> str:
    """What the table is, in a sentence."""
    runs = f" of {frame['run_id'].nunique():,} runs" if "run_id" in frame.columns else ""
    ranges = [
        f"{letter} from {frame[column].min():.3g} to {frame[column].max():.3g}"
        for letter, column in (("N", "N_params"), ("D", "D_tokens"))
        if column in frame.columns and pd.api.types.is_numeric_dtype(frame[column]) and frame[column].notna().any()
    ]
    sizes = f", {' and '.join(ranges)}" if ranges else ""
    return f"Losses of language models at different numeric precisions: {len(frame):,} rows{runs}{sizes}."


def _described(path: Path) -> dict[str, str]:
    content = path.read_bytes()
    return {"name": path.name, "encodingFormat": _ENCODING[path.name], "contentSize": f"{len(content)} B",
            "sha256": hashlib.sha256(content).hexdigest()}  # fmt: skip


def _report(
    frame: pd.DataFrame,
    fits: Sequence[Fit],
    folder: Path,
    title: str,
    decisions: Sequence[str],
    provenance: dict[str, str],
) -> None:
    from precisionlm.analysis.report.report import write_report  # draws: no other verb waits for it

    commands = {f"fit {i}": fit.command for i, fit in enumerate(fits, 1)}
    write_report(frame, [fit.analysis for fit in fits], folder / REPORT, title, None, decisions, provenance | commands)
