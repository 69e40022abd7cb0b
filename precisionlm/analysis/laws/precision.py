"""A law's precision in the words of its users: formats and widths in, columns out, and back into words.

The position of a level in a category, by which a fit knows it, never leaves this file.
"""

import re
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from precisionlm.analysis.laws.base import INF, Fields, Law, Symbol
from precisionlm.errors import UserError, nearest
from precisionlm.precision.formats import BF16, Format
from precisionlm.precision.recipe import parse_value

UNQUANTIZED = 1e3  # bits of an operand that loses nothing
BLOCK = 128.0  # elements per scale where a law reads them and nobody says how many
EXAMPLES = {"block": "7", "group": "128", "bits": "4"}
ALIASES = {"fp4": "e2m1", "fp6": "e3m2", "fp8": "e4m3", "fp16": "e5m10", "float32": "bf16", "fp32": "bf16"}


def format_named(name: str) -> tuple[Format, int]:
    """A format such as e4m3, int4, fp4, mxfp4, bf16, and the elements that its name says share a scale (0: none).

    Raises UserError naming the nearest."""
    word = ALIASES.get(name.lower(), name.lower())
    found = parse_value(f"int{word}" if re.fullmatch("[0-9]+", word) else word)
    return (BF16, 0) if found is None else (found.format, found.scaling.group)


def categories(law: Law) -> list[Symbol]:
    """The symbols that are names, of a format, a scheme, an optimizer: for laws with constants of each."""
    return [s for s in law.symbols if s.kind == "category"]


def reads_width(law: Law) -> bool:
    """True if the law is defined at any width, not only at the formats it was fitted on."""
    return law.at_bits is not None or any(s.kind == "bits" for s in law.symbols)


def value_of(law: Law, name: str, text: str) -> float:
    """What `--at NAME=TEXT` means for the law: a number, or the level of that name. Raises UserError."""
    symbol = next((s for s in law.symbols if s.name == name), None)
    if symbol is None:
        raise UserError(f"--at {name}={text}: law {law.name} has the symbols {', '.join(s.name for s in law.symbols)}")
    if symbol.kind == "category":
        return _code(law, symbol, text)
    try:
        value = float(text)
    except ValueError:
        value = float("nan")
    if not value >= 0:
        raise UserError(f"--at {name}={text}: expected a number, {symbol.meaning}")
    return value


def values_of(law: Law, name: str, given: ArrayLike) -> np.ndarray:
    """Values of a symbol as the formula reads them, float64 of the same shape: numbers, or the positions of levels
    given by name. Raises UserError for a level that is none and for numbers that are no amounts."""
    values = np.asarray(given)
    symbol = next(s for s in law.symbols if s.name == name)
    if symbol.kind == "category":
        listed: list[Any] = values.ravel().tolist()
        words = [f"{value:g}" if isinstance(value, float) else str(value) for value in listed]
        return np.array([_code(law, symbol, word) for word in words], float).reshape(values.shape)
    try:
        found = values.astype(float)
    except (TypeError, ValueError):
        found = np.full(values.shape, np.nan)
    if not (found >= 0).all():
        raise UserError(f"{name} = {values.tolist()}: expected numbers, {symbol.meaning}")
    return found


def _code(law: Law, symbol: Symbol, text: str) -> float:
    code = _find(symbol, text)
    if code is None:
        raise UserError(f"law {law.name} knows no {symbol.name} '{text}'; {nearest(text, list(symbol.levels))}")
    return code


def _find(symbol: Symbol, text: str) -> float | None:
    """The position of a level by its name, in any case, or by that of an integer format of its width (int4 for 4)."""
    same = [level for level in symbol.levels if level == text]
    same = same or [level for level in symbol.levels if level.lower() == text.lower()]
    if not same:
        try:
            found = format_named(text)[0]
        except UserError:
            return None
        same = [level for level in symbol.levels if level == f"{found.bits:g}" and found.kind != "float"]
    return float(symbol.levels.index(same[0])) if len(same) == 1 else None


