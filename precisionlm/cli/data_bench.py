"""The benches of data: bench data, bench loader."""

import argparse
import os
from pathlib import Path
from typing import Any

from precisionlm.cli.verbs import add_verb
from precisionlm.errors import DONE, UserError
from precisionlm.json_text import dumps


def add_data_bench(verbs: Any) -> None:
    """Register bench data and bench loader."""
    data = add_verb(
        verbs,
        "data",
        _data,
        "Time data prepare beside the tokenizers library itself on the same text in as many processes, in turns.",
        "precisionlm bench data stdlib --workers 2",
    )
    data.add_argument("source", nargs="+", help="as for data prepare")
    data.add_argument("--tokenizer", type=Path, help="tokenizer.json; one is trained if absent")
    data.add_argument("--vocab-size", type=int, default=8192, help="entries of the tokenizer to train")
    data.add_argument("--workers", type=int, help="processes; as many as cores if absent")
    data.add_argument("--rounds", type=int, default=3, help="of both, in turns")
    data.add_argument("--megabytes", type=float, default=64.0, help="of text to take")
    data.add_argument("--json", action="store_true", help="print the findings as JSON")

    loader = add_verb(
        verbs,
        "loader",
        _loader,
        "Time training batches from a prepared folder, on a disk or in a bucket, in the order of training.",
        "precisionlm bench loader gs://bucket/data --sequence-length 2048 --batch-size 256",
    )
    loader.add_argument("path", help="prepared folder, or its URL")
    loader.add_argument("--sequence-length", type=int, default=2048, help="tokens of a sequence")
    loader.add_argument("--batch-size", type=int, default=256, help="sequences of a batch")
    loader.add_argument("--batches", type=int, default=100, help="batches to time")
    loader.add_argument("--cache", help="folder for shards of a bucket; ~/.cache/precisionlm/shards if absent")
    loader.add_argument("--cache-gib", type=float, default=32.0, help="GiB that it may hold; 0: read in ranges only")
    loader.add_argument("--json", action="store_true", help="print the findings as JSON")


def _data(args: argparse.Namespace) -> int:
    from precisionlm.bench.data import measure
    from precisionlm.progress import reporting

    workers = args.workers or len(os.sched_getaffinity(0))
    if not 1 <= workers <= 1024 or args.rounds < 1 or not 0 < args.megabytes < 1e5:
        raise UserError("--workers must be 1 to 1024, --rounds at least 1, --megabytes above 0 and below 100000")
    with reporting("bench") as report:
        found = measure(args.source, args.tokenizer, args.vocab_size, workers, args.rounds, args.megabytes, report)
    if args.json:
        print(dumps(found))
        return DONE
    print(
        f"{found['bytes'] / 1e6:.1f} MB, {found['documents']:,} documents, {found['tokens']:,} tokens, {workers} "
        f"processes, load {found['load']:.1f}"
    )
    for name in ("library", "prepare"):
        of = found[name]
        print(
            f"{name:8} {of['seconds']:7.2f} s {of['megabytes_per_second']:7.2f} MB/s "
            f"{of['tokens_per_second'] / 1e6:7.2f} M tokens/s {of['cpu_seconds']:7.2f} s of processors"
        )
    print(
        f"data prepare reaches {100 * found['ratio']:.0f} % of the library's speed, "
        f"{100 * found['cpu_ratio']:.0f} % by the time of processors"
    )
    return DONE


def _loader(args: argparse.Namespace) -> int:
    from precisionlm.bench.loader import measure

    if args.batches < 1 or not 0 <= args.cache_gib < 1 << 40:
        raise UserError(f"--batches {args.batches} must be at least 1, --cache-gib {args.cache_gib:g} at least 0")
    found = measure(args.path, args.sequence_length, args.batch_size, args.batches, args.cache, args.cache_gib)
    text = (
        f"{found['path']}: {found['tokens_per_second'] / 1e6:.1f} M tokens/s over {found['tokens']:,} tokens, "
        f"the first batch after {found['first_batch_seconds']:.2f} s"
    )
    print(dumps(found) if args.json else text)
    return DONE
