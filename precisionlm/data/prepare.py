"""Text → packed tokens: a folder of flat token files, their tokenizer and `meta.json`."""

import shutil
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from precisionlm.data.documents import LongText
from precisionlm.data.encode import BATCH, Coder, Item
from precisionlm.data.journal import Digests, Position, appearing_complete, read_journal, remove_traces, write_journal
from precisionlm.data.meta import META_FILE, SPLIT_FILES, TOKENIZER_FILE, Meta, Split, sha256_of, token_dtype
from precisionlm.data.places import on_a_disk
from precisionlm.data.request import SMALLEST_SPLIT, Partition, Request
from precisionlm.data.tokenizer import end_of_text_id, load_tokenizer, neutralise, train_bpe, vocabulary_size
from precisionlm.data.writer import SplitWriter
from precisionlm.errors import UserError

Progress = Callable[[str, int, int | None], None]
"""Called with (stage, bytes of the source done, bytes in all or None where that is not known)."""

TOKENIZER_BYTES = 100_000_000  # of training text that a tokenizer is trained on: merges hardly change beyond
_TRAINING_PIECE = 1 << 16  # characters of a long text that a tokenizer is trained on at once
_UNSPACED = 1 << 20  # characters of text without spaces that a tokenizer is trained on
JOURNAL_SECONDS = 15.0  # between two journals
_POOL_BYTES = 1 << 23  # of sources from which on several processes are worth their start


def prepare(
    request: Request,
    out: str | Path,
    progress: Progress = lambda stage, done, total: None,
    workers: int = 1,
) -> Meta:
    """Packs the documents asked for into the folder `out`, encoding in `workers` processes.

    Writes train.bin and val.bin (every document followed by end-of-text; in shards where they are longer than one),
    tokenizer.json and meta.json. Deterministic, and atomic: `out` appears complete or not at all; a call that was
    killed is gone on with. Called again with the same request it reports the stage `already prepared` and changes
    nothing. UserError: another request than the one `out` was made with, a source that is empty or not what it claims,
    a tokenizer that loses text, a split too small to be of use, a disk that is full.
    """
    out = on_a_disk(out)
    parts, trained, arguments = request.checked()
    if (finished := _finished(out, arguments)) is not None:
        remove_traces(out)
        progress("already prepared", parts.size or 0, parts.size)
        return finished
    with appearing_complete(out, arguments) as folder:
        position = read_journal(folder, arguments) or Position()
        tokenizer, changes = _tokenizer(request, parts, trained, folder, position, progress)
        eos, size = end_of_text_id(tokenizer, request.eos_id), vocabulary_size(tokenizer)
        workers = workers if parts.size is None or parts.size > _POOL_BYTES else 1
        coder = Coder(tokenizer, workers, trained is not None, hard_cuts=position.hard_cuts)
        digests = Digests()
        digests.load(folder, {split: documents for split, (_, documents) in position.splits.items()})
        items = parts.items(request.text_field, size, eos, position, digests.held_out())
        packed = _Packing(request, folder, arguments, position, digests, token_dtype(size), eos)
        counted = packed.pack(coder, items, parts.size, progress)
        _check_counts(counted, request.validation_every if parts.held_out is None else None)
        counts = _counts(parts, packed.position.counts, digests)
        counts |= {"tokenizer_without": list(changes)} if changes else {}
        counts |= {"windows_cut": coder.hard_cuts} if coder.hard_cuts else {}
        if coder.loss.changed:
            counts["lost_text"] = vars(coder.loss)
        meta = Meta(
            dtype=token_dtype(size),
            vocab_size=size,
            eos_id=eos,
            tokenizer_sha256=sha256_of(folder / TOKENIZER_FILE),
            train=counted["train"],
            validation=counted["validation"],
            split_rule=parts.rule,
            source=", ".join(parts.train.words),
            arguments=arguments,
            counts=counts,
        )
        meta.write(folder)
    return meta


