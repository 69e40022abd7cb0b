"""Proof that precision was applied: what a step's program does with every operand that the recipe names.

Quantized values are marked in the program (`dot_general.TAG`); marks are followed through the jaxpr, through moves and
multiplications by scales, to the matrix products that consume them.
"""

from collections import Counter
from collections.abc import Mapping
from typing import Any

import numpy as np
from jax.extend import core

from precisionlm.errors import UserError
from precisionlm.precision.binding import Structure
from precisionlm.precision.dot_general import TAG
from precisionlm.precision.recipe import Recipe

Tags = frozenset[str]
_NONE: Tags = frozenset()

# Primitives through which a quantized value stays the same value, up to layout, dtype container and scale.
_TRANSPARENT = {
    "convert_element_type",
    "reshape",
    "transpose",
    "broadcast_in_dim",
    "mul",
    "squeeze",
    "copy",
    "copy_p",
    "name",
    "optimization_barrier",
    "sharding_constraint",
    "slice",
    "dynamic_slice",
    "concatenate",
    "select_n",
    "split",
    "pad",
    "reduce_precision",
}


def count_products(jaxpr: core.ClosedJaxpr) -> Counter[str]:
    """`site.operand` → number of matrix products (table look-ups for an embedding) in the program that consume it.

    A product inside a scan counts once an iteration.
    """
    counts: Counter[str] = Counter()
    _walk(jaxpr.jaxpr, [_NONE] * len(jaxpr.jaxpr.invars), 1, counts)
    return counts


def _walk(jaxpr: core.Jaxpr, inputs: list[Tags], times: int, counts: Counter[str]) -> list[Tags]:
    """Tags of the outputs, given those of the inputs; adds the products met to `counts`."""
    tags: dict[Any, Tags] = dict(zip(jaxpr.invars, inputs, strict=True))

    def read(atom: Any) -> Tags:
        return _NONE if isinstance(atom, core.Literal) else tags.get(atom, _NONE)

    for eqn in jaxpr.eqns:
        name, given = eqn.primitive.name, [read(atom) for atom in eqn.invars]
        merged = frozenset().union(*given) if given else _NONE
        outputs = [_NONE] * len(eqn.outvars)
        if name == "name" and eqn.params["name"].startswith(TAG):
            outputs = [frozenset({eqn.params["name"].removeprefix(TAG)})]
        elif name == "dot_general" or "dot_product_attention" in name:
            counts.update(dict.fromkeys(merged, times))
        elif name == "gather":
            counts.update({tag: times for tag in merged if tag.startswith("embed.")})
        elif inner := _inner_jaxprs(eqn.params):
            length = times * eqn.params.get("length", 1) if name == "scan" else times
            for sub in inner:
                entering = given[len(given) - len(sub.invars) :]
                outputs = [a | b for a, b in zip(_walk(sub, entering, length, counts), outputs, strict=True)]
        elif name in _TRANSPARENT:
            outputs = [merged] * len(eqn.outvars)
        tags.update(zip(eqn.outvars, outputs, strict=True))
    return [read(atom) for atom in jaxpr.outvars]


def _inner_jaxprs(params: Mapping[str, Any]) -> list[core.Jaxpr]:
    found = []
    for key in ("jaxpr", "call_jaxpr", "fun_jaxpr", "branches"):
        value = params.get(key, ())
        for item in value if isinstance(value, tuple) else (value,):
            if isinstance(item, core.ClosedJaxpr):
                found.append(item.jaxpr)
            elif isinstance(item, core.Jaxpr):
                found.append(item)
    return found


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

    statistics: `site.operand` → clipped, zeros, mse, power, each a scalar or one value a layer.
    Each operand's entry: formats asked (by layer), scale sharing, products that consume it, and over the layers that
    are quantized: share of values clipped, share of non-zero values that became zero, mean squared quantization error
    and the same relative to the mean square.
    """
    resolved = recipe.resolve(layers)
    operands = []
    for site, operand, scaling in structure.entries():
        cells = resolved[site][operand]
        measured = {
            name: np.atleast_1d(np.asarray(v, np.float64)) for name, v in statistics[f"{site}.{operand}"].items()
        }
        on = [i for i, cell in enumerate(cells) if cell is not None]
        mse, power = measured["mse"][on].mean(), measured["power"][on].mean()
        # bf16 values have 7 mantissa bits: a finer grid may hold them all.
        if mse == 0 and power > 0 and max(cell.format.mantissa for cell in cells if cell) < 7:
            raise UserError(f"recipe '{recipe}': {operand} at '{site}' came through quantization unchanged")
        operands.append(
            {
                "site": site,
                "operand": operand,
                "formats": [str(cell.format.name) if cell else "bf16" for cell in cells],
                "scale": scaling.sharing,
                "group": scaling.group or None,
                "scale_type": scaling.scale_type,
                "products": counts[f"{site}.{operand}"],
                "clipped": float(measured["clipped"][on].mean()),
                "zeros": float(measured["zeros"][on].mean()),
                "mse": float(mse),
                "relative_mse": float(mse / power) if power else 0.0,
            }
        )
    return {
        "recipe": str(recipe),
        "execution": structure.execution,
        "backward": structure.backward,
        "products": sum(entry["products"] for entry in operands),
        "operands": operands,
    }
