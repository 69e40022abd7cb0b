"""Which rows of a table are left out, and why: every row is used or counted."""

import numpy as np


class Exclusions:
    """The first reason found for a row stands."""

    def __init__(self, rows: int) -> None:
        self._code = np.zeros(rows, np.int32)  # 0: kept; else the reason's position from 1
        self._reasons: list[str] = []

    @property
    def keep(self) -> np.ndarray:
        """(rows,) bool: no reason was found."""
        return self._code == 0

    def mark(self, rows: np.ndarray, reason: str) -> None:
        """Leave out the rows of a boolean mask."""
        found = np.asarray(rows, bool) & (self._code == 0)
        if found.any():
            if reason not in self._reasons:
                self._reasons.append(reason)
            self._code[found] = self._reasons.index(reason) + 1

    def counts(self) -> dict[str, int]:
        """Reason -> rows, in the order of the alphabet."""
        count = np.bincount(self._code, minlength=len(self._reasons) + 1)[1:]
        return {reason: int(n) for reason, n in sorted(zip(self._reasons, count, strict=True))}
