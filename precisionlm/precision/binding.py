"""A recipe bound to a model: the structure that a program is compiled for, and the grids that it is called with.

Two recipes with equal structures share one executable; only the grids differ.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np

from precisionlm.errors import UserError
from precisionlm.precision.formats import BF16, Grid
from precisionlm.precision.recipe import Quantization, Recipe
from precisionlm.precision.scaling import Scaling

Grids = dict[str, dict[str, Grid]]


@dataclass(frozen=True)
class Structure:
    """Who is quantized and how scales are shared: static, hashable. sites: ((site, ((operand, scaling), …)), …).

    backward: the gradient products use the forward pass's `quantized` operands (straight-through estimator) or the
    `unquantized` ones. execution: `simulated` or `native`.
    """

    sites: tuple[tuple[str, tuple[tuple[str, Scaling], ...]], ...] = ()
    backward: str = "quantized"
    execution: str = "simulated"

    def site(self, name: str) -> dict[str, Scaling]:
        """operand → scaling at a site; operands left in bf16 are absent."""
        return dict(dict(self.sites).get(name, ()))

    def entries(self) -> list[tuple[str, str, Scaling]]:
        """(site, operand, scaling) of everything quantized."""
        return [(site, operand, scaling) for site, operands in self.sites for operand, scaling in operands]


def bind(
    recipe: Recipe,
    layers: int,
    axis_sizes: Mapping[str, Mapping[str, int]],
    backward: str = "quantized",
    execution: str = "simulated",
) -> tuple[Structure, Grids]:
    """Bind a recipe to a model of `layers` blocks.

    axis_sizes: site → operand → length of the axis that scales run along. Returns the structure and the grids: site →
    operand → Grid with a leading layer axis [L] for sites in the blocks, scalars for embed and head.
    Raises UserError where layers of one site differ in scale structure (they share one program) or where a group does
    not divide its axis.
    """
    sites: list[tuple[str, tuple[tuple[str, Scaling], ...]]] = []
    grids: Grids = {}
    for site, operands in recipe.resolve(layers).items():
        bound: list[tuple[str, Scaling]] = []
        for operand, cells in operands.items():
            scalings = {q.scaling for q in cells if q}
            if not scalings:
                continue
            if len(scalings) > 1:
                raise UserError(
                    f"recipe '{recipe}': layers of '{site}' must share one scale structure; "
                    f"{operand} has {' and '.join(sorted(map(str, {q for q in cells if q})))}"
                )
            scaling = scalings.pop()
            size = axis_sizes.get(site, {}).get(operand)
            if execution == "native" and site not in ("attention", "embed"):
                _check_native(recipe, site, operand, cells, operands)
            if scaling.rotate and (operand not in ("a", "w") or (size is not None and size % scaling.rotate)):
                raise UserError(
                    f"recipe '{recipe}': had{scaling.rotate} does not fit {operand} at '{site}' ({size} values); it "
                    "rotates activations and weights of linear layers, in blocks that divide them"
                )
            if scaling.sharing == "group" and size is not None and size % scaling.group:
                raise UserError(
                    f"recipe '{recipe}': group size {scaling.group} does not divide the {size} values of "
                    f"{operand} at '{site}'"
                )
            bound.append((operand, scaling))
            grids.setdefault(site, {})[operand] = _stack(cells, site in ("embed", "head"))
        if bound:
            sites.append((site, tuple(bound)))
    return Structure(tuple(sites), backward, execution), grids


def _check_native(
    recipe: Recipe,
    site: str,
    operand: str,
    cells: tuple[Quantization | None, ...],
    operands: dict[str, tuple[Quantization | None, ...]],
) -> None:
    """Raises UserError for what has no native product: it runs int8 x int8 with one scale a channel or tensor."""
    where = f"recipe '{recipe}': no native execution for {operand} at '{site}'"
    for cell in cells:
        if cell is None:
            raise UserError(f"{where}: some layers are bf16, and all layers share one program; use simulated")
        if cell.format.kind != "int" or cell.format.bits > 8 or cell.scaling.sharing == "group":
            raise UserError(f"{where}: {cell}; native products take int2 to int8 per channel or tensor; use simulated")
    if operand in ("a", "w") and any(cell is None for cell in operands["w" if operand == "a" else "a"]):
        raise UserError(f"{where}: both weights and activations must be integers there; use simulated")


def _stack(cells: tuple[Quantization | None, ...], scalar: bool) -> Grid:
    each = [(q.format if q else BF16).grid(edge=bool(q and q.scaling.clip == "edge")) for q in cells]
    if scalar:
        return each[0]
    return jax.tree.map(lambda *leaves: np.stack(leaves), *each)


def format_columns(recipe: Recipe) -> dict[str, Any]:
    """The runs table's columns for every operand (`columns.OPERANDS`): the commonest quantization over the blocks."""
    table = recipe.resolve(1)
    columns: dict[str, Any] = {}
    for name in ("w", "a", "q", "p", "dgrad_dy", "dgrad_w", "wgrad_dy", "wgrad_x"):
        columns |= _operand_columns(name, recipe.base(name))
    keys, values = recipe.base("k"), recipe.base("v")
    columns |= _operand_columns("kv", keys if keys == values else min((keys, values), key=_bits))
    for column, (site, operand) in {
        "embed_w": ("embed", "w"),
        "head_w": ("head", "w"),
        "head_a": ("head", "a"),
    }.items():
        columns |= _operand_columns(column, table[site][operand][0])
    return columns


def _bits(quantization: Quantization | None) -> float:
    return quantization.format.bits if quantization else BF16.bits


def _operand_columns(name: str, quantization: Quantization | None) -> dict[str, Any]:
    format_ = quantization.format if quantization else BF16
    scaling = quantization.scaling if quantization else None
    return {
        f"{name}_format": format_.name,
        f"{name}_bits": float(format_.bits),
        f"{name}_exponent": float(format_.exponent),
        f"{name}_mantissa": float(format_.mantissa),
        f"{name}_scale": scaling.sharing if scaling else "none",
        f"{name}_group": float(scaling.group) if scaling and scaling.sharing == "group" else float("inf"),
        f"{name}_scale_type": scaling.scale_type if scaling else "none",
    }


def leaks_future(structure: Structure) -> bool:
    """Whether a forward operand's scale is shared over time steps: per-tensor scales of activations or attention
    operands (Kumar et al. 2024), also NVFP4's second level, show earlier positions later ones. A table must say so."""
    return any(
        operand in ("a", "q", "k", "v", "p") and (scaling.sharing == "tensor" or scaling.scale_type == "e4m3")
        for _, operand, scaling in structure.entries()
    )
