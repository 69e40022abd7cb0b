"""Text → packed tokens: a folder of flat token files, their tokenizer and `meta.json`."""

import contextlib
import glob
import hashlib
import os
import shutil
import socket
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import IO, Any

import numpy as np
from tokenizers import Tokenizer

from precisionlm.data.documents import Document
from precisionlm.data.meta import DTYPES, META_FILE, SPLIT_FILES, TOKENIZER_FILE, Meta, Split, sha256_of, token_dtype
from precisionlm.data.request import SMALLEST_SPLIT, Request
from precisionlm.data.tokenizer import end_of_text_id, train_bpe, vocabulary_size
from precisionlm.errors import UserError

Progress = Callable[[str, int, int | None], None]
"""Called with (stage, bytes of the source done, bytes in all or None where that is not known)."""

TOKENIZER_BYTES = 100_000_000  # of training text that a tokenizer is trained on: merges hardly change beyond
_BATCH_CHARACTERS = 1 << 20  # encoded at once: enough to keep the cores busy, little enough for a smooth progress


class _Writer:
    """Appends documents to one flat token file, each followed by end-of-text, and counts and hashes what it wrote."""

    def __init__(self, file: IO[bytes], dtype: str, eos_id: int):
        self._file, self._sha256 = file, hashlib.sha256()
        self._dtype, self._eos = DTYPES[dtype], np.array([eos_id], DTYPES[dtype])
        self.tokens = self.documents = 0

    def append(self, ids: "Sequence[int] | np.ndarray") -> None:
        data = np.concatenate([np.asarray(ids, self._dtype), self._eos])
        self._file.write(data.data)
        self._sha256.update(data.data)
        self.tokens, self.documents = self.tokens + len(data), self.documents + 1

    def written(self) -> Split:
        return Split(self.tokens, self.documents, self._sha256.hexdigest())


def prepare(request: Request, out: str | Path, progress: Progress = lambda stage, done, total: None) -> Meta:
    """Packs the documents asked for into the folder `out`.

    Writes train.bin and val.bin (every document followed by end-of-text), tokenizer.json and meta.json.
    Deterministic, and atomic: `out` appears complete or not at all. Called again with the same request it reports
    the stage `already prepared` and changes nothing. UserError: another request than the one `out` was made with, a
    source that is empty or not what it claims, a split too small to be of use.
    """
    out = Path(out)
    parts, trained, arguments = request.checked()
    if (finished := _finished(out, arguments)) is not None:
        progress("already prepared", parts.size or 0, parts.size)
        return finished
    with _appearing_complete(out) as folder:
        if trained is None:
            assert request.vocab_size is not None
            # Only packed files need a vocabulary to be read, and they come with a tokenizer.
            texts = _tokenizer_sample(parts.documents(request.text_field, 0, 0), parts.size, progress)
            trained = train_bpe(texts, request.vocab_size)
            trained.save(str(folder / TOKENIZER_FILE))
        else:
            assert request.tokenizer is not None
            shutil.copyfile(request.tokenizer, folder / TOKENIZER_FILE)
        eos, size = end_of_text_id(trained, request.eos_id), vocabulary_size(trained)
        encoded = _encoded(trained, parts.documents(request.text_field, size, eos), parts.size, progress)
        counted = _pack(folder, encoded, token_dtype(size), eos, request.max_tokens)
        _check_counts(counted, request.validation_every if parts.held_out is None else None)
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
        )
        meta.write(folder)
    return meta


def preview(request: Request, out: str | Path) -> dict[str, Any]:
    """What `prepare` would do with the same request, every check included that does not read the documents: status
    (new, or done), files and bytes of the sources (None: a dataset of the hub), vocabulary. Writes nothing."""
    parts, trained, arguments = request.checked()
    return {
        "out": str(out),
        "status": "done" if _finished(Path(out), arguments) else "new",
        "files": len(parts.train.files) + (len(parts.held_out.files) if parts.held_out else 0),
        "bytes": parts.size,
        "vocab_size": vocabulary_size(trained) if trained else request.vocab_size,
        "tokenizer": str(request.tokenizer) if request.tokenizer else "to be trained",
        "split_rule": parts.rule,
        "max_tokens": request.max_tokens,
    }


