"""Predictions against the runs that were made after them: how far off, and how many inside their stated interval."""

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from precisionlm.analysis.predictions.match import Runs, cell_of, shown
from precisionlm.analysis.predictions.predict import OWN
from precisionlm.analysis.table.cells import numbers, texts
from precisionlm.analysis.table.derive import gaps
from precisionlm.analysis.table.precision import BACKWARD, FORWARD, after_training, described, quantized
from precisionlm.errors import UserError

QUANTITIES = ("val_loss", "delta")


@dataclass(frozen=True)
class Pair:
    """A prediction and one run that it is about. error: predicted less observed, nats/token. lower, upper: the stated
    interval, NaN without one. bf16: nothing of the run is quantized. block, run: of the run."""

    law: str
    quantity: str
    block: str
    run: str
    cell: str
    predicted: float
    observed: float
    lower: float
    upper: float
    bf16: bool

    @property
    def inside(self) -> bool | None:
        """Whether the run lies in the interval; None where none is stated."""
        stated = math.isfinite(self.lower) and math.isfinite(self.upper)
        return self.lower <= self.observed <= self.upper if stated else None

    @property
    def error(self) -> float:
        return self.predicted - self.observed

    @property
    def relative(self) -> float:
        """|error| / |observed|; inf where nothing was observed to compare with."""
        return abs(self.error) / abs(self.observed) if self.observed else float("inf")


@dataclass(frozen=True)
class Unmatched:
    """A prediction that is not scored: problem is missing, ambiguous or failed (`match.Found`), why in words."""

    law: str
    quantity: str
    cell: str
    problem: str
    why: str


@dataclass(frozen=True)
class Group:
    """The scored predictions of a law and quantity; of one block of runs, or of all (block ''). predictions: of the law
    (count; of a block those that found runs of it); scored: pairs with a run; errors as shares of what was observed,
    and in nats/token; half_width: of the intervals, the same share, in the mean: wide ones hold everything. worst:
    pairs of the largest errors, one a cell."""

    law: str
    quantity: str
    block: str
    scored: int
    missing: int
    ambiguous: int
    failed: int
    mean_relative: float
    max_relative: float
    mean_absolute: float
    with_interval: int
    inside: int
    half_width: float
    worst: tuple[Pair, ...]


@dataclass(frozen=True)
class Score:
    """All groups, those of all blocks of a law before its single ones; every pair; what was not scored, and why."""

    groups: tuple[Group, ...]
    pairs: tuple[Pair, ...]
    unmatched: tuple[Unmatched, ...]

    @property
    def verdicts(self) -> list[str]:
        """What was asked of each law, in a line each: how near the losses of bf16 are, and how many differences lie in
        their interval."""
        lines = []
        for law in dict.fromkeys(pair.law for pair in self.pairs):
            plain = [p for p in self.pairs if p.law == law and p.quantity == "val_loss" and p.bf16]
            if plain:
                lines.append(f"bf16 within {max(p.relative for p in plain):.2%} ({_count(len(plain), 'loss', 'losses')}"
                             f", law {law})")  # fmt: skip
            for quantity, word in (("val_loss", "losses"), ("delta", "deltas")):
                told = [p for p in self.pairs if p.law == law and p.quantity == quantity and p.inside is not None]
                if told:
                    inside = sum(bool(p.inside) for p in told)
                    lines.append(f"{word} inside their interval: {inside} of {len(told)} ({inside / len(told):.0%}, "
                                 f"law {law})")  # fmt: skip
        return lines


def check(predictions: pd.DataFrame) -> pd.DataFrame:
    """Raises UserError for a table that is not one of predictions, naming column and row."""
    lacking = [name for name in ("law", "quantity", "predicted") if name not in predictions.columns]
    if lacking:
        raise UserError(
            f"predictions need columns law, quantity, predicted (and lower, upper); {lacking[0]} is missing"
        )
    if not [name for name in predictions.columns if name not in OWN]:
        raise UserError("predictions name no coordinate of a cell, such as N_params and D_tokens")
    wrong = [q for q in texts(predictions, "quantity") if q not in QUANTITIES]
    if wrong:
        raise UserError(f"quantity '{wrong[0]}': must be {' or '.join(QUANTITIES)}")
    if np.isnan(numbers(predictions, "predicted")).any():
        row = int(np.isnan(numbers(predictions, "predicted")).argmax())
        raise UserError(f"predictions, row {row + 1}: no value is predicted")
    return predictions


