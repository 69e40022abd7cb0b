"""docs/troubleshooting.md quotes messages that the program has."""

import ast
import re

from .pages import ROOT

HOLE = "\0"


def templates() -> list[str]:
    """Every text in the package, what is put into it at run time as a hole."""
    found = []
    for path in (ROOT / "precisionlm").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.JoinedStr):
                pieces = [part.value if isinstance(part, ast.Constant) else HOLE for part in node.values]
                found.append("".join(map(str, pieces)))
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                found.append(node.value)
    return found


def quoted(page: str) -> list[str]:
    """The messages in the first column of its tables."""
    cells = [line.split(" | ")[0].removeprefix("| ") for line in page.splitlines() if line.startswith("| `")]
    return [span for cell in cells for span in re.findall("`([^`]+)`", cell)]


def said(message: str, texts: list[str]) -> bool:
    """Whether some text has the message's own words, in their order, with something between them where it has `…`."""
    parts = [re.escape(part.strip(" ")) for part in message.split("…") if part.strip(" ")]
    pattern = re.compile(r"[^\n]*".join(parts))
    return any(pattern.search(text) for text in texts)


def test_every_message_is_one_of_the_programs():
    messages, texts = quoted((ROOT / "docs/troubleshooting.md").read_text()), templates()
    assert len(messages) > 40
    assert [m for m in messages if not said(m, texts)] == []


def test_what_nobody_says_is_found():
    assert not said("law '…' is not there", ["law '\0' is unknown"])
    assert said("law '…' is unknown", ["law '\0' is unknown; \0"])
