"""Figures of Kumar et al. 2024 (arXiv:2411.04330) that follow from the law: numbers in names are the paper's."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure

from precisionlm.analysis.decisions.optimum import compute_optimal, minimise
from precisionlm.analysis.figures.curves import observed_gaps
from precisionlm.analysis.figures.draw import COLOURS, DASHES, canvas, engineering, legend, log_axis
from precisionlm.analysis.figures.rows import bars
from precisionlm.analysis.fitting.analysis import Analysis
from precisionlm.analysis.laws.base import Law, Symbol
from precisionlm.analysis.laws.precision import share_of, unquantized

SIZES, BUDGETS = (30e6, 60e6, 110e6, 220e6), (1.5e9, 3e9, 6e9, 13e9, 26e9)
MATCHED = {4: 1.76e9, 6: 1.17e9, 8: 880e6, 16: 440e6, 32: 220e6}  # bits -> N of equal N P, 16B tokens each
FLOAT_WEIGHTS = {"gamma_w": 2.8111, "n_w": 0.1240}  # appendix N: 140 runs with float weights, base as in Table 2


def draw(law: Law, params: Mapping[str, float]) -> dict[str, Figure]:
    """Every figure that the law's factors and terms allow, by name."""
    names = {s.name for s in law.symbols}
    made: dict[str, Figure] = {}
    if "P_post" in names and "gamma_post" in law.names:
        made["fig02_ptq"] = ptq_against_data(law, params)
    if not {f"gamma_{x}" for x in ("w", "a", "kv")} & set(law.names):  # the gap, and the forms without factors
        return made
    made |= {
        "fig03_neff_and_isoloss": isoloss(law, params),
        "fig04_loss_against_bits": loss_against_bits(law, params),
        "fig06_optimal_bits": optimal_bits(law, params),
    }
    if {"P_w", "P_a", "P_kv"} <= names:
        made["fig06_left_equal_cost"] = equal_cost(law, params)
    if "P_w" in names:
        made["fig16_float_weights"] = float_weights(law, params)
    if {"P_w", "P_post"} <= names:
        made["fig07_21_added_loss_map"] = added_loss_map(law, params)
    if "P_post" in names:
        made["fig09_inference_optimum"] = inference_optimum(law, params)
    return made


def of_runs(frame: pd.DataFrame, analysis: Analysis) -> dict[str, Figure]:
    """The map of added loss over P_w x P_post beside the observed one, where the rows have two of each."""
    columns = analysis.result.table.columns
    if not {"P_w", "P_post"} <= set(columns) or analysis.law.is_gap:
        return {}
    gap = observed_gaps(analysis, "P_post")
    known = np.isfinite(gap)
    if min((len(np.unique(columns[k][known])) for k in ("P_w", "P_post")), default=0) < 2:
        return {}
    rows = (columns["P_w"], columns["P_post"], gap, columns["N"], columns["D"])
    return {"fig07_21_added_loss_map": added_loss_map(analysis.law, analysis.result.params, rows)}


def operands(law: Law) -> list[Symbol]:
    """The symbols of the operands' widths in training."""
    return [s for s in law.symbols if s.kind == "bits"]


def high(law: Law, **columns: Any) -> dict[str, Any]:
    """Columns with every operand unquantized but those given."""
    names = {s.name for s in law.symbols}
    return {k: v for k, v in (unquantized(law) | columns).items() if k in names}


def share(law: Law, params: Mapping[str, float], **columns: Any) -> np.ndarray:
    """N_eff/N with every operand unquantized but those given."""
    return share_of(law, params, high(law, N=1e9, D=1e11, **columns))


def ptq_against_data(law: Law, params: Mapping[str, float]) -> Figure:
    """Figure 2: loss after quantizing the weights, and what it adds, against tokens per parameter; a panel a size."""
    figure, axes = canvas(4, 1 if law.is_gap else 2, width=2.5, height=2.6, sharey="row")
    for j, n in enumerate(SIZES):
        d = np.geomspace(5, 1e4, 100) * n
        for i, bits in enumerate((3.0, 4.0, 5.0, 6.0)):
            after = law.predict(params, high(law, N=n, D=d, P_post=bits))
            gap = after if law.is_gap else after - law.predict(params, high(law, N=n, D=d))
            axes[-1, j].plot(d / n, gap, color=COLOURS[i], ls=DASHES[i % 7], label=f"INT{bits:g}")
            if not law.is_gap:
                axes[0, j].plot(d / n, after, color=COLOURS[i], ls=DASHES[i % 7])
        if not law.is_gap:
            axes[0, j].plot(
                d / n, law.predict(params, high(law, N=n, D=d)), color="0.3", ls="--", label="not quantized"
            )
        axes[-1, j].set(yscale="log", xlabel="tokens per parameter D/N", ylim=(1e-4, 10))
        axes[0, j].set_title(f"N = {engineering(n)}")
        for ax in axes[:, j]:
            log_axis(ax)
    axes[-1, 0].set_ylabel("added loss (nats/token)")
    if not law.is_gap:
        axes[0, 0].set_ylabel("loss (nats/token)")
        axes[0, 0].set_ylim(top=6)
    legend(figure, [*axes[0], *axes[-1]], "after training")
    return figure


