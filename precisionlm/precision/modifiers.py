"""The words that follow a format in a recipe, each read and printed by the one slot that it belongs to.

A slot is a property of a scaling: it knows all of its words, so what prints reads back, and a word that no slot knows
is an error. `recipe` puts them behind entries (`W=int4/g32/mse`) and behind a whole rule (`W4A4-g128`).
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from precisionlm.errors import UserError, nearest
from precisionlm.precision.scaling import Scaling

WEIGHTS, OF_TOKENS = ("w", "dgrad_w"), ("wgrad_dy", "wgrad_x")


@dataclass(frozen=True)
class Slot:
    """One property: the pattern of its words, what a word changes in a scaling, the word of a scaling, and examples of
    words for hints."""

    name: str
    pattern: str
    read: Callable[[str], dict[str, Any]]
    write: Callable[[Scaling], str]
    examples: tuple[str, ...]


def _read_sharing(word: str) -> dict[str, Any]:
    if re.fullmatch("[0-9]+", word[1:]):
        return {"sharing": {"g": "group", "b": "block"}[word[0]], "group": int(word[1:])}
    return {"sharing": word, "group": 0}


def _read_rotation(word: str) -> dict[str, Any]:
    signs = word.startswith("r")
    size = int(word.lstrip("r").removeprefix("had"))
    if size < 2 or size & (size - 1):
        raise UserError(f"'{word}': a Hadamard block is a power of two, such as had64")
    return {"rotate": size, "signs": signs}


_SCALE_TYPES = {"f32": "f32", "sbf16": "bf16", "e8m0": "e8m0", "e8m0up": "e8m0up", "se4m3": "e4m3"}
_SCALE_WORDS = {scale_type: word for word, scale_type in _SCALE_TYPES.items()}

SLOTS = (
    Slot(
        "sharing",
        r"tensor|channel|[gb][1-9][0-9]*",
        _read_sharing,
        lambda s: f"{s.sharing[0]}{s.group}" if s.group else s.sharing,
        ("g32", "g64", "g128", "b128", "tensor", "channel"),
    ),
    Slot("axis", "token", lambda word: {"per_token": True}, lambda s: "token" if s.per_token else "", ("token",)),
    Slot(
        "scale type",
        "|".join(_SCALE_TYPES),
        lambda word: {"scale_type": _SCALE_TYPES[word]},
        lambda s: _SCALE_WORDS[s.scale_type],
        tuple(_SCALE_TYPES),
    ),
    Slot(
        "clipping",
        "absmax|edge|mse|lsq|lac|lwc",
        lambda word: {"clip": word},
        lambda s: s.clip,
        ("absmax", "edge", "mse", "lsq", "lac", "lwc"),
    ),
    Slot(
        "rounding",
        "rn|sr",
        lambda word: {"stochastic": word == "sr"},
        lambda s: "sr" if s.stochastic else "rn",
        ("rn", "sr"),
    ),
    Slot(
        "rotation",
        r"r?had[0-9]+",
        _read_rotation,
        lambda s: f"{'r' * s.signs}had{s.rotate}" if s.rotate else "",
        ("had64", "rhad16"),
    ),
    Slot("gradient", "trust", lambda word: {"trust": True}, lambda s: "trust" if s.trust else "", ("trust",)),
)


def slot_of(word: str) -> Slot:
    """The slot that a word belongs to. Raises UserError that names the nearest word."""
    for slot in SLOTS:
        if re.fullmatch(slot.pattern, word):
            return slot
    valid = [example for slot in SLOTS for example in slot.examples]
    raise UserError(f"no modifier '{word}'; {nearest(word, valid)}")


def slots_of(words: Sequence[str]) -> dict[str, str]:
    """Slot → word. Raises UserError for unknown words and for two of one slot."""
    found: dict[str, str] = {}
    for word in words:
        slot = slot_of(word).name
        if slot in found:
            raise UserError(f"'{found[slot]}' and '{word}' both say the {slot}; give one")
        found[slot] = word
    return found


def fits(word: str, operand: str) -> bool:
    """Whether a word can say anything of an operand: weights have no tokens, only weights have blocks, and gradients
    pass through the operands of the forward product alone."""
    if word == "trust":
        return operand in ("a", "w")
    if word == "token":
        return operand not in WEIGHTS
    return operand in WEIGHTS if re.fullmatch(r"b[0-9]+", word) else True


def modified(scaling: Scaling, words: Sequence[str], operand: str) -> Scaling:
    """A scaling as its words change it. Raises UserError for words that contradict each other."""
    for slot in SLOTS:
        for word in words:
            if re.fullmatch(slot.pattern, word):
                scaling = replace(scaling, **slot.read(word))
    if operand not in OF_TOKENS:
        # Their scales run along the channels of a token already.
        scaling = replace(scaling, per_token=False)
    if scaling.per_token and scaling.sharing == "tensor":
        raise UserError("'token' and 'tensor' both say who shares a scale; give one")
    if scaling.clip == "edge" and scaling.scale_type.startswith("e8m0"):
        raise UserError("'edge' changes nothing under scales that are powers of two; leave it away")
    return scaling


def words_of(scaling: Scaling, preset: Scaling) -> list[str]:
    """The words that make a scaling of a preset's; `modified` reads them back."""
    return [word for slot in SLOTS if (word := slot.write(scaling)) != slot.write(preset)]
