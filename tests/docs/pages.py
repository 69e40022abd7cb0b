"""The README and the pages under docs/ as text: code blocks, commands, links, anchors."""

import re
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PAGES = (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")))
IDS = [path.name for path in PAGES]

_FENCE = re.compile(r"^```(\w*)[^\n]*\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_SPAN = re.compile(r"`([^`]+)`")
_LINK = re.compile(r"\]\(([^)\s]+)\)")
_HEADING = re.compile(r"^#+ (.+)$", re.MULTILINE)


@dataclass(frozen=True)
class Block:
    """A fenced code block and its language."""

    language: str
    text: str


def fenced(text: str) -> list[Block]:
    """The fenced blocks of a page, in order."""
    return [Block(*found) for found in _FENCE.findall(text)]


def prose(text: str) -> str:
    """A page without its code blocks, fenced or indented by four spaces."""
    return "\n".join(line for line in _FENCE.sub("", text).split("\n") if not line.startswith("    "))


def anchors(text: str) -> set[str]:
    """What `#…` may name in a page, by GitHub's rule and by that of the site where they agree."""
    titles = [title.replace("`", "") for title in _HEADING.findall(_FENCE.sub("", text))]
    return {re.sub(r"\s+", "-", re.sub(r"[^\w\s-]", "", title.lower()).strip()) for title in titles}


def links(text: str) -> list[str]:
    """Targets of a page's links and pictures that lie in this project."""
    return [target for target in _LINK.findall(prose(text)) if not re.match(r"[a-z]+:", target)]


def shell_lines(text: str) -> list[str]:
    """Lines of code, those that a backslash continues joined."""
    code = [block.text for block in fenced(text) if block.language in ("", "sh", "bash")]
    code += [line[4:] for line in _FENCE.sub("", text).split("\n") if line.startswith("    ")]
    return re.sub(r"\\\n\s*", "", "\n".join(code)).split("\n")


def commands(text: str) -> list[str]:
    """Every `precisionlm VERB …` of a page: lines of its code, and spans of its prose."""
    found = [line.strip() for line in shell_lines(text)]
    found += [" ".join(span.split()) for span in _SPAN.findall(prose(text))]
    return [line for line in found if re.match(r"precisionlm [a-z]", line)]
