"""python -m tests.fuzz --cases 10000 --seed 0: damaged calls of every verb; exit code 1 if one of them escapes."""

import argparse
import os
import random
import tempfile
import time
from collections import Counter
from pathlib import Path

os.environ["JAX_PLATFORMS"] = "cpu"


def main() -> int:
    """Run a campaign; prints each escape and what came of all."""
    from hypothesis import HealthCheck, Phase, given, seed, settings

    from ..conftest import chain
    from .cases import cases
    from .run import check, new_world

    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("--cases", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    counts: Counter[str] = Counter()
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as scratch:
        world = new_world(Path(scratch) / "world", chain(Path(scratch)))
        part = 0
        while sum(counts.values()) < args.cases:  # in parts, which hypothesis keeps apart by their seeds

            @seed(random.Random(f"{args.seed}/{part}").getrandbits(64))
            @settings(max_examples=min(500, args.cases - sum(counts.values())), deadline=None, database=None,
                      phases=[Phase.generate], suppress_health_check=list(HealthCheck))  # fmt: skip
            @given(cases())
            def one(case):  # type: ignore[no-untyped-def]
                try:
                    counts[check(case, world)] += 1
                except AssertionError as escape:
                    counts["escaped"] += 1
                    print(f"ESCAPED {escape}", flush=True)

            one()
            part += 1
    total, seconds = sum(counts.values()), time.monotonic() - began
    print(f"{total:,} cases: {counts['ok']:,} done, {counts['refused']:,} refused in one line, "
          f"{counts['escaped']:,} escaped; {seconds:.0f} s")  # fmt: skip
    return int(counts["escaped"] > 0)


if __name__ == "__main__":
    raise SystemExit(main())
