"""What is asked of `data prepare`: sources, vocabulary, validation split."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from tokenizers import Tokenizer

from precisionlm.data.documents import Document, Source
from precisionlm.data.encode import Item
from precisionlm.data.journal import Position
from precisionlm.data.meta import DTYPES, sha256_of
from precisionlm.data.token_files import Flags
from precisionlm.data.tokenizer import load_tokenizer
from precisionlm.data.writer import SHARD_TOKENS
from precisionlm.errors import UserError

SMALLEST_SPLIT = 1024  # tokens; a smaller split is of no use

Sources = str | Path | Sequence[str | Path]
"""Spelled as in `precisionlm.data.documents`."""


@dataclass(frozen=True)
class Partition:
    """Which documents are held out: one in `every` by hash of its content, or those of a source of their own."""

    train: Source
    held_out: Source | None
    every: int

    @property
    def rule(self) -> str:
        if self.held_out is not None:
            return "validation documents come from a source of their own"
        return f"a document is held out if blake2b-64(its UTF-8 text or uint32 tokens) mod {self.every} == 0"

    @property
    def size(self) -> int | None:
        sizes = [self.train.size, self.held_out.size if self.held_out else 0]
        return None if None in sizes else sum(filter(None, sizes))

    def items(
        self, text_field: str, vocab_size: int, eos_id: int, since: Position | None = None, held: set[int] | None = None
    ) -> Iterator[Item]:
        """Every record and what becomes of it; a held-out source comes first, so that training documents can end at any
        point, and what it holds does not train. since: where to go on, with the digests held out before."""
        since, held = since or Position(), set() if held is None else held
        start = 0
        for part, source in (("validation", self.held_out), ("train", self.train)):
            if source is None or (part, since.part) == ("validation", "train"):
                start += (source.size or 0) if source else 0
                continue
            done = (since.file, since.records) if part == since.part else (0, 0)
            for file, number, document in _numbered(source, done, (text_field, vocab_size, eos_id)):
                yield Item(self._fate(document, part, held), document, part, file, number, start + document.position)
            start += source.size or 0

    def _fate(self, document: Document, part: str, held: set[int]) -> str:
        if document.is_empty:
            return "empty"
        if self.held_out is None:
            return "validation" if document.in_validation(self.every) else "train"
        if part == "validation":
            held.add(document.digest)
        return "held out of training" if part == "train" and document.digest in held else part


def _numbered(
    source: Source, done: tuple[int, int], arguments: tuple[str, int, int]
) -> Iterator[tuple[int, int, Document]]:
    """(file, record of that file, document) after (file, records); packed files are counted as one, since documents run
    on from one into the next."""
    file, number = (0 if source.packed else done[0]), 0
    for document in source.documents(*arguments, first=file, empty=True):
        if not source.packed and document.file != file:
            file, number = document.file, 0
        number += 1
        if (file, number) > done:
            yield file, number, document


@dataclass(frozen=True)
class Request:
    """Either `vocab_size` trains a byte-level BPE on the training documents, or `tokenizer` names a Hugging Face
    tokenizer.json whose end-of-text id is `eos_id` (default: its well-known one). One document in `validation_every`,
    by hash of its content, is held out, unless `validation` names a source of its own. The training split ends with
    the document that reaches `max_tokens` (count). dtype: of token files that do not say it; allow_loss: a tokenizer
    that does not give text back is counted in meta.json instead of refused; shard_tokens (count): of a file."""

    source: Sources
    vocab_size: int | None = None
    tokenizer: str | Path | None = None
    eos_id: int | None = None
    validation: Sources | None = None
    validation_every: int = 128
    text_field: str = "text"
    max_tokens: int | None = None
    dtype: str | None = None
    allow_loss: bool = False
    shard_tokens: int = SHARD_TOKENS

    def checked(self) -> tuple[Partition, Tokenizer | None, dict[str, object]]:
        """The sources found, the tokenizer read if one is given, and the arguments as `meta.json` records them.
        UserError: arguments that contradict each other, sources that are not there."""
        if self.dtype not in (None, *DTYPES):
            raise UserError(f"dtype is {self.dtype}; valid: {', '.join(DTYPES)}")
        if self.shard_tokens < 1024:
            raise UserError(f"shard_tokens is {self.shard_tokens}; it must be at least 1024")
        if (self.vocab_size is None) == (self.tokenizer is None):
            raise UserError("give either vocab_size, to train a tokenizer, or tokenizer, the file of one")
        if self.validation_every < 2:
            raise UserError(
                f"validation_every is {self.validation_every}; it must be at least 2 (one document in 2 is held out)"
            )
        if self.max_tokens is not None and self.max_tokens < SMALLEST_SPLIT:
            raise UserError(f"max_tokens is {self.max_tokens}; it must be at least {SMALLEST_SPLIT}")
        parts = Partition(
            Source.resolve(self.source, Flags(self.dtype)),
            None if self.validation is None else Source.resolve(self.validation, Flags(self.dtype)),
            self.validation_every,
        )
        if self.tokenizer is None and (parts.train.packed or (parts.held_out and parts.held_out.packed)):
            raise UserError("packed token files need `tokenizer`, the tokenizer.json that made them")
        trained = None if self.tokenizer is None else load_tokenizer(Path(self.tokenizer))
        newer = {"dtype": self.dtype, "allow_loss": self.allow_loss, "shard_tokens": self.shard_tokens}
        return (
            parts,
            trained,
            {
                "source": list(parts.train.words),
                "source_fingerprint": parts.train.fingerprint,
                "vocab_size": self.vocab_size,
                "tokenizer_sha256": None if self.tokenizer is None else sha256_of(Path(self.tokenizer)),
                "eos_id": self.eos_id,
                "validation": list(parts.held_out.words) if parts.held_out else None,
                "validation_fingerprint": parts.held_out.fingerprint if parts.held_out else None,
                "validation_every": self.validation_every,
                "text_field": self.text_field,
                "max_tokens": self.max_tokens,
                # Absent where they are as they always were: folders made before are known again.
                **{name: value for name, value in newer.items() if value != getattr(Request, name)},
            },
        )
