"""Documents from wherever they are: text files, JSON lines, Parquet, packed token files, Hugging Face datasets.

A source is one word or a list of them:

    stdlib                        the source of the running Python's standard library, without its tests
    a folder                      every .txt .md .rst .py .jsonl .json .parquet file below it, hidden ones left out
    a file or a glob              JSON lines and Parquet are told by their content, compressed (gzip, xz, zstd, bzip2)
                                  or not; .u16 .u32 .npy .bin .ds are packed tokens (`token_files`); any other file is
                                  one document of UTF-8 text
    hf:NAME[:CONFIG[:SPLIT]]      a Hugging Face dataset, streamed (extra `hf`)
"""

import codecs
import functools
import hashlib
import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from precisionlm.data.files import PACKED_SUFFIXES, UNREADABLE, kind_by_name, kind_of, named, opened
from precisionlm.data.token_files import SIDE_SUFFIXES, Flags, documents_of
from precisionlm.errors import UserError

_WHOLE = 1 << 23  # bytes of text read at once; a longer text is read in pieces
_RECORD = 1 << 28  # bytes of one JSON record


@dataclass(frozen=True)
class LongText:
    """A text file too long to be held, read in pieces as often as asked."""

    path: Path

    @property
    def size(self) -> int:
        """Bytes of the file."""
        return self.path.stat().st_size

    def pieces(self) -> Iterator[tuple[str, int]]:
        """The text, in order, and the bytes of the file read so far."""
        decoder, done = codecs.getincrementaldecoder("utf-8-sig")(), 0
        with opened(self.path) as file:
            while data := file.read(1 << 20):
                try:
                    yield decoder.decode(data), file.position()
                except UnicodeDecodeError as error:
                    raise _not_utf8(self.path, done + error.start) from None
                done += len(data)
            try:
                yield decoder.decode(b"", final=True), file.position()
            except UnicodeDecodeError:
                raise _not_utf8(self.path, done) from None


@dataclass(frozen=True)
class Document:
    """One document: its text, or its token ids ([n], without end-of-text), the source bytes read up to its end, and
    which of the source's files it ends in."""

    content: "str | np.ndarray | LongText"
    position: int
    file: int = 0

    @functools.cached_property
    def digest(self) -> int:
        """blake2b-64 of its UTF-8 text or uint32 tokens: independent of order, place and other documents."""
        found = hashlib.blake2b(digest_size=8)
        if isinstance(self.content, LongText):
            for piece, _ in self.content.pieces():
                found.update(piece.encode())
        else:
            text = isinstance(self.content, str)
            found.update(self.content.encode() if text else self.content.astype("<u4").tobytes())  # type: ignore[union-attr]
        return int.from_bytes(found.digest(), "little")

    @property
    def is_empty(self) -> bool:
        """Whether there is nothing in it."""
        return not isinstance(self.content, LongText) and not len(self.content)

    def in_validation(self, every: int) -> bool:
        """One document in `every`, by a hash of its content."""
        return self.digest % every == 0


@dataclass(frozen=True)
class Source:
    """The resolved places of a source: files in reading order with their sizes (bytes), then Hugging Face datasets.
    again: files that more than one word names, or a link, which are read once."""

    words: tuple[str, ...]
    files: tuple[tuple[Path, str, int], ...]  # path, name below its root, size
    hub: tuple[str, ...]
    again: int = 0
    flags: Flags = field(default_factory=Flags)

    @classmethod
    def resolve(cls, source: "str | Path | Sequence[str | Path]", flags: Flags | None = None) -> "Source":
        """Finds the files. UserError: a word that names nothing."""
        words = tuple(map(str, [source] if isinstance(source, str | Path) else source))
        if not words:
            raise UserError("the source is an empty list; give a folder, files, a glob, stdlib or hf:NAME")
        found = [pair for word in words if not word.startswith("hf:") for pair in named(word)]
        alone = [pair for pair in found if kind_by_name(pair[0]) not in SIDE_SUFFIXES]
        once = {os.path.realpath(pair[0]): pair for pair in reversed(alone)}
        files = [pair for pair in alone if once[os.path.realpath(pair[0])] is pair]
        try:
            listed = tuple((path, path.relative_to(root).as_posix(), path.stat().st_size) for path, root in files)
        except OSError as error:
            raise UserError(f"{error.filename} cannot be read: {error.strerror}") from None
        hub = tuple(word for word in words if word.startswith("hf:"))
        return cls(words, listed, hub, len(alone) - len(files), flags or Flags())

    @property
    def size(self) -> int | None:
        """Bytes to read, as they lie on disk; None where that is not known."""
        return None if self.hub else sum(size for *_, size in self.files)

    @property
    def packed(self) -> bool:
        """Whether some of it is tokens already, which only the tokenizer that made them can join."""
        return any(kind_by_name(path) in PACKED_SUFFIXES for path, *_ in self.files)

    @property
    def fingerprint(self) -> str:
        """sha256 (hex) over the words and the files' names and sizes: notices added, removed and resized files."""
        listing = [*self.words, *(f"{name} {size}" for _, name, size in self.files)]
        return hashlib.sha256("\n".join(listing).encode()).hexdigest()

    def documents(
        self, text_field: str, vocab_size: int, eos_id: int, first: int = 0, empty: bool = False
    ) -> Iterator[Document]:
        """Every document in order, the same at every call; empty ones where asked for. The vocabulary matters to packed
        files, of which a document may run on into the next. first: the file to begin with, where none is packed.
        UserError: a file that is not what its name says.
        """
        start, tail = sum(size for *_, size in self.files[:first]), np.empty(0, np.uint32)
        for number, (path, _, size) in enumerate(self.files[first:], first):
            try:
                kind = kind_of(path)
                if kind == "packed":
                    for content, share in documents_of(path, vocab_size, eos_id, self.flags):
                        content = np.concatenate([tail, content]) if len(tail) else content
                        tail = tail[:0]
                        if share is None:  # the file ends before the document does
                            tail = content
                        elif len(content) or empty:
                            yield Document(content, start + int(size * share), number)
                else:
                    for text, position in _texts(path, kind, text_field):
                        if isinstance(text, LongText) or text or empty:
                            yield Document(text, start + min(position, size), number)
            except UNREADABLE as error:
                raise UserError(f"{path} cannot be read: {error}") from None
            start += size
        if len(tail):
            yield Document(tail, start, max(len(self.files) - 1, 0))
        for word in self.hub:
            for text in _hub_texts(word, text_field):
                start += len(text.encode())
                if text or empty:
                    yield Document(text, start, len(self.files))


