"""Proof that precision was applied: what a step's program does with every operand that the recipe names, and what left
its quantizer (`precision.marks`)."""

from collections import Counter
from collections.abc import Mapping
from typing import Any

import numpy as np

from precisionlm.errors import UserError
from precisionlm.precision.binding import Structure, grids_of
from precisionlm.precision.grid import Grid
from precisionlm.precision.recipe import Recipe
from precisionlm.precision.scaling import Scaling

_OFF_GRID = 1e-3  # share of values that may seem to be: at ties compilers may divide differently
# What the largest code must reach of the grid's largest value, by scale type: powers of two may leave half of it.
_REACHED = {"f32": 0.98, "bf16": 0.98, "e4m3": 0.9, "e8m0": 0.45}


def expected_grids(recipe: Recipe, structure: Structure, layers: int) -> dict[str, Grid]:
    """`site.operand` → the grid that the recipe asks for, with a leading layer axis for sites in the blocks."""
    grids = grids_of(recipe, layers)
    return {f"{site}.{operand}": grids[site][operand] for site, operand, _ in structure.entries()}


def check_applied(recipe: Recipe, structure: Structure, counts: Counter[str]) -> None:
    """Raises UserError where a recipe entry reached no product of the program."""
    for site, operand, _ in structure.entries():
        if not counts[f"{site}.{operand}"]:
            raise UserError(f"recipe '{recipe}': {operand} at '{site}' reaches no matrix product of the training step")


def report(
    recipe: Recipe,
    structure: Structure,
    counts: Counter[str],
    statistics: Mapping[str, Mapping[str, Any]],
    layers: int,
) -> dict[str, Any]:
    """The content of audit.json.

    statistics: `site.operand` → statistic → one value a layer (`marks.statistics`). Raises UserError where values came
    through unchanged or off the grid that the recipe names.
    Each operand's entry: formats asked (by layer), scale sharing, products that consume it, and over the layers that
    are quantized: share of values clipped, share of non-zero values that became zero, mean squared quantization error
    and the same relative to the mean square.
    """
    resolved = recipe.resolve(layers)
    operands = []
    for site, operand, scaling in structure.entries():
        cells = resolved[site][operand]
        measured = _quantized_layers(cells, statistics[f"{site}.{operand}"])
        _check_values(f"recipe '{recipe}': {operand} at '{site}'", scaling, cells, measured)
        operands.append(
            {
                "site": site,
                "operand": operand,
                "formats": [str(cell.format.name) if cell else "bf16" for cell in cells],
                "scale": scaling.sharing,
                "group": scaling.group or None,
                "scale_type": scaling.scale_type,
                "products": counts[f"{site}.{operand}"],
                **_over_layers(measured),
            }
        )
    return {
        "recipe": str(recipe),
        "execution": structure.execution,
        "backward": structure.backward,
        "products": sum(entry["products"] for entry in operands),
        "operands": operands,
    }


def errors(
    recipe: Recipe, structure: Structure, statistics: Mapping[str, Mapping[str, Any]], layers: int
) -> dict[str, dict[str, float]]:
    """`site.operand` → the numbers of its entry in `report`: clipped, zeros, mse, relative_mse."""
    resolved = recipe.resolve(layers)
    return {
        f"{site}.{operand}": _over_layers(_quantized_layers(resolved[site][operand], statistics[f"{site}.{operand}"]))
        for site, operand, _ in structure.entries()
    }


def _quantized_layers(cells: Any, statistics: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """The statistics in those layers that the recipe quantizes."""
    on = [i for i, cell in enumerate(cells) if cell is not None]
    return {name: np.asarray(values, np.float64)[on] for name, values in statistics.items()}


def _over_layers(measured: Mapping[str, np.ndarray]) -> dict[str, float]:
    clipped, zeros, mse, power = (float(measured[name].mean()) for name in ("clipped", "zeros", "mse", "power"))
    return {"clipped": clipped, "zeros": zeros, "mse": mse, "relative_mse": mse / power if power else 0.0}


def _check_values(where: str, scaling: Scaling, cells: Any, measured: Mapping[str, np.ndarray]) -> None:
    """Raises UserError where what left the quantizer is not on the grid that the recipe names."""
    # bf16 values have 7 mantissa bits: a finer grid may hold them all.
    coarse = max(cell.format.mantissa for cell in cells if cell) < 7
    if coarse and (measured["mse"] == 0).all() and (measured["power"] > 0).any():
        raise UserError(f"{where} came through quantization unchanged")
    if (measured["off_grid"] > _OFF_GRID).any():
        share = measured["off_grid"].max()
        raise UserError(f"{where}: {share:.1%} of what left the quantizer is no value of the format asked for")
    short = (measured["largest"] < _REACHED[scaling.scale_type]) & (measured["power"] > 0)
    if scaling.clip in ("absmax", "edge") and short.any():
        raise UserError(
            f"{where}: the largest code is {measured['largest'].min():.2g} of the format's largest value: another "
            "format, or scales that do not come from the largest magnitudes"
        )
