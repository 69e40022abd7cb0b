"""`meta.json`: what a folder of packed tokens says about itself, and the index of its shards."""

import dataclasses
import hashlib
import json
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from precisionlm.data.places import Place, joined, read_bytes
from precisionlm.errors import UserError
from precisionlm.yaml_text import is_text

FORMAT_VERSION = 1
META_FILE, TOKENIZER_FILE = "meta.json", "tokenizer.json"
SPLIT_FILES = {"train": "train.bin", "validation": "val.bin"}
DTYPES: dict[str, np.dtype[Any]] = {"uint16": np.dtype("<u2"), "uint32": np.dtype("<u4")}


@dataclass(frozen=True)
class Shard:
    """One file of a split, or a stretch of one.

    file: its name in the folder, or its path or URL where it lies elsewhere; tokens and documents (counts, end-of-text
    tokens included; a document belongs to the shard that it ends in); sha256 (hex) of the tokens; offset (bytes) of the
    first of them.
    """

    file: str
    tokens: int
    documents: int
    sha256: str
    offset: int = 0


@dataclass(frozen=True)
class Split:
    """Tokens and documents (counts, end-of-text tokens included), the sha256 (hex) of all tokens one after the other,
    and the shards they lie in, in order; none where it is the one file of `SPLIT_FILES`."""

    tokens: int
    documents: int
    sha256: str
    shards: tuple[Shard, ...] = ()


@dataclass(frozen=True)
class Meta:
    """The record of one prepared folder.

    `dtype` is `uint16` or `uint32` (little endian, no header); `arguments` are those `prepare` was called with,
    by which a second call knows that there is nothing left to do; `counts` says what was read and left out.
    """

    dtype: str
    vocab_size: int
    eos_id: int
    tokenizer_sha256: str
    train: Split
    validation: Split
    split_rule: str
    source: str
    arguments: dict[str, Any]
    format_version: int = FORMAT_VERSION
    counts: dict[str, Any] = field(default_factory=dict)

    def shards(self, split: str) -> tuple[Shard, ...]:
        """Of `train` or `validation`, in order."""
        of: Split = getattr(self, split)
        return of.shards or (Shard(SPLIT_FILES[split], of.tokens, of.documents, of.sha256),)

    def as_json(self) -> dict[str, Any]:
        """As it is written: what is empty by default is left out."""
        tree = dataclasses.asdict(self)
        for split in SPLIT_FILES:
            if not tree[split]["shards"]:
                del tree[split]["shards"]
        return tree if self.counts else {key: value for key, value in tree.items() if key != "counts"}

    def text(self) -> str:
        """The content of meta.json."""
        return json.dumps(self.as_json(), indent=2) + "\n"

    def write(self, folder: Path) -> None:
        (folder / META_FILE).write_text(self.text())

    @classmethod
    def read(cls, folder: Place) -> "Meta":
        """The meta.json of a folder or URL. UserError: absent, not JSON, of another version, a field missing or of a
        wrong type."""
        path = joined(folder, META_FILE)
        data = read_bytes(path)
        if data is None:
            raise UserError(f"{folder} holds no prepared data (no {META_FILE}); see `precisionlm data prepare`")
        try:
            raw = json.loads(data)
        except (ValueError, RecursionError) as error:
            raise UserError(f"{path} cannot be read: {error}") from None
        if not isinstance(raw, dict):
            raise UserError(f"{path} is not a JSON object")
        if raw.get("format_version") != FORMAT_VERSION:
            raise UserError(
                f"{path} has format version {raw.get('format_version')!r}; this program reads {FORMAT_VERSION}"
            )
        splits = {split: _split(raw.get(split), f"{path}: {split}") for split in SPLIT_FILES}
        meta: Meta = _typed(cls, {**raw, **splits}, path)
        if meta.dtype not in DTYPES:
            raise UserError(f"{path}: dtype is {meta.dtype!r}; valid: {', '.join(DTYPES)}")
        _check_apart(meta, path)
        return meta


def token_dtype(vocab_size: int) -> str:
    """The narrowest of `uint16` and `uint32` that holds every id of a vocabulary (OLMo-core's rule)."""
    return "uint16" if vocab_size <= 1 << 16 else "uint32"


def sha256_of(path: Path) -> str:
    """sha256 of a file (hex)."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def shard_of(raw: Any, where: str) -> Shard:
    """A shard from a record. Raises UserError, also where its file would lie outside the folder by a way around (`..`)
    and not by an address of its own."""
    shard: Shard = _typed(Shard, raw, where)
    if ".." in shard.file.replace("\\", "/").split("/") or not is_text(shard.file) or not shard.file:
        raise UserError(f"{where}: file is {shard.file!r}, no name in its folder")
    return shard


def _split(raw: Any, where: str) -> Split:
    """A split whose shards add up to it."""
    if not isinstance(raw, dict) or "shards" not in raw:
        return _typed(Split, raw, where)
    if not isinstance(raw["shards"], list) or not raw["shards"]:
        raise UserError(f"{where}: shards is no list of shards")
    shards = tuple(shard_of(shard, f"{where}: shard {n}") for n, shard in enumerate(raw["shards"]))
    split: Split = _typed(Split, {**raw, "shards": shards}, where)
    for name in ("tokens", "documents"):
        if (found := sum(getattr(shard, name) for shard in shards)) != getattr(split, name):
            raise UserError(f"{where}: its shards hold {found} {name}, not {getattr(split, name)}")
    return split


def _check_apart(meta: Meta, where: str) -> None:
    """Raises UserError where two shards share tokens: they would be trained on twice, or be validation too."""
    size = DTYPES[meta.dtype].itemsize
    ends: dict[str, int] = {}
    shards = [shard for split in SPLIT_FILES for shard in meta.shards(split)]
    for shard in sorted(shards, key=lambda shard: (shard.file, shard.offset)):
        if shard.offset < ends.get(shard.file, 0):
            raise UserError(f"{where}: two shards overlap in {shard.file}")
        ends[shard.file] = shard.offset + shard.tokens * size


_PLAIN: dict[Any, type] = {int: int, str: str, Split: Split, tuple[Shard, ...]: tuple}


def _typed(cls: type, raw: Any, where: str) -> Any:
    """`cls(**raw)` after checking that every field is there, has its annotated type and is not negative, and that
    hashes, by which files of the cache are called, are some."""
    fields = {field.name: field for field in dataclasses.fields(cls)}
    if not isinstance(raw, dict):
        raise UserError(f"{where}: missing or unknown fields: not an object")
    required = {name for name, f in fields.items() if not _has_default(f)}
    if wrong := sorted((required - set(raw)) | (set(raw) - set(fields))):
        raise UserError(f"{where}: missing or unknown fields: {wrong}")
    for name, value in raw.items():
        plain = _PLAIN.get(fields[name].type, dict)
        if type(value) is not plain or (isinstance(value, int) and value < 0):
            raise UserError(f"{where}: {name} is {value!r}, not a valid {plain.__name__}")
        if name == "sha256" and isinstance(value, str) and not re.fullmatch("[0-9a-f]{64}", value):
            raise UserError(f"{where}: sha256 is {value!r}, no hash")
    return cls(**raw)


def _has_default(of: "dataclasses.Field[Any]") -> bool:
    return of.default is not dataclasses.MISSING or of.default_factory is not dataclasses.MISSING
