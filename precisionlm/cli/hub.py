"""The verbs between runs and everybody else's tools: export, import; and generate, which lets a run say something."""

import argparse
from functools import partial
from pathlib import Path
from typing import Any

from precisionlm.cli.verbs import MOVED, add_verb, check_moved
from precisionlm.errors import DONE, UserError
from precisionlm.json_text import dumps


def add_hub(verbs: Any) -> None:
    """Register export, import and generate."""
    export = add_verb(
        verbs,
        "export",
        _export,
        "Write a finished run as a Hugging Face model: safetensors, config.json, tokenizer, model card.\n"
        "Weights are stored as its recipe quantizes them, or as --weights says, in layouts of compressed-tensors. For "
        f"a run that moved: {', '.join(MOVED)}.",
        "precisionlm export runs/0123456789ab --out exported --method gptq --weights W4-g128",
        overrides=True,
    )
    export.add_argument("folder", type=Path, metavar="RUN", help="a run directory")
    export.add_argument("--out", type=Path, required=True, help="folder to make")
    export.add_argument("--weights", metavar="FORMAT", help="W4, W4-g128, e4m3fn, mxfp4, …; as trained if absent")
    export.add_argument("--method", default="rtn", help="by which, as for ptq: rtn, gptq, awq, also +mse, +qep, +seq")
    export.add_argument("--at", metavar="RECIPE", help="with other operands quantized so (A8), not as trained")
    export.add_argument("--step", type=int, help="a checkpoint on the way, not the end")
    export.add_argument("--calibration", type=int, default=128, metavar="N", help="sequences of training text (128)")
    export.add_argument("--seed", type=int, default=0, help="by which they are drawn")
    export.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32", help="of what is not quantized")
    export.add_argument("--license", help="an identifier such as apache-2.0, for the card")
    export.add_argument("--dry-run", action="store_true", help="check everything, write nothing")
    export.add_argument("--json", action="store_true", help="print what was written as JSON")

    importing = add_verb(
        verbs,
        "import",
        _import,
        "Make a run directory of a Hugging Face model (Llama, Qwen3, BitNet with silu), for evaluate, ptq, generate "
        "and train --weights-only.\nWhat its maker states of its training is marked as stated by others in the table. "
        "Overrides as for train, such as --training.dtype float32.",
        "precisionlm import Llama-3.2-1B --data data/llama --out runs --tokens 9e12 --schedule cosine",
        overrides=True,
    )
    importing.add_argument("model", type=Path, metavar="FOLDER", help="with config.json, *.safetensors, tokenizer.json")
    importing.add_argument("--data", type=Path, required=True, help="folder prepared with the model's tokenizer")
    importing.add_argument("--out", type=Path, default=Path("runs"), help="folder of run directories")
    importing.add_argument("--tokens", type=float, metavar="D", help="tokens it was trained on; the card's if absent")
    importing.add_argument("--schedule", help="cosine, wsd, linear, …; the card's if absent")
    importing.add_argument("--learning-rate", type=float, help="peak; the card's if absent")
    importing.add_argument("--final-lr-fraction", type=float, help="last learning rate / peak; the card's if absent")
    importing.add_argument("--decay-share", type=float, help="share of steps in which it falls; the card's if absent")
    importing.add_argument("--batch-tokens", type=float, help="per optimizer step; the card's if absent")
    importing.add_argument("--sequence-length", type=int, help="tokens of a sequence here; the card's, or at most 2048")
    importing.add_argument("--ignore", default="", metavar="KEYS", help="of config.json, though they change the logits")
    importing.add_argument("--dry-run", action="store_true", help="check everything, write nothing")
    importing.add_argument("--json", action="store_true", help="print the row as JSON")

    generate = add_verb(
        verbs,
        "generate",
        _generate,
        "Continue a text by a finished run, at the precision of its recipe, with a cache of keys and values. For a run "
        "that moved: --data.path, --checkpoint.folder.",
        'precisionlm generate runs/0123456789ab --prompt "def main(" --temperature 0.8 --top-k 40',
        overrides=True,
    )
    generate.add_argument("folder", type=Path, metavar="RUN", help="a run directory")
    generate.add_argument("--prompt", default="", help="text to continue; the start of a document if absent")
    generate.add_argument("--tokens", type=int, default=64, help="at most so many new ones (64)")
    generate.add_argument("--temperature", type=float, default=1.0, help="0: always the likeliest token")
    generate.add_argument("--top-k", type=int, help="sample among so many likeliest alone")
    generate.add_argument("--seed", type=int, default=0, help="equal seeds give equal texts")
    generate.add_argument("--at", metavar="RECIPE", help="at another precision than trained at")
    generate.add_argument("--json", action="store_true", help="print prompt, text and tokens as JSON")