def preview(request: Request, out: str | Path, progress: Progress = lambda stage, done, total: None) -> dict[str, Any]:
    """What `prepare` would do with the same request: status (new, or done), files and bytes of the sources (None: a
    dataset of the hub), vocabulary, and, everything being read but nothing encoded, records by what becomes of them.
    Writes nothing. UserError as `prepare`."""
    out = on_a_disk(out)
    parts, trained, arguments = request.checked()
    found: dict[str, Any] = {
        "out": str(out),
        "status": "done" if _finished(out, arguments) else "new",
        "files": len(parts.train.files) + (len(parts.held_out.files) if parts.held_out else 0),
        "bytes": parts.size,
        "vocab_size": vocabulary_size(trained) if trained else request.vocab_size,
        "tokenizer": str(request.tokenizer) if request.tokenizer else "to be trained",
        "tokenizer_without": list(neutralise(trained)) if trained else [],
        "split_rule": parts.rule,
        "max_tokens": request.max_tokens,
    }
    if parts.size is None or found["status"] == "done":
        return found
    digests, fates = Digests(), Counter[str]()
    eos, size = (end_of_text_id(trained, request.eos_id), vocabulary_size(trained)) if trained else (0, 0)
    for item in parts.items(request.text_field, size, eos):
        fates[item.fate] += 1
        if item.fate in SPLIT_FILES:
            digests.add(item.fate, item.document.digest)
        progress("read", item.position, parts.size)
    return found | _counts(parts, fates, digests)


def _finished(out: Path, arguments: dict[str, object]) -> Meta | None:
    """The record of `out` if it was made with `arguments`, None if there is nothing yet. UserError: anything else."""
    try:
        if not out.exists() or (out.is_dir() and not any(out.iterdir())):
            return None
    except OSError as error:
        raise UserError(f"{out} cannot be read: {error.strerror}") from None
    if not (out / META_FILE).is_file():
        raise UserError(f"{out} exists and is not a folder of prepared data; give another one")
    meta = Meta.read(out)
    changed = [name for name in arguments if meta.arguments.get(name) != arguments[name]]
    if changed:
        plain = [name for name in changed if not name.endswith("_fingerprint")]
        first = plain[0] if plain else "source"
        how = f"{first} {meta.arguments.get(first)!r}, not {arguments[first]!r}" if plain else "files since changed"
        raise UserError(f"{out} was prepared with {how}; give another folder or remove it")
    return meta


def _tokenizer(
    request: Request, parts: Partition, given: Tokenizer | None, folder: Path, position: Position, progress: Progress
) -> tuple[Tokenizer, tuple[str, ...]]:
    """The tokenizer, written to the folder, and what was taken out of the one that was given."""
    path = folder / TOKENIZER_FILE
    if given is not None:
        assert request.tokenizer is not None
        if changes := neutralise(given):
            path.write_text(given.to_str(pretty=True))
        else:
            shutil.copyfile(request.tokenizer, path)
        return given, changes
    if position.part:  # trained by the call that is gone on with
        return load_tokenizer(path), ()
    assert request.vocab_size is not None
    # Only packed files need a vocabulary to be read, and they come with a tokenizer.
    texts = _tokenizer_sample(parts.items(request.text_field, 0, 0), parts.size, progress)
    trained = train_bpe(texts, request.vocab_size)
    path.write_text(trained.to_str(pretty=True))  # the library's own way tells no error of the system apart
    return trained, ()


