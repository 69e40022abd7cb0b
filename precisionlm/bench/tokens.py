"""Random tokens that no step sees twice, and how a bench notices that some were learned by heart.

Gradients of tokens that are known by heart are no longer those of training, so what is timed with them is not either.
"""

import math
from pathlib import Path

import jax
import numpy as np
from jax.sharding import Sharding
from tokenizers import Tokenizer
from tokenizers.models import BPE

from precisionlm.data.meta import token_dtype
from precisionlm.data.prepare import prepare
from precisionlm.data.request import SMALLEST_SPLIT, Request

_DOCUMENT = 1000  # tokens
_HELD_OUT = 16  # one document in so many is for validation
_CLEARLY = 0.98  # of the entropy: a loss below this share of it is no accident of which tokens were drawn


def fresh_batches(
    steps: int, shape: tuple[int, int], vocab_size: int, sharding: Sharding, *where: int
) -> list[jax.Array]:
    """Uniform tokens of `shape` [B, T + 1] for so many steps, on the devices; others for every other `where`, such as
    (round, variant)."""
    key = jax.random.key(1)
    for number in where:
        key = jax.random.fold_in(key, number)
    drawn = [jax.random.randint(key, shape, 0, vocab_size) for key in jax.random.split(key, steps)]
    return jax.block_until_ready(jax.device_put(drawn, sharding))


def learned(loss: float, vocab_size: int) -> str:
    """What is wrong with a loss (nats/token) on uniform tokens, of which no model can predict anything; empty if
    nothing. Chance takes a mean over a turn's tokens a little below the entropy ln V, never 2 % below."""
    entropy = math.log(vocab_size)
    if not loss < _CLEARLY * entropy:
        return ""
    return f"loss {loss:.3f} on uniform random tokens, whose entropy is {entropy:.3f}: tokens were seen before"


def random_dataset(root: Path, vocab_size: int, train_tokens: int) -> Path:
    """A prepared folder below `root` with at least so many uniform tokens to train on, in documents of 1000."""
    vocabulary = {"<|endoftext|>": 0} | {f"<{i}>": i for i in range(1, vocab_size)}
    Tokenizer(BPE(vocabulary, [])).save(str(root / "tokenizer.json"))
    dtype, kept = np.dtype(token_dtype(vocab_size)), 1 - 1.5 / _HELD_OUT
    count = round((max(train_tokens, SMALLEST_SPLIT * _HELD_OUT) / kept) / _DOCUMENT + 8) * _DOCUMENT
    tokens = np.random.default_rng(0).integers(1, vocab_size, count, dtype=dtype)
    tokens[_DOCUMENT - 1 :: _DOCUMENT] = 0
    source = root / f"tokens.u{8 * dtype.itemsize}"
    tokens.tofile(source)
    prepare(Request(source, tokenizer=root / "tokenizer.json", eos_id=0, validation_every=_HELD_OUT), root / "data")
    source.unlink()
    return root / "data"