def _texts(path: Path, kind: str, text_field: str) -> "Iterator[tuple[str | LongText, int]]":
    """(text, bytes of the file read) of every record of a file."""
    if kind == "parquet":
        yield from _parquet(path, text_field)
        return
    if kind == "json array":
        raise UserError(f"{path} is one JSON array; give a record a line:  jq -c '.[]' {path.name} > records.jsonl")
    with opened(path) as file:
        if kind == "json lines":
            for text in _json_lines(path, file, text_field):
                yield text, file.position()
            return
        data = file.read(_WHOLE + 1)
    if len(data) > _WHOLE:
        yield LongText(path), path.stat().st_size
        return
    try:
        yield data.decode("utf-8-sig"), path.stat().st_size
    except UnicodeDecodeError as error:
        raise _not_utf8(path, error.start) from None


def _json_lines(path: Path, file: Any, text_field: str) -> Iterator[str]:
    number = 0
    while line := file.readline(_RECORD + 1):
        number += 1
        if len(line) > _RECORD:
            raise UserError(
                f"{path}:{number} is longer than {_RECORD >> 20} MiB; a text file of its own is read in pieces"
            )
        if not line.strip():
            continue
        try:
            record = json.loads(line.removeprefix(b"\xef\xbb\xbf") if number == 1 else line)
        except (ValueError, RecursionError) as error:
            raise UserError(f"{path}:{number} is not JSON: {error}") from None
        yield _field(record, text_field, f"{path}:{number}")


def _parquet(path: Path, column: str) -> Iterator[tuple[str, int]]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    size, done = path.stat().st_size, 0
    try:
        with pq.ParquetFile(path) as file:
            names = file.schema_arrow.names
            if column not in names:
                raise UserError(f"{path} has no text column '{column}'; its columns: {', '.join(names)}")
            if not pa.types.is_string(kind := file.schema_arrow.field(column).type) and not pa.types.is_large_string(
                kind
            ):
                raise UserError(f"{path}: column '{column}' is {kind}, not text")
            for batch in file.iter_batches(256, columns=[column]):
                for value in batch.column(0):
                    done += 1
                    if not value.is_valid:
                        raise UserError(f"{path}: row {done} has no text in column '{column}'")
                    yield value.as_py(), size * done // file.metadata.num_rows
    except pa.ArrowException as error:
        raise UserError(f"{path} cannot be read: {str(error).splitlines()[0]}") from None


def _field(record: Any, name: str, where: str) -> str:
    text = record.get(name) if isinstance(record, dict) else None
    if not isinstance(text, str):
        fields = f"its fields: {', '.join(record)}" if isinstance(record, dict) else "it is not an object"
        raise UserError(f"{where} has no text field '{name}'; {fields}")
    return text.encode(errors="replace").decode()  # JSON can spell lone surrogates, UTF-8 cannot


def _not_utf8(path: Path, byte: int) -> UserError:
    return UserError(f"{path} is not UTF-8 text (byte {byte}); convert it or leave it out")


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
            yield _field(row, text_field, f"{word} row {number}")
    except UserError:
        raise
    except Exception as error:  # the hub client raises many kinds: network, missing name, missing permission
        raise UserError(f"{word}: {type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}") from None
