"""The verbs of a study: predict and score, before and after its runs, and publish. What they do is imported late."""

import argparse
from pathlib import Path
from typing import Any

from precisionlm.cli.fit_arguments import add_fit_arguments, add_table_arguments
from precisionlm.cli.verbs import add_verb


def add_predictions(subparsers: Any) -> None:
    """Register the verbs predict and score."""
    parser = add_verb(
        subparsers, "predict", _predict,
        "Write down what fitted laws say of cells before they are run. Each prediction has the interval in which 95 % "
        "of such runs should lie. Prints the file's sha256, for the commit that holds it.",
        "precisionlm predict --runs runs.parquet --law chinchilla,kumar --cells held_out.yaml -o predictions.csv",
    )  # fmt: skip
    add_table_arguments(parser)
    parser.add_argument("--law", required=True, metavar="A,B,...", help="law or laws, or FILE.py:NAME")
    parser.add_argument(
        "--cells", required=True, type=Path, metavar="FILE",
        help="what to predict: a table with a row a cell, a YAML list ('cells:'), or a sweep file",
    )  # fmt: skip
    parser.add_argument(
        "-o", "--out", type=Path, default=Path("predictions.csv"), help="file (default predictions.csv)"
    )
    add_fit_arguments(parser, bootstrap=200)
    parser.add_argument("--staged", action="store_true", help="fit the base on unquantized runs first, the rest after")
    parser.add_argument("--json", action="store_true", help="print one JSON object")

    parser = add_verb(
        subparsers, "score", _score,
        "Compare predictions with the runs that were made after them: relative errors, how many lie inside their "
        "interval, the worst cells, and those that have no run or more than one.",
        "precisionlm score predictions.csv runs.parquet",
    )  # fmt: skip
    parser.add_argument("predictions", type=Path, nargs="+", help="files that predict wrote, or with its columns")
    parser.add_argument("runs", help="runs table: .csv, .tsv (also .gz), .parquet; or a published one")
    parser.add_argument("--by", metavar="COLUMN", help="column of the runs that tells blocks apart (default name)")
    parser.add_argument("--json", action="store_true", help="print one JSON object")


def add_publish(subparsers: Any) -> None:
    """Register the verb publish."""
    parser = add_verb(
        subparsers, "publish", _publish,
        "Write a runs table as a folder for others: Parquet and CSV, a data card, Croissant metadata, and the fits "
        "with their commands, as a page with figures.\nAbsolute paths are cut to their last part.",
        "precisionlm publish runs.parquet --out published --license CC-BY-4.0 --data data/prepared \\\n"
        "    --fit \"--law chinchilla --where 'w_bits == 16'\" --fit '--law kumar --bootstrap 200'",
    )  # fmt: skip
    parser.add_argument("runs", help="runs table: .csv, .tsv (also .gz), .parquet; or a published one")
    parser.add_argument("--out", type=Path, required=True, metavar="FOLDER", help="new folder, or one that it wrote")
    parser.add_argument("--title", default="Runs of precisionlm", help="of the card and the metadata")
    parser.add_argument("--license", help="identifier (CC-BY-4.0) or URL; not stated if absent")
    parser.add_argument("--url", help="where the folder will be found")
    parser.add_argument("--creator", help="who made it")
    parser.add_argument("--date", help="of publication, as in 2026-11-26")
    parser.add_argument(
        "--data", type=Path, action="append", metavar="FOLDER",
        help="prepared text of the runs, for what its meta.json says of it; may be repeated",
    )  # fmt: skip
    parser.add_argument(
        "--fit", action="append", metavar="OPTIONS",
        help="options of `fit` but --runs: a fit for card and report; may be repeated",
    )  # fmt: skip
    parser.add_argument("--dry-run", action="store_true", help="check everything, print what would be fitted")
    parser.add_argument("--json", action="store_true", help="print one JSON object")


def _predict(arguments: argparse.Namespace) -> int:
    from precisionlm.cli.predictions import run_predict

    return run_predict(arguments)


def _score(arguments: argparse.Namespace) -> int:
    from precisionlm.cli.predictions import run_score

    return run_score(arguments)


def _publish(arguments: argparse.Namespace) -> int:
    from precisionlm.cli.publish import run_publish

    return run_publish(arguments)
