"""Byte-level BPE tokenizers: train one, load one, find the token that ends a document."""

from collections.abc import Iterable
from pathlib import Path

import tokenizers
from tokenizers import Tokenizer

from precisionlm.errors import UserError

END_OF_TEXT = "<|endoftext|>"
BYTES = 256  # every byte is a token, so every text can be encoded
_KNOWN_ENDS = (END_OF_TEXT, "<|end_of_text|>", "</s>", "<eos>")


def train_bpe(texts: Iterable[str], vocab_size: int) -> Tokenizer:
    """A byte-level BPE (GPT-2's pre-tokenization; Radford et al. 2019 §2.2) of exactly `vocab_size` entries.

    Id 0 is `<|endoftext|>`. Deterministic: the same texts in the same order give the same file.
    UserError: `vocab_size` cannot hold the 256 bytes, or the texts do not yield that many entries.
    """
    smallest = BYTES + 1
    if vocab_size < smallest:
        raise UserError(f"vocab_size is {vocab_size}; it must be at least {smallest} (256 bytes and {END_OF_TEXT})")
    tokenizer = Tokenizer(tokenizers.models.BPE())
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[END_OF_TEXT],
        initial_alphabet=sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    if (got := vocabulary_size(tokenizer)) < vocab_size:
        raise UserError(
            f"the text yields a vocabulary of only {got} entries, {vocab_size} were asked; lower vocab_size"
        )
    return tokenizer


def load_tokenizer(path: Path) -> Tokenizer:
    """A Hugging Face `tokenizer.json`. UserError: absent or not one."""
    if not Path(path).is_file():
        raise UserError(f"tokenizer file {path} does not exist")
    try:
        return Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises bare Exception
        raise UserError(f"{path} is not a Hugging Face tokenizer.json: {error}") from None


def neutralise(tokenizer: Tokenizer) -> tuple[str, ...]:
    """Takes out what would change the tokens of a text: stored truncation and padding, and random merges. What it was,
    in words."""
    found = []
    if (cut := tokenizer.truncation) is not None:
        found.append(f"truncation to {cut['max_length']} tokens")
        tokenizer.no_truncation()
    if tokenizer.padding is not None:
        found.append("padding")
        tokenizer.no_padding()
    if dropout := getattr(tokenizer.model, "dropout", None):
        found.append(f"dropout {dropout:g} of merges")
        tokenizer.model.dropout = None
    return tuple(found)


def first_change(before: str, after: str) -> str:
    """Where two texts part, in words."""
    at = next((i for i, (a, b) in enumerate(zip(before, after, strict=False)) if a != b), min(len(before), len(after)))
    return f"{before[max(at - 10, 0) : at + 20]!r} comes back as {after[max(at - 10, 0) : at + 20]!r}"


def vocabulary_size(tokenizer: Tokenizer) -> int:
    """Largest id + 1 (ids may have holes, so this can exceed the number of entries). UserError: there is none."""
    ids = tokenizer.get_vocab(with_added_tokens=True).values()
    if not ids:
        raise UserError("the tokenizer has no entries")
    return max(ids) + 1


def end_of_text_id(tokenizer: Tokenizer, eos_id: int | None = None) -> int:
    """The id written after every document: `eos_id` if given, else that of a well-known end-of-text token.

    UserError: `eos_id` outside the vocabulary, or none given and none known.
    """
    if eos_id is not None:
        size = vocabulary_size(tokenizer)
        if not 0 <= eos_id < size:
            raise UserError(f"eos_id is {eos_id}; this tokenizer has ids 0 to {size - 1}")
        return eos_id
    for name in _KNOWN_ENDS:
        if (known := tokenizer.token_to_id(name)) is not None:
            return known
    raise UserError(f"the tokenizer has none of {', '.join(_KNOWN_ENDS)}; give eos_id, the id that ends a document")
