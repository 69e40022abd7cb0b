"""The verbs of training text: data prepare."""

import argparse
from pathlib import Path
from typing import Any

from precisionlm.cli.verbs import add_verb
from precisionlm.errors import DONE
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
    prepare.add_argument("--dry-run", action="store_true", help="find the files, check the arguments, write nothing")
    prepare.add_argument("--json", action="store_true", help="print meta.json")


def _data_prepare(args: argparse.Namespace) -> int:
    from dataclasses import asdict

    from precisionlm.data.prepare import prepare, preview
    from precisionlm.data.request import Request
    from precisionlm.progress import reporting

    request = Request(**{name: getattr(args, name) for name in Request.__dataclass_fields__})
    if args.dry_run:
        found = preview(request, args.out)
        size = "of unknown size" if found["bytes"] is None else f"{found['bytes']:,} bytes"
        text = (
            f"{args.out}: {found['status']}; {found['files']} files, {size}, {found['vocab_size']:,} entries, "
            f"tokenizer {found['tokenizer']}; {found['split_rule']}; nothing was written"
        )
        print(dumps(found) if args.json else text)
        return DONE
    with reporting("prepare") as report:
        meta = prepare(
            request,
            args.out,
            lambda text, done, total: report(done / total if total else 0.0, text),
        )
    if args.json:
        print(dumps(asdict(meta)))
    else:
        print(
            f"{args.out}: {meta.train.tokens:,} training and {meta.validation.tokens:,} validation tokens of "
            f"{meta.train.documents + meta.validation.documents:,} documents, {meta.vocab_size:,} entries"
        )
    return DONE
