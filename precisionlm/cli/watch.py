"""The verb that looks at runs while they train: watch."""

import argparse
import sys
import time
from pathlib import Path
from typing import Any

from precisionlm.cli.verbs import add_verb
from precisionlm.errors import DONE, UserError
from precisionlm.json_text import dumps

_HELP = """\
Watch runs train: loss, tokens/s, MFU, goodput, time left, last checkpoint, loss spikes and gradient-norm outliers.
One run is shown with its loss curve, several or a folder of them as a table; on a terminal it goes on until Ctrl-C.
It reads run directories alone, on any machine that sees them.

A step is marked where its loss lies more than 6 robust standard deviations (1.4826 times the median absolute
deviation) above the median of the 64 steps before it, or where the logarithm of its gradient norm does. With
--tracking.quantization_every K training measures every site's quantization error every K steps; the worst is shown."""


def add_watch(verbs: Any) -> None:
    """Register watch."""
    watch = add_verb(verbs, "watch", _watch, _HELP, "precisionlm watch runs")
    watch.add_argument("runs", type=Path, nargs="+", metavar="RUN", help="a run directory or a folder of them")
    watch.add_argument("--once", action="store_true", help="print how they do now, and end")
    watch.add_argument("--json", action="store_true", help="print that as JSON, a row a run, and end")
    watch.add_argument("--every", type=float, default=2.0, metavar="SECONDS", help="between looks")


def _watch(args: argparse.Namespace) -> int:
    from rich.console import Console
    from rich.live import Live

    from precisionlm.terminal import below
    from precisionlm.watching.reading import Reading, Watched, run_folders
    from precisionlm.watching.screen import screen

    if not args.every > 0:
        raise UserError(f"--every {args.every:g}: must be above 0")
    watched: dict[Path, Watched] = {}

    def look() -> tuple[list[tuple[Reading, Any]], list[str]]:
        """Every run now, and what is wrong with those that cannot be read."""
        found, left_out = [], []
        for folder in run_folders(args.runs):
            try:
                if folder not in watched:
                    watched[folder] = Watched(folder)
                found.append(watched[folder].now())
            except UserError as error:
                left_out.append(str(error))
        return found, left_out

    found, left_out = look()
    if not found and left_out:
        raise UserError(left_out[0])
    console = Console(file=below(sys.stdout))
    if args.json:
        print(dumps([reading.row for reading, _ in found]))
        for line in left_out:
            print(f"left out: {line}", file=sys.stderr)
        return DONE
    if args.once or not console.is_terminal:
        # A table in a file is as wide as it needs to be.
        (console if console.is_terminal else Console(file=console.file, width=200)).print(screen(found, left_out))
        return DONE
    try:
        with Live(screen(found, left_out), console=console, auto_refresh=False) as live:
            while True:
                time.sleep(args.every)
                live.update(screen(*look()), refresh=True)
    except KeyboardInterrupt:
        return DONE