def isoloss(law: Law, params: Mapping[str, float]) -> Figure:
    """Figure 3: N_eff/N against bits for each operand and all together; contours of equal loss in (N, P_w) at 13B."""
    figure, axes = canvas(2, width=3.8)
    left, right = axes[0]
    bits = np.linspace(1, 16, 300)
    total = np.ones_like(bits)
    for i, symbol in enumerate(operands(law)):
        f = share(law, params, **{symbol.name: bits})
        total = total * f
        left.plot(bits, f, color=COLOURS[i], ls=DASHES[i % 7], label=symbol.meaning)
    left.plot(bits, total, color="0.2", ls="--", label="all together")
    left.set(xlabel="bits P", ylabel="$N_{eff}/N$", ylim=(0, 1.02))
    if any(s.name == "P_w" for s in law.symbols):
        n, p = np.meshgrid(np.linspace(30e6, 100e6, 120), np.linspace(3, 12, 120))
        loss = law.predict(params, high(law, N=n.ravel(), D=13e9, P_w=p.ravel())).reshape(n.shape)
        lines = right.contour(n / 1e6, p, loss, levels=10, cmap="viridis")
        right.clabel(lines, fontsize=7, fmt="%.2f")
    right.set(xlabel="parameters N (millions)", ylabel="weight bits $P_w$", title="equal loss at D = 13B tokens")
    legend(figure, [left])
    return figure


def loss_against_bits(law: Law, params: Mapping[str, float]) -> Figure:
    """Figures 4, 14 and 20: loss against the bits of each operand at 3.3B, 13.1B and 26.2B tokens."""
    swept = operands(law)
    figure, axes = canvas(3, len(swept), width=2.8, height=2.4, sharey=True)
    bits = np.linspace(3, 12, 150)
    for row, symbol in zip(axes, swept, strict=True):
        for ax, d in zip(row, (3.2768e9, 13.1072e9, 26.2144e9), strict=True):
            for i, n in enumerate(SIZES):
                loss = law.predict(params, high(law, N=n, D=d, **{symbol.name: bits}))
                ax.plot(
                    bits,
                    np.where(np.isfinite(loss), loss, np.nan),
                    color=COLOURS[i],
                    ls=DASHES[i % 7],
                    label=f"N = {engineering(n)}",
                )
            ax.set(xlabel=f"${symbol.name.replace('_', '_{')}}}$ (bits)", ylim=(3.1, 4.6))
            ax.set_title(f"D = {engineering(d)}")
        row[0].set_ylabel("loss (nats/token)")
    legend(figure, axes.ravel().tolist())
    return figure


def optimal_bits(law: Law, params: Mapping[str, float]) -> Figure:
    """Figure 6, right: best bits against tokens for a fixed size (dots: isoFLOP budgets), and the joint optimum."""
    figure, axes = canvas(1, width=4.6, height=3.4)
    ax = axes[0, 0]
    tokens = np.geomspace(1e11, 1e15, 25)
    for i, n in enumerate((8e9, 70e9, 405e9)):
        best = [compute_optimal(law, params, 6 * n * t, n=n) for t in tokens]
        ax.plot(
            [b.D for b in best],
            [b.P for b in best],
            color=COLOURS[i],
            ls=DASHES[i % 7],
            label=f"N = {engineering(n)}, fixed",
        )
    joint = compute_optimal(law, params, 1e22)
    ax.axhline(joint.P, color="0.3", ls="--", label=f"N, D and P free: {joint.P:.2f} bits")
    for i, compute in enumerate((1e23, 1e25, 1e27)):
        points = [(b.D, b.P) for b in (compute_optimal(law, params, compute, n=n) for n in (8e9, 70e9, 405e9))]
        ax.plot(*zip(*points, strict=True), color=COLOURS[3 + i], marker="o", ls=":", ms=4, label=f"C = {compute:.0e}")
    ax.set(xlabel="training tokens D", ylabel="best bits in training P*", ylim=(2, 20))
    log_axis(ax)
    legend(figure, [ax])
    return figure


def inference_optimum(law: Law, params: Mapping[str, float]) -> Figure:
    """Figure 9: best post-training bits, size and tokens when what is paid for is serving, C = N P a token."""
    cost = np.geomspace(1e8, 1e13, 20)
    found = []
    for c in cost:

        def loss(x: np.ndarray, c: float = c) -> np.ndarray:
            bits, d = x[..., 0], np.exp(x[..., 1])
            return law.evaluate([params[k] for k in law.names], law.complete(high(law, N=c / bits, D=d, P_post=bits)))

        point, _ = minimise(loss, np.array([[2.0, 16.0], [np.log(1e9), np.log(1e17)]]), 1)
        bits, d = point[0, 0], float(np.exp(point[0, 1]))
        found.append((bits, c / bits, d))
    figure, axes = canvas(3, width=2.8)
    for ax, values, label in zip(
        axes[0], zip(*found, strict=True), ("bits P*", "parameters N*", "tokens D*"), strict=True
    ):
        ax.plot(cost, values, color=COLOURS[0])
        ax.set(xlabel="cost a served token, N P (bit operations)", ylabel=label)
        log_axis(ax)
        if label != "bits P*":
            ax.set_yscale("log")
    return figure


