"""How a verb of the command line is declared: its help says what it does, with an example."""

import argparse
from collections.abc import Callable
from typing import Any


def add_verb(
    subparsers: Any,
    name: str,
    run: Callable[[argparse.Namespace], int],
    text: str,
    example: str,
    *,
    overrides: bool = False,
) -> argparse.ArgumentParser:
    """A verb with its help: what it does, an example, and `run(args) -> exit code`. overrides: whether it takes
    `--section.key value` beyond its own arguments."""
    parser: argparse.ArgumentParser = subparsers.add_parser(
        name,
        help=text.split(". ")[0].rstrip("."),
        description=f"{text}\n\nexample:\n  {example}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.set_defaults(run=run, command=name, overrides=overrides)
    return parser