def columns_at(
    law: Law, params: Mapping[str, Any], bits: Any = None, name: str = "", at: Mapping[str, float] | None = None
) -> dict[str, Any]:
    """Every column of the law but N and D at a width or at a format's name.

    bits: number or array. at: values of single symbols, which win. Raises UserError where a symbol is left without a
    value or where the law has no such format.
    """
    columns = {**said_by(law, params, bits, name, at), **(at or {})}
    for symbol in law.symbols:
        if symbol.name in ("N", "D") or symbol.name in columns:
            continue
        if symbol.default is None:
            how = f"--at {symbol.name}={symbol.levels[0] if symbol.levels else EXAMPLES.get(symbol.kind, '1')}"
            how += " or --format" if symbol.kind in ("category", "field") else ""
            raise UserError(f"law {law.name}: give a value of {symbol.name} ({symbol.meaning}), as in {how}")
        columns[symbol.name] = symbol.default
    return columns


def said_by(
    law: Law, params: Mapping[str, Any], bits: Any = None, name: str = "", at: Mapping[str, float] | None = None
) -> dict[str, Any]:
    """Those columns that a width or a format's name decides, beside the symbols of `at`. Raises UserError."""
    kinds = [s for s in categories(law) if s.name not in (at or {})]
    if kinds and name:
        return _levels_named(law, kinds, name)
    if kinds and bits is not None:
        return {s.name: _of_width(law, s, float(bits)) for s in kinds if np.isfinite(_widths(s)).any()}
    if name:
        number_format, group = format_named(name)
        fields = _at_width(law, params, number_format.bits, (number_format.exponent, number_format.mantissa))
        return fields | {s.name: _grouped(s, group) for s in law.symbols if group and s.kind in ("block", "group")}
    return {} if bits is None else _at_width(law, params, bits, None)


def _at_width(law: Law, params: Mapping[str, Any], bits: Any, fields: Fields) -> dict[str, Any]:
    if law.at_bits is not None:
        return law.at_bits(params, bits, fields)
    return {s.name: bits for s in law.symbols if s.kind == "bits"}


def _levels_named(law: Law, kinds: list[Symbol], name: str) -> dict[str, float]:
    """The level of that name of every category that has it. Raises UserError if none has."""
    found = {s.name: code for s in kinds if (code := _find(s, name)) is not None}
    return found or {kinds[0].name: _code(law, kinds[0], name)}


def _of_width(law: Law, kind: Symbol, bits: float) -> float:
    """The level of that width: the one named by the number alone, or the only one as wide."""
    if f"{bits:g}" in kind.levels:
        return float(kind.levels.index(f"{bits:g}"))
    fitting = [i for i, width in enumerate(_widths(kind)) if width == bits]
    if len(fitting) == 1:
        return float(fitting[0])
    names = [kind.levels[i] for i in fitting] or kind.levels
    known = f"those of {bits:g} bits are" if fitting else "it has"
    raise UserError(f"--bits {bits:g}: law {law.name} has constants of each {kind.name}; {known} {', '.join(names)}; "
                    f"name one with --format")  # fmt: skip


def _widths(kind: Symbol) -> np.ndarray:
    return np.array([width_named(level) for level in kind.levels])


def _grouped(symbol: Symbol, group: float) -> float:
    return float(np.log2(group)) if symbol.kind == "block" else float(group)


def with_block(law: Law, elements: float, kinds: tuple[str, ...] = ("block", "group")) -> dict[str, float]:
    """The columns that say how many elements share a scale."""
    return {s.name: _grouped(s, elements) for s in law.symbols if s.kind in kinds}


def unquantized(law: Law) -> dict[str, float]:
    """The columns at which operands and weights after training keep all bits, for symbols that are widths."""
    full = {"bits": UNQUANTIZED, "ptq_bits": INF}
    return {s.name: full[s.kind] for s in law.symbols if s.kind in full}


