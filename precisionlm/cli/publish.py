"""What publish does: a runs table as a folder for others."""

import argparse
import re
import shlex
import sys
from datetime import date
from pathlib import Path
from typing import Any

from precisionlm.analysis.decisions.summary import decisions
from precisionlm.analysis.publishing.card import Fit
from precisionlm.analysis.publishing.clean import without_paths
from precisionlm.analysis.publishing.publish import TABLE, Ready, Stated, ours, publish, ready
from precisionlm.analysis.table import read as tables
from precisionlm.cli.fit import add_fit
from precisionlm.cli.fit_arguments import dump
from precisionlm.cli.fit_from import fit_from, preview
from precisionlm.cli.verbs import Parser
from precisionlm.data.meta import Meta
from precisionlm.errors import DONE, UserError
from precisionlm.training.provenance import package_version
from precisionlm.whole_file import check_writable


def run_publish(arguments: argparse.Namespace) -> int:
    """`precisionlm publish`."""
    table = ready(tables.read(arguments.runs))
    stated = Stated(arguments.title, arguments.license, arguments.url, arguments.creator, _date(arguments.date))
    _check_out(arguments.out)
    corpora = [_corpus(folder, table) for folder in arguments.data or []]
    asked = {text: _options(text) for text in arguments.fit or []}
    if arguments.dry_run:
        planned = [preview(options, table.frame, options.law) for options in asked.values()]
        if arguments.json:
            dump({"rows": len(table.frame), "cleaned": dict(table.cleaned), "fits": planned})
        else:
            print(f"{len(table.frame)} rows to {arguments.out}; nothing was written")
            print("\n".join(f"  would fit {f['law']} on {f['rows_used']} rows" for f in planned))
        return DONE
    fits = [_fit(text, options, table) for text, options in asked.items()]
    advice = [line for fit in fits for line in decisions(fit.analysis)]
    paths = publish(table, arguments.out, stated, fits, corpora, advice, f"precisionlm {package_version()}")
    if arguments.json:
        dump({"files": [str(path) for path in paths], "rows": len(table.frame), "cleaned": dict(table.cleaned)})
        return DONE
    print("\n".join(map(str, paths)))
    for column, count in table.cleaned.items():
        print(f"{column}: paths cut to their last part in {count} cells", file=sys.stderr)
    if not fits:
        print("no --fit: the folder has no report and no figures", file=sys.stderr)
    return DONE


def _check_out(out: Path) -> None:
    """Refused before anything is fitted."""
    check_writable(out.parent)
    if out.exists() and (not out.is_dir() or (any(out.iterdir()) and not ours(out))):
        raise UserError(f"{out} is there and holds other things; give a new folder")


def _date(text: str | None) -> str | None:
    try:
        return None if text is None else date.fromisoformat(text).isoformat()
    except ValueError:
        raise UserError(f"--date {text}: must be a date such as 2026-11-26") from None


def _corpus(folder: Path, table: Ready) -> dict[str, Any]:
    """What a prepared folder says of its text. Raises UserError for one of which no row was trained or evaluated."""
    meta = Meta.read(folder)
    hashes = {"dataset": meta.train.sha256, "validation": meta.validation.sha256, "tokenizer": meta.tokenizer_sha256}
    text = " ".join(
        str(v) for c in ("dataset", "mixture") if c in table.frame for v in table.frame[c].dropna().unique()
    )
    if hashes["dataset"][:12] not in text:
        raise UserError(f"--data {folder}: no row was trained on it: its training tokens are {hashes['dataset'][:12]}")
    return {
        "source": without_paths(meta.source),
        "split": without_paths(meta.split_rule),
        "training tokens": meta.train.tokens,
        "training documents": meta.train.documents,
        "validation tokens": meta.validation.tokens,
        "validation documents": meta.validation.documents,
        "vocabulary": meta.vocab_size,
        **{f"sha256 ({column})": value for column, value in hashes.items()},
    }


def _options(text: str) -> argparse.Namespace:
    """The arguments of a fit of the published table. Raises UserError, naming --fit."""
    parser = Parser(prog="precisionlm", allow_abbrev=False)
    add_fit(parser.add_subparsers())
    try:
        options: argparse.Namespace = parser.parse_args(["fit", "--runs", TABLE, *shlex.split(text)])
    except (UserError, ValueError) as problem:
        raise UserError(f"--fit '{text}': {problem}") from None
    if options.runs != TABLE or options.dry_run or options.json or options.profile:
        raise UserError(f"--fit '{text}': takes no --runs, --dry-run, --json and --profile")
    return options


def _fit(text: str, options: argparse.Namespace, table: Ready) -> Fit:
    command = without_paths(re.sub(r"\s+", " ", f"precisionlm fit --runs {TABLE} {text}").strip())
    return Fit(command, fit_from(options, table.frame, options.law))
