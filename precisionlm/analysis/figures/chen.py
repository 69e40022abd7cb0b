"""Figures of Chen et al. 2025 (arXiv:2505.14302) that follow from the law: numbers in names are the paper's."""

from collections.abc import Mapping

import numpy as np
from matplotlib.colors import TwoSlopeNorm
from matplotlib.figure import Figure

from precisionlm.analysis.figures.draw import COLOURS, DASHES, canvas, engineering, legend, log_axis
from precisionlm.analysis.laws.base import Law
from precisionlm.analysis.laws.chen import ADDITIVITY, BASE, CHEN_GAP, SETTINGS, effective_multiplier

SIZES, BUDGETS = (74.3e6, 144.7e6, 297.3e6, 594.5e6), (10e9, 20e9, 50e9, 100e9)


def draw(law: Law, params: Mapping[str, float]) -> dict[str, Figure]:
    """All of them by name: trends and contours of `params`, ratios of the published settings."""
    made = {"fig01_error_contours": contours(params), "fig04_trends": trends(params), "fig08_ratio": ratio()}
    made |= {"fig06_additivity": additivity(), "fig09_right_down_projection": down_projection()}
    if "A" in params:
        made["fig16_effective_parameters"] = effective(params)
    return made


def gap_of(params: Mapping[str, float]) -> dict[str, float]:
    """The constants of the quantization error alone."""
    return {k: params[k] for k in CHEN_GAP.names}


def published(setting: str) -> dict[str, float]:
    """The printed constants of a setting such as W4A16, base included."""
    return BASE | dict(zip(("k", "gamma_N", "gamma_D", "gamma_G"), SETTINGS[setting], strict=True))


def contours(params: Mapping[str, float]) -> Figure:
    """Figure 1: the quantization error in (N, D), 128 elements per scale."""
    figure, axes = canvas(1, width=4.4, height=3.4)
    n, d = np.meshgrid(np.geomspace(5e7, 1e10, 80), np.geomspace(5e9, 1e12, 80))
    error = CHEN_GAP.predict(gap_of(params), {"N": n.ravel(), "D": d.ravel(), "G": 128.0}).reshape(n.shape)
    ax = axes[0, 0]
    lines = ax.contour(n, d, error, levels=10, cmap="viridis")
    ax.clabel(lines, fontsize=7, fmt="%.3f")
    ax.set(
        xlabel="parameters N",
        ylabel="training tokens D",
        yscale="log",
        title="quantization error (nats/token), G = 128",
    )
    log_axis(ax)
    return figure


def trends(params: Mapping[str, float]) -> Figure:
    """Figure 4: the quantization error against N, D and G."""
    figure, axes = canvas(3, width=2.8, sharey=True)
    groups = (32.0, 64.0, 128.0, 256.0)
    n, d, g = np.geomspace(7e7, 6e8, 50), np.geomspace(1e10, 1e11, 50), np.geomspace(16, 2048, 50)
    p = gap_of(params)
    for i, group in enumerate(groups):
        style = {"color": COLOURS[i], "ls": DASHES[i], "label": f"G = {group:g}"}
        axes[0, 0].plot(n, CHEN_GAP.predict(p, {"N": n, "D": 50e9, "G": group}), **style)
        axes[0, 1].plot(d, CHEN_GAP.predict(p, {"N": 297.3e6, "D": d, "G": group}), **style)
    for i, size in enumerate(SIZES):
        axes[0, 2].plot(g, CHEN_GAP.predict(p, {"N": size, "D": 50e9, "G": g}), color=COLOURS[i + 4],
                        ls=DASHES[i],
                        label=f"N = {engineering(size)}")  # fmt: skip
    axes[0, 0].set(xlabel="parameters N (D = 50B)", ylabel="quantization error (nats/token)")
    axes[0, 1].set(xlabel="training tokens D (N = 297M)")
    axes[0, 2].set(xlabel="elements per scale G (D = 50B)")
    for ax in axes[0, :2]:
        log_axis(ax)
    axes[0, 2].set_xscale("log", base=2)
    legend(figure, axes[0])
    return figure


