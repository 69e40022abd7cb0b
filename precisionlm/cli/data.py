"""The verbs of training text: data prepare."""

import argparse
import os
from pathlib import Path
from typing import Any

from precisionlm.cli.verbs import add_verb
from precisionlm.errors import DONE, UserError
from precisionlm.json_text import dumps


def add_data(verbs: Any) -> None:
    """Register data prepare."""
    data = verbs.add_parser("data", help="Prepare training text", allow_abbrev=False)
    data_verbs = data.add_subparsers(required=True, metavar="VERB")
    prepare = add_verb(
        data_verbs,
        "prepare",
        _data_prepare,
        "Turn text into packed tokens: train a byte-level BPE tokenizer (or take one), encode, split off validation.",
        "precisionlm data prepare stdlib --out data/stdlib --vocab-size 2048",
    )
    prepare.add_argument(
        "source",
        nargs="+",
        help="files, folders, globs, .jsonl[.gz|.zst], packed .u16/.bin files, hf:DATASET, or stdlib (Python's source)",
    )
    prepare.add_argument("--out", required=True, type=Path, help="folder to make")
    prepare.add_argument("--vocab-size", type=int, help="entries of the tokenizer to train")
    prepare.add_argument("--tokenizer", type=Path, help="tokenizer.json to use instead of training one")
    prepare.add_argument("--eos-id", type=int, help="end-of-text id of that tokenizer, if it cannot be told")
    prepare.add_argument("--validation", nargs="+", help="validation text of its own instead of a split")
    prepare.add_argument("--validation-every", type=int, default=128, help="one document in this many is validation")
    prepare.add_argument("--text-field", default="text", help="field of jsonl records")
    prepare.add_argument("--max-tokens", type=int, help="stop after this many training tokens")
    prepare.add_argument("--dtype", choices=("uint16", "uint32"), help="of token files that do not say it themselves")
    prepare.add_argument(
        "--allow-loss", action="store_true", help="take a tokenizer that does not give text back; counted in meta.json"
    )
    prepare.add_argument(
        "--shard-tokens", type=int, help="tokens of a file, 2^28 if absent; longer splits get more files"
    )
    prepare.add_argument("--workers", type=int, help="processes that encode; as many as cores if absent")
    prepare.add_argument("--dry-run", action="store_true", help="read and count everything, write nothing")
    prepare.add_argument("--json", action="store_true", help="print meta.json")


def _data_prepare(args: argparse.Namespace) -> int:
    from precisionlm.data.prepare import prepare, preview
    from precisionlm.data.request import Request
    from precisionlm.progress import reporting

    given = {name: getattr(args, name) for name in Request.__dataclass_fields__}
    request = Request(**{name: value for name, value in given.items() if value is not None})
    if args.workers is not None and not 1 <= args.workers <= 1024:
        raise UserError(f"--workers {args.workers}: must be 1 to 1024")
    with reporting("prepare") as report:

        def progress(text: str, done: int, total: int | None) -> None:
            report(done / total if total else 0.0, text)

        if args.dry_run:
            found = preview(request, args.out, progress)
        else:
            meta = prepare(request, args.out, progress, args.workers or len(os.sched_getaffinity(0)))
    if args.dry_run:
        size = "of unknown size" if found["bytes"] is None else f"{found['bytes']:,} bytes"
        text = (
            f"{args.out}: {found['status']}; {found['files']} files, {size}, {found['vocab_size']:,} entries, "
            f"tokenizer {found['tokenizer']}; {found['split_rule']}; {_counted(found)}; nothing was written"
        )
        print(dumps(found) if args.json else text)
    elif args.json:
        print(dumps(meta.as_json()))
    else:
        print(
            f"{args.out}: {meta.train.tokens:,} training and {meta.validation.tokens:,} validation tokens of "
            f"{meta.train.documents + meta.validation.documents:,} documents, {meta.vocab_size:,} entries; "
            f"{_counted(meta.counts)}"
        )
    return DONE


def _counted(counts: dict[str, Any]) -> str:
    """What was read, in words: what is zero is left out, but for files and records."""
    if "records" not in counts:
        return "records were not counted"
    words = {
        "empty": "empty",
        "duplicates": "with the text of another",
        "held_out_of_training": "kept out of training, being validation text",
    }
    parts = [f"{counts['files']:,} files and {counts['records']:,} records read"]
    parts += [f"{counts[name]:,} {text}" for name, text in words.items() if counts[name]]
    if counts["files_named_again"]:
        parts.append(f"{counts['files_named_again']:,} files named more than once read once")
    if counts.get("windows_cut"):
        parts.append(f"{counts['windows_cut']:,} cuts in text without spaces")
    if counts.get("tokenizer_without"):
        parts.append(f"the tokenizer's {' and '.join(counts['tokenizer_without'])} taken out")
    if lost := counts.get("lost_text"):
        parts.append(f"text lost in {lost['changed']:,} of {lost['sampled']:,} documents decoded again")
    return ", ".join(parts)
