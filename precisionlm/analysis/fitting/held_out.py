"""Rows kept out of a fit, to see what a law says about runs that it has not seen."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from precisionlm.analysis.fitting.words import LEAST_CELLS, LEAST_ROWS
from precisionlm.analysis.table.read import Table
from precisionlm.errors import UserError

FOLDS, LARGEST_N, LARGEST_D = "k-fold by cell", "largest N", "largest D"
SPLITS = (FOLDS, LARGEST_N, LARGEST_D)


@dataclass(frozen=True)
class Split:
    """One way to hold rows out: masks (n,) of the rows left out together, and in words which and how many they are.

    short: fewer rows or cells than asked for could be held out.
    """

    name: str
    masks: tuple[np.ndarray, ...]
    rows: int
    cells: int
    what: str
    short: bool = False


@dataclass(frozen=True)
class Errors:
    """A law's errors on the rows of a split. rms: root mean square of log predicted/observed. median, q90, worst:
    quantiles of |predicted/observed - 1|; inf where the law is undefined on a row."""

    rms: float
    median: float
    q90: float
    worst: float


def errors_of(residuals: np.ndarray) -> Errors:
    """Errors from log residuals (n,), of which NaN were never held out."""
    known = residuals[~np.isnan(residuals)]
    if not np.isfinite(known).all():
        return Errors(np.inf, *_quantiles(np.where(np.isfinite(known), np.abs(np.expm1(known)), np.inf)))
    return Errors(float(np.sqrt(np.mean(known**2))), *_quantiles(np.abs(np.expm1(known))))


def _quantiles(relative: np.ndarray) -> tuple[float, float, float]:
    median, q90, worst = np.percentile(relative, (50, 90, 100), method="nearest")
    return float(median), float(q90), float(worst)


def make_splits(table: Table, folds: int, seed: int = 0, least: int = LEAST_ROWS) -> tuple[Split, ...]:
    """k folds over (N, D) cells, the largest N and the largest D, as far as the table allows them.

    least: rows to be held out at the largest N and D; the next largest are added until there are so many, in
    LEAST_CELLS cells at least, as long as half of the values stay in the fit. Raises UserError for fewer than two
    folds or fewer than three cells.
    """
    if folds < 2:
        raise UserError(f"--folds {folds}: at least 2 are needed, one to fit on and one to hold out")
    if least < 1:
        raise UserError(f"--held-out {least}: at least 1 row")
    cells = int(table.cell.max()) + 1
    if cells < 3:
        raise UserError(f"a comparison holds (N, D) pairs out and needs three; the rows have {cells}")
    number = min(folds, cells)
    fold = np.empty(cells, int)
    fold[np.random.default_rng(seed).permutation(cells)] = np.arange(cells) % number
    masks = tuple(fold[table.cell] == f for f in range(number))
    every = Split(FOLDS, masks, len(table), cells, f"{number} folds over {cells} (N, D) pairs, {len(table)} rows")
    largest = (_largest(table, name, symbol, least) for name, symbol in ((LARGEST_N, "N"), (LARGEST_D, "D")))
    return (every, *(split for split in largest if split is not None))


def _largest(table: Table, name: str, symbol: str, least: int) -> Split | None:
    values = table.columns.get(symbol, np.empty(0))
    distinct = np.unique(values)
    if len(distinct) < 3:
        return None
    for count in range(1, len(distinct) // 2 + 1):
        mask = values >= distinct[-count]
        rows, cells = int(mask.sum()), len(np.unique(table.cell[mask]))
        if rows >= least and cells >= LEAST_CELLS:
            break
    which = (
        f"{symbol} = {distinct[-1]:.4g}" if count == 1 else f"the {count} largest {symbol}, from {distinct[-count]:.4g}"
    )
    short = rows < least or cells < LEAST_CELLS
    return Split(name, (mask,), rows, cells, f"{which}: {rows} rows in {cells} (N, D) pairs", short)


def notes(splits: Sequence[Split], least: int) -> list[str]:
    """What a reader should know about the splits: those that are not there, and those that are short."""
    there = {split.name for split in splits}
    missing = [f"no split by {name}: it needs three different values" for name in SPLITS if name not in there]
    short = [f"{split.name}: only {split.what} could be held out ({least} rows in {LEAST_CELLS} pairs were asked for) "
             "without leaving less than half to the fit" for split in splits if split.short]  # fmt: skip
    return missing + short
