"""Which operand of which site gets what: one frozen value with one grammar.

recipe    = rule { "@" rule }                    later rules override earlier ones
rule      = [ sites [ "[" layers "]" ] ":" ] body       no sites: every linear layer of the blocks and attention
sites     = site { "|" site }                    qkv out gate_up down attention embed head, or *, first, last
body      = entry { "," entry } { "-" modifier }
entry     = { OPERAND bits } | OPERANDS "=" format { "/" modifier } | format
OPERAND   = W A KV Q K V S G P1…P6               S: attention probabilities; G: output gradients; P: Sun et al. 2025
modifier  = g<N> b<N> tensor channel token e8m0 sbf16 se4m3 edge mse lsq lac sr had<N>

W4A8KV8 · W4A4-g128 · W8A8@down:A8 · W=e4m3,A=e4m3,P246=e2m1 · mxfp4 · W4A4@first:bf16 · W4,A=int8/tensor
"""

import re
from collections import Counter
from dataclasses import dataclass, replace
from functools import cache

from precisionlm.errors import UserError, nearest
from precisionlm.precision.formats import BF16, Format, integer, parse_format
from precisionlm.precision.scaling import Scaling

BLOCK_LINEAR = ("qkv", "out", "gate_up", "down")
SITES = (*BLOCK_LINEAR, "attention", "embed", "head")
LINEAR_OPERANDS = ("a", "w", "dgrad_dy", "dgrad_w", "wgrad_dy", "wgrad_x")
ATTENTION_OPERANDS = ("q", "k", "v", "p")
OPERANDS = (*LINEAR_OPERANDS, *ATTENTION_OPERANDS)

_SYMBOLS = {
    "W": ("w",),
    "A": ("a",),
    "KV": ("k", "v"),
    "Q": ("q",),
    "K": ("k",),
    "V": ("v",),
    "S": ("p",),
    "G": ("dgrad_dy", "wgrad_dy"),
    **{f"P{i + 1}": (operand,) for i, operand in enumerate(LINEAR_OPERANDS)},
}
_PRESETS = {
    "mxfp4": ("e2m1", Scaling("group", 32, "e8m0")),
    "mxfp6_e3m2": ("e3m2", Scaling("group", 32, "e8m0")),
    "mxfp6_e2m3": ("e2m3", Scaling("group", 32, "e8m0")),
    "mxfp8": ("e4m3fn", Scaling("group", 32, "e8m0")),
    "mxfp8_e5m2": ("e5m2", Scaling("group", 32, "e8m0")),
    "mxint8": ("int8", Scaling("group", 32, "e8m0")),
    "nvfp4": ("e2m1", Scaling("group", 16, "e4m3")),
}
_MODIFIERS = [
    "g32",
    "g64",
    "g128",
    "b128",
    "tensor",
    "channel",
    "token",
    "e8m0",
    "sbf16",
    "se4m3",
    "edge",
    "mse",
    "lsq",
    "lac",
    "sr",
    "had64",
]
_COMPACT = re.compile(r"(KV|W|A|Q|K|V|S|G)(\d+(?:\.\d+)?)")


@dataclass(frozen=True)
class Quantization:
    """What one operand gets: a number format and who shares which scale."""

    format: Format
    scaling: Scaling

    def __str__(self) -> str:
        return "/".join([self.format.name, *_modifier_words(self)])


@dataclass(frozen=True)
class Rule:
    """One part of a recipe. sites, layers empty: the rule's default scope. assignments: (operand, quantization or None
    for bf16); empty assignments turn every operand of the scope to bf16."""

    sites: tuple[str, ...]
    layers: tuple[int, ...]
    assignments: tuple[tuple[str, Quantization | None], ...]


@dataclass(frozen=True)
class Recipe:
    """A precision recipe: rules in order. `str` prints the canonical spelling, `parse_recipe` reads it back."""

    rules: tuple[Rule, ...]

    def __str__(self) -> str:
        return "@".join(_print_rule(rule) for rule in self.rules)

    def resolve(self, layers: int) -> dict[str, dict[str, tuple[Quantization | None, ...]]]:
        """site → operand → what it gets in each of `layers` layers (one entry for embed and head).

        Raises UserError where a rule names a layer that is not there.
        """
        table: dict[str, dict[str, list[Quantization | None]]] = {
            site: {operand: [None] * (layers if site in BLOCK_SITES else 1) for operand in operands_of(site)}
            for site in SITES
        }
        for rule in self.rules:
            for layer in rule.layers:
                if not -layers <= layer < layers:
                    raise UserError(f"recipe '{self}': layer {layer} of a model with {layers} layers")
            for site in rule.sites or BLOCK_SITES:
                chosen = rule.assignments or tuple((operand, None) for operand in operands_of(site))
                for operand, quantization in chosen:
                    cells = table[site].get(operand, [])
                    for layer in rule.layers or range(len(cells)):
                        if cells:
                            cells[layer] = quantization
        return {s: {o: tuple(cells) for o, cells in operands.items()} for s, operands in table.items()}

    def commonest(self, operand: str) -> Quantization | None:
        """The commonest quantization of an operand over the blocks' sites, layers left out of account."""
        table = self.resolve(1)
        sites = ("attention",) if operand in ATTENTION_OPERANDS else BLOCK_LINEAR
        return Counter(table[site][operand][0] for site in sites).most_common(1)[0][0]

    def quantized(self) -> bool:
        """Whether any rule quantizes anything."""
        return any(q is not None for rule in self.rules for _, q in rule.assignments)


