"""Every command in the README and in docs/ is one that the parser of the command line takes; nothing is run."""

import argparse
import re
import shlex

import pytest
from pydantic import BaseModel

from precisionlm.cli.main import build_parser
from precisionlm.cli.verbs import without_overrides
from precisionlm.config import Experiment
from precisionlm.errors import UserError

from .pages import IDS, PAGES, commands

_PLACEHOLDER = re.compile(r"(?<![\w.])[A-Z]+(?![\w.])")


@pytest.fixture(scope="module")
def parser():
    return build_parser()


@pytest.mark.parametrize("page", PAGES, ids=IDS)
def test_commands_parse(page, parser):
    for command in commands(page.read_text()):
        assert problem(parser, command) == "", f"{page.name}: {command}"


@pytest.mark.parametrize(
    ("command", "said"),
    [
        ("precisionlm fti --runs runs.csv", "invalid choice"),
        ("precisionlm fit --runs runs.csv --law kumar --boostrap 3", "--boostrap"),
        ("precisionlm train c.yaml --out runs --training.stpes 3", "training.stpes"),
        ("precisionlm train c.yaml --out runs --presett kumar-30m", "--presett"),
        ("precisionlm fit --runs runs.csv --law kumar --bootstrap many", "invalid int"),
        ("precisionlm data prepare text --out data", ""),
        ("precisionlm train CONFIG --out SHARED --processes N --process I", ""),
        ("precisionlm ptq RUN … --method rtn # a comment", ""),
    ],
)
def test_wrong_commands_are_found(parser, command, said):
    found = problem(parser, command)
    assert said in found and bool(said) == bool(found)


def problem(parser: argparse.ArgumentParser, command: str) -> str:
    """What is wrong with a command as it is shown, empty if nothing. A verb named alone, or with `…`, needs no
    arguments, and capital letters stand for a value of any kind."""
    words = shlex.split(re.split(r"\s[|>&]+\s", command)[0], comments=True)[1:]
    try:
        known, overrides = without_overrides([word for word in words if word != "…"])
        args, rest = parser.parse_known_args(known)
    except UserError as error:
        said = str(error)
        named = "…" in words or not any(word.startswith("-") for word in words)
        missing = named and "arguments are required" in said
        typed = re.search(r"invalid \w+ value: '(.+?)'", said)
        if typed and _PLACEHOLDER.fullmatch(typed[1]):
            return problem(parser, re.sub(rf"(?<=\s){typed[1]}(?=\s|$)", "3", command))
        return "" if missing else said
    return unknown(args, rest, overrides)


def unknown(args: argparse.Namespace, rest: list[str], overrides: list[str]) -> str:
    """The first word that the verb does not take. `--preset NAME` and `--name TEXT` are keys at the top."""
    flags = [word.split("=")[0] for word in (*rest, *overrides) if word.startswith("--")]
    if flags and not args.overrides:
        return flags[0]
    for flag in flags:
        node: object = Experiment
        for key in flag.removeprefix("--").split("."):
            if key == "preset":
                break
            field = node.model_fields.get(key) if isinstance(node, type) and issubclass(node, BaseModel) else None
            if field is None:
                return flag
            node = field.annotation
    return ""
