"""python -m tests.faults --kills 30 --terms 30: break real runs at random moments; exit code 1 if anything is lost."""

import argparse
import random
import tempfile
from pathlib import Path

from .campaign import DISK_FULL, MOMENTS, Campaign, Fault, table_of


def planned(kills: int, terms: int, full: int, seed: int) -> list[Fault]:
    """Moments in turn, in random order."""
    faults = [
        Fault(kind, MOMENTS[i % 6]) for kind, count in (("SIGKILL", kills), ("SIGTERM", terms)) for i in range(count)
    ]
    faults += [Fault(DISK_FULL, "any write")] * full
    random.Random(seed).shuffle(faults)
    return faults


def main() -> int:
    """Run a campaign and print its table."""
    parser = argparse.ArgumentParser(prog="python -m tests.faults", description=__doc__)
    parser.add_argument("--kills", type=int, default=30, help="SIGKILLs")
    parser.add_argument("--terms", type=int, default=30, help="SIGTERMs")
    parser.add_argument("--full", type=int, default=6, help="full disks")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        campaign = Campaign(Path(folder) / "campaign", args.seed)
        campaign.reference()
        histories = campaign.histories(
            planned(args.kills, args.terms, args.full, args.seed), lambda line: print(line, flush=True)
        )
    print(table_of(histories))
    return int(any(history.problems for history in histories))


if __name__ == "__main__":
    raise SystemExit(main())
