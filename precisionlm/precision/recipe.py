"""Which operand of which site gets what: one frozen value with one grammar.

recipe    = rule { "@" rule }                    later rules override earlier ones
rule      = [ sites [ "[" layers "]" ] ":" ] body       no sites: every linear layer of the blocks and attention
sites     = site { "|" site }                    qkv out gate_up down attention embed head; blocks: the first five, also
                                                 written *; first, last: a layer of theirs
body      = entry { "," entry } { "-" modifier }
entry     = { OPERAND bits } | OPERANDS "=" format { "/" modifier } | format
OPERAND   = W A KV Q K V S G P1…P6               S: attention probabilities; G: output gradients; P: Sun et al. 2025
modifier  = g<N> b<N> tensor channel token e8m0 e8m0up sbf16 se4m3 f32 edge mse lsq lac lwc absmax sr rn had<N> rhad<N>
            trust
Every word is used, or it is an error (`precision.modifiers`).

W4A8KV8 · W4A4-g128 · W8A8@down:A8 · W=e4m3,A=e4m3,P246=e2m1 · mxfp4 · W4A4@first:bf16 · W4,A=int8/tensor
"""

import re
from collections import Counter
from dataclasses import dataclass, replace
from functools import cache

from precisionlm.errors import UserError, nearest
from precisionlm.precision.formats import BF16, Format, integer, parse_format
from precisionlm.precision.modifiers import fits, modified, slots_of, words_of
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
_COMPACT = re.compile(r"(KV|W|A|Q|K|V|S|G)([0-9]+(?:\.[0-9]+)?)")


@dataclass(frozen=True)
class Quantization:
    """What one operand gets: a number format and who shares which scale."""

    format: Format
    scaling: Scaling

    def __str__(self) -> str:
        return "/".join([self.format.name, *self.words()])

    def words(self) -> list[str]:
        """The modifiers by which it differs from what its format's name says alone."""
        return words_of(self.scaling, _PRESETS.get(self.format.name, ("", Scaling()))[1])


@dataclass(frozen=True)
class Rule:
    """One part of a recipe. sites, layers empty: the rule's default scope. assignments: (operand, quantization or None
    for bf16); empty assignments turn every operand of the scope to bf16."""

    sites: tuple[str, ...]
    layers: tuple[int, ...]
    assignments: tuple[tuple[str, Quantization | None], ...]


@dataclass(frozen=True)
class Recipe:
    """A precision recipe: rules in order. `str` prints the canonical spelling, which `Recipe.parse` reads."""

    rules: tuple[Rule, ...]

    @classmethod
    def parse(cls, text: str) -> "Recipe":
        """Read a recipe, such as W4A8@first:bf16 (docs/recipes.md). Raises UserError as `parse_recipe` does."""
        return parse_recipe(text)

    def __repr__(self) -> str:
        return f"Recipe.parse('{self}')"

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
        """The commonest quantization of an operand over the blocks' sites; what single layers have is left out."""
        table = Recipe(tuple(rule for rule in self.rules if not rule.layers)).resolve(1)
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


def canonical(text: str) -> str:
    """A recipe in its canonical spelling; what is no recipe as it is."""
    try:
        return str(parse_recipe(text))
    except UserError:
        return text


def _parse_rule(part: str, text: str, first: bool) -> Rule:
    scope, colon, body = part.rpartition(":")
    if not first and not colon:
        raise UserError(f"recipe '{text}': after '@' comes 'site:…', as in W8A8@down:A8; got '{part}'")
    sites, layers = _parse_scope(scope, text) if colon else ((), ())
    assignments = _in_recipe(text, lambda: _parse_body(body))
    for operand, _ in assignments:
        if not any(operand in operands_of(site) for site in sites or BLOCK_SITES):
            symbols = sorted(s for s, os in _SYMBOLS.items() if all(o in operands_of(sites[0]) for o in os))
            raise UserError(f"recipe '{text}': '{scope}' has no operand '{operand}'; it has {', '.join(symbols)}")
    return Rule(sites, layers, assignments)


def _parse_scope(scope: str, text: str) -> tuple[tuple[str, ...], tuple[int, ...]]:
    match = re.fullmatch(r"([A-Za-z0-9_|*]*)(?:\[(-?[0-9]+(?:,-?[0-9]+)*)\])?", scope)
    if not match:
        raise UserError(f"recipe '{text}': '{scope}' is no place; write site, site|site, site[0,-1], first or last")
    layers = tuple(int(layer) for layer in match[2].split(",")) if match[2] else ()
    if match[1] in ("first", "last"):
        if layers:
            raise UserError(f"recipe '{text}': '{match[1]}' is a layer already; write site[{match[2]}] or {match[1]}")
        return BLOCK_SITES, (0,) if match[1] == "first" else (-1,)
    sites = BLOCK_SITES if match[1] in ("", "*", "blocks") else tuple(match[1].split("|"))
    for site in sites:
        if site not in SITES:
            raise UserError(f"recipe '{text}': no site '{site}'; {nearest(site, [*SITES, 'first', 'last'])}")
        if layers and site not in BLOCK_SITES:
            raise UserError(f"recipe '{text}': '{site}' has no layers")
    return sites, layers


