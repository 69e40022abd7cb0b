"""Are N and D counts and the loss nats? What cannot be is refused; what is unlikely is said, with what would be right.

No single threshold tells 1300 (millions) from a model of 1300 parameters, so several sides are asked: the words in the
column's name, the FLOPs of the runs, tokens per parameter, and whether models that small reach such a loss.
"""

import re
from collections.abc import Mapping

import numpy as np
import pandas as pd

from precisionlm.analysis.table.cells import numbers
from precisionlm.errors import UserError
from precisionlm.expressions import quoted

COUNTED = {"N": ("parameters", 1e3, "30e6, not 30"), "D": ("tokens", 1e4, "2e9, not 2")}  # unit, least, an example
WORDS = {
    **dict.fromkeys(("k", "thousand", "thousands", "1e3"), 1e3),
    **dict.fromkeys(("m", "mm", "mil", "mio", "mln", "million", "millions", "1e6"), 1e6),
    **dict.fromkeys(("b", "bn", "g", "billion", "billions", "1e9"), 1e9),
    **dict.fromkeys(("t", "tn", "trillion", "trillions", "1e12"), 1e12),
}
NAMES = {1e3: "thousands", 1e6: "millions", 1e9: "billions", 1e12: "trillions"}
FLOPS = ("flops", "flop", "compute", "c", "c_flop", "c_flops", "train_flops", "training_flops", "total_flops")
USUAL_RATIO = 30.0  # tokens per parameter; published tables lie within a factor of 300 of it
JUMP = 1e3  # between neighbouring values: two units
SMALL, FLUENT = 1e5, 4.0  # so few parameters do not reach so low a loss on text in words or pieces of words
CHARACTERS = 1024  # vocabularies up to here make low losses easy
WORST_LOSS = 20.0  # nats/token: above any vocabulary's uniform loss


def check(names: Mapping[str, str], frame: pd.DataFrame, keep: np.ndarray, observed: np.ndarray) -> list[str]:
    """Doubts about the units of the kept rows, in plain words. names: symbol -> column; observed: (rows,) loss or gap.

    Raises UserError for values that cannot be in the right unit, with rows and columns.
    """
    counts = {symbol: numbers(frame, names[symbol]) for symbol in COUNTED if symbol in names}
    for symbol, values in counts.items():
        _check_count(symbol, names[symbol], values, keep, frame)
    target = names.get("gap", names["loss"])
    high = np.flatnonzero(keep & (observed > WORST_LOSS))
    if len(high):
        raise UserError(
            f"column {target}, {rows_of(high)}: {observed[high[0]]:g} nats/token is above any vocabulary's uniform "
            "loss; is it a perplexity? give its logarithm"
        )
    used = {symbol: values[keep] for symbol, values in counts.items()}
    by_name = [d for symbol, values in used.items() if (d := _by_name(symbol, names[symbol], values))]
    doubts = by_name or _by_sizes(names, used, frame[keep], observed[keep])
    return [*doubts, *_of_loss(target), *(d for s, v in used.items() if (d := _two_units(names[s], v)))]


def _check_count(symbol: str, column: str, values: np.ndarray, keep: np.ndarray, frame: pd.DataFrame) -> None:
    """Refuses numbers as small as millions and billions are written, but not the small runs of a table that has larger
    ones too: whole numbers, no jump of a thousand below the next. Nor what its row shows to be a count."""
    unit, least, example = COUNTED[symbol]
    distinct = np.unique(values[keep])
    jumps = np.flatnonzero((distinct[1:] >= JUMP * distinct[:-1]) & (distinct[:-1] < least))
    apart = distinct[jumps[-1]] if len(jumps) else 0.0 if distinct[-1] >= least else np.inf
    doubted = keep & (values < least) & ((values <= apart) | (values != np.rint(values)))
    small = np.flatnonzero(doubted & ~_shown_to_be_counts(symbol, values, frame))
    if len(small):
        factor = factor_in_name(column) or (1e6 if symbol == "N" else 1e9)
        raise UserError(
            f"column {column}, {rows_of(small)}: {values[small[0]]:g} {unit} cannot be a count; give {symbol} in "
            f"{unit} ({example}); if it is in {NAMES[factor]}: {_remedy(symbol, column, factor)}"
        )


def _shown_to_be_counts(symbol: str, values: np.ndarray, frame: pd.DataFrame) -> np.ndarray:
    """(rows,) whether another column is a count in the same unit: tokens in whole batches, parameters among all."""
    if symbol == "D":
        batch = _positive(frame, "batch_tokens")
        return np.isfinite(batch) & (batch >= 2) & (values >= batch) & (values % batch == 0)
    total = _positive(frame, "N_total")
    return (total >= COUNTED["N"][1]) & (values <= total) & (total < JUMP * values)


def factor_in_name(column: str) -> float | None:
    """1e6 of `params_m`, `N (M)` or `size in millions`; None where the name holds no such word."""
    words = [word for word in re.split(r"[^0-9A-Za-z]+|_", column) if word]
    return next((WORDS[word.lower()] for word in words[1:] if word.lower() in WORDS), None)


def _by_name(symbol: str, column: str, values: np.ndarray) -> str | None:
    factor = factor_in_name(column)
    if factor is None or np.median(values) >= factor:
        return None
    return (f"column {column} says {NAMES[factor]} and is read as a count of {COUNTED[symbol][0]} "
            f"({values.min():g} to {values.max():g}): {_remedy(symbol, column, factor)}")  # fmt: skip


