"""Which rows share their noise: what a bootstrap resamples and what standard errors are clustered by."""

from dataclasses import dataclass

import numpy as np

from precisionlm.analysis.fitting.words import OVER
from precisionlm.analysis.table.read import Table
from precisionlm.errors import UserError

SHARED = 0.5  # of the runs that have a partner in their cell, from which arms count as paired
FEW = 10  # groups below which resampling them says little


@dataclass(frozen=True)
class Grouping:
    """over: row, run, seed or cell. group: (n,) number of each row's group. why: the choice in one line."""

    over: str
    group: np.ndarray
    why: str

    @property
    def count(self) -> int:
        """How many groups there are."""
        return int(self.group.max()) + 1


def grouping(table: Table, over: str = "auto") -> Grouping:
    """Groups of rows with shared noise.

    row: none is shared. run: rows of one trained run (its post-training evaluations). seed: runs of one (N, D) with the
    same seed, which saw the same data from the same initial weights. cell: runs of one (N, D). auto: seed or cell where
    at least half of the runs have a partner in it, run elsewhere. Raises UserError for another word.
    """
    if over not in OVER:
        raise UserError(f"bootstrap over '{over}'; valid: {', '.join(OVER)}")
    chosen, why = _choose(table) if over == "auto" else (over, f"{over}s as asked for")
    return Grouping(chosen, _groups(table, chosen), why)


def _groups(table: Table, over: str) -> np.ndarray:
    if over == "row":
        return np.arange(len(table))
    if over == "run":
        return _numbered(table.cluster)
    if over == "cell":
        return _numbered(table.cell)
    seeds = _seeds(table)
    if seeds is None:
        raise UserError("bootstrap over 'seed': the table has no column seed")
    return _numbered(np.unique(np.stack([table.cell, seeds], 1), axis=0, return_inverse=True)[1].reshape(-1))


def _choose(table: Table) -> tuple[str, str]:
    cells = int(table.cell.max()) + 1
    if "N" not in table.columns or "D" not in table.columns:
        return "run", "runs, as this law reads no (N, D) that arms could share"
    partners = _partners(table.cell, table.cluster)
    if partners < SHARED:
        return "run", "runs: few of them share a pair (N, D), so each has its own noise"
    seeds = _seeds(table)
    if seeds is not None:
        replicated = len(np.unique(np.stack([table.cell, seeds], 1), axis=0)) > cells
        if replicated and _partners(_groups(table, "seed"), table.cluster) >= SHARED:
            return (
                "seed",
                f"seeds: {partners:.0%} of the runs share (N, D), in groups of one seed that share their noise",
            )
        if replicated:
            return "run", "runs: those of one (N, D) differ in their seed, so each has its own noise"
    return "cell", f"cells: {partners:.0%} of the runs share a pair (N, D) with others, and with it part of their noise"


def _partners(group: np.ndarray, run: np.ndarray) -> float:
    """Share of the runs that have another run in their group."""
    group = group[np.unique(run, return_index=True)[1]]
    return float(np.mean(np.bincount(_numbered(group))[_numbered(group)] > 1))


def _seeds(table: Table) -> np.ndarray | None:
    if "seed" not in table.frame.columns or table.frame["seed"].isna().any():
        return None
    return np.unique(table.frame["seed"].astype(str).to_numpy(), return_inverse=True)[1].reshape(-1)


def _numbered(values: np.ndarray) -> np.ndarray:
    """The same groups, numbered 0, 1, ... without gaps (a subset of a table has gaps)."""
    return np.unique(values, return_inverse=True)[1].reshape(-1)
