"""Which of Kumar's factors a table can tell apart: more than the runs say would be constants without meaning."""

from collections.abc import Mapping

import numpy as np

from precisionlm.analysis.laws.base import Law
from precisionlm.analysis.laws.kumar import HIGH, OPERANDS, Kumar, law


def kumar_for(columns: Mapping[str, np.ndarray], name: str = "kumar", unified: bool = False) -> Law:
    """Kumar's law with the factors that these rows can determine; `notes` says what was left out and why.

    columns: symbol -> (rows,) for those of P_w, P_a, P_kv, P_post that the table has. An operand with three or more
    widths gets γ and n, one with two widths γ alone (n held at 0), one with a single width no factor. Combinations of
    widths bound the number of constants: operands that only vary together with others lose theirs first.
    """
    notes: list[str] = []
    widths = {x: _distinct(columns.get(f"P_{x}")) for x in OPERANDS}
    wanted = {x: min(len(w) - 1, 2) for x, w in widths.items() if len(w) > 1}
    present = [f"P_{x}" for x in wanted]
    combinations = len(np.unique(np.stack([columns[k] for k in present], 1), axis=0)) if present else 1
    for x in sorted(wanted, key=lambda x: (wanted[x], -OPERANDS.index(x))):
        excess = sum(wanted.values()) - (combinations - 1)
        if excess <= 0:
            break
        cut = min(excess, wanted[x])
        wanted[x] -= cut
        notes.append(_note(x, widths[x], wanted[x]))
    operands = tuple(x for x in OPERANDS if wanted.get(x, 0) > 0)
    held = {f"n_{x}": 0.0 for x in operands if wanted[x] == 1}
    notes += [f"n_{x} is held at 0: {_label(x)} were trained at only two widths" for x in operands
              if wanted[x] == 1 and len(widths[x]) == 2]  # fmt: skip
    post = columns.get("P_post")
    has_ptq = post is not None and bool(np.isfinite(post).any())
    ptq = "none" if not has_ptq else "unified" if unified and operands else "simple"
    if has_ptq and len(_distinct(post)) < 2:
        held["gamma_post"] = 1.0
        notes.append("gamma_post is held at 1: post-training quantization was done to one width only")
    factors = "".join(f" f_{x}" for x in operands)
    title = f"L = A N_eff^-α + B D^-α + E{' + δ_PTQ' if has_ptq else ''}, N_eff = N{factors}"
    return law(name, Kumar(operands, ptq=ptq), title, tuple(notes)).hold(**held)


def _distinct(values: np.ndarray | None) -> np.ndarray:
    """Distinct finite widths; 16 bits and more count as one."""
    return np.array([]) if values is None else np.unique(np.minimum(values[np.isfinite(values)], HIGH))


def _label(operand: str) -> str:
    return {"w": "weights", "a": "activations", "kv": "keys and values"}[operand]


def _note(operand: str, widths: np.ndarray, left: int) -> str:
    if left:
        return f"n_{operand} is held at 0: too few combinations of widths to tell the shape of f_{operand}"
    low = ", ".join(f"{w:g}" for w in widths[widths < HIGH])
    return (
        f"f_{operand} is left out: {_label(operand)} ({low} bits) never change without the other operands, "
        "so their effect is inside the remaining factors"
    )
