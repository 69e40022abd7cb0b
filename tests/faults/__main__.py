"""python -m tests.faults: a thousand faults in real commands; exit code 1 if anything is lost, or not equal.

python -m tests.faults --state DIR                 all of them; a campaign that was killed goes on
python -m tests.faults --state DIR --part 0/4      a quarter of them; the parts may run at once
python -m tests.faults --state DIR --history 17    one history again
python -m tests.faults --state DIR --table         what was found so far
"""

import argparse
import json
import sys
import tempfile
import time
from dataclasses import asdict
from pathlib import Path

from .campaign import Campaign, Fault, History, environment, planned
from .table import table_of


def main() -> int:
    """Run a campaign, or a part of one, and print its table."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.faults", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--faults", type=int, default=1000, help="how many (1000)")
    parser.add_argument("--seed", type=int, default=0, help="of everything random (0)")
    parser.add_argument("--state", type=Path, help="folder that a later call goes on with; a temporary one if absent")
    parser.add_argument("--part", default="0/1", metavar="I/N", help="every N-th history, from the I-th")
    parser.add_argument("--history", type=int, nargs="+", metavar="NUMBER", help="these alone, whether done or not")
    parser.add_argument("--job", help="only histories of this job")
    parser.add_argument("--seconds", type=float, help="begin no history after so many")
    parser.add_argument("--table", action="store_true", help="run nothing")
    args = parser.parse_args()
    part, parts = map(int, args.part.split("/"))
    if args.state is not None:
        return _run(args, args.state.resolve(), part, parts)
    with tempfile.TemporaryDirectory() as folder:
        return _run(args, Path(folder) / "campaign", part, parts)


def _run(args: argparse.Namespace, folder: Path, part: int, parts: int) -> int:
    environment()
    from .workers import import_everything

    import_everything()
    campaign, began = Campaign(folder, args.seed), time.monotonic()
    plan = planned(campaign.jobs, args.faults, args.seed)
    done = _read(folder, args.seed, args.faults)
    wanted = [n for n in range(len(plan)) if n % parts == part and n not in done] if not args.table else []
    if args.history is not None:
        wanted = args.history
    for number in wanted:
        job, faults = plan[number]
        if args.job not in (None, job) or (args.seconds and time.monotonic() - began > args.seconds):
            continue
        history = campaign.run(number, job, faults)
        print(f"{number} {job}: {_listing(history)} ({history.wall_seconds:.1f} s)", flush=True)
        _write(folder, args.seed, args.faults, history)
        done[number] = history
    print(table_of(list(done.values()), args.faults, f"--seed {args.seed} --faults {args.faults}"))
    return int(any(history.problems for history in done.values()))


def _listing(history: History) -> str:
    words = [f"{one['kind']} at {one['target'].rsplit('.', 1)[1]} {one['nth']}" for one in history.struck]
    codes = [f" → {one['code']}" for one in history.struck]
    return ", ".join(map("".join, zip(words, codes, strict=True))) + f"; {'; '.join(history.problems) or 'equal'}"


def _read(folder: Path, seed: int, faults: int) -> dict[int, History]:
    found = {}
    for path in sorted(folder.glob(f"histories-{seed}-{faults}-*.jsonl")):
        for line in path.read_text().splitlines():
            tree = json.loads(line)
            tree["faults"] = [Fault(**fault) for fault in tree["faults"]]
            found[tree["number"]] = History(**tree)
    return found


def _write(folder: Path, seed: int, faults: int, history: History) -> None:
    """A file a history, whole or not there; so parts need not wait for each other."""
    path = folder / f"histories-{seed}-{faults}-{history.number}.jsonl"
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps(asdict(history)) + "\n")
    partial.replace(path)


if __name__ == "__main__":
    sys.exit(main())