def _tokenizer_sample(items: Iterable[Item], size: int | None, progress: Progress) -> Iterator[str]:
    """Training texts up to TOKENIZER_BYTES of source. Held-out text must not shape the vocabulary. Of text almost
    without spaces, of which the trainer would hold every character of every word, no more than _UNSPACED."""
    total = TOKENIZER_BYTES if size is None else min(size, TOKENIZER_BYTES)
    unspaced = 0
    for item in items:
        content, position = item.document.content, item.position
        if item.fate == "train":
            assert isinstance(content, str | LongText)
            for text in _pieces(content):
                if len(text) >= _TRAINING_PIECE and len(text.split(None, len(text) // 256)) <= len(text) // 256:
                    unspaced += len(text)
                    if unspaced > _UNSPACED:
                        continue
                yield text
        progress("train tokenizer", min(position, total), total)
        if position >= TOKENIZER_BYTES:
            return


def _pieces(content: "str | LongText") -> Iterator[str]:
    """A document as a tokenizer is trained on it: whole, or the beginning of a long one in pieces."""
    if isinstance(content, str) and len(content) <= BATCH:
        yield content
        return
    left = TOKENIZER_BYTES
    for text in [content] if isinstance(content, str) else (piece for piece, _ in content.pieces()):
        yield from (text[start : start + _TRAINING_PIECE] for start in range(0, len(text), _TRAINING_PIECE))
        left -= len(text)
        if left <= 0:
            return


class _Packing:
    """Writes what is encoded until it, or `max_tokens` of training, is through."""

    def __init__(
        self,
        request: Request,
        folder: Path,
        arguments: dict[str, Any],
        position: Position,
        digests: Digests,
        dtype: str,
        eos: int,
    ):
        self._request, self._folder, self._arguments, self._digests = request, folder, arguments, digests
        self.position = position
        self._writers = {
            split: SplitWriter(folder, split, dtype, eos, request.shard_tokens, position.splits.get(split, (0, 0)))
            for split in SPLIT_FILES
        }

    def pack(self, coder: Coder, items: Iterable[Item], size: int | None, progress: Progress) -> dict[str, Split]:
        """What each split holds."""
        most, noted = self._request.max_tokens, time.monotonic()
        try:
            for encoded in coder.encode(items):
                item, writer = encoded.item, self._writers.get(encoded.item.fate)
                if coder.loss.changed and not self._request.allow_loss:
                    raise UserError(
                        f"{self._request.tokenizer} does not give text back ({coder.loss.example}); take another "
                        "tokenizer, or --allow-loss to train on what is left of it, counted in meta.json"
                    )
                if writer is not None:
                    writer.append(encoded.ids)
                if not encoded.last:
                    progress("encode", item.position - encoded.left, size)
                    continue
                if writer is not None:
                    writer.end()
                    self._digests.add(item.fate, item.document.digest)
                self.position.counts[item.fate] += 1
                progress("encode", item.position, size)
                if most is not None and self._writers["train"].tokens >= most:
                    break
                if time.monotonic() - noted > JOURNAL_SECONDS:
                    self._note(item, coder.hard_cuts)
                    noted = time.monotonic()
            return {split: writer.finish() for split, writer in self._writers.items()}
        finally:
            for writer in self._writers.values():
                writer.close()

    def _note(self, item: Item, hard_cuts: int) -> None:
        """Everything up to this record is on the disk, and a later call knows it."""
        for writer in self._writers.values():
            writer.flush()
        self._digests.save(self._folder)
        at = self.position
        at.part, at.file, at.records, at.hard_cuts = item.part, item.file, item.number, hard_cuts
        at.splits = {split: [writer.tokens, writer.documents] for split, writer in self._writers.items()}
        write_journal(self._folder, self._arguments, at)


def _counts(parts: Partition, fates: Counter[str], digests: Digests) -> dict[str, Any]:
    """What was read: files, records, and what became of them."""
    sources = [parts.train, *([parts.held_out] if parts.held_out else [])]
    return {
        "files": sum(len(source.files) for source in sources),
        "files_named_again": sum(source.again for source in sources),
        "records": sum(fates.values()),
        "empty": fates["empty"],
        "held_out_of_training": fates["held out of training"],
        "duplicates": digests.duplicates(),
    }


def _check_counts(counted: dict[str, Split], every: int | None) -> None:
    for name, split in counted.items():
        if split.tokens < SMALLEST_SPLIT:
            documents = sum(s.documents for s in counted.values())
            remedy = "add documents"
            if every is not None and name == "validation":
                remedy = f"lower validation_every ({every}) or add documents (a text file is one document)"
            raise UserError(
                f"the {name} split has {split.tokens} tokens from {split.documents} of {documents} documents, "
                f"at least {SMALLEST_SPLIT} tokens are needed; {remedy}"
            )
