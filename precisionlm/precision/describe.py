"""A recipe as columns of the runs table (`precisionlm.columns`)."""

from typing import Any

from precisionlm.precision.formats import BF16
from precisionlm.precision.recipe import Quantization, Recipe


def format_columns(recipe: Recipe) -> dict[str, Any]:
    """The runs table's columns for every operand (`columns.OPERANDS`): the commonest quantization over the blocks."""
    table = recipe.resolve(1)
    columns: dict[str, Any] = {}
    for name in ("w", "a", "q", "p", "dgrad_dy", "dgrad_w", "wgrad_dy", "wgrad_x"):
        columns |= _operand_columns(name, recipe.commonest(name))
    keys, values = recipe.commonest("k"), recipe.commonest("v")
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
        f"{name}_group": float(scaling.group) if scaling and scaling.group else float("inf"),
        f"{name}_scale_type": scaling.scale_type if scaling else "none",
    }
