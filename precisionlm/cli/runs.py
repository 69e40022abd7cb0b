"""The verbs that list runs and draw their losses: runs, curves."""

import argparse
import csv
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from precisionlm.cli.verbs import add_verb
from precisionlm.errors import DONE, UserError
from precisionlm.json_text import dumps

_HELP = """\
List the runs in folders: name, recipe, size N, tokens D, status, loss, speed, age. The loss is that of validation, with
~ before it the last training loss of a run that is not finished. Status is done, diverged, running, failed, begun
(nobody holds it), damaged or copy, with the reason behind it.

--where and --sort take run_id, name, recipe, N, D, seed, status, loss, tokens_per_second, age (s), step, steps, reason
and folder."""
_UNITS = ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k"))
_AGES = ((86_400, "d"), (3600, "h"), (60, "min"))
_SEVERAL = 8  # runs that one legend can tell apart


def add_runs(verbs: Any) -> None:
    """Register runs and curves."""
    runs = add_verb(verbs, "runs", _runs, _HELP, "precisionlm runs runs --where \"N > 1e6 and status == 'done'\"")
    runs.add_argument("runs", type=Path, nargs="+", metavar="FOLDER", help="a folder of runs, or a run directory")
    runs.add_argument("--where", metavar="EXPR", help="only those for which it holds, as for fit")
    runs.add_argument("--sort", metavar="COLUMN", help="by one column; by N, D, recipe and seed if absent")
    runs.add_argument("--reverse", action="store_true", help="the largest first")
    runs.add_argument("--json", action="store_true", help="print the rows as JSON")

    curves = add_verb(
        verbs,
        "curves",
        _curves,
        "Draw the losses of runs against their tokens, training as lines, validation as points, a panel a model size; "
        "or write them as CSV.",
        "precisionlm curves runs -o curves.png",
    )
    curves.add_argument("runs", type=Path, nargs="+", metavar="RUN", help="a run directory or a folder of them")
    curves.add_argument("--where", metavar="EXPR", help="only those for which it holds, as for runs")
    curves.add_argument("-o", "--output", type=Path, required=True, help="file that ends in .png, .svg or .csv")
    curves.add_argument("--json", action="store_true", help="print what was written as JSON")


def _runs(args: argparse.Namespace) -> int:
    from precisionlm.watching.listing import STATUSES, ordered, runs_under, those

    everything = runs_under(args.runs)
    found = ordered(those(everything, args.where), args.sort, args.reverse)
    if args.json:
        print(dumps([run.row for run in found]))
        return DONE
    head = ("run", "name", "recipe", "N", "D", "seed", "status", "loss", "tokens/s", "age", "")
    rows = [head, *map(_cells, found)]
    kept = [i for i in range(len(head)) if any(row[i] for row in rows[1:])]
    widths = {i: max(len(row[i]) for row in rows) for i in kept}
    right = {head.index(name) for name in ("N", "D", "seed", "loss", "tokens/s", "age")}
    for row in rows if found else ():
        cells = [row[i].rjust(widths[i]) if i in right else row[i].ljust(widths[i]) for i in kept]
        print("  ".join(cells).rstrip())
    counts = Counter(run.status for run in found)
    told = ", ".join(f"{counts[status]} {status}" for status in STATUSES if counts[status])
    of = f" of {len(everything)}" if args.where else ""
    print(f"{len(found)}{of} runs" + (f": {told}" if told else ""))
    return DONE


def _cells(run: Any) -> tuple[str, ...]:
    finished = run.status in ("done", "diverged", "copy")
    status = run.status if finished or run.step is None or not run.steps else f"{run.status} {run.step / run.steps:.0%}"
    loss = "" if run.loss is None else f"{run.loss:.4f}" if finished else f"~{run.loss:.4f}"
    speed = "" if run.tokens_per_second is None else _short(run.tokens_per_second)
    seed = "" if run.seed is None else f"{run.seed:g}"
    sizes = ("" if value is None else _short(value) for value in (run.N, run.D))
    return run.run_id, run.name, run.recipe, *sizes, seed, status, loss, speed, _age(run.age), run.reason


def _short(value: float) -> str:
    """1,234,000 → 1.23M."""
    size, unit = next(((size, unit) for size, unit in _UNITS if value >= size), (1.0, ""))
    return f"{value / size:.3g}{unit}"


def _age(seconds: float | None) -> str:
    if seconds is None:
        return ""
    size, unit = next(((size, unit) for size, unit in _AGES if seconds >= size), (1, "s"))
    return f"{seconds / size:.0f} {unit}"


def _curves(args: argparse.Namespace) -> int:
    from precisionlm.watching.listing import runs_under, those

    if args.output.suffix not in (".png", ".svg", ".csv"):
        raise UserError(f"--output {args.output}: the name must end in .png, .svg or .csv")
    runs = [
        run
        for run in those(runs_under(args.runs), args.where)
        if run.status != "copy" and run.N is not None and run.batch_tokens
    ]
    if not runs:
        raise UserError(f"{', '.join(map(str, args.runs))}: no runs that can be read; precisionlm runs lists them")
    lines = _write_csv(runs, args.output) if args.output.suffix == ".csv" else _draw(runs, args.output)
    if args.json:
        print(dumps({"file": str(args.output), "runs": len(runs), "lines": lines}))
    else:
        print(f"{args.output}: {len(runs)} runs, {lines:,} lines of their metrics")
    return DONE


def _draw(runs: Sequence[Any], path: Path) -> int:
    import pandas as pd

    from precisionlm.analysis.figures.draw import save_as
    from precisionlm.analysis.figures.learning import curves_of, metrics
    from precisionlm.analysis.figures.recipes import recipes_of

    found = {run.folder: metrics(Path(run.folder) / "metrics.jsonl") for run in runs}
    by_recipe = len(runs) > _SEVERAL or len({run.recipe for run in runs}) == len(runs)
    labels = [run.recipe if by_recipe else f"{run.recipe} {run.name or run.run_id}" for run in runs]
    of = {"run": [run.folder for run in runs], "recipe": labels}
    frame = pd.DataFrame(of | {"N_params": [run.N for run in runs], "batch_tokens": [run.batch_tokens for run in runs]})
    figure = curves_of(frame.assign(_recipe=(recipes := recipes_of(frame)).labels), recipes, found)
    if figure is None:
        raise UserError("none of the runs has metrics yet")
    save_as(figure, path)
    return sum(map(len, found.values()))


def _write_csv(runs: Sequence[Any], path: Path) -> int:
    from precisionlm.storage.run_directory import read_metrics
    from precisionlm.whole_file import written

    count = 0
    with written(path) as partial, partial.open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["run_id", "name", "recipe", "N_params", "seed", "step", "tokens", "loss", "val_loss"])
        for run in runs:
            about = [run.run_id, run.name, run.recipe, run.N, run.seed]
            for line in read_metrics(Path(run.folder) / "metrics.jsonl"):
                if "loss" in line or "val_loss" in line:
                    tokens = line["step"] * run.batch_tokens
                    table.writerow([*about, line["step"], tokens, line.get("loss"), line.get("val_loss")])
                    count += 1
    return count
