"""Token files that other programs made, read as they are.

    .u16 .u32          bare little-endian numbers (OLMo-core's format, by its width)
    .npy .bin          the same, of the width that the vocabulary asks for (OLMo, nanoGPT), unless a flag says another
    .bin + .idx        Megatron-LM: dtype and documents from the index
    .bin with a header llm.c and modded-nanogpt: magic 20240520 (uint16), 20240801 (uint32)
    .ds                datatrove: width from .ds.metadata, documents from .ds.index

Documents end where the end-of-text token stands, or where an index says so.
"""

import struct
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from precisionlm.data.files import UNREADABLE, kind_by_name, opened
from precisionlm.data.meta import DTYPES, token_dtype
from precisionlm.errors import UserError

SIDE_SUFFIXES = {".idx", ".index", ".metadata", ".loss"}  # beside token files, and nothing by themselves
_BLOCK = 1 << 22  # tokens looked at at once
_MEGATRON = b"MMIDIDX\x00\x00"
_MEGATRON_TYPES = {1: "<u1", 2: "<i1", 3: "<i2", 4: "<i4", 5: "<i8", 8: "<u2"}
_LLMC = {20240520: "<u2", 20240801: "<u4"}
_LLMC_HEADER = 1024


@dataclass(frozen=True)
class Flags:
    """What cannot be known from a file. dtype: `uint16` or `uint32`, of bare numbers."""

    dtype: str | None = None


@dataclass(frozen=True)
class TokenFile:
    """Where the tokens of a file are. offset (bytes); tokens (count); ends: of documents, the positions after their
    last tokens, where an index has them; tokenizer: its name, where a side file has it; format: as messages call it."""

    path: Path
    dtype: "np.dtype[Any]"
    offset: int
    tokens: int
    format: str
    ends: np.ndarray | None = None
    tokenizer: str | None = None

    @property
    def stored(self) -> str | None:
        """`uint16` or `uint32` where its bytes are those of a shard; signed numbers are, being no negative ones."""
        return {2: "uint16", 4: "uint32"}.get(self.dtype.itemsize)

    def blocks(self, vocab_size: int) -> Iterator[np.ndarray]:
        """The tokens in order, a block at a time. UserError: an id that the vocabulary has not."""
        path = self.path
        if path.suffix != kind_by_name(path):
            with opened(path) as file:
                data = np.frombuffer(file.read(), self.dtype)
        elif self.tokens:
            data = np.memmap(path, self.dtype, "r", self.offset, (self.tokens,))
        else:
            data = np.empty(0, self.dtype)
        for start in range(0, len(data), _BLOCK):
            block = data[start : start + _BLOCK]
            for worst in (int(block.max()), int(block.min())):
                if not 0 <= worst < vocab_size:
                    raise UserError(
                        f"{path} holds token {worst}, the tokenizer has ids below {vocab_size}: not its tokens?"
                    )
            yield block


def described(path: Path, vocab_size: int, flags: Flags) -> TokenFile:
    """What a file says of itself, its side files included. UserError: it contradicts itself or them."""
    suffix = kind_by_name(path)
    try:
        with opened(path) as file:
            head = file.read(_LLMC_HEADER)
    except UNREADABLE as error:
        raise UserError(f"{path} cannot be read: {error}") from None
    if head.startswith(b"\x93NUMPY"):
        raise UserError(f"{path} has a numpy header; packed token files are bare numbers (array.tofile writes them)")
    if suffix == ".bin" and (index := path.with_suffix(".idx")).is_file():
        return _megatron(path, index)
    if suffix == ".ds":
        return _datatrove(path, vocab_size, flags)
    if suffix == ".bin" and len(head) == _LLMC_HEADER and (magic := struct.unpack("<i", head[:4])[0]) in _LLMC:
        found = _bare(path, np.dtype(_LLMC[magic]), "llm.c file", _LLMC_HEADER)
        if (says := struct.unpack("<i", head[8:12])[0]) != found.tokens:
            raise UserError(f"{path} holds {found.tokens} tokens, its header says {says}: truncated?")
        return found
    names = {".u16": "uint16", ".u32": "uint32"}
    return _bare(path, DTYPES[names.get(suffix) or flags.dtype or token_dtype(vocab_size)], "file of bare numbers")


def documents_of(path: Path, vocab_size: int, eos_id: int, flags: Flags) -> "Iterator[tuple[np.ndarray, float | None]]":
    """(tokens without end-of-text, share of the file read) of every document, empty ones too; None for the share of
    what is left at the end where nothing says that the document ends there. UserError as `described`."""
    found, done = described(path, vocab_size, flags), 0
    tail = np.empty(0, np.uint32)
    for block in found.blocks(vocab_size):
        first = 0
        for end, skipped in _boundaries(found, block, done, eos_id):
            yield np.concatenate([tail, block[first:end].astype(np.uint32)]), (done + end) / max(found.tokens, 1)
            first, tail = end + skipped, tail[:0]
        tail = np.concatenate([tail, block[first:].astype(np.uint32)])
        done += len(block)
    if len(tail):
        yield tail, None


