"""`meta.json`: what a folder of packed tokens says about itself."""

import dataclasses
import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from precisionlm.errors import UserError

FORMAT_VERSION = 1
META_FILE, TOKENIZER_FILE = "meta.json", "tokenizer.json"
SPLIT_FILES = {"train": "train.bin", "validation": "val.bin"}
DTYPES: dict[str, np.dtype[Any]] = {"uint16": np.dtype("<u2"), "uint32": np.dtype("<u4")}


@dataclass(frozen=True)
class Split:
    """One flat token file: tokens and documents (counts, end-of-text tokens included) and its sha256 (hex)."""

    tokens: int
    documents: int
    sha256: str


@dataclass(frozen=True)
class Meta:
    """The record of one prepared folder.

    `dtype` is `uint16` or `uint32` (little endian, no header); `arguments` are those `prepare` was called with,
    by which a second call knows that there is nothing left to do.
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

    def write(self, folder: Path) -> None:
        (folder / META_FILE).write_text(json.dumps(dataclasses.asdict(self), indent=2) + "\n")

    @classmethod
    def read(cls, folder: Path) -> "Meta":
        """The meta.json of `folder`. UserError: absent, not JSON, of another version, a field missing or of a wrong
        type."""
        path = folder / META_FILE
        try:
            raw = json.loads(path.read_text())
        except (FileNotFoundError, NotADirectoryError):
            raise UserError(
                f"{folder} holds no prepared data (no {META_FILE}); see `precisionlm data prepare`"
            ) from None
        except (OSError, ValueError) as error:
            raise UserError(f"{path} cannot be read: {error}") from None
        if not isinstance(raw, dict):
            raise UserError(f"{path} is not a JSON object")
        if raw.get("format_version") != FORMAT_VERSION:
            raise UserError(
                f"{path} has format version {raw.get('format_version')!r}; this program reads {FORMAT_VERSION}"
            )
        meta = _typed(cls, {**raw, **{s: _typed(Split, raw.get(s), f"{path}: {s}") for s in SPLIT_FILES}}, str(path))
        if meta.dtype not in DTYPES:
            raise UserError(f"{path}: dtype is {meta.dtype!r}; valid: {', '.join(DTYPES)}")
        return meta


def token_dtype(vocab_size: int) -> str:
    """The narrowest of `uint16` and `uint32` that holds every id of a vocabulary (OLMo-core's rule)."""
    return "uint16" if vocab_size <= 1 << 16 else "uint32"


def sha256_of(path: Path) -> str:
    """sha256 of a file (hex)."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _typed(cls: type, raw: Any, where: str) -> Any:
    """`cls(**raw)` after checking that every field is there, has its annotated type and is not negative."""
    fields = {field.name: field.type for field in dataclasses.fields(cls)}
    if not isinstance(raw, dict) or set(raw) != set(fields):
        wrong = sorted(set(raw) ^ set(fields)) if isinstance(raw, dict) else "not an object"
        raise UserError(f"{where}: missing or unknown fields: {wrong}")
    plain_types: dict[Any, type] = {int: int, str: str, Split: Split}
    for name, annotation in fields.items():
        value, plain = raw[name], plain_types.get(annotation, dict)
        if type(value) is not plain or (isinstance(value, int) and value < 0):
            raise UserError(f"{where}: {name} is {value!r}, not a valid {plain.__name__}")
    return cls(**raw)
