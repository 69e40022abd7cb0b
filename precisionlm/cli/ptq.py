"""The verb that quantizes finished runs after training: `ptq`."""

import argparse
from functools import partial
from pathlib import Path
from typing import Any

from precisionlm.cli.verbs import MOVED, add_verb, check_counts, check_moved, loss_text, surviving
from precisionlm.errors import DONE
from precisionlm.json_text import dumps


def add_ptq(verbs: Any) -> None:
    """Register ptq."""
    ptq = add_verb(
        verbs,
        "ptq",
        _ptq,
        "Quantize the weights of finished runs after training and evaluate them; rows of the same table.\n"
        "Methods: rtn (round to nearest), gptq, awq; with +mse scales are searched, with +qep errors of earlier layers "
        "are made up for,\nwith +seq the matrices of a block are quantized one after the other. What is recorded is "
        f"not done again. For runs that moved: {', '.join(MOVED)}.",
        "precisionlm ptq runs --method rtn,gptq,awq,gptq+qep --weights W3,W4,W4-g128,mxfp4",
        overrides=True,
    )
    ptq.add_argument("runs", type=Path, nargs="+", metavar="RUN", help="a run directory or a folder of them")
    ptq.add_argument(
        "--weights",
        "--bits",
        default="3,4,6",
        metavar="FORMATS",
        help="W4, W4-g128 or 4; int4/g128, e2m1, mxfp4, nvfp4, …; int4/had32: in rotated blocks",
    )
    ptq.add_argument("--method", default="rtn", metavar="METHODS", help="rtn, gptq, awq, each also +mse, +qep, +seq")
    ptq.add_argument("--steps", default="last", help="last, all checkpoints that are kept, or 1000,2000")
    ptq.add_argument("--at", metavar="RECIPE", help="evaluate with other operands quantized so (A8KV8), not as trained")
    ptq.add_argument("--calibration", type=int, default=128, metavar="N", help="sequences of training text (128)")
    ptq.add_argument("--seed", type=int, default=0, help="by which they are drawn")
    ptq.add_argument("--recipe", help="only runs trained at this recipe")
    ptq.add_argument("--dry-run", action="store_true", help="check everything, list what would be quantized")
    ptq.add_argument("--json", action="store_true", help="print the evaluations as JSON")


def _ptq(args: argparse.Namespace) -> int:
    from precisionlm.cluster.preemption import Interruption

    with Interruption() as interrupted:
        from precisionlm.precision.recipe import parse_recipe
        from precisionlm.ptq.method import parse_method, parse_steps, weight_quantization
        from precisionlm.storage.result import finished_runs

        check_counts(args, seed=(0, 2**63 - 1))
        check_moved(args)
        methods = list(dict.fromkeys(str(parse_method(word.strip())) for word in args.method.split(",")))
        quantizations = list(dict.fromkeys(weight_quantization(word.strip()) for word in args.weights.split(",")))
        steps = parse_steps(args.steps)
        recipe = str(parse_recipe(args.recipe)) if args.recipe else None
        folders = list(dict.fromkeys(folder for root in args.runs for folder in finished_runs(root, recipe)))
        from precisionlm.cluster.executables import keep_executables
        from precisionlm.progress import reporting
        from precisionlm.ptq.calibration import Calibration
        from precisionlm.ptq.evaluate import Options, plan_run, quantize_run

        options = Options(steps, args.at, Calibration(args.calibration, args.seed), tuple(args.rest))
        work = [(folder, method) for folder in folders for method in methods]

        def plan(one: tuple[Path, str]) -> Any:
            planned = plan_run(*one, quantizations, options)
            planned.missing()  # reads what is recorded
            return planned

        ready = surviving(work, plan)  # all of them, before anything is spent
        if args.dry_run:
            return _print_plan([str(folder) for (folder, _), _ in ready], [plan for _, plan in ready], args.json)
        keep_executables()
        found = []
        with reporting("ptq") as report:

            def quantized(one: tuple[int, tuple[Path, str]]) -> list[dict[str, Any]]:
                i, (folder, method) = one
                say = partial(report, i / len(ready))
                return quantize_run(folder, method, quantizations, say, interrupted, options)

            for (_, (folder, _)), rows in surviving(enumerate(work for work, _ in ready), quantized):
                found += [{"run_dir": str(folder)} | row for row in rows]
    if args.json:
        print(dumps(found))
        return DONE
    for row in found:
        at = f"  after {row['steps']} steps" if row.get("intermediate") else ""
        fallbacks = f"  not by its Hessian: {row['ptq_fallbacks']}" if row.get("ptq_fallbacks") else ""
        print(f"{row['run_dir']}{at}  {row['ptq_method']} {row['ptq_format']}  loss {loss_text(row)}{fallbacks}")
    return DONE


def _print_plan(folders: list[str], planned: list[Any], as_json: bool) -> int:
    rows: list[dict[str, Any]] = [
        {
            "run_dir": folder,
            "method": str(one.method),
            "formats": [str(q) for q in one.quantizations],
            "steps": [point.step for point in one.points],
            "left": len(one.missing()),
        }
        for folder, one in zip(folders, planned, strict=True)
    ]
    if as_json:
        print(dumps(rows))
        return DONE
    for row in rows:
        formats, steps = ", ".join(row["formats"]), ", ".join(map(str, row["steps"]))
        print(f"{row['run_dir']}: {row['method']} to {formats} after {steps} steps, {row['left']} to do")
    print("nothing was quantized")
    return DONE
