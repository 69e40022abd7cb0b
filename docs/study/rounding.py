"""The picture of the README: what rounding to int3 costs before and after the decay of the learning rate.

python docs/study/rounding.py        # table study-2026 -> docs/rounding.svg
"""

from pathlib import Path

import pandas as pd
from matplotlib.figure import Figure

from precisionlm.analysis import load_runs
from precisionlm.analysis.figures.draw import COLOURS, log_axis, styled
from precisionlm.whole_file import written

HERE = Path(__file__).resolve().parent


def points(table: pd.DataFrame) -> pd.DataFrame:
    """Mean over seeds of the loss that int3 adds (delta, nats/token), a row a (size, tokens of the run, moment).

    Runs under WSD, weights rounded to nearest with a scale a channel; `before`: at the constant rate, at 0.8 of the
    tokens.
    """
    rows = table[
        (table["evaluation"] == "ptq")
        & (table["ptq_method"] == "rtn")
        & (table["ptq_format"] == "int3")
        & (table["ptq_scale"] == "channel")
        & (table["schedule"] == "wsd")
        & (table["name"] != "study-held-out-second")  # at other D, rounded at the end alone
    ]
    before = rows["intermediate"].astype(bool).rename("before")
    whole = rows["D_tokens"].where(~before, rows["D_tokens"] / 0.8).rename("D")
    budget = (whole / 1e6).round() * 1e6  # runs end on whole steps
    return rows.groupby(["N_params", budget, before])["delta"].mean().reset_index()


@styled
def draw(found: pd.DataFrame) -> Figure:
    """Damage against tokens of the run: a colour a size, open and dashed before the decay, filled after it."""
    figure = Figure(figsize=(6.6, 3.5), layout="constrained")
    axes = figure.subplots()
    for colour, (size, of_size) in zip(COLOURS, found.groupby("N_params"), strict=False):
        for before, rows in of_size.groupby("before"):
            style = {"ls": (0, (3, 2)), "mfc": "white"} if before else {"ls": "-"}
            label = "" if before else f"{size / 1e6:.2g}M"
            axes.plot(rows["D"], rows["delta"], color=colour, marker="o", ms=4.5, lw=1.3, label=label, **style)
    axes.plot([], [], color="0.4", ls=(0, (3, 2)), marker="o", mfc="white", ms=4.5, label="before the decay")
    axes.plot([], [], color="0.4", ls="-", marker="o", ms=4.5, label="after it")
    log_axis(axes)
    axes.set(yscale="log", xlabel="training tokens of the run", ylabel="loss added (nats/token)")
    axes.set_title("The longer a model is trained, the more rounding its weights to 3 bits costs")
    axes.legend(frameon=False, fontsize=8, loc="upper left")
    return figure


if __name__ == "__main__":
    with written(HERE.parent / "rounding.svg") as file:
        draw(points(load_runs("study-2026"))).savefig(file, format="svg", metadata={"Date": None})
