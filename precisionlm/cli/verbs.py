"""What the verbs of the command line share: how one is declared, how planned runs and losses are printed."""

import argparse
import re
import sys
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NoReturn, TypeVar

from precisionlm.errors import DONE, CannotWriteError, UserError, check_count
from precisionlm.json_text import dumps

T = TypeVar("T")
R = TypeVar("R")

MOVED = ("--data.path", "--checkpoint.folder", "--mesh.replica", "--mesh.fsdp", "--mesh.tensor")
"""Of a finished run: where it is and on what it is computed now."""
_OVERRIDE = re.compile(r"--\w+(\.\w*)+(=.*)?", re.DOTALL)


class Parser(argparse.ArgumentParser):
    """Wrong arguments are an error like any other: one line."""

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{self.prog.partition(' ')[2] or self.prog}: {message}; see {self.prog} --help")


def without_overrides(words: Sequence[str]) -> tuple[list[str], list[str]]:
    """A command line without its `--section.key value` (or `=value`), and these: argparse, which does not know them,
    would take a value before the file for the file."""
    left: list[str] = []
    overrides: list[str] = []
    rest = iter(words)
    for word in rest:
        if not _OVERRIDE.fullmatch(word):
            left.append(word)
            continue
        overrides.append(word)
        value = None if "=" in word else next(rest, None)
        if value is not None:
            if value.startswith("--"):
                raise UserError(f"{word}: a value is missing before {value}; {word}=VALUE takes any")
            overrides.append(value)
    return left, overrides


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
        help=text.split(". ")[0].rstrip(".").replace("%", "%%"),  # argparse formats help, and no description
        description=f"{text}\n\nexample:\n  {example}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.set_defaults(run=run, command=name, overrides=overrides)
    return parser


def surviving(items: Iterable[T], attempt: Callable[[T], R]) -> list[tuple[T, R]]:
    """Each item with what `attempt` made of it. One that raises UserError is named on standard error and left out;
    where none is left the first error is raised. CannotWriteError ends them all."""
    found: list[tuple[T, R]] = []
    wrong: list[str] = []
    for item in items:
        try:
            found.append((item, attempt(item)))
        except CannotWriteError:
            raise
        except UserError as error:
            wrong.append(str(error))
    if wrong and not found:
        more = len(set(wrong)) - 1
        raise UserError(wrong[0] + (f" (and {more} more such errors)" if more else ""))
    for line in dict.fromkeys(wrong):
        print(f"left out: {line}", file=sys.stderr)
    return found


def check_counts(args: argparse.Namespace, **ranges: tuple[int, int]) -> None:
    """Raises UserError for a whole number outside its range (both ends allowed); an absent one is let be."""
    for name, (least, most) in ranges.items():
        check_count(f"--{name.replace('_', '-')}", getattr(args, name), least, most)


def check_moved(args: argparse.Namespace) -> None:
    """Raises UserError for overrides of a finished run that say another thing than where it is now."""
    for word in args.rest:
        if word.startswith("--") and word.split("=", 1)[0] not in MOVED:
            raise UserError(f"{args.command}: unknown argument '{word}'; of a run it takes {', '.join(MOVED)}")


def print_runs(entries: list[dict[str, Any]], as_json: bool, more: Sequence[str] = ()) -> int:
    """A line for each planned run, `more` lines about them, and what all of them cost; returns the exit code."""
    if as_json:
        print(dumps(entries))
        return DONE
    print(f"{'run':12}  {'status':8}  {'N':>14}  {'D':>16}  {'FLOPs':>9}  recipe")
    for e in entries:
        sizes = f"{e['N_params']:14,}  {e['D_tokens']:16,}  {e['flops']:9.2e}"
        print(f"{e.get('run_id', ''):12}  {e.get('status', ''):8}  {sizes}  {e['recipe']}")
    for line in more:
        print(line)
    shared = sum(e.get("shared", 0.0) for e in entries)
    total = sum(e["flops"] for e in entries) - shared
    less = f", without {shared:.3g} of shared trunks" if shared else ""
    hours = ""
    if chip := entries and entries[0].get("chip"):
        spent = sum(e["chip_hours"] for e in entries)
        hours = f", about {spent:,.3g} hours of one {chip} at an assumed {entries[0]['mfu']:.0%} of its bf16 peak"
    print(f"{len(entries)} runs, {total:.3g} FLOPs in all{less}{hours}; nothing was run")
    return DONE


def loss_text(evaluation: dict[str, Any]) -> str:
    """The loss of an evaluation and its standard error (nats/token), as it is printed."""
    loss, error = evaluation["val_loss"], evaluation["val_loss_se"]
    return "not finite" if loss is None else f"{loss:.4f}" + ("" if error is None else f" ± {error:.4f}")
