"""Documents from wherever they are: text files, JSON lines, packed token files, Hugging Face datasets.

A source is one word or a list of them:

    stdlib                        the source of the running Python's standard library, without its tests
    a folder                      every .txt .md .rst .py .jsonl file below it, hidden ones left out
    a file or a glob              FILE.jsonl[.gz|.zst] JSON lines; FILE.u16|.u32|.npy|.bin[.xz|.gz|.zst] packed tokens
                                  without a header (OLMo-core's format); any other file is one document of UTF-8 text
    hf:NAME[:CONFIG[:SPLIT]]      a Hugging Face dataset, streamed (extra `hf`)
"""

import glob
import gzip
import hashlib
import io
import json
import lzma
import os
import sysconfig
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np

from precisionlm.data.meta import DTYPES, token_dtype
from precisionlm.errors import UserError

_FOLDER_SUFFIXES = {".txt", ".md", ".rst", ".py", ".jsonl"}
_PACKED_DTYPES = {".u16": "uint16", ".u32": "uint32", ".npy": None, ".bin": None}  # None: from the vocabulary size
_STDLIB_SKIPPED = {"site-packages", "dist-packages", "test", "tests", "idle_test"}
_COMPRESSED = {".gz", ".xz", ".zst"}


@dataclass(frozen=True)
class Document:
    """One document: its text, or its token ids ([n], without end-of-text), and the source bytes read up to its end."""

    content: "str | np.ndarray"
    position: int

    def in_validation(self, every: int) -> bool:
        """One document in `every`, by a hash of its content: independent of order, place and other documents."""
        data = self.content.encode() if isinstance(self.content, str) else self.content.astype("<u4").tobytes()
        return int.from_bytes(hashlib.blake2b(data, digest_size=8).digest(), "little") % every == 0


