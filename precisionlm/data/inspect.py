"""What is in a prepared folder, for eyes: counts, lengths of documents, documents decoded."""

from typing import Any

import numpy as np
from tokenizers import Tokenizer

from precisionlm.data.dataset import Dataset
from precisionlm.data.meta import SPLIT_FILES, TOKENIZER_FILE
from precisionlm.data.places import joined, read_bytes
from precisionlm.errors import UserError

_LOOKED_AT = 1 << 24  # tokens of each split from which lengths are taken


def inspect(dataset: Dataset, samples: int, seed: int = 0, characters: int = 300) -> dict[str, Any]:
    """Counts of the folder; of each split the lengths (tokens) of its documents, over its first 16 M tokens, and
    `samples` of those drawn by the seed, decoded, cut to so many characters. UserError: a tokenizer that cannot be
    read."""
    meta = dataset.meta
    try:
        tokenizer = Tokenizer.from_str((read_bytes(joined(dataset.path, TOKENIZER_FILE)) or b"").decode())
    except Exception as error:  # the library raises bare Exception
        raise UserError(f"{joined(dataset.path, TOKENIZER_FILE)} cannot be read: {error}") from None
    found: dict[str, Any] = {
        "path": str(dataset.path),
        "dtype": meta.dtype,
        "vocab_size": meta.vocab_size,
        "eos_id": meta.eos_id,
        "eos": tokenizer.id_to_token(meta.eos_id),
        "tokenizer": meta.tokenizer_sha256[:12],
        "source": meta.source,
        "split_rule": meta.split_rule,
        "counts": meta.counts,
    }
    rng = np.random.default_rng(seed)
    for split in SPLIT_FILES:
        counted = getattr(meta, split)
        tokens = np.asarray(dataset.tokens(split)[: min(counted.tokens, _LOOKED_AT)])
        ends = np.flatnonzero(tokens == meta.eos_id)
        starts = np.concatenate([[0], ends[:-1] + 1]) if len(ends) else ends
        chosen = np.sort(rng.choice(len(ends), min(samples, len(ends)), replace=False))
        found[split] = {
            "tokens": counted.tokens,
            "documents": counted.documents,
            "sha256": counted.sha256,
            "shards": len(meta.shards(split)),
            "lengths": _lengths(ends - starts),
            "samples": [
                {
                    "document": int(n),
                    "tokens": int(ends[n] - starts[n]),
                    "text": _decoded(tokenizer, tokens[starts[n] : ends[n]], characters),
                }
                for n in chosen
            ],
        }
    return found


def _lengths(lengths: np.ndarray) -> dict[str, float]:
    """Of documents, end-of-text left out."""
    if not len(lengths):
        return {}
    low, middle, high = np.percentile(lengths, [5, 50, 95])
    found = {
        "min": lengths.min(),
        "5%": low,
        "median": middle,
        "mean": lengths.mean(),
        "95%": high,
        "max": lengths.max(),
    }
    return {name: float(value) for name, value in found.items()}


def _decoded(tokenizer: Tokenizer, tokens: np.ndarray, characters: int) -> str:
    text = tokenizer.decode(tokens[: 4 * characters].tolist(), skip_special_tokens=False)
    return text if len(text) <= characters and len(tokens) <= 4 * characters else text[:characters] + "…"