BLOCK_SITES = (*BLOCK_LINEAR, "attention")


def operands_of(site: str) -> tuple[str, ...]:
    """The operands that a recipe can name at a site."""
    return {"attention": ATTENTION_OPERANDS, "embed": ("w",)}.get(site, LINEAR_OPERANDS)


@cache
def parse_recipe(text: str) -> Recipe:
    """Read a recipe. Raises UserError that names the word it could not read and the nearest valid one."""
    if not text.strip():
        raise UserError("empty recipe; write bf16 for no quantization")
    parts = text.replace(" ", "").split("@")
    return Recipe(tuple(_parse_rule(part, text, first=i == 0) for i, part in enumerate(parts)))


def _parse_rule(part: str, text: str, first: bool) -> Rule:
    scope, colon, body = part.rpartition(":")
    if not first and not colon:
        raise UserError(f"recipe '{text}': after '@' comes 'site:…', as in W8A8@down:A8; got '{part}'")
    sites, layers = _parse_scope(scope, text) if colon else ((), ())
    assignments = _parse_body(body, text)
    for operand, _ in assignments:
        if not any(operand in operands_of(site) for site in sites or BLOCK_SITES):
            symbols = sorted(s for s, os in _SYMBOLS.items() if all(o in operands_of(sites[0]) for o in os))
            raise UserError(f"recipe '{text}': '{scope}' has no operand '{operand}'; it has {', '.join(symbols)}")
    return Rule(sites, layers, assignments)


def _parse_scope(scope: str, text: str) -> tuple[tuple[str, ...], tuple[int, ...]]:
    match = re.fullmatch(r"([\w|*]*)(?:\[(-?\d+(?:,-?\d+)*)\])?", scope)
    if not match:
        raise UserError(f"recipe '{text}': '{scope}' is no place; write site, site|site, site[0,-1], first or last")
    layers = tuple(int(layer) for layer in match[2].split(",")) if match[2] else ()
    if match[1] in ("first", "last"):
        return BLOCK_SITES, (0,) if match[1] == "first" else (-1,)
    sites = BLOCK_SITES if match[1] in ("", "*") else tuple(match[1].split("|"))
    for site in sites:
        if site not in SITES:
            raise UserError(f"recipe '{text}': no site '{site}'; {nearest(site, [*SITES, 'first', 'last'])}")
        if layers and site not in BLOCK_SITES:
            raise UserError(f"recipe '{text}': '{site}' has no layers")
    return sites, layers


def _parse_body(body: str, text: str) -> tuple[tuple[str, Quantization | None], ...]:
    entries, *modifiers = body.split("-")
    found: dict[str, Quantization | None] = {}
    if entries == "bf16" and not modifiers:
        return ()
    for entry in entries.split(","):
        for operands, quantization, own_modifiers in _parse_entry(entry, text):
            for operand in operands:
                # Sun's numbers are the finer names: P2 after W says what the forward weights get.
                if operand in found and not re.match(r"P[1-6]", entry):
                    raise UserError(f"recipe '{text}': operand '{operand}' is given twice in '{body}'")
                common = modifiers if operand in LINEAR_OPERANDS else []
                found[operand] = _modified(quantization, [*common, *own_modifiers], text)
    return tuple((o, found[o]) for o in OPERANDS if o in found)


def _parse_entry(entry: str, text: str) -> list[tuple[tuple[str, ...], Quantization, list[str]]]:
    symbols, equals, value = entry.partition("=")
    if equals:
        word, *modifiers = value.split("/")
        return [(_parse_operands(symbols, text), _parse_value(word, text), modifiers)]
    matches = list(_COMPACT.finditer(entry))
    if entry and "".join(m[0] for m in matches) == entry:
        values = [_in_recipe(text, lambda bits=float(m[2]): _compact_format(bits)) for m in matches]
        return [(_SYMBOLS[m[1]], Quantization(value, Scaling()), []) for m, value in zip(matches, values, strict=True)]
    if re.match(r"[A-Z]", entry) or not entry:
        raise UserError(
            f"recipe '{text}': cannot read '{entry}'; operands are {', '.join(_SYMBOLS)}, as in W4A8KV8 or W=e4m3"
        )
    return [(("a", "w"), _parse_value(entry, text), [])]