def _by_sizes(
    names: Mapping[str, str], used: Mapping[str, np.ndarray], frame: pd.DataFrame, observed: np.ndarray
) -> list[str]:
    """At most one doubt for N and D, from the side that says most."""
    if set(used) != set(COUNTED):
        return []
    n, d = used["N"], used["D"]
    if doubt := _by_flops(names, n, d, frame):
        return [doubt]
    ratio = float(np.median(d / n))
    if ratio > USUAL_RATIO * 3e3:
        factor = min(NAMES, key=lambda f: abs(np.log(ratio / f / USUAL_RATIO)))
        return [
            f"{ratio:.2g} tokens per parameter: is {names['N']} in {NAMES[factor]}? {_remedy('N', names['N'], factor)}"
        ]
    if ratio < USUAL_RATIO / 3e3:
        factor = min(NAMES, key=lambda f: abs(np.log(ratio * f / USUAL_RATIO)))
        return [
            f"{ratio:.2g} tokens per parameter: is {names['D']} in {NAMES[factor]}? {_remedy('D', names['D'], factor)}"
        ]
    in_characters = _median(_positive(frame, "vocab_size")) <= CHARACTERS
    if "gap" not in names and np.median(n) < SMALL and np.median(observed) < FLUENT and not in_characters:
        return [f"{np.median(n):g} parameters do not reach {np.median(observed):.3g} nats/token: are {names['N']} and "
                f"{names['D']} in millions? {_remedy('N', names['N'], 1e6)}"]  # fmt: skip
    return []


def _by_flops(names: Mapping[str, str], n: np.ndarray, d: np.ndarray, frame: pd.DataFrame) -> str | None:
    """FLOPs are about 6 N D; a power of a thousand between them is a unit."""
    column = next((str(c) for c in frame.columns if str(c).lower() in FLOPS and c not in names.values()), "")
    power = np.log10(_median(_positive(frame, column) / n / d / 6)) / 3
    steps = round(power) if np.isfinite(power) else 0
    if abs(power - steps) > 0.25 or not 1 <= steps <= 6:  # within a factor of 6: 16-bit equivalents, attention
        return None
    # The missing factor belongs to N, to D or to both: whatever makes tokens per parameter usual.
    ratio = float(np.median(d / n))
    to_size = min(range(steps + 1), key=lambda k: abs(np.log(ratio * 1e3 ** (steps - 2 * k) / USUAL_RATIO)))
    parts = [(s, k) for s, k in (("N", to_size), ("D", steps - to_size)) if k and 1e3**k in NAMES]
    said = " and ".join(f"{names[s]} in {NAMES[1e3**k]}" for s, k in parts)
    pairs = ",".join(f"{s}={quoted(names[s])}*1e{3 * k}" for s, k in parts)
    return f"column {column} is 1e{3 * steps} times 6 N D: is {said}? --columns '{pairs}'"


def _positive(frame: pd.DataFrame, column: str) -> np.ndarray:
    """(rows,) a column's positive numbers, NaN elsewhere and for a column that is not there or holds text."""
    if column not in frame.columns or not pd.api.types.is_numeric_dtype(frame[column]):
        return np.full(len(frame), np.nan)
    values = numbers(frame, column)
    return np.where(values > 0, values, np.nan)


def _median(values: np.ndarray) -> float:
    known = values[np.isfinite(values)]
    return float(np.median(known)) if len(known) else float("nan")


def _two_units(column: str, values: np.ndarray) -> str | None:
    """A jump of a thousand from values that are small for counts."""
    distinct = np.unique(values)
    jumps = np.flatnonzero((distinct[1:] >= JUMP * distinct[:-1]) & (distinct[:-1] < SMALL))
    if not len(jumps):
        return None
    low, high = distinct[jumps[0]], distinct[jumps[0] + 1]
    return f"column {column} jumps from {low:g} to {high:g}: two units in one column?"


def _of_loss(column: str) -> list[str]:
    words = set(re.split(r"[^a-z0-9]+|_", column.lower()))
    if words & {"ppl", "perplexity"}:
        return [f"column {column} is named after perplexity; the loss is its logarithm, in nats/token"]
    if words & {"bpb", "bpt", "bits"}:
        return [f"column {column} is named after bits; the loss is in nats/token: bits per token times 0.693147"]
    return []


def check_size_convention(names: Mapping[str, str], frame: pd.DataFrame, keep: np.ndarray) -> list[str]:
    """N is counted without embeddings, in every row alike. Raises UserError where it is not."""
    if names.get("N") == "N_params" and "N_total" in frame.columns:
        size, total = numbers(frame, "N_params"), numbers(frame, "N_total")
        wrong = np.flatnonzero(keep & (size > total))
        if len(wrong):
            raise UserError(f"{rows_of(wrong)}: N_params is larger than N_total; N_params counts without embeddings")
        equal = np.flatnonzero(keep & (size == total))
        if 0 < len(equal) < int(keep.sum()):
            raise UserError(
                f"{rows_of(equal)}: N_params equals N_total there and not elsewhere: two conventions of N in one "
                "table; count N without embeddings in every row"
            )
    if "model" in frame.columns and "N" in names:
        spread = frame[keep].groupby("model")[names["N"]].nunique()
        mixed = spread[spread > 1]
        if len(mixed):
            return [f"model {mixed.index[0]} has {mixed.iloc[0]} different values of {names['N']}: mixed conventions?"]
    return []


def rows_of(index: np.ndarray) -> str:
    """`rows 1, 2, 3 and 4 more` for positions from 0."""
    shown = ", ".join(str(i + 1) for i in index[:5])
    return f"row{'s' if len(index) > 1 else ''} {shown}" + (f" and {len(index) - 5} more" if len(index) > 5 else "")


def _remedy(symbol: str, column: str, factor: float) -> str:
    return f"--columns '{symbol}={quoted(column)}*1e{round(np.log10(factor))}'"
