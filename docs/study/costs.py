"""The pictures of what training at few bits costs, and what a bit buys.

python docs/study/costs.py        # table study-2026 -> docs/costs.svg
"""

import runpy
from pathlib import Path

from matplotlib.figure import Figure

from precisionlm.analysis.figures.draw import COLOURS, log_axis, styled
from precisionlm.whole_file import written

HERE = Path(__file__).resolve().parent
TABLES = runpy.run_path(str(HERE / "tables.py"))
SHOWN = {("a_bits", 4): "int4 activations", ("kv_bits", 3): "int3 keys and values", ("w_bits", 3): "int3 weights"}


@styled
def draw() -> Figure:
    """Left: cost against tokens, means over sizes. Right: effective size per bit against bits."""
    runs = TABLES["trained"]()
    figure = Figure(figsize=(8.6, 3.5), layout="constrained")
    left, right = figure.subplots(1, 2)
    singles = TABLES["alone"](runs)
    for colour, ((operand, bits), label) in zip(COLOURS, SHOWN.items(), strict=False):
        for arm, style in (("a tensor", "-"), ("a token", "--")):
            if operand == "w_bits" and arm == "a token":
                continue
            part = singles[
                (singles.operand == operand) & (singles.bits == bits) & (singles.arm == arm) & (singles["D"] > 5)
            ]
            means = part.groupby("D_tokens").cost.mean()
            shared = "a channel" if operand == "w_bits" else arm
            filled = {"mfc": "white"} if arm == "a token" else {}
            left.plot(
                means.index,
                means,
                style,
                marker="o",
                ms=4.5,
                lw=1.3,
                color=colour,
                label=f"{label}, {shared}",
                **filled,
            )
    log_axis(left)
    left.set(yscale="log", xlabel="training tokens", ylabel="loss added (nats/token)")
    left.set_title("What rounding one operand costs grows with tokens")
    left.legend(frameon=False, fontsize=7, loc="upper left")
    left.set_ylim(0.01, 8)
    for colour, (told, share) in zip(COLOURS, TABLES["shares"](runs).items(), strict=False):
        each = 16 * share[share > 0.03] / share[share > 0.03].index.to_numpy(float)
        right.plot(each.index, each, "-", marker="o", ms=4.5, lw=1.3, color=colour, label=told)
    right.axhline(1, color="0.6", lw=0.8, ls=":")
    right.annotate("16 bits", (8, 1), fontsize=7, color="0.4", ha="right", va="bottom")
    right.set(xlabel="bits of weights and activations", ylabel="effective size per bit, over that of 16 bits")
    right.set_title("The best precision depends on who shares a scale")
    right.legend(frameon=False, fontsize=7, loc="upper left")
    right.set_ylim(0, 3.8)
    return figure


if __name__ == "__main__":
    with written(HERE.parent / "costs.svg") as file:
        draw().savefig(file, format="svg", metadata={"Date": None})
