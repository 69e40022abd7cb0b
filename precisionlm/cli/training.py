"""The verbs that run models one by one: train, evaluate."""

import argparse
import math
import time
from collections import deque
from pathlib import Path
from typing import TYPE_CHECKING, Any

from precisionlm.cli.jobs import add_job_arguments, joined, planned, reporting_first, warn
from precisionlm.cli.verbs import add_verb, loss_text, print_runs, surviving
from precisionlm.errors import DIVERGED, DONE
from precisionlm.json_text import dumps

if TYPE_CHECKING:
    from precisionlm.progress import Reporter


def add_training(verbs: Any) -> None:
    """Register train and evaluate."""
    train = add_verb(
        verbs,
        "train",
        _train,
        "Train one model at one precision; resume it if it was begun, skip it if it is finished. The run directory is "
        "OUT/<run id>.\nAny key of the configuration can be given as --section.key VALUE.",
        "precisionlm train configs/demo.yaml --out runs --training.steps 50 --precision.recipe W4A8",
        overrides=True,
    )
    train.add_argument("config", type=Path, help="experiment YAML")
    train.add_argument(
        "--weights-only",
        metavar="RUN",
        help="begin with the weights of a finished run, whatever its recipe",
    )
    add_job_arguments(train)

    evaluate = add_verb(
        verbs,
        "evaluate",
        _evaluate,
        "Evaluate finished runs again, at another recipe or on more tokens, without training; further rows of the same "
        "table.\nWhat was evaluated before is not done again. Overrides as for train, of what decides an evaluation.",
        "precisionlm evaluate runs --precision.recipe W4A8 --training.eval_tokens 4000000",
        overrides=True,
    )
    evaluate.add_argument("runs", type=Path, nargs="+", metavar="RUN", help="a run directory or a folder of them")
    evaluate.add_argument("--dry-run", action="store_true", help="check everything, list what would be evaluated")
    evaluate.add_argument("--json", action="store_true", help="print the evaluations as JSON")


def _train(args: argparse.Namespace) -> int:
    from precisionlm.cluster.preemption import Interruption

    with Interruption() as signalled:  # before the imports that take seconds
        from precisionlm.model.presets import load_experiment

        given = ["--training.weights_from", args.weights_only] if args.weights_only else []
        experiment = load_experiment(args.config, args.rest + given)  # its errors come before JAX does
        from precisionlm.cluster.processes import is_first, on_all
        from precisionlm.sweep.rows import plan
        from precisionlm.training.execute import train

        with joined(args, signalled, [experiment]) as interrupted:
            warn([experiment])
            if args.dry_run:
                rows = on_all(lambda: plan([experiment], args.out))
                return print_runs(planned(rows, args.chip, args.mfu), args.json) if is_first() else DONE
            with reporting_first("train") as report:
                told = _Steps(report, experiment.batch_tokens)
                outcome = train(experiment, args.out, told, interrupted)
    if is_first():
        _print_outcome(outcome, args.json)
    return DIVERGED if outcome.result.status == "diverged" else DONE


class _Steps:
    """Reports steps with their loss (nats/token) and the speed of the latest ones (tokens/s)."""

    def __init__(self, report: "Reporter", batch_tokens: int):
        self._report, self._batch_tokens = report, batch_tokens
        self._recent: deque[tuple[float, int]] = deque(maxlen=20)

    def __call__(self, step: int, steps: int, loss: float) -> None:
        if not self._recent and math.isnan(loss):  # before the first one
            self._report(step / steps, "compiling the step")
            return
        self._recent.append((time.monotonic(), step))
        (begun, first), (now, _) = self._recent[0], self._recent[-1]
        speed = f"  {(step - first) * self._batch_tokens / (now - begun):,.0f} tokens/s" if now > begun else ""
        self._report(step / steps, f"step {step:,}/{steps:,}  loss {loss:.4f}{speed}")


def _evaluate(args: argparse.Namespace) -> int:
    from precisionlm.cluster.preemption import Interruption

    with Interruption() as interrupted:
        from precisionlm.storage.result import finished_runs

        if args.rest:  # what is wrong with the words is told before what is wrong with the folders
            from precisionlm.training.finished import check_overrides

            check_overrides(args.rest)
        folders = dict.fromkeys(folder for root in args.runs for folder in finished_runs(root))
        from precisionlm.cluster.executables import keep_executables
        from precisionlm.progress import reporting
        from precisionlm.training.finished import evaluate_finished, request

        keep_executables()
        # all of them, before anything is spent
        asked = [one for _, one in surviving(folders, lambda folder: request(folder, args.rest))]
        found = [{"run_dir": str(one.directory.path), "status": "done" if one.recorded else "new"} for one in asked]
        if args.dry_run:
            found = [row | one.settings for row, one in zip(found, asked, strict=True)]
        else:
            with reporting("evaluate") as report:
                for i, one in enumerate(asked):
                    report(i / len(asked), f"{one.directory.path.name} at {one.run.recipe}")
                    found[i] |= one.settings | evaluate_finished(one, interrupted)
    if args.json:
        print(dumps(found))
        return DONE
    for row in found:
        loss = "" if args.dry_run else f"  loss {loss_text(row)} on {row['val_tokens']:,} tokens"
        print(f"{row['run_dir']}  {row['status']}  {row['evaluation']} at {row['eval_recipe']}{loss}")
    if args.dry_run:
        print("nothing was evaluated")
    return DONE


def _print_outcome(outcome: Any, as_json: bool) -> None:
    row = outcome.result.row
    if as_json:
        found = {"run_id": outcome.run_id, "run_dir": str(outcome.path), "status": outcome.status}
        print(dumps(found | {"result": outcome.result.model_dump()}))
        return
    print(f"{outcome.path}: {outcome.status}, N {row['N_params']:,}, D {row['D_tokens']:,}, {row['recipe']}")
    for evaluation in outcome.result.evaluations:
        print(f"  {evaluation['evaluation']} loss {loss_text(evaluation)} nats/token")
