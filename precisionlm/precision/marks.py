"""Quantized operands found in a program by the names they carry (`precision.quantize`): which products consume them,
and what happened to their values.

Both read the jaxpr of the very step that trains. Marks are followed through moves and multiplications by scales to the
matrix products. Values are measured by running the program with a statistic beside every mark, up to the last one.
"""

from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.extend import core

from precisionlm.errors import UserError
from precisionlm.precision.grid import Grid, round_to_grid
from precisionlm.precision.quantize import ORIGINAL, SCALES, TAG

Tags = frozenset[str]
Statistics = dict[str, dict[str, jax.Array]]  # site.operand → statistic → one value a layer
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
    "layout_constraint",
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
        elif name in ("dot_general", "pallas_call") or "dot_product_attention" in name:
            counts.update(dict.fromkeys(merged, times))
        elif name == "gather":
            counts.update({tag: times for tag in merged if tag.startswith("embed.")})
        elif inner := list(_inner_jaxprs(eqn.params)):
            length = times * eqn.params.get("length", 1) if name == "scan" else times
            for sub in inner:
                entering = given[len(given) - len(sub.jaxpr.invars) :]
                outputs = [a | b for a, b in zip(_walk(sub.jaxpr, entering, length, counts), outputs, strict=True)]
        elif name in _TRANSPARENT:
            outputs = [merged] * len(eqn.outvars)
        tags.update(zip(eqn.outvars, outputs, strict=True))
    return [read(atom) for atom in jaxpr.outvars]


def _inner_jaxprs(params: Mapping[str, Any]) -> Iterator[core.ClosedJaxpr]:
    for key in ("jaxpr", "call_jaxpr", "fun_jaxpr", "branches"):
        value = params.get(key, ())
        for item in value if isinstance(value, tuple) else (value,):
            if isinstance(item, core.ClosedJaxpr):
                yield item
            elif isinstance(item, core.Jaxpr):
                yield core.ClosedJaxpr(item, ())


def statistics(jaxpr: core.ClosedJaxpr, expected: Mapping[str, Grid], wanted: Tags, arguments: Any) -> Statistics:
    """What quantization does to the values of each wanted operand when the program runs on `arguments` (flat), where
    the program first marks it.

    expected: `site.operand` → the grid it should have, with a leading layer axis [L] for sites in the blocks. Each
    statistic is a mean over all values of an operand, float32 [L], or [1] outside the blocks: clipped (beyond the
    largest value), zeros (other values that became zero), mse (squared error), power (mean square), off_grid (values
    that left the quantizer off the expected grid under their scale); largest is that of the codes, over the grid's.
    """
    found: dict[str, dict[str, jax.Array]] = {}
    _run(jaxpr, list(arguments), expected, wanted, found)
    layered = {tag: _layers(tag, expected[tag]) for tag in found}
    return {
        tag: {name: value.reshape(-1, layered[tag]).mean(axis=0) for name, value in values.items()}
        for tag, values in found.items()
    }


def _layers(tag: str, grid: Grid) -> int:
    return 1 if jnp.ndim(grid.on) == 0 else grid.on.shape[0]


def _run(
    closed: core.ClosedJaxpr,
    arguments: list[Any],
    expected: Mapping[str, Grid],
    wanted: Tags,
    found: dict[str, dict[str, jax.Array]],
) -> list[Any] | None:
    """The program's outputs, with statistics added to `found`; None as soon as all that is wanted is there."""
    jaxpr = closed.jaxpr
    values: dict[Any, Any] = dict(zip((*jaxpr.constvars, *jaxpr.invars), (*closed.consts, *arguments), strict=True))
    seen: dict[str, Any] = {}  # the latest original and scales of each operand

    def read(atom: Any) -> Any:
        return atom.val if isinstance(atom, core.Literal) else values[atom]

    for eqn in jaxpr.eqns:
        given = [read(atom) for atom in eqn.invars]
        inner = list(_inner_jaxprs(eqn.params))
        outputs: list[Any] | None
        marked = frozenset().union(*(_marked(sub) for sub in inner)) & (wanted - found.keys())
        if eqn.primitive.name == "name":
            name, outputs = eqn.params["name"], given
            tag = name.removeprefix(TAG)
            seen[name] = given[0]
            if tag != name and tag in wanted and tag not in found:
                found[tag] = _compare(tag, seen, expected[tag])
        elif not marked:
            outputs = _bind(eqn, given)
        elif eqn.primitive.name == "scan":
            outputs = _scan(eqn, given, expected, marked, found)
        elif len(inner) == 1:
            if eqn.params.get("differentiated") and eqn.params.get("prevent_cse"):
                given = list(lax.optimization_barrier(tuple(given)))
            outputs = _run(inner[0], given[len(given) - len(inner[0].jaxpr.invars) :], expected, wanted, found)
        else:
            raise ValueError(f"a quantized operand inside {eqn.primitive.name} cannot be measured")
        if outputs is None or wanted <= found.keys():
            return None
        values.update(zip(eqn.outvars, outputs, strict=True))
    return [read(atom) for atom in jaxpr.outvars]


