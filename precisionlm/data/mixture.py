"""Several prepared folders as one, each with its weight: the share of the sequences that come from it."""

import functools
import hashlib
import math
from dataclasses import dataclass, replace
from pathlib import Path

from precisionlm.config import DataConfig
from precisionlm.data.dataset import GIB, Dataset
from precisionlm.data.meta import Meta, Split
from precisionlm.errors import UserError

_STEPS = 1_000_000  # weights are counted in shares of this size


@dataclass(frozen=True)
class Mixture:
    """parts: (weight, folder), weights whole numbers without a common divisor, folders of one tokenizer."""

    parts: tuple[tuple[int, Dataset], ...]

    @property
    def path(self) -> str:
        """As messages name it."""
        return " + ".join(f"{weight} {part.path}" for weight, part in self.parts)

    @functools.cached_property
    def meta(self) -> Meta:
        """The record of the whole. Hashes are of weights and contents; tokens of validation (count) as many as every
        part can give its share of, and one."""
        first, total = self.parts[0][1].meta, sum(weight for weight, _ in self.parts)
        targets = min((part.meta.validation.tokens - 1) * total // weight for weight, part in self.parts)
        train, validation = (self._split("train"), self._split("validation"))
        return replace(first, train=train, validation=replace(validation, tokens=targets + 1), source=self.path)

    def _split(self, name: str) -> Split:
        splits: list[tuple[int, Split]] = [(weight, getattr(part.meta, name)) for weight, part in self.parts]
        content = " ".join(f"{weight}:{split.sha256}" for weight, split in splits)
        tokens, documents = sum(split.tokens for _, split in splits), sum(split.documents for _, split in splits)
        return Split(tokens, documents, hashlib.sha256(content.encode()).hexdigest())

    def tokenizer(self) -> bytes:
        """The tokenizer.json of all parts. Raises PreemptedError as `Dataset.open` does."""
        return self.parts[0][1].tokenizer()

    def verify_once(self) -> None:
        """As `Dataset.verify_once`, of every part."""
        for _, part in self.parts:
            part.verify_once()


def opened(data: DataConfig) -> Dataset | Mixture:
    """What an experiment trains on. UserError, PreemptedError as `Dataset.open`; UserError for parts of different
    tokenizers and weights of less than a millionth."""
    cache, room = (Path(data.cache).expanduser() if data.cache else None), int(data.cache_gib * GIB)
    if data.mixture is None:
        assert data.path is not None
        return Dataset.open(data.path, cache, room)
    weights = whole_weights([part.weight for part in data.mixture])
    parts = [Dataset.open(part.path, cache, room) for part in data.mixture]
    for part in parts[1:]:
        if part.meta.tokenizer_sha256 != parts[0].meta.tokenizer_sha256:
            raise UserError(f"data.mixture: {part.path} and {parts[0].path} were made by different tokenizers")
    if len(parts) == 1:
        return parts[0]
    return Mixture(tuple(zip(weights, parts, strict=True)))


def whole_weights(weights: list[float]) -> list[int]:
    """Weights in the same proportions, as whole numbers without a common divisor; to a millionth of their sum.
    UserError: one of them is less."""
    total = sum(weights)
    counts = [round(weight / total * _STEPS) for weight in weights]
    if not all(counts):
        raise UserError(f"data.mixture: weight {min(weights):g} is less than a millionth of all ({total:g})")
    divisor = math.gcd(*counts)
    return [count // divisor for count in counts]