def ratio() -> Figure:
    """Figure 8: error of activations over error of weights, R = W16A4 / W4A16, published constants."""
    figure, axes = canvas(4, width=2.6, height=2.8, sharey=True)
    n, per = np.meshgrid(np.geomspace(7e7, 6e8, 40), np.geomspace(20, 1000, 40))
    panels = [(g, fc2) for fc2 in ("", ", FC2 input 8-bit") for g in (32.0, 256.0)]
    for ax, (group, fc2) in zip(axes[0], panels, strict=True):
        at = {"N": n.ravel(), "D": (n * per).ravel(), "G": np.full(n.size, group)}
        activations = CHEN_GAP.predict(gap_of(published("W16A4" + fc2)), at)
        weights = CHEN_GAP.predict(gap_of(published("W4A16")), at)
        shares = (activations / weights).reshape(n.shape)
        image = ax.pcolormesh(n, per, shares, cmap="RdBu_r", norm=TwoSlopeNorm(1.0, 0.6, 3.0), shading="gouraud")
        ax.set(xlabel="parameters N", yscale="log", title=f"G = {group:g}{fc2}")
        log_axis(ax)
    axes[0, 0].set_ylabel("tokens per parameter D/N")
    figure.colorbar(image, ax=list(axes[0]), label="error of A4 / error of W4")
    return figure


def effective(params: Mapping[str, float]) -> Figure:
    """Figure 16: share of the parameters left, for G = 32 and 256."""
    figure, axes = canvas(2, width=3.4, sharey=True)
    n, d = np.meshgrid(np.geomspace(5e7, 1e11, 60), np.geomspace(5e9, 1e13, 60))
    for ax, group in zip(axes[0], (32.0, 256.0), strict=True):
        share = effective_multiplier(dict(params), n.ravel(), d.ravel(), group).reshape(n.shape)
        lines = ax.contour(n, d, share, levels=np.arange(0.3, 1.0, 0.05), cmap="viridis")
        ax.clabel(lines, fontsize=7, fmt="%.2f")
        ax.set(xlabel="parameters N", yscale="log", title=f"$N_{{eff}}/N$, G = {group:g}")
        log_axis(ax)
    axes[0, 0].set_ylabel("training tokens D")
    return figure


def grid_error(setting: str) -> np.ndarray:
    """(80,) published error of a setting on the paper's 4 N x 4 D x 5 G (one scale a token: G = 1024)."""
    n, d, g = np.meshgrid(SIZES, BUDGETS, (32.0, 64.0, 128.0, 256.0, 1024.0), indexing="ij")
    return CHEN_GAP.predict(gap_of(published(setting)), {"N": n.ravel(), "D": d.ravel(), "G": g.ravel()})


def additivity() -> Figure:
    """Figure 6: error of W4A4 against the sum of W4A16's and W16A4's, published laws on the paper's grid."""
    both, total = grid_error("W4A4"), grid_error("W4A16") + grid_error("W16A4")
    figure, axes = canvas(1, width=4.2, height=3.4)
    ax = axes[0, 0]
    ends = np.array([0.0, float(total.max()) * 1.05])
    ax.plot(total, both, "o", color=COLOURS[0], ms=4, label="4 sizes x 4 budgets x 5 groups")
    ax.plot(ends, ADDITIVITY * ends, color=COLOURS[1], label=f"slope {ADDITIVITY}")
    ax.plot(ends, ends, color="0.5", ls=":", label="slope 1")
    ax.set(xlabel="error of W4A16 + error of W16A4 (nats/token)", ylabel="error of W4A4 (nats/token)")
    legend(figure, [ax])
    return figure


def down_projection() -> Figure:
    """Figure 9, right: error with the down-projection's input at 4 and at 8 bits, 594M parameters, 100B tokens."""
    figure, axes = canvas(2, width=3.0, sharey=True)
    for ax, setting in zip(axes[0], ("W4A4", "W16A4"), strict=True):
        for i, (name, label) in enumerate(((setting, "4 bits"), (setting + ", FC2 input 8-bit", "8 bits"))):
            groups = np.array([32.0, 64, 128, 256])
            error = CHEN_GAP.predict(gap_of(published(name)), {"N": 594.5e6, "D": 100e9, "G": groups})
            bars = ax.bar(np.arange(4) + 0.4 * i - 0.2, error, 0.38, color=COLOURS[i], label=label, hatch=("", "//")[i])
            ax.bar_label(bars, fmt="%.3f", fontsize=6)
        ax.set_xticks(range(4), ["32", "64", "128", "256"])
        ax.set(title=setting, xlabel="elements per scale G")
    axes[0, 0].set_ylabel("quantization error (nats/token)")
    legend(figure, axes[0], "input of the down-projection")
    return figure
