"""What a recipe means, in words and pictures: what every operand of every site gets."""

from pathlib import Path
from typing import Any

import numpy as np

from precisionlm.precision.formats import BF16, Format
from precisionlm.precision.recipe import SITES, Quantization, Recipe, operands_of
from precisionlm.whole_file import written

SCALE_BITS = {"f32": 32, "bf16": 16, "e8m0": 8, "e8m0up": 8, "e4m3": 8}
_NAMES = {
    "a": "activations",
    "w": "weights",
    "dgrad_dy": "output gradient, for the input gradient (P3)",
    "dgrad_w": "weights, for the input gradient (P4)",
    "wgrad_dy": "output gradient, for the weight gradient (P5)",
    "wgrad_x": "activations, for the weight gradient (P6)",
    "q": "queries",
    "k": "keys",
    "v": "values",
    "p": "probabilities",
}
_CLIPPINGS = {
    "absmax": "largest magnitude",
    "edge": "largest magnitude at the last bucket's edge",
    "mse": "best for normal values",
    "lsq": "trained step size (lsq)",
    "lac": "trained share of the largest (lac)",
    "lwc": "trained share of the largest (lwc)",
}
# Who has a scale of its own: everyone along the axis that the operand's product contracts shares it.
_SHARERS = {"w": "output channel", "dgrad_w": "input channel", "wgrad_dy": "output channel", "wgrad_x": "input channel"}
_MOST_BITS_DRAWN = 12
_MOST_BITS = 7  # of formats whose values are listed


def bits_per_value(quantization: Quantization | None, axis: int | None = None) -> float:
    """Bits that one value takes, its share of the scale included.

    axis: values along the scale's axis, for one scale a channel; without it such a scale counts nothing. A scale a
    tensor, and NVFP4's second level, count nothing.
    """
    if quantization is None:
        return BF16.bits
    scaling = quantization.scaling
    sharers = {"group": scaling.group, "block": scaling.group**2, "channel": axis, "tensor": None}[scaling.sharing]
    return quantization.format.bits + (SCALE_BITS[scaling.scale_type] / sharers if sharers else 0.0)


def explain(recipe: Recipe, layers: int = 4) -> list[dict[str, Any]]:
    """A row a (site, operand) that the recipe quantizes somewhere, for a model of `layers` blocks.

    Keys: site, operand, meaning, layers (which; `all` or a list), format, bits, bits_with_scales, scale, scale_type,
    clip, rotation (0: none), signs, trust, rounding, largest (value of the grid).
    """
    rows = []
    for site in SITES:
        for operand in operands_of(site):
            cells = recipe.resolve(layers)[site][operand]
            for quantization in dict.fromkeys(cells):
                if quantization is None:
                    continue
                where = [i for i, cell in enumerate(cells) if cell == quantization]
                rows.append(_row(site, operand, quantization, "all" if len(where) == len(cells) else where))
    return rows


def _row(site: str, operand: str, quantization: Quantization, layers: Any) -> dict[str, Any]:
    scaling, fmt = quantization.scaling, quantization.format
    sharing = {
        "group": f"groups of {scaling.group}" + " channels of a token" * scaling.per_token,
        "block": f"{scaling.group} x {scaling.group} block",
        "tensor": "whole tensor",
        "channel": "token" if scaling.per_token else _SHARERS.get(operand, "token"),
    }[scaling.sharing]
    return {
        "site": site,
        "operand": operand,
        "meaning": _NAMES[operand],
        "layers": layers,
        "format": fmt.name,
        "bits": fmt.bits,
        "bits_with_scales": bits_per_value(quantization),
        "scale": sharing,
        "scale_type": scaling.scale_type,
        "clip": _CLIPPINGS[scaling.clip],
        "rotation": scaling.rotate,
        "signs": scaling.signs,
        "trust": scaling.trust,
        "rounding": "stochastic" if scaling.stochastic else "nearest even",
        "largest": float(fmt.grid().qmax),
    }


def formats_of(recipe: Recipe, layers: int = 4) -> list[Format]:
    """The number formats that a recipe uses, each once, in order of appearance."""
    table = recipe.resolve(layers)
    found = [q.format for operands in table.values() for cells in operands.values() for q in cells if q]
    return list(dict.fromkeys(found))


def as_text(recipe: Recipe, layers: int = 4) -> str:
    """The explanation for a terminal: the table, then the non-negative values of every small format."""
    rows = explain(recipe, layers)
    lines = [f"recipe {recipe}"]
    if not rows:
        return lines[0] + ": every operand in bf16"
    lines.append(f"{'site':10} {'operand':9} {'format':12} {'bits':>6} {'with scales':>11}  scale, rounding, layers")
    for row in rows:
        where = "" if row["layers"] == "all" else f", layers {', '.join(map(str, row['layers']))} of {layers}"
        rotated = f", rotated in Hadamard blocks of {row['rotation']}" if row["rotation"] else ""
        rotated += " with random signs" * row["signs"] + ", no gradient where clipped" * row["trust"]
        clip = f", {row['clip']}" if row["clip"] != _CLIPPINGS["absmax"] else ""
        how = f"{row['scale_type']} per {row['scale']}{clip}, {row['rounding']}{rotated}{where}"
        sizes = f"{row['bits']:6.3g} {row['bits_with_scales']:11.4g}"
        lines.append(f"{row['site']:10} {row['operand']:9} {row['format']:12} {sizes}  {how}")
    lines.append("everything else: bf16")
    for fmt in formats_of(recipe, layers):
        lines.append(f"{fmt.name}: {_values(fmt)}")
    return "\n".join(lines)


def _values(fmt: Format) -> str:
    grid = fmt.grid()
    sign = "±" if grid.qmin == -grid.qmax else ""
    if fmt.bits > _MOST_BITS:
        least = float(grid.low) * float(grid.fine)
        ends = f"±{grid.qmax:g}" if sign else f"{grid.qmin:g} to {grid.qmax:g}"
        count = f"{len(fmt.values())} " if fmt.bits <= _MOST_BITS_DRAWN else ""
        return f"{count}values up to {ends}, smallest above zero {least:g}"
    values = fmt.values()
    return sign + " ".join(f"{value:g}" for value in (np.abs(values[values >= 0]) if sign else values))


def plot(recipe: Recipe, out: Path, layers: int = 4) -> None:
    """The grids of a recipe's formats on one axis, each scaled to its largest value, to a PNG or SVG file."""
    from matplotlib.figure import Figure

    formats = formats_of(recipe, layers)
    figure = Figure(figsize=(8, 0.7 + 0.55 * max(1, len(formats))), layout="constrained")
    axes = figure.subplots()
    for i, fmt in enumerate(formats):
        if fmt.bits > _MOST_BITS_DRAWN:
            axes.fill_between([-1, 1], i - 0.32, i + 0.32, color="#0072B2", alpha=0.5)  # too fine to tell lines apart
            continue
        values = fmt.values() / np.abs(fmt.values()).max()
        axes.vlines(values, i - 0.32, i + 0.32, color="#0072B2", linewidth=0.9 if len(values) < 300 else 0.3)
    axes.set_yticks(range(len(formats)), [f"{fmt.name} ({fmt.bits:.3g} bits)" for fmt in formats])
    axes.set_xlabel("value / largest value")
    axes.set_xlim(-1.03, 1.03)
    axes.set_ylim(len(formats) - 0.4, -0.6)
    axes.set_xticks(np.linspace(-1, 1, 9))
    with written(out) as partial:
        figure.savefig(partial, dpi=150)
