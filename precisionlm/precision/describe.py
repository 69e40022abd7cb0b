"""A recipe as columns of the runs table (`precisionlm.columns`): one description of a format, wherever one is recorded.

Every operand's columns say what most of its sites and layers have, and which share of its values that is. An operand of
a gradient product that takes the forward product's value is described by what that went through.
"""

import hashlib
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from precisionlm.precision.binding import Structure
from precisionlm.precision.formats import BF16
from precisionlm.precision.products import Source, products
from precisionlm.precision.recipe import ATTENTION_OPERANDS, BLOCK_LINEAR, LINEAR_OPERANDS, Quantization, Recipe

Value = tuple[Quantization | None, bool]  # what a value went through, and whether the forward product took it
Sizes = Mapping[str, Mapping[str, int]]  # site → operand → length of the axis its scales run along (`axis_sizes`)
_FORWARD = {"a": "fwd", "w": "fwd", "dgrad_dy": "dlhs", "dgrad_w": "dlhs", "wgrad_dy": "drhs", "wgrad_x": "drhs"}
_ALONE = {"embed_w": ("embed", "w"), "head_w": ("head", "w"), "head_a": ("head", "a")}


def precision_columns(recipe: Recipe, structure: Structure, sizes: Sizes, layers: int) -> dict[str, Any]:
    """The table's columns of a recipe bound to a model of `layers` blocks."""
    table = {site: _effective(recipe, structure, site, layers) for site in ("attention", *BLOCK_LINEAR, "head")}
    columns: dict[str, Any] = {"backward": structure.backward}
    for operand in LINEAR_OPERANDS:
        cells = [(q, _weight(sizes, site, operand)) for site in BLOCK_LINEAR for q in table[site][operand]]
        columns |= _most(operand, cells)
    for operand in ATTENTION_OPERANDS:
        columns |= _most(operand, [(q, 1) for q in table["attention"][operand]])
    coarser = min("k", "v", key=lambda operand: columns[f"{operand}_bits"])
    fields = {name.removeprefix(f"{coarser}_"): value for name, value in columns.items() if name[:2] == f"{coarser}_"}
    columns = {name: value for name, value in columns.items() if name[:2] not in ("k_", "v_")}
    columns |= {f"kv_{field}": value for field, value in fields.items()}
    table["embed"] = {"w": [(q, False) for q in recipe.resolve(layers)["embed"]["w"]]}
    for name, (site, operand) in _ALONE.items():
        columns |= _most(name, [(q, 1) for q in table[site][operand]])
    return columns | {"precision_hash": _hash(table, structure)}


def format_columns(name: str, quantization: Quantization | None, forward: bool = False) -> dict[str, Any]:
    """The columns NAME_format, NAME_bits, … of one quantization; None: bf16. forward: it is the forward product's."""
    format_ = quantization.format if quantization else BF16
    scaling = quantization.scaling if quantization else None
    return {
        f"{name}_format": format_.name,
        f"{name}_bits": float(format_.bits),
        f"{name}_exponent": float(format_.exponent),
        f"{name}_mantissa": float(format_.mantissa),
        f"{name}_scale": _sharing(quantization) + " (forward)" * (forward and quantization is not None),
        f"{name}_group": float(scaling.group) if scaling and scaling.group else float("inf"),
        f"{name}_scale_type": scaling.scale_type if scaling else "none",
        f"{name}_clip": scaling.clip if scaling else "none",
        f"{name}_rounding": "none" if scaling is None else "stochastic" if scaling.stochastic else "nearest",
        f"{name}_rotation": (-scaling.rotate if scaling.signs else scaling.rotate) if scaling else 0,
        f"{name}_trust": scaling.trust if scaling else False,
    }


def _sharing(quantization: Quantization | None) -> str:
    if quantization is None:
        return "none"
    scaling = quantization.scaling
    along = {"channel": "token", "group": "token-group"} if scaling.per_token else {}
    return along.get(scaling.sharing, scaling.sharing)


def _effective(recipe: Recipe, structure: Structure, site: str, layers: int) -> dict[str, list[Value]]:
    """Operand → what its value went through, by layer."""
    resolved = recipe.resolve(layers)[site]
    if site == "attention":
        return {operand: [(q, False) for q in cells] for operand, cells in resolved.items()}
    sources: dict[str, Source] = {}
    for product in products(structure.site(site), structure.backward):
        left, right = (operand for operand, name in _FORWARD.items() if name == product.name)
        sources |= {left: product.left, right: product.right}
    plain = (None,) * len(resolved["w"])
    return {
        operand: [(q, source.forward) for q in (resolved[source.operand] if source.operand else plain)]
        for operand, source in sources.items()
    }


def _weight(sizes: Sizes, site: str, operand: str) -> int:
    """How many values an operand has at a site, up to a factor that all sites share."""
    inputs, outputs = sizes[site]["a"], sizes[site]["dgrad_dy"]
    return {"a": inputs, "wgrad_x": inputs, "dgrad_dy": outputs, "wgrad_dy": outputs}.get(operand, inputs * outputs)


def _most(name: str, cells: Sequence[tuple[Value, int]]) -> dict[str, Any]:
    """The columns of what most cells have, and the share of values that has it."""
    most = Counter(value for value, _ in cells).most_common(1)[0][0]
    share = sum(weight for value, weight in cells if value == most) / sum(weight for _, weight in cells)
    return format_columns(name, *most) | {f"{name}_share": share}


def _hash(table: Mapping[str, Mapping[str, Sequence[Value]]], structure: Structure) -> str:
    """12 hex digits of all that a program and its grids are made of: equal for recipes that only differ in spelling."""
    cells = {
        s: {o: [_cell(*value) for value in values] for o, values in operands.items()} for s, operands in table.items()
    }
    content = json.dumps([cells, structure.backward, structure.execution], sort_keys=True)
    return hashlib.sha256(content.encode()).hexdigest()[:12]


def _cell(quantization: Quantization | None, forward: bool) -> Any:
    return None if quantization is None else [format_columns("q", quantization, forward), quantization.format.levels]