def equal_cost(law: Law, params: Mapping[str, float]) -> Figure:
    """Figure 6, left: predicted loss of integer training at equal N P and 16B tokens."""
    loss = [float(law.predict(params, high(law, N=n, D=16e9, P_w=p, P_a=p, P_kv=p))[0]) for p, n in MATCHED.items()]
    labels = [f"INT{p}\n{engineering(n)}" for p, n in MATCHED.items()]
    title = "predicted, equal N P, D = 16B tokens"
    shown = np.where(np.isfinite(loss), loss, np.nan)
    return bars(labels, shown, "loss (nats/token)", title, zero=False)


def float_weights(law: Law, params: Mapping[str, float]) -> Figure:
    """Figure 16: loss against weight bits, these constants and the paper's for float weights; published alone."""
    figure, axes = canvas(3, width=2.8, sharey=True)
    bits = np.linspace(3, 12, 150)
    for ax, d in zip(axes[0], (3.2768e9, 13.1072e9, 26.2144e9), strict=True):
        for i, n in enumerate(SIZES):
            for constants, style, kind in ((params, "-", "integer"), ({**params, **FLOAT_WEIGHTS}, "--", "float")):
                loss = law.predict(constants, high(law, N=n, D=d, P_w=bits))
                label = f"N = {engineering(n)}, {kind}"
                ax.plot(bits, np.where(np.isfinite(loss), loss, np.nan), style, color=COLOURS[i], label=label)
        ax.set(xlabel="weight bits $P_w$", title=f"D = {engineering(d)}")
    axes[0, 0].set_ylabel("loss (nats/token)")
    legend(figure, axes[0])
    return figure


def added_loss_map(law: Law, params: Mapping[str, float], observed: Any = None) -> Figure:
    """Figures 7 and 21: loss added by post-training quantization over P_w x P_post, 30M parameters and 26B tokens.

    observed: (P_w, P_post, gap, N, D), arrays of rows, for a second panel at the (N, D) with most of them, where the
    first panel is then drawn too.
    """
    trained, post = np.arange(3.0, 13.0), np.arange(2.0, 9.0)
    n, d = 30e6, 26e9
    if observed is not None:
        rows = np.stack(observed)[:, np.isfinite(observed[2])]
        cells, counts = np.unique(rows[3:], axis=1, return_counts=True)
        n, d = cells[:, np.argmax(counts)]
        rows = rows[:, (rows[3] == n) & (rows[4] == d)]
        trained, post = np.unique(rows[0]), np.unique(rows[1])
    p_w, p_post = np.meshgrid(trained, post)
    at = high(law, N=n, D=d, P_w=p_w.ravel())
    gap = law.predict(params, at | {"P_post": p_post.ravel()}) - law.predict(params, at)
    # Weights trained at or below the width they are quantized to lose nothing more (the paper sets 0 there).
    panels = [np.where(p_post < p_w, gap.reshape(p_w.shape), 0.0)]
    if observed is not None:
        seen = np.full(p_w.shape, np.nan)
        for i, q in enumerate(post):
            for j, w in enumerate(trained):
                here = (rows[0] == w) & (rows[1] == q)
                seen[i, j] = rows[2][here].mean() if here.any() else np.nan
        panels.append(seen)
    figure, axes = canvas(len(panels), width=0.42 * len(trained) + 1.4, height=0.36 * len(post) + 1.2, sharey=True)
    finite = np.concatenate([p[np.isfinite(p) & (p > 0)] for p in panels])
    top = float(finite.max()) if len(finite) else 1.0
    scale = LogNorm(max(float(finite.min()) if len(finite) else 0.1, top * 1e-5), top)
    for ax, values, title in zip(axes[0], panels, ("predicted", "observed"), strict=False):
        image = ax.imshow(
            np.where(values > 0, values, np.nan), origin="lower", aspect="auto", cmap="viridis", norm=scale
        )
        ax.grid(False)
        for (i, j), value in np.ndenumerate(values):
            if np.isfinite(value):
                dark = value < 0 or (value > 0 and scale(value) < 0.6)
                colour = "white" if dark and value > 0 else "black"
                ax.text(j, i, f"{value:.2g}", ha="center", va="center", fontsize=5.5, color=colour)
        ax.set_xticks(range(len(trained)), [f"{w:g}" for w in trained])
        ax.set_yticks(range(len(post)), [f"{q:g}" for q in post])
        ax.set(xlabel="weight bits in training $P_w$", title=f"{title}, N = {engineering(n)}, D = {engineering(d)}")
    axes[0, 0].set_ylabel("bits after training $P_{post}$")
    figure.colorbar(image, ax=list(axes[0]), label="added loss (nats/token)")
    return figure