def _parse_body(body: str) -> tuple[tuple[str, Quantization | None], ...]:
    text, *common = body.split("-")
    if text == "bf16" and not common:
        return ()
    entries = [part for entry in text.split(",") for part in _parse_entry(entry)]
    if alien := [word for word in common if _COMPACT.fullmatch(word)]:
        raise UserError(f"'-{alien[0]}' in '{body}': operands stand together, as in W4A8KV8; '-' is for modifiers")
    shared, used = slots_of(common), set()
    found: dict[str, Quantization | None] = {}
    finer: set[str] = set()  # operands named by Sun's numbers, which refine W, A and G
    for entry in entries:
        own, fitting = slots_of(entry.words), set()
        for operand in entry.operands:
            if operand in found and (not entry.is_number or operand in finer):
                raise UserError(f"operand '{operand}' is given twice in '{body}'")
            finer.update([operand] * entry.is_number)
            if entry.quantization is None:
                found[operand] = None
                continue
            taken = {slot: word for slot, word in shared.items() if slot not in own and fits(word, operand)}
            words = [*(taken if operand in LINEAR_OPERANDS else {}).values()]
            used.update(words)
            mine = [word for word in own.values() if fits(word, operand)]
            fitting.update(mine)
            scaling = modified(entry.quantization.scaling, [*words, *mine], operand)
            found[operand] = replace(entry.quantization, scaling=scaling)
        if unused := [word for word in entry.words if word not in fitting]:
            raise UserError(f"'{unused[0]}' says nothing of {'|'.join(entry.operands)}; leave it away")
    if unused := [word for word in common if word not in used]:
        raise UserError(
            f"'-{unused[0]}' applies to no operand of '{body}' (W, A, G and P1…P6 take it); "
            "leave it away, or write it behind the format, as in KV=int4/g32"
        )
    return tuple((o, found[o]) for o in OPERANDS if o in found)


@dataclass(frozen=True)
class _Entry:
    """Operands that get one quantization (None: bf16), with the modifiers written there. is_number: named as P1…P6."""

    operands: tuple[str, ...]
    quantization: Quantization | None
    words: tuple[str, ...] = ()
    is_number: bool = False


def _parse_entry(entry: str) -> list[_Entry]:
    symbols, equals, value = entry.partition("=")
    if equals:
        word, *words = value.split("/")
        return [_Entry(_parse_operands(symbols), parse_value(word), tuple(words), symbols.startswith("P"))]
    matches = list(_COMPACT.finditer(entry))
    if entry and "".join(m[0] for m in matches) == entry:
        return [_Entry(_SYMBOLS[m[1]], _plain(_compact_format(float(m[2])))) for m in matches]
    if re.match(r"[A-Z]", entry) or not entry:
        raise UserError(f"cannot read '{entry}'; operands are {', '.join(_SYMBOLS)}, as in W4A8KV8 or W=e4m3")
    word, *words = entry.split("/")
    return [_Entry(("a", "w"), parse_value(word), tuple(words))]


def _compact_format(bits: float) -> Format:
    return BF16 if bits == 16 else integer(bits)


def _in_recipe(text: str, read):
    try:
        return read()
    except UserError as error:
        raise UserError(f"recipe '{text}': {error}") from None


def _parse_operands(symbols: str) -> tuple[str, ...]:
    if re.fullmatch(r"P[1-6]{2,}", symbols):
        if len(set(symbols)) < len(symbols):
            raise UserError(f"'{symbols}' names an operand twice")
        return tuple(LINEAR_OPERANDS[int(digit) - 1] for digit in symbols[1:])
    if symbols not in _SYMBOLS:
        raise UserError(f"no operand '{symbols}'; {nearest(symbols, list(_SYMBOLS))}")
    return _SYMBOLS[symbols]


def parse_value(word: str) -> Quantization | None:
    """A format's name with the scales it stands for, such as e4m3, int4, mxfp4; None for bf16. Raises UserError."""
    if word in _PRESETS:
        element, scaling = _PRESETS[word]
        return Quantization(replace(parse_format(element), name=word), scaling)
    if word.startswith(("mx", "nv")):
        raise UserError(f"no format '{word}'; {nearest(word, list(_PRESETS))}")
    return _plain(parse_format(word))


def _plain(format_: Format) -> Quantization | None:
    return None if format_.kind == "unquantized" else Quantization(format_, Scaling())


def _print_rule(rule: Rule) -> str:
    scope = ""
    if rule.sites:
        layers = f"[{','.join(map(str, rule.layers))}]" if rule.layers else ""
        scope = ("*" if rule.sites == BLOCK_SITES else "|".join(rule.sites)) + layers + ":"
    if not rule.assignments:
        return scope + "bf16"
    left, compact, entries = dict(rule.assignments), "", []
    shared = {tuple(q.words()) if q else () for o, q in left.items() if o in LINEAR_OPERANDS}
    common = list(shared.pop()) if len(shared) == 1 else []
    for symbol, operands in _SYMBOLS.items():
        if not set(operands) <= set(left) or len({left[o] for o in operands}) > 1:
            continue
        quantization = left[operands[0]]
        for operand in operands:
            del left[operand]
        own = quantization.words() if quantization else []
        if operands[0] in LINEAR_OPERANDS and common:
            own = []
        name = quantization.format.name if quantization else "bf16"
        digits = re.fullmatch(r"int([0-9]+)", name)
        if symbol[0] != "P" and not own and (digits or name == "bf16"):
            compact += symbol + (digits[1] if digits else "16")
        else:
            entries.append(f"{symbol}=" + "/".join([name, *own]))
    return scope + "-".join([",".join(([compact] if compact else []) + entries), *common])
