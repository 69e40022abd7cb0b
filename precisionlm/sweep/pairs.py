"""Differences between rows of the runs table that were evaluated on the same sequences.

Most of a loss's standard error is which text was drawn, which both of a pair share: their difference is known a hundred
times better than either.
"""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from precisionlm.storage.evaluation import Evaluation

# Runs that agree in these differ in their recipe alone: at one seed they begin with equal weights and see equal data.
_SAME = ("seed", "N_params", "D_tokens", "D_unique", "layers", "width", "vocab_size", "dataset", "validation",
         "sequence_length", "batch_tokens", "learning_rate", "schedule", "final_lr_fraction", "warmup_steps",
         "weight_decay", "weights_from")  # fmt: skip


@dataclass(frozen=True)
class Measured:
    """A row of the table, and what was measured of every sequence; None where that was not kept."""

    row: dict[str, Any]
    sequences: Evaluation | None


def with_differences(measured: Sequence[Measured]) -> list[dict[str, Any]]:
    """The rows, each that has a partner on the same sequences with `delta`, `delta_se` and `delta_to` (see `columns`).

    Partner of what was done to a trained checkpoint (ptq, recipe) is its `trained` row, or the `checkpoint` row of
    equal steps where it is an intermediate one. Partner of a `trained` or
    `bf16` row is the `trained` row of the bf16 run that differs in its recipe alone, if there is exactly one.
    """
    trained: dict[tuple[str, Any], list[Measured]] = defaultdict(list)
    unquantized: dict[tuple[Any, ...], set[str]] = defaultdict(set)
    for one in measured:
        if one.row["evaluation"] == "trained":
            trained[one.row["run_id"], None].append(one)
            if one.row["recipe"] == "bf16":
                unquantized[_arm(one.row)].add(one.row["run_id"])
        elif one.row["evaluation"] == "checkpoint":
            trained[one.row["run_id"], one.row.get("steps")].append(one)

    def partners(row: dict[str, Any]) -> list[Measured]:
        if row["evaluation"] == "checkpoint":
            return []
        if row["evaluation"] not in ("trained", "bf16"):
            return trained.get((row["run_id"], row.get("steps") if row.get("intermediate") else None), [])
        found = unquantized[_arm(row)]
        (only,) = found if len(found) == 1 else (None,)
        return [] if only in (None, row["run_id"]) else trained.get((only, None), [])

    return [one.row | _difference(one, partners(one.row)) for one in measured]


def _arm(row: dict[str, Any]) -> tuple[Any, ...]:
    return tuple(row.get(name) for name in _SAME)


def _difference(one: Measured, candidates: Iterable[Measured]) -> dict[str, Any]:
    for other in candidates:
        if one.sequences and other.sequences and one.sequences.pairs_with(other.sequences):
            delta, error = one.sequences.minus(other.sequences)
            return {"delta": delta, "delta_se": error, "delta_to": f"{other.row['run_id']}/{other.row['evaluation']}"}
    return {}
