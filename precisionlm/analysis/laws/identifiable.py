"""Which operands' factors a table can tell apart: more than the runs say would be constants without meaning."""

from collections.abc import Mapping, Sequence

import numpy as np

LABELS = {"w": "weights", "a": "activations", "kv": "keys and values"}


def constants_per_operand(
    columns: Mapping[str, np.ndarray], operands: Sequence[str], high: float
) -> tuple[dict[str, int], tuple[str, ...]]:
    """Operand -> 2 (scale and offset of its factor), 1 (scale alone) or absent (no factor), and why.

    columns: P_x -> (rows,) bits for each operand x that the table has; `high` bits and more count as one width. The
    log of N_eff is a sum of one unknown function per operand. An operand adds as many constants as the rank of the
    rows' memberships in its widths grows by: none where its width follows from those of the others, as where W = A in
    every row, so that the remaining factor stands for both.
    """
    there = [x for x in operands if f"P_{x}" in columns]
    every = [np.minimum(columns[f"P_{x}"], high) for x in there]
    combinations = np.unique(np.stack(every, 1), axis=0) if there else np.empty((1, 0))
    widths = dict(zip(there, combinations.T, strict=True))
    levels = {x: np.unique(w) for x, w in widths.items()}
    order = sorted(widths, key=lambda x: (-min(len(levels[x]), 3), tuple(operands).index(x)))
    known = np.ones((len(combinations), 1))
    found: dict[str, int] = {}
    notes: list[str] = []
    for x in order:
        member = (widths[x][:, None] == levels[x][levels[x] < levels[x].max()]).astype(float)
        both = np.concatenate([known, member], 1)
        gained = int(np.linalg.matrix_rank(both) - np.linalg.matrix_rank(known))
        if gained:
            found[x], known = min(gained, 2), both
        notes += _notes(x, levels[x], found.get(x, 0), high)
    return {x: found[x] for x in operands if x in found}, tuple(notes)


def _notes(operand: str, levels: np.ndarray, constants: int, high: float) -> list[str]:
    label = LABELS[operand]
    if constants == 2:
        return []
    if len(levels) == 1:
        constant = f"f_{operand} is left out: {label} have {levels[0]:g} bits in every row"
        return [constant] if levels[0] < high else []
    if constants and len(levels) == 2:
        return [f"n_{operand} is held at 0: {label} were trained at only two widths"]
    if constants:
        return [f"n_{operand} is held at 0: too few combinations of widths to tell the shape of f_{operand}"]
    low = ", ".join(f"{w:g}" for w in levels[levels < high])
    return [
        f"f_{operand} is left out: {label} ({low} bits) never change without the other operands, so their effect is "
        "inside the remaining factors"
    ]
