"""Figures of Sun et al. 2025 (arXiv:2501.02423) that follow from the law: numbers in names are the paper's."""

from collections.abc import Mapping

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from precisionlm.analysis.decisions.optimum import compute_optimal, critical_data
from precisionlm.analysis.figures import forms, stepwise
from precisionlm.analysis.figures.draw import COLOURS, DASHES, canvas, legend, log_axis
from precisionlm.analysis.fitting.analysis import Analysis
from precisionlm.analysis.laws.base import Law
from precisionlm.analysis.laws.chinchilla import CHINCHILLA, KAPLAN
from precisionlm.analysis.laws.kumar import NEFF_W
from precisionlm.analysis.laws.sun import SUN, best_split
from precisionlm.analysis.table.read import CHANNEL_LOG2_BLOCK as CHANNEL

PAIRS = {
    "fig01_kumar_and_sun_forms": ((NEFF_W.name, SUN.name), "w_bits < 17"),
    "fig08_chinchilla_and_kaplan_forms": ((CHINCHILLA.name, KAPLAN.name), "w_bits >= 16"),
}
BLOCK = 7.0  # log2 of 128 elements per scale
SIZES = (40894464, 84934656, 154140672, 679477248)


def draw(law: Law, params: Mapping[str, float]) -> dict[str, Figure]:
    """All of them by name."""
    return {
        "fig03_block_size": block_size(law, params),
        "fig05_layouts": layouts(law, params),
        "fig06_critical_data": data_minimum(law, params),
        "fig07_14_optimal_bits": optimal_bits(law, params),
        "fig13_channel_and_block": channel(law, params),
        "fig09_exponent_mantissa": exponent_mantissa(law, params),
    }


def of_runs(frame: pd.DataFrame, analysis: Analysis) -> dict[str, Figure]:
    """Figures 1, 8 and 10 to 12, from runs, by name: those that the table allows."""
    return pairs_of_forms(frame) | stepwise.draw(frame)


def pairs_of_forms(frame: pd.DataFrame) -> dict[str, Figure]:
    """Figures 1 and 8: those pairs of laws that the table can be fitted with, by name."""
    made = {name: forms.side_by_side(frame, laws, where) for name, (laws, where) in PAIRS.items()}
    return {name: figure for name, figure in made.items() if figure is not None}


def block_size(law: Law, params: Mapping[str, float]) -> Figure:
    """Figure 3: loss against elements per scale, E1M1, for the paper's sizes and budgets."""
    figure, axes = canvas(2, width=3.2, sharey=True)
    block = np.linspace(4, 10, 60)
    for ax, d in zip(axes[0], (10.48576e9, 104.8576e9), strict=True):
        for i, n in enumerate(SIZES):
            loss = law.predict(params, {"N": n, "D": d, "E": 1, "M": 1, "log2B": block})
            ax.plot(2**block, loss, color=COLOURS[i], ls=DASHES[i % 7], label=f"N = {n / 1e6:.0f}M")
        ax.set(xlabel="elements per scale B", title=f"E1M1, D = {d / 1e9:.1f}B")
        ax.set_xscale("log", base=2)
    axes[0, 0].set_ylabel("loss (nats/token)")
    legend(figure, axes[0])
    return figure


def layouts(law: Law, params: Mapping[str, float]) -> Figure:
    """Figure 5: the best integer layout of every width, on the real-valued optimum."""
    widths = np.arange(2.0, 17.0)
    real = best_split(params, widths, None)
    best = []
    for width in widths:
        exponents = np.arange(0, int(width))
        loss = law.predict(params, {"N": 1e9, "D": 1e12, "E": exponents, "M": width - 1 - exponents, "log2B": BLOCK})
        best.append(int(exponents[np.argmin(loss)]))
    figure, axes = canvas(1, width=5.2, height=3.4)
    ax = axes[0, 0]
    ax.plot(widths, real["E"], color=COLOURS[0], label="exponent bits, real-valued best")
    ax.plot(widths, real["M"], color=COLOURS[1], ls="--", label="mantissa bits, real-valued best")
    ax.plot(widths, best, "o", color=COLOURS[0], label="exponent bits, best integer")
    ax.plot(
        widths,
        widths - 1 - np.array(best),
        "s",
        color=COLOURS[1],
        mfc="none",
        ms=9,
        label="mantissa bits, best integer",
    )
    for width, chosen in zip(widths.tolist(), best, strict=True):
        at = (width, max(chosen, width - 1 - chosen))
        label = f"E{chosen}M{width - 1 - chosen:.0f}"
        ax.annotate(label, at, textcoords="offset points", xytext=(-2, 7), fontsize=7, rotation=60)
    ax.set(xlabel="bits P = E + M + 1", ylabel="bits of the field", ylim=(-0.5, 10))
    legend(figure, [ax])
    return figure