def _boundaries(file: TokenFile, block: np.ndarray, start: int, eos_id: int) -> Iterator[tuple[int, int]]:
    """(position, tokens to leave out) where a document ends in a block that begins at `start`."""
    stops = dict.fromkeys(np.flatnonzero(block == eos_id).tolist(), 1)
    if file.ends is not None:
        low, high = np.searchsorted(file.ends, [start, start + len(block)], "right")
        for end in (file.ends[low:high] - start).tolist():
            if end - 1 not in stops:  # an end-of-text token before it is that end
                stops.setdefault(end, 0)
    yield from sorted(stops.items())


def _bare(path: Path, dtype: "np.dtype[Any]", name: str, offset: int = 0) -> TokenFile:
    if path.suffix == kind_by_name(path):
        size = path.stat().st_size
    else:
        with opened(path) as file:
            size = len(file.read())
    if (size - offset) % dtype.itemsize:
        raise UserError(f"{path} holds {size} bytes, not a multiple of {dtype.itemsize} ({dtype.name}): truncated?")
    return TokenFile(path, dtype, offset, (size - offset) // dtype.itemsize, name)


def _megatron(path: Path, index: Path) -> TokenFile:
    """https://github.com/NVIDIA/Megatron-LM, megatron/core/datasets/indexed_dataset.py: magic, version, dtype code,
    sequences, documents, then lengths (int32), pointers (int64) and the documents' first sequences (int64)."""
    data = index.read_bytes()
    if not data.startswith(_MEGATRON) or len(data) < 34:
        raise UserError(f"{index} is no index of Megatron-LM; without one, give the tokens another name")
    version, code, sequences, documents = struct.unpack_from("<QBQQ", data, 9)
    if version != 1 or code not in _MEGATRON_TYPES or len(data) < 34 + 12 * sequences + 8 * documents:
        raise UserError(
            f"{index}: version {version}, dtype code {code}, {sequences} sequences: not readable or cut short"
        )
    lengths = np.frombuffer(data, "<i4", sequences, 34).astype(np.int64)
    pointers = np.frombuffer(data, "<i8", sequences, 34 + 4 * sequences)
    firsts = np.frombuffer(data, "<i8", documents, 34 + 12 * sequences)
    found = _bare(path, np.dtype(_MEGATRON_TYPES[code]), "Megatron-LM file")
    starts = np.cumsum(np.concatenate([[0], lengths]))
    if (lengths < 0).any() or starts[-1] != found.tokens or (pointers != starts[:-1] * found.dtype.itemsize).any():
        raise UserError(
            f"{index} tells of {starts[-1]} tokens in a row, {path.name} holds {found.tokens}: not its index"
        )
    if len(firsts) and (firsts.min() < 0 or firsts.max() > sequences):
        raise UserError(f"{index} tells of documents beyond its {sequences} sequences: damaged")
    return replace(found, ends=np.unique(starts[firsts[1:]]))


def _datatrove(path: Path, vocab_size: int, flags: Flags) -> TokenFile:
    """https://github.com/huggingface/datatrove, pipeline/tokens: the metadata's first line is tokenizer|bytes a token,
    its second the count; the index has every document's end (uint64)."""
    metadata, index = Path(f"{path}.metadata"), Path(f"{path}.index")
    name, dtype, counted = None, DTYPES[flags.dtype or token_dtype(vocab_size)], None
    if metadata.is_file():
        try:
            first, count, *_ = metadata.read_text().splitlines()
            name, _, width = first.rpartition("|")
            dtype, counted = DTYPES[{"2": "uint16", "4": "uint32"}[width]], int(count)
        except (ValueError, KeyError):
            raise UserError(f"{metadata} is no metadata of datatrove (tokenizer|2 or 4, then the count)") from None
    found = _bare(path, dtype, "datatrove file")
    if counted not in (None, found.tokens):
        raise UserError(f"{path} holds {found.tokens} tokens, {metadata.name} says {counted}: truncated or replaced")
    if not index.is_file():
        return replace(found, tokenizer=name)
    if index.stat().st_size % 8:
        raise UserError(f"{index} holds {index.stat().st_size} bytes, not a multiple of 8: truncated?")
    ends = np.fromfile(index, "<u8").astype(np.int64)
    if len(ends) and (ends[0] < 0 or ends[-1] != found.tokens or (np.diff(ends) < 0).any()):
        raise UserError(f"{index} ends at token {ends[-1]}, {path.name} holds {found.tokens}: not its index")
    return replace(found, ends=ends, tokenizer=name)
