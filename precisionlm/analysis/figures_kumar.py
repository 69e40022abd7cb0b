"""Figures of Kumar et al. 2024 (arXiv:2411.04330) that follow from the law: numbers in names are the paper's."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from precisionlm.analysis.figures import COLOURS, canvas, engineering, legend, log_axis
from precisionlm.analysis.laws.base import INF, Law
from precisionlm.analysis.optimum import compute_optimal, minimise

SIZES, BUDGETS = (30e6, 60e6, 110e6, 220e6), (1.5e9, 3e9, 6e9, 13e9, 26e9)
HIGH = 1e3


def draw(law: Law, params: Mapping[str, float]) -> dict[str, Figure]:
    """Every figure that the law's factors and terms allow, by name."""
    names = {s.name for s in law.symbols}
    made: dict[str, Figure] = {}
    if "P_post" in names and "gamma_post" in law.names:
        made["fig02_ptq"] = ptq_against_data(law, params)
    if law.is_gap or not {"P_w", "P_a", "P_kv"} & names:
        return made
    made |= {
        "fig03_neff_and_isoloss": isoloss(law, params),
        "fig04_loss_against_bits": loss_against_bits(law, params),
        "fig06_optimal_bits": optimal_bits(law, params),
    }
    if "P_post" in names:
        made["fig09_inference_optimum"] = inference_optimum(law, params)
    return made


def high(law: Law, **columns: Any) -> dict[str, Any]:
    """Columns with every operand unquantized but those given."""
    names = {s.name for s in law.symbols}
    base = {"P_w": HIGH, "P_a": HIGH, "P_kv": HIGH, "P_post": INF}
    return {k: v for k, v in (base | columns).items() if k in names}


def ptq_against_data(law: Law, params: Mapping[str, float]) -> Figure:
    """Figure 2: loss after quantizing the weights, and what it adds, against tokens per parameter; a panel a size."""
    figure, axes = canvas(4, 1 if law.is_gap else 2, width=2.5, height=2.6, sharey="row")
    for j, n in enumerate(SIZES):
        d = np.geomspace(5, 1e4, 100) * n
        for i, bits in enumerate((3.0, 4.0, 5.0, 6.0)):
            after = law.predict(params, high(law, N=n, D=d, P_post=bits))
            gap = after if law.is_gap else after - law.predict(params, high(law, N=n, D=d))
            axes[-1, j].plot(d / n, gap, color=COLOURS[i], label=f"INT{bits:g}")
            if not law.is_gap:
                axes[0, j].plot(d / n, after, color=COLOURS[i])
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
    for i, (x, name) in enumerate((("w", "weights"), ("a", "activations"), ("kv", "keys and values"))):
        if f"gamma_{x}" not in params:
            continue
        f = 1 - np.exp(-bits / params[f"gamma_{x}"] + params.get(f"n_{x}", 0.0))
        f = np.where(f > 0, np.abs(f) ** params.get(f"s_{x}", 1.0), np.nan)
        total = total * f
        left.plot(bits, f, color=COLOURS[i], label=name)
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
    operands = [x for x in ("w", "a", "kv") if f"gamma_{x}" in params]
    figure, axes = canvas(3, len(operands), width=2.8, height=2.4, sharey=True)
    bits = np.linspace(3, 12, 150)
    for row, x in zip(axes, operands, strict=True):
        for ax, d in zip(row, (3.2768e9, 13.1072e9, 26.2144e9), strict=True):
            for i, n in enumerate(SIZES):
                loss = law.predict(params, high(law, N=n, D=d, **{f"P_{x}": bits}))
                ax.plot(
                    bits, np.where(np.isfinite(loss), loss, np.nan), color=COLOURS[i], label=f"N = {engineering(n)}"
                )
            ax.set(xlabel=f"$P_{{{x}}}$ (bits)", ylim=(3.1, 4.6))
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
        ax.plot([b.D for b in best], [b.P for b in best], color=COLOURS[i], label=f"N = {engineering(n)}, fixed")
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
