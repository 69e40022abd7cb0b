"""The verb table: run directories, and tables made of some before, as one table."""

import argparse
from pathlib import Path
from typing import Any

from precisionlm.cli.verbs import add_verb
from precisionlm.errors import DONE, UserError
from precisionlm.json_text import dumps

_HELP = """\
Collect run directories into one table, a row a (run, evaluation): Parquet and CSV. Several folders, and tables that
were collected before, become one; of a row that more than one has, the last one named counts."""


def add_table(verbs: Any) -> None:
    """Register table."""
    table = add_verb(verbs, "table", _table, _HELP, "precisionlm table runs -o runs.parquet")
    table.add_argument(
        "runs", nargs="*", default=(), metavar="RUNS", help="folder of run directories, or a table of them"
    )
    table.add_argument("-o", "--output", type=Path, default=Path("runs.parquet"), help="table to write")
    table.add_argument("--columns", action="store_true", help="print what every column means, and its unit")
    table.add_argument("--json", action="store_true", help="print counts as JSON")


def _table(args: argparse.Namespace) -> int:
    from precisionlm.columns import describe
    from precisionlm.sweep.collect import write
    from precisionlm.sweep.merge import merged, rows_of

    if args.columns:
        print(describe())
        return DONE
    if not args.runs:
        raise UserError("table needs the folder of run directories; see precisionlm table --help")
    unfinished: list[str] = []
    tables = []
    for source in args.runs:
        found, left_out = rows_of(source)
        tables.append(found)
        unfinished += left_out
    table, repeated = merged(tables)
    paths = write(table, args.output)
    counts = {
        "rows": len(table),
        "runs": int(table["run_id"].nunique()),
        "diverged": int((table["status"] == "diverged").sum()),
        "repeated": repeated,
        "unfinished": unfinished,
        "files": [str(path) for path in paths],
    }
    if args.json:
        print(dumps(counts))
        return DONE
    again = f"; {repeated} that more than one had, of the last one named" if repeated else ""
    print(f"{' and '.join(map(str, paths))}: {counts['rows']} rows of {counts['runs']} runs{again}")
    for folder in unfinished:
        print(f"  left out, not finished: {folder}")
    return DONE