@dataclass(frozen=True)
class Source:
    """The resolved places of a source: files in reading order with their sizes (bytes), then Hugging Face datasets."""

    words: tuple[str, ...]
    files: tuple[tuple[Path, str, int], ...]  # path, name below its root, size
    hub: tuple[str, ...]

    @classmethod
    def resolve(cls, source: "str | Path | Sequence[str | Path]") -> "Source":
        """Finds the files. UserError: a word that names nothing."""
        words = tuple(map(str, [source] if isinstance(source, str | Path) else source))
        found = [(path, root) for word in words if not word.startswith("hf:") for path, root in _files(word)]
        if not words:
            raise UserError("the source is an empty list; give a folder, files, a glob, stdlib or hf:NAME")
        files = tuple((path, path.relative_to(root).as_posix(), path.stat().st_size) for path, root in found)
        return cls(words, files, tuple(word for word in words if word.startswith("hf:")))

    @property
    def size(self) -> int | None:
        """Bytes to read, as they lie on disk; None where that is not known."""
        return None if self.hub else sum(size for *_, size in self.files)

    @property
    def packed(self) -> bool:
        """Whether some of it is tokens already, which only the tokenizer that made them can join."""
        return any(_kind(path) in _PACKED_DTYPES for path, *_ in self.files)

    @property
    def fingerprint(self) -> str:
        """sha256 (hex) over the words and the files' names and sizes: notices added, removed and resized files."""
        listing = [*self.words, *(f"{name} {size}" for _, name, size in self.files)]
        return hashlib.sha256("\n".join(listing).encode()).hexdigest()

    def documents(self, text_field: str, vocab_size: int, eos_id: int) -> Iterator[Document]:
        """Every non-empty document in order, the same at every call. The last two arguments matter to packed files.

        A packed document may run on into the next packed file. UserError: a file that is not what its name says.
        """
        start, tail = 0, np.empty(0, np.uint32)
        for path, _, size in self.files:
            try:
                with open(path, "rb") as raw:
                    if _kind(path) in _PACKED_DTYPES:
                        tokens, first = _packed_tokens(path, raw, vocab_size), 0
                        for last in map(int, np.flatnonzero(tokens == eos_id)):
                            if len(content := np.concatenate([tail, tokens[first:last]])):
                                yield Document(content, start + size * last // len(tokens))
                            first, tail = last + 1, tail[:0]
                        tail = np.concatenate([tail, tokens[first:]])
                    elif _kind(path) == ".jsonl":
                        for text in _json_lines(path, _decompressed(path, raw), text_field):
                            yield Document(text, start + raw.tell())
                    elif text := _utf8(path, _decompressed(path, raw).read()):
                        yield Document(text, start + size)
            except (OSError, EOFError, lzma.LZMAError) as error:
                raise UserError(f"{path} cannot be read: {error}") from None
            start += size
        if len(tail):
            yield Document(tail, start)
        for word in self.hub:
            for text in _hub_texts(word, text_field):
                start += len(text.encode())
                yield Document(text, start)


def _files(word: str) -> Iterator[tuple[Path, Path]]:
    """(file, root) for each file that `word` names.

    Text files found by searching come in the order of a hash of their names, so that the first part of the tokens is
    a fair sample of all; other files come sorted.
    """
    if word == "stdlib":
        root = Path(sysconfig.get_paths()["stdlib"])
        found = [p for p in root.rglob("*.py") if not _STDLIB_SKIPPED & set(p.relative_to(root).parts)]
    elif Path(word).is_dir():
        root = Path(word)
        found = [p for p in root.rglob("*") if p.is_file() and _kind(p) in _FOLDER_SUFFIXES]
        found = [p for p in found if not any(part.startswith(".") for part in p.relative_to(root).parts)]
    elif Path(word).is_file():
        root, found = Path(word).parent, [Path(word)]
    else:
        found = [Path(match) for match in glob.glob(word, recursive=True) if os.path.isfile(match)]
        root = Path(os.path.commonpath([p.parent for p in found])) if found else Path()
    if not found:
        wanted = f" with {' '.join(sorted(_FOLDER_SUFFIXES))}" if Path(word).is_dir() else ""
        raise UserError(f"source '{word}' names no file{wanted}; give a folder, a file, a glob, stdlib or hf:NAME")

    def order(path: Path) -> tuple[bool, str]:
        name, is_text = path.relative_to(root).as_posix(), _kind(path) not in {*_PACKED_DTYPES, ".jsonl"}
        return is_text, hashlib.sha256(name.encode()).hexdigest() if is_text else name

    for path in sorted(found, key=order):
        yield path, root


def _kind(path: Path) -> str:
    """The suffix that says what a file holds, below that of its compression."""
    return Path(path.stem).suffix if path.suffix in _COMPRESSED else path.suffix


def _decompressed(path: Path, raw: IO[bytes]) -> Any:
    if path.suffix == ".gz":
        return gzip.open(raw)
    if path.suffix == ".xz":
        return lzma.open(raw)
    if path.suffix == ".zst":
        import pyarrow

        return io.BufferedReader(pyarrow.input_stream(raw, compression="zstd"))
    return raw


def _packed_tokens(path: Path, raw: IO[bytes], vocab_size: int) -> np.ndarray:
    dtype = DTYPES[_PACKED_DTYPES[_kind(path)] or token_dtype(vocab_size)]
    data: np.ndarray
    if path.suffix in _COMPRESSED or not path.stat().st_size:  # nothing cannot be mapped
        data = np.frombuffer(_decompressed(path, raw).read(), np.uint8)
    else:
        data = np.memmap(path, np.uint8, "r")
    if bytes(data[:6]) == b"\x93NUMPY":
        raise UserError(f"{path} has a numpy header; packed token files are bare numbers (array.tofile writes them)")
    if len(data) % dtype.itemsize:
        raise UserError(
            f"{path} holds {len(data)} bytes, not a multiple of {dtype.itemsize} ({dtype.name}): truncated?"
        )
    tokens = data.view(dtype)
    if len(tokens) and (largest := int(tokens.max())) >= vocab_size:
        raise UserError(f"{path} holds token {largest}, the tokenizer has ids below {vocab_size}: not its tokens?")
    return tokens


def _json_lines(path: Path, lines: Any, text_field: str) -> Iterator[str]:
    for number, line in enumerate(lines, start=1):
        try:
            record = json.loads(line)
        except ValueError as error:
            raise UserError(f"{path}:{number} is not JSON: {error}") from None
        if text := _field(record, text_field, f"{path}:{number}"):
            yield text


def _field(record: Any, name: str, where: str) -> str:
    text = record.get(name) if isinstance(record, dict) else None
    if not isinstance(text, str):
        fields = f"its fields: {', '.join(record)}" if isinstance(record, dict) else "it is not an object"
        raise UserError(f"{where} has no text field '{name}'; {fields}")
    return text.encode(errors="replace").decode()  # JSON can spell lone surrogates, UTF-8 cannot


def _utf8(path: Path, data: bytes) -> str:
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not UTF-8 text (byte {error.start}); convert it or leave it out") from None


def _hub_texts(word: str, text_field: str) -> Iterator[str]:
    try:
        import datasets
    except ImportError:
        raise UserError(f"source '{word}' needs the datasets library: pip install 'precisionlm[hf]'") from None
    name, config, split, *rest = [*word.removeprefix("hf:").split(":"), "", ""]
    if not name or len(rest) > 2:
        raise UserError(f"source '{word}' is not of the form hf:NAME[:CONFIG[:SPLIT]]")
    try:
        rows = datasets.load_dataset(name, config or None, split=split or "train", streaming=True)
        for number, row in enumerate(rows):
            if text := _field(row, text_field, f"{word} row {number}"):
                yield text
    except UserError:
        raise
    except Exception as error:  # the hub client raises many kinds: network, missing name, missing permission
        raise UserError(f"{word}: {type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}") from None