def width_named(text: str) -> float:
    """Bits of a value of a format by its name, with text of any kind after it (4NOH); NaN for a name without any."""
    if found := re.match(r"[0-9]+(\.[0-9]+)?(?![0-9:])", text):
        return float(found[0])
    if found := re.fullmatch(r"(?:(?:W|A|KV)[0-9]+(?:\.[0-9]+)?)+", text):
        return float(np.mean([float(b) for b in re.findall(r"[0-9]+(?:\.[0-9]+)?", text)]))
    try:
        return float(format_named(text)[0].bits)
    except UserError:
        return float("nan")


def width_of(law: Law, columns: Mapping[str, Any]) -> Any:
    """Mean bits of the operands in training, as an array or number; NaN for a format without a known width, 16 for a
    law that reads no precision of training."""
    kinds = [_widths(s)[np.asarray(columns[s.name], int)] for s in categories(law) if s.name in columns]
    if kinds:
        known = np.isfinite(kinds)
        return np.where(known.any(0), np.where(known, kinds, 0.0).sum(0) / np.maximum(known.sum(0), 1), np.nan)
    fields = {s.column: columns[s.name] for s in law.symbols if s.kind == "field" and s.name in columns}
    if {"w_exponent", "w_mantissa"} <= set(fields):
        return fields["w_exponent"] + fields["w_mantissa"] + 1.0
    widths = [columns[s.name] for s in law.symbols if s.kind == "bits" and s.name in columns]
    size = np.shape(next(iter(columns.values()))) if columns else ()
    return np.mean(widths, axis=0) if widths else np.full(size, 16.0)


def label_of(law: Law, columns: Mapping[str, Any]) -> str:
    """The precision at a point in words: its format, or its widths, and who shares a scale. Empty for a law without."""
    if law.label is not None:
        return law.label(columns)
    return ", ".join(
        _word(s, columns[s.name]) if s.kind == "category" else f"{s.name} = {columns[s.name]:g}"
        for s in law.symbols
        if s.name not in ("N", "D") and s.name in columns and not (s.kind == "ptq_bits" and np.isinf(columns[s.name]))
    )


def _word(symbol: Symbol, value: Any) -> str:
    return symbol.levels[int(value)] if symbol.kind == "category" else f"{float(value):g}"


def share_of(law: Law, params: Mapping[str, Any], columns: Mapping[str, Any]) -> np.ndarray:
    """N_eff/N at columns (n,) that hold all symbols; params: numbers, or (S, 1) arrays for S sets of constants, which
    give (S, n). NaN where the law is undefined or has no such share."""
    if law.kept_share is None:
        return np.full(np.shape(columns["N"]), np.nan)
    full = law.with_logs({k: np.asarray(v, float) for k, v in columns.items()})
    with np.errstate(all="ignore"):
        return np.asarray(law.kept_share(law.constants([params[k] for k in law.names]), full), float)


def in_words(law: Law, columns: Mapping[str, Any]) -> dict[str, Any]:
    """The columns of a point with names in place of a category's positions, and no infinite width."""
    kinds = {s.name: s for s in law.symbols}
    return {
        name: _word(kinds[name], value) if name in kinds and kinds[name].kind == "category" else value
        for name, value in columns.items()
        if not (name in kinds and kinds[name].kind == "ptq_bits" and np.isinf(value))
    }


def too_coarse(law: Law, params: Mapping[str, Any], columns: Mapping[str, Any]) -> str:
    """Which width makes a law undefined at a point, in words: the operands that do so alone, else all together."""
    full = unquantized(law) | {"N": columns["N"], "D": columns["D"]}
    alone = [
        f"{s.name} = {columns[s.name]:g}"
        for s in law.symbols
        if s.kind == "bits" and not np.isfinite(law.predict(params, {**columns, **full, s.name: columns[s.name]})).all()
    ]
    where = " and ".join(alone) + " alone" if alone else label_of(law, columns)
    return f"law {law.name} is undefined at {where}: {law.undefined}"