def _export(args: argparse.Namespace) -> int:
    from precisionlm.cluster.preemption import Interruption

    with Interruption() as interrupted:
        from precisionlm.storage.result import finished_at

        finished_at(args.folder)  # before the imports that take seconds
        from precisionlm.hub.export import Asked, export, plan_export
        from precisionlm.progress import reporting
        from precisionlm.ptq.calibration import Calibration

        _check_seed(args.seed)
        calibration = Calibration(args.calibration, args.seed)
        check_moved(args)
        moved = tuple(args.rest)
        asked = Asked(args.weights, args.method, args.at, args.step, calibration, args.dtype, args.license, moved)
        if args.dry_run:
            found = plan_export(args.folder, asked).summary
        else:
            with reporting("export") as report:
                found = export(args.folder, args.out, asked, partial(report, 0.0), interrupted)
    if args.json:
        print(dumps(found))
        return DONE
    where = f"would be written to {args.out}" if args.dry_run else f"written to {args.out}"
    print(f"{found['run_dir']} as {found['class']}, weights {found['weights']} ({found['format']}), {where}")
    for note in found["notes"]:
        print(f"  {note}")
    return DONE


def _import(args: argparse.Namespace) -> int:
    if not args.model.is_dir():
        raise UserError(f"{args.model}: no folder of a model, with config.json and *.safetensors")
    from precisionlm.hub.import_ import Stated, import_model, imported_row, plan_import

    whole = {"tokens": args.tokens, "batch-tokens": args.batch_tokens}
    for name, value in whole.items():
        if value is not None and not (value >= 1 and value.is_integer()):
            raise UserError(f"--{name} {value:g}: must be a whole number of tokens")
    given = Stated(
        None if args.tokens is None else int(args.tokens),
        args.schedule,
        args.learning_rate,
        args.final_lr_fraction,
        args.decay_share,
        None if args.batch_tokens is None else int(args.batch_tokens),
    )
    ignored = [key for key in args.ignore.split(",") if key]
    found = plan_import(args.model, args.data, given, args.sequence_length, ignored, args.rest)
    path = args.out / found.run.run_id if args.dry_run else import_model(found, args.out).path
    row = imported_row(found)
    if args.json:
        print(dumps({"run_dir": str(path)} | row))
        return DONE
    print(f"{path}: {row['N_params']:,} non-embedding parameters, stated by others: {row['stated_by_others']}")
    print("nothing was written" if args.dry_run else f"next: precisionlm evaluate {path}")
    return DONE


def _generate(args: argparse.Namespace) -> int:
    from precisionlm.cluster.preemption import Interruption

    with Interruption() as interrupted:
        from precisionlm.storage.result import finished_at

        finished_at(args.folder)  # before the imports that take seconds
        from precisionlm.training.generation import Sampling, continued

        _check_seed(args.seed)
        sampling = Sampling(args.tokens, args.temperature, args.top_k, args.seed)
        check_moved(args)
        found = continued(args.folder, args.prompt, sampling, args.at, interrupted, args.rest)
    print(dumps(found) if args.json else found["prompt"] + found["text"])
    return DONE


def _check_seed(seed: int) -> None:
    if seed < 0:
        raise UserError(f"--seed {seed}: must be at least 0")
