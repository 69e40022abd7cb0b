"""What predict and score do: what laws say of runs before they are made, and how far off it was."""

import argparse
import hashlib
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pandas as pd

from precisionlm.analysis.fitting.compare import check_symbols, own_columns
from precisionlm.analysis.predictions.predict import Predicted, predict
from precisionlm.analysis.predictions.score import Group, Pair, Score, score
from precisionlm.analysis.table import read as tables
from precisionlm.cli.cells import read_cells
from precisionlm.cli.fit_arguments import columns_of, dump, names_of, show_plan
from precisionlm.cli.fit_from import fit_from, preview
from precisionlm.errors import DONE, UserError
from precisionlm.whole_file import written


def run_predict(arguments: argparse.Namespace) -> int:
    """`precisionlm predict`."""
    frame, laws, renamed = tables.read(arguments.runs), names_of(arguments.law), columns_of(arguments)
    if arguments.out.suffix != ".csv":
        raise UserError(f"-o {arguments.out}: the name must end in .csv")
    check_symbols(laws, renamed)
    cells = read_cells(arguments.cells)
    if arguments.dry_run:
        return show_plan(arguments, [preview(arguments, frame, law, own_columns(law, renamed)) for law in laws])
    found: dict[str, Predicted] = {}
    for law in dict.fromkeys(laws):
        own = own_columns(law, renamed)
        fitted = fit_from(arguments, frame, law, own)
        found[law] = predict(fitted, cells, own)
        for warning in dict.fromkeys([*fitted.warnings, *found[law].warnings]):
            print(f"warning: {law}: {warning}", file=sys.stderr)
    text = pd.concat([p.frame for p in found.values()], ignore_index=True).to_csv(index=False, lineterminator="\n")
    _write_once(arguments.out, text)
    digest = hashlib.sha256(text.encode()).hexdigest()
    counts = {law: len(p.frame) for law, p in found.items()}
    if arguments.json:
        dump({"file": str(arguments.out), "sha256": digest, "cells": len(cells.frame), "predictions": counts,
              "left_out": {law: p.left_out for law, p in found.items()}})  # fmt: skip
        return DONE
    print(f"{arguments.out}: {sum(counts.values())} predictions of {len(cells.frame)} cells")
    for law, predicted in found.items():
        left = "; ".join(f"{count} x {reason}" for reason, count in predicted.left_out.items())
        print(
            f"  {law}: {counts[law]}" + (f", not of {sum(predicted.left_out.values())} cells ({left})" if left else "")
        )
    print(f"sha256 {digest}")
    return DONE


def _write_once(path: Path, text: str) -> None:
    """Raises UserError where a file of other predictions is there: they are not changed after the runs."""
    if path.exists() and path.read_bytes() != text.encode():
        raise UserError(f"{path}: holds other predictions, which stay; give another name with -o, or remove it")
    with written(path) as partial:
        partial.write_bytes(text.encode())


def run_score(arguments: argparse.Namespace) -> int:
    """`precisionlm score`."""
    frame = tables.read(arguments.runs)
    files = {str(path): tables.read(path) for path in arguments.predictions}
    hashes = {path: hashlib.sha256(Path(path).read_bytes()).hexdigest() for path in files}
    found = score(pd.concat(files.values(), ignore_index=True), frame, arguments.by)
    if arguments.json:
        dump({"files": hashes, "groups": [_group_json(g) for g in found.groups],
              "pairs": [_pair_json(p) for p in found.pairs],
              "not_scored": [asdict(u) for u in found.unmatched], "verdicts": found.verdicts})  # fmt: skip
        return DONE
    for path, digest in hashes.items():
        print(f"{path}: {len(files[path])} predictions, sha256 {digest}")
    print("\n".join(_lines(found)))
    return DONE


def _group_json(group: Group) -> dict[str, Any]:
    return asdict(group) | {"worst": [_pair_json(p) for p in group.worst]}


def _pair_json(pair: Pair) -> dict[str, Any]:
    return asdict(pair) | {"error": pair.error, "relative": pair.relative, "inside": pair.inside}


def _lines(found: Score) -> list[str]:
    """The groups as a table, the worst cells of each law, what was not scored, and the verdicts."""
    head = ("law", "of", "block", "scored", "missing", "ambiguous", "failed", "mean error", "max error", "nats/token",
            "inside its interval", "interval")  # fmt: skip
    rows = [head, *(_row(g) for g in found.groups)]
    widths = [max(len(row[i]) for row in rows) for i in range(len(head))]
    lines = ["  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)).rstrip() for row in rows]
    for group in (g for g in found.groups if not g.block):
        for p in group.worst:
            side = {True: "inside", False: "outside", None: "no"}[p.inside]
            values = f"predicted {p.predicted:.6g}, observed {p.observed:.6g} ({p.relative:.2%}, {side} interval)"
            lines.append(f"worst of {group.law}, {group.quantity}: {p.cell}: run {p.run}: {values}")
    lines += [f"{u.problem}: {u.law}, {u.quantity}: {u.cell}: {u.why}" for u in found.unmatched]
    return [*lines, *found.verdicts]


def _row(group: Group) -> tuple[str, ...]:
    share = f"{group.inside} of {group.with_interval}" + (
        f" ({group.inside / group.with_interval:.0%})" if group.with_interval else ""
    )
    lost = ("", "", "") if group.block else (str(group.missing), str(group.ambiguous), str(group.failed))
    width = f"± {group.half_width:.2%}" if group.with_interval else ""
    return (group.law, group.quantity, group.block or "all", str(group.scored), *lost, f"{group.mean_relative:.2%}",
            f"{group.max_relative:.2%}", f"{group.mean_absolute:.4f}", share, width)  # fmt: skip
