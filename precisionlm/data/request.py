"""What is asked of `data prepare`: sources, vocabulary, validation split."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from tokenizers import Tokenizer

from precisionlm.data.documents import Document, Source
from precisionlm.data.meta import sha256_of
from precisionlm.data.tokenizer import load_tokenizer
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

    def documents(self, text_field: str, vocab_size: int, eos_id: int) -> Iterator[tuple[str, Document, int]]:
        """(split, document, bytes of all sources read so far); a held-out source comes first, so that training
        documents can end at any point."""
        start = 0
        if self.held_out is not None:
            for document in self.held_out.documents(text_field, vocab_size, eos_id):
                yield "validation", document, document.position
            start = self.held_out.size or 0
        for document in self.train.documents(text_field, vocab_size, eos_id):
            hashed_out = self.held_out is None and document.in_validation(self.every)
            yield "validation" if hashed_out else "train", document, start + document.position


@dataclass(frozen=True)
class Request:
    """Either `vocab_size` trains a byte-level BPE on the training documents, or `tokenizer` names a Hugging Face
    tokenizer.json whose end-of-text id is `eos_id` (default: its well-known one). One document in `validation_every`,
    by hash of its content, is held out, unless `validation` names a source of its own. The training split ends with
    the document that reaches `max_tokens` (count)."""

    source: Sources
    vocab_size: int | None = None
    tokenizer: str | Path | None = None
    eos_id: int | None = None
    validation: Sources | None = None
    validation_every: int = 128
    text_field: str = "text"
    max_tokens: int | None = None

    def checked(self) -> tuple[Partition, Tokenizer | None, dict[str, object]]:
        """The sources found, the tokenizer read if one is given, and the arguments as `meta.json` records them.
        UserError: arguments that contradict each other, sources that are not there."""
        if (self.vocab_size is None) == (self.tokenizer is None):
            raise UserError("give either vocab_size, to train a tokenizer, or tokenizer, the file of one")
        if self.validation_every < 2:
            raise UserError(
                f"validation_every is {self.validation_every}; it must be at least 2 (one document in 2 is held out)"
            )
        if self.max_tokens is not None and self.max_tokens < SMALLEST_SPLIT:
            raise UserError(f"max_tokens is {self.max_tokens}; it must be at least {SMALLEST_SPLIT}")
        parts = Partition(
            Source.resolve(self.source),
            None if self.validation is None else Source.resolve(self.validation),
            self.validation_every,
        )
        if self.tokenizer is None and (parts.train.packed or (parts.held_out and parts.held_out.packed)):
            raise UserError("packed token files need `tokenizer`, the tokenizer.json that made them")
        trained = None if self.tokenizer is None else load_tokenizer(Path(self.tokenizer))
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
            },
        )