def score(predictions: pd.DataFrame, frame: pd.DataFrame, by: str | None = None, worst: int = 3) -> Score:
    """Every prediction against the rows of its cell (`match.Runs`), whatever seed they have.

    by: column of the runs whose values are blocks; None: `name` if the table has it. worst: pairs named a group.
    Raises UserError for what is no table of predictions, and where none finds its run.
    """
    predictions, runs = check(predictions), Runs(frame)
    by = by or ("name" if "name" in frame.columns else None)
    if by is not None and by not in frame.columns:
        raise UserError(f"--by {by}: the runs table has no such column")
    observed = _observed(predictions, frame)
    block = texts(frame, by) if by else np.full(len(frame), "", object)
    plain = _unquantized(frame)
    run = texts(frame, "run_id") if "run_id" in frame.columns else np.array([f"row {i + 1}" for i in range(len(frame))])
    law, quantity = texts(predictions, "law"), texts(predictions, "quantity")
    value = numbers(predictions, "predicted")
    low, high = (numbers(predictions, c) if c in predictions.columns else np.full(len(value), np.nan)
                 for c in ("lower", "upper"))  # fmt: skip
    pairs: list[Pair] = []
    unmatched: list[Unmatched] = []
    for i in range(len(predictions)):
        cell, name, what = cell_of(predictions, i), str(law[i] or ""), str(quantity[i])
        told, found = ", ".join(f"{k}={shown(v)}" for k, v in cell.items()), runs.find(cell)
        if found.problem:
            unmatched.append(Unmatched(name, what, told, found.problem, found.why))
        for row in found.rows:
            seen = float(observed[what][row])
            if not np.isfinite(seen):
                unmatched.append(Unmatched(name, what, told, "missing", f"its row has no {what}"))
                continue
            of_run = str(block[row] or ""), str(run[row] or "")
            ends = float(low[i]), float(high[i])
            pairs.append(Pair(name, what, *of_run, told, float(value[i]), seen, *ends, bool(plain[row])))
    if not pairs:
        first = unmatched[0]
        raise UserError(f"none of {len(predictions)} predictions can be scored: {first.cell}: {first.why}")
    return Score(tuple(_groups(pairs, unmatched, worst)), tuple(pairs), tuple(unmatched))


def _observed(predictions: pd.DataFrame, frame: pd.DataFrame) -> dict[str, np.ndarray]:
    """What the runs have of each quantity that is predicted; delta as laws of the gap are fitted to it."""
    asked, found = set(texts(predictions, "quantity")), {}
    if "val_loss" in asked:
        if "val_loss" not in frame.columns:
            raise UserError("the runs table has no column val_loss to compare predictions with")
        found["val_loss"] = numbers(frame, "val_loss")
    if "delta" in asked:
        found["delta"] = numbers(frame, "gap") if "gap" in frame.columns else gaps(frame, {})
    return found


def _unquantized(frame: pd.DataFrame) -> np.ndarray:
    operands = [x for x in (*FORWARD, *BACKWARD) if described(frame, x)]
    trained = quantized(frame, operands) == 0 if operands else np.zeros(len(frame), bool)
    return trained & np.isposinf(after_training(frame))


def _groups(pairs: Sequence[Pair], unmatched: Sequence[Unmatched], worst: int) -> list[Group]:
    kinds = dict.fromkeys([*((p.law, p.quantity) for p in pairs), *((u.law, u.quantity) for u in unmatched)])
    found = []
    for law, quantity in kinds:
        own = [p for p in pairs if (p.law, p.quantity) == (law, quantity)]
        blocks = sorted({p.block for p in own})
        lost = Counter(u.problem for u in unmatched if (u.law, u.quantity) == (law, quantity))
        found.append(_group(law, quantity, "", own, lost, worst))
        if len(blocks) > 1:
            found += [_group(law, quantity, b, [p for p in own if p.block == b], Counter(), worst) for b in blocks]
    return found


def _group(law: str, quantity: str, block: str, own: Sequence[Pair], lost: Counter[str], worst: int) -> Group:
    relative = np.array([p.relative for p in own])
    told = [p for p in own if p.inside is not None]
    widths = [(p.upper - p.lower) / 2 / abs(p.observed) for p in told if p.observed]
    largest = {p.cell: p for p in sorted(own, key=lambda p: p.relative)}  # the last one of a cell stays
    order = sorted(largest.values(), key=lambda p: -p.relative)
    return Group(
        law, quantity, block, len(own), lost["missing"], lost["ambiguous"], lost["failed"],
        mean_relative=float(relative.mean()) if own else float("nan"),
        max_relative=float(relative.max()) if own else float("nan"),
        mean_absolute=float(np.mean([abs(p.error) for p in own])) if own else float("nan"),
        with_interval=len(told), inside=sum(bool(p.inside) for p in told),
        half_width=float(np.mean(widths)) if widths else float("nan"), worst=tuple(order[:worst]),
    )  # fmt: skip


def _count(number: int, one: str, many: str) -> str:
    return f"{number} {one if number == 1 else many}"
