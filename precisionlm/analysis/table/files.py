"""A runs table from a file: CSV in whatever dialect people export, or Parquet."""

import bz2
import csv
import gzip
import io
import lzma
import re
import warnings
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from precisionlm.analysis.table.cells import as_numbers
from precisionlm.errors import UserError

TEXT = (".csv", ".tsv")
PACKED: dict[str, tuple[str, Callable[..., Any]]] = {
    ".gz": ("gzip", gzip.open), ".bz2": ("bz2", bz2.open), ".xz": ("xz", lzma.open),
}  # fmt: skip
UNPACKED: tuple[Any, Callable[..., Any]] = (None, open)
PUBLISHED = {path.stem: path for path in sorted((Path(__file__).parents[1] / "published").glob("*.parquet"))}
SUFFIXES = (
    "a runs table ends in .csv, .tsv (also .gz, .bz2, .xz) or .parquet; a published one is called "
    + " or ".join(PUBLISHED)
)
# What pandas takes for missing, but for None: there people write None for "not quantized", a level like any other.
MISSING = ("", "#N/A", "<NA>", "N/A", "NA", "NULL", "NaN", "n/a", "nan", "null", "-nan", "-NaN")
_SAMPLE = 1 << 16  # bytes that decide the dialect
_COMMA = re.compile(r"[+-]?\d{1,3}(\.\d{3})*,\d+([eE][+-]?\d+)?|[+-]?\d+,\d+([eE][+-]?\d+)?")  # 3,21 or 1.234,5
_COMMAS = re.compile(r"[+-]?\d{1,3}(,\d{3}){2,}(\.\d+)?|[+-]?\d{1,3}(,\d{3})+\.\d+")  # 1,000,000 or 1,000.5
_POINTS = re.compile(r"[+-]?[1-9]\d{0,2}(\.\d{3})+")  # 1.000.000
_POINT = re.compile(r"[+-]?\d+\.\d+([eE][+-]?\d+)?")


@dataclass(frozen=True)
class Dialect:
    """How a text file writes a table: what separates cells, fractions and thousands."""

    separator: str
    decimal: str = "."
    thousands: str | None = None


def is_table(path: str | Path) -> bool:
    """Whether a file of that name is read as a table."""
    return _kind(Path(path))[0] in (*TEXT, ".parquet")


def located(table: str | Path) -> Path:
    """The file of a table: that of a published one for its name, such as study-2026, else the path itself."""
    return PUBLISHED.get(str(table), Path(table))


def read(path: str | Path) -> pd.DataFrame:
    """A runs table from a .csv, .tsv (packed or not) or .parquet file; the case of the ending does not matter. Or a
    published one by its name, such as study-2026.

    A text file may separate cells by comma, semicolon, tab or bar, write decimal commas where no comma separates
    cells, begin with a byte-order mark, and group thousands as in "1,000,000". Raises UserError if it is missing,
    empty or unreadable.
    """
    path = located(path)
    kind, packed = _kind(path)
    if not is_table(path):
        raise UserError(f"{path}: {SUFFIXES}")
    if not path.is_file():
        raise UserError(f"{path}: no such file")
    try:
        frame = _plain(pd.read_parquet(path)) if kind == ".parquet" else _read_text(path, packed)
    except UserError:
        raise
    except pd.errors.ParserWarning as problem:
        raise UserError(f"{path}: rows have more cells than the header has columns") from problem
    except UnicodeDecodeError as problem:
        raise UserError(f"{path}: not text in UTF-8; save it as 'CSV UTF-8'") from problem
    except Exception as problem:  # pandas and pyarrow raise many kinds for broken files
        raise UserError(
            f"{path}: not a readable runs table ({(str(problem) or 'broken').splitlines()[0]})"
        ) from problem
    if frame.empty:
        raise UserError(f"{path}: the table has no rows")
    return frame.reset_index(drop=True)


def dialect(cells: dict[str, list[list[str]]]) -> Dialect:
    """The dialect of a sample, given as separator -> lines -> cells. Raises UserError where commas may be either."""

    def fits(separator: str) -> tuple[bool, int]:
        lengths = [len(line) for line in cells[separator]]
        return len(set(lengths)) == 1 and lengths[0] > 1, lengths[0]

    separator = max(cells, key=fits)
    if separator == ",":
        return Dialect(separator)
    columns = [[cell.strip() for cell in column] for column in zip_longest(*cells[separator][1:], fillvalue="")]
    if any(_COMMAS.fullmatch(cell) for column in columns for cell in column):
        return Dialect(separator, thousands=",")
    commas = [[cell for cell in column if _COMMA.fullmatch(cell)] for column in columns]
    points = [[c for c in column if _POINT.fullmatch(c) and not _POINTS.fullmatch(c)] for column in columns]
    for fractions, others in zip(commas, points, strict=True):
        if fractions and others:
            raise UserError(f"'{fractions[0]}' and '{others[0]}' stand in one column: write all fractions with a point")
    if not any(commas):
        return Dialect(separator)
    return Dialect(separator, ",", None if any(points) else ".")


def _kind(path: Path) -> tuple[str, str]:
    """The lower-case ending without that of a packer, and the packer's ending or ''."""
    ending = path.suffix.lower()
    return (Path(path.stem).suffix.lower(), ending) if ending in PACKED else (ending, "")


def _read_text(path: Path, packed: str) -> pd.DataFrame:
    compression, opened = PACKED.get(packed, UNPACKED)
    with opened(path, "rb") as file:
        head: bytes = file.read(_SAMPLE)
        whole = not file.read(1)
    if head[:2] in (b"\xff\xfe", b"\xfe\xff"):
        raise UserError(f"{path}: text in UTF-16; save it as 'CSV UTF-8'")
    lines = (head if whole or b"\n" not in head else head[: head.rindex(b"\n")]).decode("utf-8-sig")
    cells = {s: [c for c in csv.reader(io.StringIO(lines), delimiter=s) if c] for s in ",;\t|"}
    if not cells[","]:
        raise UserError(f"{path}: the table has no rows")
    try:
        found = dialect(cells)
    except UserError as problem:
        raise UserError(f"{path}: {problem}") from problem
    header = [name.strip() for name in cells[found.separator][0]]
    twice = [name for name, count in Counter(header).items() if name and count > 1]
    if twice:
        raise UserError(f"{path}: two columns are called '{twice[0]}'")
    with warnings.catch_warnings():  # rows longer than the header would lose cells with no more than a warning
        warnings.simplefilter("error", pd.errors.ParserWarning)
        frame = pd.read_csv(
            path, sep=found.separator, decimal=found.decimal, thousands=found.thousands, compression=compression,
            encoding="utf-8-sig", index_col=False, skipinitialspace=True, keep_default_na=False,
            na_values=list(MISSING), low_memory=False,
        )  # fmt: skip
    frame.columns = pd.Index([str(name).strip() for name in frame.columns])
    texts = [name for name in frame.columns if not pd.api.types.is_numeric_dtype(frame[name])]
    converted = {name: as_numbers(frame[name]) for name in texts}
    numeric = {name: v for name, v in converted.items() if v is not None and not np.isnan(v).all()}
    return frame.assign(**numeric)


def _plain(frame: pd.DataFrame) -> pd.DataFrame:
    """Columns of lists and mappings, which Parquet allows, as text: they can be compared and printed then."""
    frame.columns = pd.Index([str(name) for name in frame.columns])
    nested = [c for c in frame.columns if frame[c].dtype == object and frame[c].map(pd.api.types.is_list_like).any()]
    return frame.assign(**{c: frame[c].astype(str) for c in nested})
