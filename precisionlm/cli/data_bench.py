"""The benches of data: bench loader."""

import argparse
from typing import Any

from precisionlm.cli.verbs import add_verb
from precisionlm.errors import DONE, UserError
from precisionlm.json_text import dumps


def add_data_bench(verbs: Any) -> None:
    """Register bench loader."""
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
