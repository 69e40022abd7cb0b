"""Which files a source names, each once, and what they hold: their content decides, not their name alone."""

import bz2
import glob
import gzip
import hashlib
import io
import json
import lzma
import os
import sysconfig
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from precisionlm.data.places import is_url
from precisionlm.errors import UserError

FOLDER_SUFFIXES = {".txt", ".md", ".rst", ".py", ".jsonl", ".ndjson", ".json", ".parquet"}
JSON_SUFFIXES = {".jsonl", ".ndjson", ".json"}
PACKED_SUFFIXES = {".u16", ".u32", ".npy", ".bin", ".ds"}
UNREADABLE = (OSError, EOFError, lzma.LZMAError, zlib.error)
"""What reading raises of a file that is damaged, or not ours to read."""
_STDLIB_SKIPPED = {"site-packages", "dist-packages", "test", "tests", "idle_test"}
_SUFFIXES = {".gz": "gzip", ".xz": "xz", ".zst": "zstd", ".zstd": "zstd", ".bz2": "bzip2"}
_MAGIC = {b"\x1f\x8b": "gzip", b"\xfd7zXZ\x00": "xz", b"\x28\xb5\x2f\xfd": "zstd", b"BZh": "bzip2"}
_SKIPPABLE = range(0x50, 0x60)  # first byte of a zstd frame that pzstd writes for its own use
_HEAD = 1 << 16  # bytes by which a file's kind is told


def kind_by_name(path: Path) -> str:
    """The suffix that says what a file holds, below that of its compression."""
    return Path(path.stem).suffix if path.suffix in _SUFFIXES else path.suffix


def named(word: str) -> Iterator[tuple[Path, Path]]:
    """(file, root) for each file that a word names.

    Text files found by searching come in the order of a hash of their names, so that the first part of the tokens is
    a fair sample of all; other files come sorted. UserError: none.
    """
    if is_url(word):
        raise UserError(f"source '{word}': text is read from a disk; copy it here, or use the datatrove writer")
    if word == "stdlib":
        root = Path(sysconfig.get_paths()["stdlib"])
        found = [p for p in root.rglob("*.py") if not _STDLIB_SKIPPED & set(p.relative_to(root).parts)]
    elif Path(word).is_dir():
        root = Path(word)
        found = [p for p in root.rglob("*") if p.is_file() and kind_by_name(p) in FOLDER_SUFFIXES]
        found = [p for p in found if not any(part.startswith(".") for part in p.relative_to(root).parts)]
        found = [p for p in found if kind_by_name(p) != ".json" or kind_of(p) == "json lines"]  # others are settings
    elif Path(word).is_file():
        root, found = Path(word).parent, [Path(word)]
    else:
        found = [Path(match) for match in glob.glob(word, recursive=True) if os.path.isfile(match)]
        root = Path(os.path.commonpath([p.parent for p in found])) if found else Path()
    if not found:
        wanted = f" with {' '.join(sorted(FOLDER_SUFFIXES))}" if Path(word).is_dir() else ""
        raise UserError(f"source '{word}' names no file{wanted}; give a folder, a file, a glob, stdlib or hf:NAME")

    def order(path: Path) -> tuple[bool, str]:
        name = path.relative_to(root).as_posix()
        is_text = kind_by_name(path) not in PACKED_SUFFIXES | JSON_SUFFIXES | {".parquet"}
        return is_text, hashlib.sha256(name.encode()).hexdigest() if is_text else name

    for path in sorted(found, key=order):
        yield path, root


def kind_of(path: Path) -> str:
    """`packed`, `parquet`, `json lines`, `json array` or `text`. UserError: it cannot be read."""
    if kind_by_name(path) in PACKED_SUFFIXES:
        return "packed"
    try:
        with opened(path) as file:
            head = file.read(_HEAD)
    except UNREADABLE as error:
        raise UserError(f"{path} cannot be read: {error}") from None
    if head.startswith(b"PAR1"):
        return "parquet"
    says_json = kind_by_name(path) in JSON_SUFFIXES
    start = head.removeprefix(b"\xef\xbb\xbf").lstrip()
    if start.startswith(b"[") and says_json:
        return "json array"
    first, *more = start.split(b"\n", 1)
    if first.startswith(b"{") and _is_record(first, whole=bool(more) or len(head) < _HEAD):
        return "json lines"
    return "json lines" if says_json and not _is_other_json(path, start) else "text"


def opened(path: Path) -> Any:
    """A binary file, decompressed as its first bytes ask. UserError: its name promises a compression it has not."""
    raw: IO[bytes] = open(path, "rb")  # noqa: SIM115
    head = raw.read(6)
    raw.seek(0)
    found = next((kind for magic, kind in _MAGIC.items() if head.startswith(magic)), None)
    if head[1:4] == b"\x2a\x4d\x18" and head[0] in _SKIPPABLE:
        found = "zstd"
    promised = _SUFFIXES.get(path.suffix)
    if promised and head and found != promised:
        raw.close()
        raise UserError(f"{path} cannot be read: it is named as {promised}, its content is {found or 'not compressed'}")
    if found == "gzip":
        return _Closing(gzip.GzipFile(fileobj=raw), raw)
    if found == "xz":
        return _Closing(lzma.LZMAFile(raw), raw)
    if found == "bzip2":
        return _Closing(bz2.BZ2File(raw), raw)
    if found == "zstd":
        import pyarrow

        return _Closing(pyarrow.input_stream(raw, compression="zstd"), raw)
    return _Closing(None, raw)


class _Closing(io.BufferedReader):
    """A decompressed file that closes the compressed one, and knows how far that was read."""

    def __init__(self, decompressed: Any, raw: Any):
        super().__init__(raw if decompressed is None else decompressed, 1 << 16)
        self._below = raw

    def position(self) -> int:
        """Bytes of the file on the disk read so far."""
        return int(self._below.tell())

    def close(self) -> None:
        super().close()
        self._below.close()


def _is_record(line: bytes, whole: bool) -> bool:
    """Whether a line is a JSON object; one that is cut off, whether it begins as one does."""
    try:
        return isinstance(json.loads(line), dict)
    except (ValueError, RecursionError):
        return not whole and line.startswith((b'{"', b"{ "))


def _is_other_json(path: Path, start: bytes) -> bool:
    """Whether a file named .json is no JSON lines: an object over several lines."""
    return kind_by_name(path) == ".json" and start[:1] == b"{" and not _is_record(start.split(b"\n", 1)[0], True)
