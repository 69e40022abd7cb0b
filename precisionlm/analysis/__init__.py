"""From a runs table to a law, an interval and a decision. Depends on no training code.

table/      read and validate a runs table; count what is used and what is not, with reasons
published/  tables that come with the package: load_runs("study-2026"), or any file
laws/       the scaling laws with precision, one file a paper
fitting/    law + table → constants, status, intervals; laws against each other on rows they have not seen
decisions/  compute-optimal N, D and precision; critical data; which runs to add next
figures/    the papers' figures, from data and laws
report/     one self-contained HTML page
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

    from pandas import DataFrame


def load_runs(source: "str | Path") -> "DataFrame":
    """A runs table: a published one by its name, such as study-2026, or a file. Raises UserError."""
    from precisionlm.analysis.table.files import read

    return read(source)


__all__ = ["load_runs"]
