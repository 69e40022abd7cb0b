"""The verbs of training text: data prepare, adopt, verify, inspect."""

import argparse
import os
from pathlib import Path
from typing import Any

from precisionlm.cli.verbs import add_verb
from precisionlm.errors import DONE, UserError
from precisionlm.json_text import dumps
from precisionlm.terminal import wrapped


def add_data(verbs: Any) -> None:
    """Register data prepare, adopt, verify, inspect."""
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
    prepare.add_argument("--out", required=True, help="folder to make")
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

    adopt = add_verb(
        data_verbs,
        "adopt",
        _data_adopt,
        "Take token files that others made (nanoGPT, llm.c .bin, Megatron .bin/.idx, OLMo .npy, datatrove .ds) as they "
        "lie:\nwrites an index and a tokenizer, copies no tokens.",
        "precisionlm data adopt tokens/*.npy --out data/mix --tokenizer dolma2.json",
    )
    adopt.add_argument("files", nargs="+", help="token files, in their order; side files are found beside them")
    adopt.add_argument("--out", required=True, help="folder for meta.json; may hold the files themselves")
    adopt.add_argument("--tokenizer", type=Path, help="tokenizer.json that made the tokens")
    adopt.add_argument("--eos-id", type=int, help="end-of-text id, if the tokenizer does not tell it")
    adopt.add_argument("--dtype", choices=("uint16", "uint32"), help="of bare numbers; by the vocabulary if absent")
    adopt.add_argument("--validation", nargs="+", help="files of validation tokens")
    adopt.add_argument("--validation-tokens", type=int, help="without those: the last so many; one in 128 if absent")
    adopt.add_argument("--json", action="store_true", help="print meta.json")

    verify = add_verb(
        data_verbs,
        "verify",
        _data_verify,
        "Read every byte of prepared folders and compare hashes, ranges and counts with their records.",
        "precisionlm data verify data/stdlib",
    )
    verify.add_argument("path", nargs="+", help="prepared folder, or its URL")
    verify.add_argument("--json", action="store_true", help="print the findings as JSON")

    inspect = add_verb(
        data_verbs,
        "inspect",
        _data_inspect,
        "Print what is in a prepared folder: counts, lengths of documents, some of them decoded.",
        "precisionlm data inspect data/stdlib --samples 3",
    )
    inspect.add_argument("path", help="prepared folder, or its URL")
    inspect.add_argument("--samples", type=int, default=2, help="documents to print of each split")
    inspect.add_argument("--seed", type=int, default=0, help="by which they are drawn")
    inspect.add_argument("--characters", type=int, default=300, help="of each")
    inspect.add_argument("--json", action="store_true", help="print everything as JSON")


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


def _data_adopt(args: argparse.Namespace) -> int:
    from precisionlm.data.adopt import adopt
    from precisionlm.progress import reporting

    with reporting("adopt") as report:
        meta = adopt(
            args.files,
            args.out,
            args.tokenizer,
            args.eos_id,
            args.dtype,
            args.validation,
            args.validation_tokens,
            lambda text, done, total: report(done / total if total else 0.0, text),
        )
    text = (
        f"{args.out}: {meta.train.tokens:,} training and {meta.validation.tokens:,} validation tokens of "
        f"{meta.train.documents + meta.validation.documents:,} documents in {len(meta.train.shards)} files "
        f"({meta.source}, {meta.dtype}), where they lie"
    )
    print(dumps(meta.as_json()) if args.json else text)
    return DONE


def _data_verify(args: argparse.Namespace) -> int:
    from precisionlm.data.dataset import Dataset
    from precisionlm.progress import reporting

    found = []
    for path in args.path:
        dataset = Dataset.open(path, cache_bytes=0)
        with reporting("verify") as report:
            dataset.verify(lambda done, total: report(done / total, str(path)))  # noqa: B023
        meta = dataset.meta
        found.append({"path": path, "train": meta.train.tokens, "validation": meta.validation.tokens})
        if not args.json:
            print(f"{path}: all {meta.train.tokens + meta.validation.tokens:,} tokens are those of its record")
    if args.json:
        print(dumps(found))
    return DONE


def _data_inspect(args: argparse.Namespace) -> int:
    from precisionlm.data.dataset import Dataset
    from precisionlm.data.inspect import inspect

    if args.samples < 0 or args.seed < 0 or args.characters < 1:
        raise UserError("--samples and --seed must be at least 0, --characters at least 1")
    found = inspect(Dataset.open(args.path, cache_bytes=0), args.samples, args.seed, args.characters)
    if args.json:
        print(dumps(found))
        return DONE
    head = (
        f"{found['path']}: {found['vocab_size']:,} entries, {found['dtype']}, end-of-text {found['eos_id']} "
        f"({found['eos']}), tokenizer {found['tokenizer']}, from {found['source']}"
    )
    print(wrapped(head, "  "))
    for split in ("train", "validation"):
        of = found[split]
        lengths = ", ".join(f"{name} {value:,.0f}" for name, value in of["lengths"].items())
        line = (
            f"{split}: {of['tokens']:,} tokens, {of['documents']:,} documents, {of['shards']} files, sha256 "
            f"{of['sha256'][:12]}; lengths: {lengths}"
        )
        print(wrapped(line, "  "))
        for sample in of["samples"]:
            text = f"  document {sample['document']:,}, {sample['tokens']:,} tokens: {sample['text']!r}"
            print(wrapped(text, "    "))
    return DONE
