"""What is printed is text: names, paths and reasons come from others, and a terminal obeys some characters."""

import io
import re
import shutil
import textwrap
from typing import Any

# C0 but tabs and line ends, C1, and what turns the direction of writing; DEL does nothing and JSON has it as it is.
_OBEYED = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x80-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069]|\r(?!\n)")


def harmless(text: str) -> str:
    """The text with a replacement character for each one that a terminal would obey."""
    return _OBEYED.sub("\ufffd", text)


def wrapped(text: str, indent: str = "") -> str:
    """A long line as lines of the terminal's width, 120 without one; those after the first begin with indent."""
    width = shutil.get_terminal_size((120, 24)).columns
    return textwrap.fill(text, width, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False)


class Plain(io.TextIOBase):
    """A text stream that hands on what is written as `harmless` text, with `?` for what its encoding has not: alone
    surrogates of odd file names, and all beyond Latin-1 where the locale is old. What draws (bars, colours) writes to
    `below`."""

    def __init__(self, below: Any):
        self.below = below

    def write(self, text: str) -> int:
        """Returns how many characters were taken: all."""
        encoding = getattr(self.below, "encoding", None) or "utf-8"
        self.below.write(harmless(text).encode(encoding, "replace").decode(encoding))
        return len(text)

    def flush(self) -> None:
        self.below.flush()

    def fileno(self) -> int:
        return int(self.below.fileno())

    def isatty(self) -> bool:
        return bool(self.below.isatty())

    @property
    def encoding(self) -> str:  # type: ignore[override]
        return getattr(self.below, "encoding", None) or "utf-8"

    def __getattr__(self, name: str) -> Any:
        """`buffer` for bytes, `name`, `errors` and what else libraries ask a stream for."""
        return getattr(self.below, name)


def below(stream: Any) -> Any:
    """What a stream writes to, for those who draw and make their text harmless themselves."""
    return below(stream.below) if isinstance(stream, Plain) else stream