def _compact_format(bits: float) -> Format:
    return BF16 if bits == 16 else integer(bits)


def _in_recipe(text: str, read):
    try:
        return read()
    except UserError as error:
        raise UserError(f"recipe '{text}': {error}") from None


def _parse_operands(symbols: str, text: str) -> tuple[str, ...]:
    if re.fullmatch(r"P[1-6]{2,}", symbols):
        return tuple(LINEAR_OPERANDS[int(digit) - 1] for digit in symbols[1:])
    if symbols not in _SYMBOLS:
        raise UserError(f"recipe '{text}': no operand '{symbols}'; {nearest(symbols, list(_SYMBOLS))}")
    return _SYMBOLS[symbols]


def _parse_value(word: str, text: str) -> Quantization:
    if word in _PRESETS:
        element, scaling = _PRESETS[word]
        return Quantization(replace(parse_format(element), name=word), scaling)
    if word.startswith(("mx", "nv")):
        raise UserError(f"recipe '{text}': no format '{word}'; {nearest(word, list(_PRESETS))}")
    return Quantization(_in_recipe(text, lambda: parse_format(word)), Scaling())


def _modified(quantization: Quantization, modifiers: list[str], text: str) -> Quantization | None:
    if quantization.format.kind == "unquantized":
        return None
    scaling = quantization.scaling
    for word in modifiers:
        if match := re.fullmatch(r"([gb])([1-9]\d*)", word):
            scaling = replace(scaling, sharing="group" if match[1] == "g" else "block", group=int(match[2]))
        elif word in ("tensor", "channel", "token"):
            scaling = replace(scaling, sharing="channel" if word == "token" else word, group=0)
        elif word in ("e8m0", "sbf16", "se4m3"):
            scaling = replace(scaling, scale_type=word.removeprefix("s"))
        elif word in ("edge", "mse", "lsq", "lac"):
            scaling = replace(scaling, clip=word)
        elif match := re.fullmatch(r"had(\d+)", word):
            scaling = replace(scaling, rotate=_block(int(match[1]), text))
        elif word == "sr":
            scaling = replace(scaling, stochastic=True)
        else:
            raise UserError(f"recipe '{text}': no modifier '{word}'; {nearest(word, _MODIFIERS)}")
    return Quantization(quantization.format, scaling)


def _modifier_words(quantization: Quantization) -> list[str]:
    preset = _PRESETS.get(quantization.format.name, ("", Scaling()))[1]
    scaling, words = quantization.scaling, []
    if (scaling.sharing, scaling.group) != (preset.sharing, preset.group):
        words.append(f"{scaling.sharing[0]}{scaling.group}" if scaling.group else scaling.sharing)
    if scaling.scale_type != preset.scale_type:
        words.append(scaling.scale_type if scaling.scale_type == "e8m0" else f"s{scaling.scale_type}")
    words += [scaling.clip] * (scaling.clip != "absmax") + ["sr"] * scaling.stochastic
    return words + [f"had{scaling.rotate}"] * (scaling.rotate > 0)


def _block(size: int, text: str) -> int:
    if size < 2 or size & (size - 1):
        raise UserError(f"recipe '{text}': 'had{size}': a Hadamard block is a power of two, such as had64")
    return size


def _print_rule(rule: Rule) -> str:
    scope = ""
    if rule.sites:
        layers = f"[{','.join(map(str, rule.layers))}]" if rule.layers else ""
        scope = ("*" if rule.sites == BLOCK_SITES else "|".join(rule.sites)) + layers + ":"
    if not rule.assignments:
        return scope + "bf16"
    left, compact, entries = dict(rule.assignments), "", []
    shared = {" ".join(_modifier_words(q)) if q else "" for o, q in left.items() if o in LINEAR_OPERANDS}
    common = shared.pop().split() if len(shared) == 1 else []
    for symbol, operands in _SYMBOLS.items():
        if not set(operands) <= set(left) or len({left[o] for o in operands}) > 1:
            continue
        quantization = left[operands[0]]
        for operand in operands:
            del left[operand]
        own = _modifier_words(quantization) if quantization else []
        if operands[0] in LINEAR_OPERANDS and common:
            own = []
        name = quantization.format.name if quantization else "bf16"
        digits = re.fullmatch(r"int(\d+)", name)
        if symbol[0] != "P" and not own and (digits or name == "bf16"):
            compact += symbol + (digits[1] if digits else "16")
        else:
            entries.append(f"{symbol}=" + "/".join([name, *own]))
    return scope + "-".join([",".join(([compact] if compact else []) + entries), *common])
