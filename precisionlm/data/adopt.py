"""Token files that others made become a prepared folder without being copied: an index that points to them."""

import hashlib
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from precisionlm.data.documents import Source
from precisionlm.data.files import kind_by_name, kind_of
from precisionlm.data.journal import write_whole
from precisionlm.data.meta import DTYPES, META_FILE, TOKENIZER_FILE, Meta, Shard, Split
from precisionlm.data.places import Place, on_a_disk
from precisionlm.data.request import SMALLEST_SPLIT
from precisionlm.data.token_files import Flags, TokenFile, described
from precisionlm.data.tokenizer import end_of_text_id, load_tokenizer, neutralise, vocabulary_size
from precisionlm.errors import UserError

Progress = Callable[[str, int, int | None], None]
"""Called with (stage, tokens done, tokens in all)."""

_BLOCK = 1 << 22  # tokens read at once


@dataclass(frozen=True)
class Stretch:
    """Tokens first … last of a file."""

    file: TokenFile
    first: int
    last: int

    def blocks(self) -> Iterator[np.ndarray]:
        """Its tokens in order."""
        for start in range(self.first, self.last, _BLOCK):
            yield _tokens(self.file, start, min(start + _BLOCK, self.last))


def adopt(
    files: Sequence[str],
    out: Place,
    tokenizer: Path | None,
    eos_id: int | None = None,
    dtype: str | None = None,
    validation: Sequence[str] | None = None,
    validation_tokens: int | None = None,
    progress: Progress = lambda stage, done, total: None,
) -> Meta:
    """Writes meta.json and a tokenizer.json that make token files, where they lie, a prepared folder.

    Everything is read once, for its hash, documents and range. Validation is files of its own, or the last documents
    with at least `validation_tokens` (count; one token in 128 if absent). Files below `out` are named relative to it,
    so that the folder can be moved as a whole; others by their absolute paths. UserError: what cannot be known and was
    not given, files that contradict their side files, documents that do not end with end-of-text.
    """
    out, flags = on_a_disk(out), Flags(dtype)
    train = _found(files, flags)
    if tokenizer is None:
        names = sorted({str(file.tokenizer) for file in (described(p, 1, flags) for p in train) if file.tokenizer})
        made = f" (they were made by {', '.join(names)})" if names else ""
        raise UserError(f"give the tokenizer.json that made these tokens by --tokenizer{made}")
    model = load_tokenizer(tokenizer)
    changes, eos, size = neutralise(model), end_of_text_id(model, eos_id), vocabulary_size(model)
    parts = [described(path, size, flags) for path in train]
    held = None if validation is None else [described(path, size, flags) for path in _found(validation, flags)]
    stored = _stored([*parts, *(held or [])], size)
    splits = {
        "train": [Stretch(file, 0, file.tokens) for file in parts if file.tokens],
        "validation": [Stretch(file, 0, file.tokens) for file in held or [] if file.tokens],
    }
    for file in (*parts, *(held or [])):
        _check_ends(file, eos)
    if held is None:
        total = sum(file.tokens for file in parts)
        splits = _cut(splits["train"], total // 128 if validation_tokens is None else validation_tokens, eos)
    if (out / META_FILE).exists():
        raise UserError(f"{out} is a prepared folder already; give another one or remove its {META_FILE}")
    content = model.to_str().encode() if changes else tokenizer.read_bytes()
    if (out / TOKENIZER_FILE).exists() and (out / TOKENIZER_FILE).read_bytes() != content:
        raise UserError(f"{out / TOKENIZER_FILE} is another tokenizer than {tokenizer}; give another folder")
    done, total = 0, sum(s.last - s.first for stretches in splits.values() for s in stretches)
    read = {}
    for name, stretches in splits.items():
        read[name] = _split(stretches, out, stored, eos, size, _after(progress, done, total))
        done += read[name].tokens
        if read[name].tokens < SMALLEST_SPLIT:
            raise UserError(f"the {name} split has {read[name].tokens} tokens, at least {SMALLEST_SPLIT} are needed")
    meta = Meta(
        dtype=stored,
        vocab_size=size,
        eos_id=eos,
        tokenizer_sha256=hashlib.sha256(content).hexdigest(),
        train=read["train"],
        validation=read["validation"],
        split_rule="files of its own" if held is not None else "the last documents",
        source=", ".join(sorted({file.format for file in parts})),
        arguments={"adopted": [str(file.path) for file in parts]},
    )
    write_whole(out / TOKENIZER_FILE, content)
    write_whole(out / META_FILE, meta.text().encode())
    return meta


def _after(progress: Progress, before: int, total: int) -> Callable[[int], None]:
    return lambda done: progress("read", before + done, total)


def _found(words: Sequence[str], flags: Flags) -> list[Path]:
    paths = [path for path, *_ in Source.resolve(list(words), flags).files]
    for path in paths:
        if kind_of(path) != "packed":
            raise UserError(f"{path} holds no tokens that are known here; `data prepare` reads text")
        if path.suffix != kind_by_name(path):
            raise UserError(f"{path} is compressed; `data prepare` reads it and writes the tokens anew")
    return paths


def _stored(files: list[TokenFile], vocab_size: int) -> str:
    """The one dtype of all files."""
    for file in files:
        if file.stored is None:
            raise UserError(f"{file.path} has tokens of {file.dtype.name}; `data prepare` writes them anew")
        if file.stored != files[0].stored:
            raise UserError(f"{file.path} has tokens of {file.stored}, {files[0].path} of {files[0].stored}")
    if vocab_size > 1 << (8 * files[0].dtype.itemsize):
        raise UserError(
            f"{files[0].path} has tokens of {files[0].stored}, too few for {vocab_size} entries: not its tokens?"
        )
    return str(files[0].stored)


def _cut(stretches: list[Stretch], tokens: int, eos: int) -> dict[str, list[Stretch]]:
    """The last documents with at least so many tokens as validation."""
    left = sum(s.last - s.first for s in stretches) - tokens
    train: list[Stretch] = []
    for n, stretch in enumerate(stretches):
        length = stretch.last - stretch.first
        if left < length:
            at = _document_before(stretch, max(left, 0), eos)
            before = [*train, Stretch(stretch.file, stretch.first, at)] if at > stretch.first else train
            return {"train": before, "validation": [Stretch(stretch.file, at, stretch.last), *stretches[n + 1 :]]}
        train.append(stretch)
        left -= length
    return {"train": train, "validation": []}


def _document_before(stretch: Stretch, position: int, eos: int) -> int:
    """The last place at or before a position of a file where a document begins."""
    for stop in range(position, 0, -_BLOCK):
        start = max(stop - _BLOCK, 0)
        ends = np.flatnonzero(_tokens(stretch.file, start, stop) == eos)
        if len(ends):
            return int(start + ends[-1] + 1)
    return 0


def _split(
    stretches: list[Stretch], out: Path, stored: str, eos: int, vocab_size: int, progress: Callable[[int], None]
) -> Split:
    whole, shards, done = hashlib.sha256(), [], 0
    for stretch in stretches:
        file, own, documents, last = stretch.file, hashlib.sha256(), 0, eos
        for block in stretch.blocks():
            if not 0 <= (worst := int(max(block.max(), -int(block.min())))) < vocab_size:
                raise UserError(
                    f"{file.path} holds token {worst}, the tokenizer has ids below {vocab_size}: not its tokens?"
                )
            data = block.astype(DTYPES[stored]).tobytes()
            whole.update(data)
            own.update(data)
            documents, last = documents + int(np.count_nonzero(block == eos)), int(block[-1])
            progress(done := done + len(block))
        if stretch is stretches[-1] and last != eos:
            raise UserError(
                f"{file.path} does not end with the end-of-text token {eos}; give another --eos-id, or let "
                "`data prepare` write the tokens anew"
            )
        offset = file.offset + stretch.first * file.dtype.itemsize
        shards.append(Shard(_name(file.path, out), stretch.last - stretch.first, documents, own.hexdigest(), offset))
    return Split(sum(s.tokens for s in shards), sum(s.documents for s in shards), whole.hexdigest(), tuple(shards))


def _check_ends(file: TokenFile, eos: int) -> None:
    if file.ends is None or not len(file.ends):
        return
    ends = file.ends[file.ends > 0]
    for start in range(0, len(ends), _BLOCK):
        last = np.memmap(file.path, file.dtype, "r", file.offset, (file.tokens,))[ends[start : start + _BLOCK] - 1]
        if (last != eos).any():
            raise UserError(
                f"{file.path}: its index ends documents without the end-of-text token {eos} (it was made without one); "
                "`data prepare` writes the tokens anew, with one after each"
            )


def _tokens(file: TokenFile, first: int, last: int) -> np.ndarray:
    if first == last:
        return np.empty(0, file.dtype)
    return np.memmap(file.path, file.dtype, "r", file.offset + first * file.dtype.itemsize, (last - first,))


def _name(path: Path, out: Path) -> str:
    full, folder = os.path.realpath(path), os.path.realpath(out)
    return os.path.relpath(full, folder) if full.startswith(folder + os.sep) else full