def _finished(out: Path, arguments: dict[str, object]) -> Meta | None:
    """The record of `out` if it was made with `arguments`, None if there is nothing yet. UserError: anything else."""
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return None
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


@contextlib.contextmanager
def _appearing_complete(out: Path) -> Iterator[Path]:
    """A scratch folder beside `out` that takes its name at the end, or vanishes if anything goes wrong.

    What a killed process left behind on this machine is removed by the next call.
    """
    out.parent.mkdir(parents=True, exist_ok=True)
    prefix = f".{out.name}.partial-{socket.gethostname()}-"
    for stale in out.parent.glob(f"{glob.escape(prefix)}*"):
        if not _alive(stale.name.removeprefix(prefix)):  # containers reuse process ids: our own is nobody else's
            shutil.rmtree(stale, ignore_errors=True)
    folder = out.parent / f"{prefix}{os.getpid()}"
    folder.mkdir()
    try:
        yield folder
        try:
            folder.rename(out)  # replaces an empty folder only
        except OSError:
            raise UserError(f"{out} was filled by another process meanwhile; call again") from None
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise


def _alive(pid: str) -> bool:
    """Whether another process of this machine has this id."""
    try:
        os.kill(int(pid), 0)
    except (ValueError, ProcessLookupError):
        return False
    except PermissionError:
        return True
    return int(pid) != os.getpid()


def _tokenizer_sample(
    documents: Iterable[tuple[str, Document, int]], size: int | None, progress: Progress
) -> Iterator[str]:
    """Training texts up to TOKENIZER_BYTES of source. Held-out text must not shape the vocabulary."""
    total = TOKENIZER_BYTES if size is None else min(size, TOKENIZER_BYTES)
    for split, document, position in documents:
        if split == "train":
            assert isinstance(document.content, str)
            yield document.content
        progress("train tokenizer", min(position, total), total)
        if position >= TOKENIZER_BYTES:
            return


def _pack(
    folder: Path,
    documents: Iterable[tuple[str, "Sequence[int] | np.ndarray"]],
    dtype: str,
    eos_id: int,
    max_tokens: int | None,
) -> dict[str, Split]:
    """Writes (split, token ids) pairs until they, or `max_tokens` of training, are through: what each split holds."""
    with contextlib.ExitStack() as files:
        writers = {
            split: _Writer(files.enter_context(open(folder / name, "wb")), dtype, eos_id)
            for split, name in SPLIT_FILES.items()
        }
        for split, ids in documents:
            writers[split].append(ids)
            if max_tokens is not None and writers["train"].tokens >= max_tokens:
                break
        return {split: writer.written() for split, writer in writers.items()}


def _encoded(
    tokenizer: Tokenizer, documents: Iterable[tuple[str, Document, int]], size: int | None, progress: Progress
) -> Iterator[tuple[str, "Sequence[int] | np.ndarray"]]:
    """(split, token ids) of every document, in order; texts are encoded many at once, on all cores."""
    tokenizer.encode_special_tokens = True  # a document that spells <|endoftext|> must not end there
    for batch in _batches(documents):
        texts = [document.content for _, document, _ in batch if isinstance(document.content, str)]
        encoded = iter(tokenizer.encode_batch_fast(texts, add_special_tokens=False))
        for split, document, _ in batch:
            yield split, next(encoded).ids if isinstance(document.content, str) else document.content
        progress("encode", batch[-1][2], size)


def _batches(documents: Iterable[tuple[str, Document, int]]) -> Iterator[list[tuple[str, Document, int]]]:
    batch, length = [], 0
    for item in documents:
        batch.append(item)
        length += len(item[1].content)
        if length >= _BATCH_CHARACTERS:
            yield batch
            batch, length = [], 0
    if batch:
        yield batch


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