def data_minimum(law: Law, params: Mapping[str, float]) -> Figure:
    """Figure 6: loss against tokens with its minimum, the critical data, N = 1B and 128 elements per scale."""
    figure, axes = canvas(1, width=4.8, height=3.4)
    ax = axes[0, 0]
    d = np.geomspace(1e9, 1e16, 300)
    for i, (e, m) in enumerate(((2, 1), (4, 3), (3, 4), (3, 5), (3, 6), (8, 7))):
        at = {"N": 1e9, "E": e, "M": m, "log2B": BLOCK}
        ax.plot(d, law.predict(params, at | {"D": d}), color=COLOURS[i], ls=DASHES[i % 7], label=f"E{e}M{m}")
        critical = critical_data(law, params, at)
        if np.isfinite(critical) and critical < d[-1]:
            ax.plot(critical, law.predict(params, at | {"D": critical}), "v", color=COLOURS[i], ms=7)
    ax.set(xlabel="training tokens D (triangles: critical data)", ylabel="loss (nats/token)", ylim=(2.2, 3.6))
    log_axis(ax)
    legend(figure, [ax], "N = 1B, B = 128")
    return figure


def optimal_bits(law: Law, params: Mapping[str, float]) -> Figure:
    """Figures 7 and 14: best bits against compute (N, D, P free) and against tokens (D fixed)."""
    figure, axes = canvas(2, width=3.4, sharey=True)
    compute, tokens = np.geomspace(1e21, 1e33, 40), np.geomspace(1e10, 1e15, 40)
    for i, block in enumerate((32, 128, 512)):
        at = {"log2B": float(np.log2(block))}
        bits = [compute_optimal(law, params, c, at=at).P for c in compute]
        axes[0, 0].plot(compute, bits, color=COLOURS[i], ls=DASHES[i % 7], label=f"B = {block}")
        axes[0, 1].plot(
            tokens,
            [compute_optimal(law, params, 1e26, d=d, at=at).P for d in tokens],
            color=COLOURS[i],
            ls=DASHES[i % 7],
        )
    axes[0, 0].set(xlabel="compute C (16-bit-equivalent FLOPs)", ylabel="best bits P*", xscale="log")
    axes[0, 1].set(xlabel="training tokens D")
    log_axis(axes[0, 1])
    legend(figure, axes[0])
    return figure


def channel(law: Law, params: Mapping[str, float]) -> Figure:
    """Figure 13, channel: loss of E1M1 against tokens with one scale a channel (log2 B = 13.1567) and with blocks."""
    figure, axes = canvas(3, width=2.8, sharey=True)
    d = np.geomspace(1e10, 1.1e11, 60)
    panels = ((CHANNEL, "one scale a channel"), (9.0, "B = 512"), (5.0, "B = 32"))
    for ax, (block, title) in zip(axes[0], panels, strict=True):
        for i, n in enumerate(SIZES):
            loss = law.predict(params, {"N": n, "D": d, "E": 1, "M": 1, "log2B": block})
            ax.plot(d, loss, color=COLOURS[i], ls=DASHES[i % 7], label=f"N = {n / 1e6:.0f}M")
        ax.set(title=f"E1M1, {title}", xlabel="training tokens D")
        log_axis(ax)
    axes[0, 0].set_ylabel("loss (nats/token)")
    legend(figure, axes[0])
    return figure


def exponent_mantissa(law: Law, params: Mapping[str, float]) -> Figure:
    """Figure 9: loss against exponent bits at M = 1 and mantissa bits at E = 1, one scale a channel, 104.9B tokens."""
    figure, axes = canvas(2, width=3.2, sharey=True)
    x = np.linspace(0, 7, 80)
    for i, n in enumerate(SIZES):
        at = {"N": n, "D": 104.8576e9, "log2B": CHANNEL}
        axes[0, 0].plot(
            x,
            law.predict(params, at | {"E": x, "M": 1}),
            color=COLOURS[i],
            ls=DASHES[i % 7],
            label=f"N = {n / 1e6:.0f}M",
        )
        axes[0, 1].plot(x, law.predict(params, at | {"E": 1, "M": x}), color=COLOURS[i], ls=DASHES[i % 7])
    axes[0, 0].set(xlabel="exponent bits E (M = 1)", ylabel="loss (nats/token)", ylim=(2.5, 4.5))
    axes[0, 1].set(xlabel="mantissa bits M (E = 1)")
    legend(figure, axes[0])
    return figure