def _bind(eqn: Any, given: list[Any]) -> list[Any]:
    """The equation as it stands."""
    with eqn.ctx.manager:
        outputs = eqn.primitive.bind(*given, **eqn.primitive.get_bind_params(eqn.params))
    return list(outputs) if eqn.primitive.multiple_results else [outputs]


def _marked(closed: core.ClosedJaxpr, through_scans: bool = True) -> Tags:
    """The operands marked anywhere in a program; without `through_scans` those outside its scans."""
    tags = set()
    for eqn in closed.jaxpr.eqns:
        if eqn.primitive.name == "name" and eqn.params["name"].startswith(TAG):
            tags.add(eqn.params["name"].removeprefix(TAG))
        elif through_scans or eqn.primitive.name != "scan":
            tags.update(*(_marked(inner, through_scans) for inner in _inner_jaxprs(eqn.params)))
    return frozenset(tags)


def _scan(
    eqn: Any, given: list[Any], expected: Mapping[str, Grid], wanted: Tags, found: dict[str, dict[str, jax.Array]]
) -> list[Any]:
    """A loop with the statistics of its iterations beside its outputs. The innermost loop around an operand of the
    blocks is the one over layers, whose expected grids go along."""
    p = eqn.params
    consts, carry, sliced = _scan_parts(p, given)
    direct = _marked(p["jaxpr"], through_scans=False) & wanted
    by_layer = {tag: expected[tag] for tag in direct if jnp.ndim(expected[tag].on)}

    def body(carried: Any, here: Any) -> Any:
        inputs, grids = here
        inside: dict[str, dict[str, jax.Array]] = {}
        # More is wanted than there is, so that all of the body runs: iterations hand on what they carry.
        outputs = _run(p["jaxpr"], [*consts, *carried, *inputs], {**expected, **grids}, wanted | {""}, inside)
        assert outputs is not None
        return outputs[: len(carry)], (outputs[len(carry) :], inside)

    last, (stacked, inside) = lax.scan(body, carry, (sliced, by_layer), p["length"], p["reverse"], p["unroll"])
    found.update(inside)
    return [*last, *stacked]


def _scan_parts(params: Mapping[str, Any], given: list[Any]) -> list[list[Any]]:
    """A loop's operands: constants, what is carried, what is sliced."""
    if "ft_in" in params:  # since jax 0.11
        return [list(part) for part in params["ft_in"].update(given).unpack()]
    ends = params["num_consts"], params["num_consts"] + params["num_carry"]
    return [given[: ends[0]], given[ends[0] : ends[1]], given[ends[1] :]]


def _compare(tag: str, seen: Mapping[str, jax.Array], grid: Grid) -> dict[str, jax.Array]:
    """The statistics of one operand: its float32 values, their scales, and what leaves the quantizer (values, or codes
    for a native product)."""
    if not {ORIGINAL + tag, SCALES + tag} <= seen.keys():
        raise UserError(f"{tag} is marked as quantized, but its values and scales are not: nothing shows that it is")
    y, scales, value = seen[ORIGINAL + tag], seen[SCALES + tag], seen[TAG + tag]
    is_code = value.dtype.itemsize == 1
    codes = value.astype(jnp.float32) if is_code else value.astype(jnp.float32) / scales
    v = value.astype(jnp.float32) * (scales if is_code else 1.0)
    # In a narrow container a code is off by half a unit in its last place, and float32 errs in the division.
    resolution = 2.0**-8 if value.dtype == jnp.bfloat16 else 2.0**-20
    nearest = round_to_grid(codes, grid)
    far = jnp.abs(codes - nearest) > resolution * jnp.abs(nearest)
    on, low, high = grid.on > 0, grid.qmin * (1 + 1e-6), grid.qmax * (1 + 1e-6)
    return {
        "clipped": jnp.where(on, jnp.mean((y / scales > high) | (y / scales < low)), 0.0),
        "zeros": jnp.mean((v == 0) & (y != 0)),
        "mse": jnp.mean((v - y) ** 2),
        "power": jnp.mean(y**2),
        "off_grid": jnp.where(on, jnp.mean(far), 0.0),
        "largest": jnp.where(on, jnp.max(jnp.abs(codes)) / grid.qmax, 1.0),
    }
