"""A recipe bound to a model: the structure that a program is compiled for, and the grids that it is called with.

Two recipes with equal structures share one executable; only the grids differ.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from precisionlm.errors import UserError
from precisionlm.precision.formats import BF16, Grid
from precisionlm.precision.recipe import LINEAR_OPERANDS, Quantization, Recipe
from precisionlm.precision.scaling import LEARNED, Scaling

Grids = dict[str, dict[str, Grid]]


@partial(jax.tree_util.register_dataclass, data_fields=["numbers"], meta_fields=["tree"])
@dataclass(frozen=True)
class PackedGrids:
    """The grids of all sites in the blocks as one float32 array [L, K]: what a layer takes of them is then one slice,
    not seven for every operand."""

    numbers: jax.Array
    tree: Any

    def unpack(self) -> Grids:
        """The grids of one layer, from its numbers [K]."""
        return jax.tree.unflatten(self.tree, [self.numbers[i] for i in range(self.numbers.shape[0])])


def pack(grids: Grids, layers: int) -> PackedGrids:
    """Grids with a leading layer axis, packed."""
    leaves, tree = jax.tree.flatten(grids)
    return PackedGrids(jnp.stack(leaves, axis=1) if leaves else jnp.zeros((layers, 0), jnp.float32), tree)


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

    def trained(self) -> "Structure":
        """The part that adds parameters to a model: operands with learned scales. Equal for all other structures."""
        kept = [
            (site, tuple((operand, scaling) for operand, scaling in operands if scaling.clip in LEARNED))
            for site, operands in self.sites
        ]
        return Structure(tuple((site, operands) for site, operands in kept if operands))

    def entries(self) -> list[tuple[str, str, Scaling]]:
        """(site, operand, scaling) of everything quantized."""
        return [(site, operand, scaling) for site, operands in self.sites for operand, scaling in operands]


def bind(
    recipe: Recipe,
    layers: int,
    axis_sizes: Mapping[str, Mapping[str, int]],
    backward: str = "quantized",
    execution: str = "simulated",
    platform: str = "cpu",
) -> tuple[Structure, Grids]:
    """Bind a recipe to a model of `layers` blocks.

    axis_sizes: site → operand → length of the axis that scales run along. platform: of the devices, which decides what
    has a native product. Returns the structure and the grids: site → operand → Grid with a leading layer axis [L] for
    sites in the blocks, scalars for embed and head.
    Raises UserError where layers of one site differ in scale structure (they share one program), where a group, block
    or rotation does not fit, and for what has no native product.
    """
    sites: list[tuple[str, tuple[tuple[str, Scaling], ...]]] = []
    grids: Grids = {}
    for site, operands in recipe.resolve(layers).items():
        bound: dict[str, Scaling] = {}
        for operand, cells in operands.items():
            scalings = {q.scaling for q in cells if q}
            if not scalings:
                continue
            if len(scalings) > 1:
                raise UserError(
                    f"recipe '{recipe}': layers of '{site}' must share one scale structure; "
                    f"{operand} has {' and '.join(sorted(map(str, {q for q in cells if q})))}"
                )
            bound[operand] = scalings.pop()
            grids.setdefault(site, {})[operand] = _stack(cells, site in ("embed", "head"))
        where = f"recipe '{recipe}': "
        for operand, scaling in bound.items():
            _check_fits(where, site, operand, bound, axis_sizes.get(site, {}))
            if scaling.clip in LEARNED and backward == "unquantized":
                raise UserError(f"{where}{scaling.clip} of {operand} needs precision.backward quantized")
        if execution == "native" and site not in ("attention", "embed"):
            bound = native_codes(where, site, operands, bound, platform, backward)
        if bound:
            sites.append((site, tuple(bound.items())))
    return Structure(tuple(sites), backward, execution), grids


_ROTATED_TOGETHER = {"dgrad_dy": "dgrad_w", "dgrad_w": "dgrad_dy", "wgrad_dy": "wgrad_x", "wgrad_x": "wgrad_dy"}


def _check_fits(where: str, site: str, operand: str, bound: Mapping[str, Scaling], sizes: Mapping[str, int]) -> None:
    """Raises UserError where an operand's scaling does not fit the operand or its axis."""
    scaling, size = bound[operand], sizes.get(operand)
    if scaling.rotate:
        if site in ("attention", "embed", "head") or (size is not None and size % scaling.rotate):
            raise UserError(
                f"{where}had{scaling.rotate} does not fit {operand} at '{site}' ({size} values); it rotates operands "
                "of linear layers in the blocks, in Hadamard blocks that divide them"
            )
        partner = _ROTATED_TOGETHER.get(operand)
        if partner and (partner not in bound or bound[partner].rotate != scaling.rotate):
            raise UserError(
                f"{where}had{scaling.rotate} on {operand} at '{site}' needs the same on {partner}: both operands of a "
                "gradient product rotate (P34=…, P56=…)"
            )
    if scaling.sharing == "group" and size is not None and size % scaling.group:
        raise UserError(f"{where}group size {scaling.group} does not divide the {size} values of {operand} at '{site}'")
    if scaling.sharing == "block":
        if operand not in ("w", "dgrad_w") or site == "embed":
            raise UserError(f"{where}b{scaling.group}: blocks of two dimensions are for weights, not {operand}")
        for other in ("w", "dgrad_w"):
            length = sizes.get(other)
            if length is not None and length % scaling.group:
                raise UserError(f"{where}block size {scaling.group} does not divide the {length} rows of '{site}'")
    if scaling.clip in LEARNED:
        if (scaling.clip, operand) not in (("lsq", "w"), ("lac", "a")) or site in ("embed", "head"):
            raise UserError(
                f"{where}{scaling.clip} on {operand} at '{site}': lsq is for weights, lac for activations of linear "
                "layers in the blocks"
            )
        if scaling.stochastic or scaling.scale_type != "f32":
            raise UserError(f"{where}{scaling.clip} on {operand}: learned scales are f32 and round to nearest")


def native_codes(
    where: str,
    site: str,
    operands: Mapping[str, tuple[Quantization | None, ...]],
    bound: Mapping[str, Scaling],
    platform: str,
    backward: str = "quantized",
) -> dict[str, Scaling]:
    """The site's scalings with the dtype in which operands enter its native products: int4 (TPU) or int8 for integers,
    float8 for OCP floats (not on TPU), one scale a channel or tensor.

    A gradient product whose output gradient is not quantized runs in bf16. One whose other operand has no quantization
    of its own takes the forward pass's, if that has one scale a tensor. Raises UserError for what has no native
    product.
    """
    found: dict[str, str] = {}
    for operand in bound:
        here = f"{where}no native execution for {operand} at '{site}'"
        names = set()
        for cell in operands[operand]:
            if cell is None:
                raise UserError(f"{here}: some layers are bf16, and all layers share one program; use simulated")
            names.add(_code_dtype(cell))
            if cell.scaling.sharing not in ("channel", "tensor") or cell.scaling.clip in LEARNED or "" in names:
                raise UserError(
                    f"{here}: {cell}; native products take int2 to int8, e4m3fn and e5m2 per channel or tensor; use "
                    "simulated"
                )
        if len(names) > 1:
            raise UserError(f"{here}: layers mix {' and '.join(sorted(names))}; use simulated")
        found[operand] = names.pop()
    there = f"{where}no native execution at '{site}': "
    if found and not {"a", "w"} <= set(found):
        raise UserError(f"{there}weights and activations must both be quantized there")
    for dy, other, forward in (("dgrad_dy", "dgrad_w", "w"), ("wgrad_dy", "wgrad_x", "a")):
        reused = backward == "quantized" and forward in bound and bound[forward].sharing == "tensor"
        if dy in found and not (other in found or reused):
            raise UserError(
                f"{there}{dy} meets {forward}, whose scales run along another axis than this product; give {other} a "
                f"quantization of its own (P{_NUMBER[other]}=…), or {forward} one scale a tensor"
            )
        if other in found and dy not in found:
            raise UserError(f"{there}{other} is quantized but {dy} is not; give both or neither")
    for left, right, source in (("a", "w", "w"), ("dgrad_dy", "dgrad_w", "w"), ("wgrad_dy", "wgrad_x", "a")):
        if found.get(left) == found.get(right, found.get(source)) == "float8_e5m2":
            raise UserError(f"{there}{left} and {right} are both e5m2, which chips do not multiply; make one e4m3fn")
    if len({dtype.startswith("int") for dtype in found.values()}) > 1:
        raise UserError(f"{there}operands mix integers and floats")
    if platform == "tpu" and any(dtype.startswith("float8") for dtype in found.values()):
        raise UserError(f"{there}these TPUs have no float8 products; use simulated")
    narrow = platform == "tpu" and all(q.format.bits <= 4 for cells in operands.values() for q in cells if q)
    dtypes = {operand: "int4" if narrow and dtype == "int8" else dtype for operand, dtype in found.items()}
    return {operand: replace(scaling, codes=dtypes[operand]) for operand, scaling in bound.items()}


_NUMBER = {operand: i + 1 for i, operand in enumerate(LINEAR_OPERANDS)}  # Sun et al. 2025


def _code_dtype(quantization: Quantization) -> str:
    """The dtype that holds all values of a format; empty if there is none that chips multiply."""
    fmt = quantization.format
    if fmt.kind == "int":
        return "int8" if fmt.bits <= 8 else ""
    return {"e4m3fn": "float8_e4m3fn", "mxfp8": "float8_e4m3fn", "e5m2": "float8_e5m2"}.get(fmt.name, "")


def blank_grids(structure: Structure, layers: int) -> Grids:
    """Grids of a structure with no numbers in them, for tracing shapes."""
    grids: Grids = {}
    for site, operand, _ in structure.entries():
        shape = () if site in ("embed", "head") else (layers,)
        blank = jax.tree.map(lambda _, shape=shape: np.ones(shape, np.float32), BF16.grid())
        grids.setdefault(site, {})[operand] = blank
    return grids


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
        f"{name}_group": float(scaling.group) if scaling and scaling.group else float("inf"),
        f"{name}_scale_type": scaling.scale_type if scaling else "none",
    }


def leaks_future(structure: Structure) -> bool:
    """Whether a forward operand's scale is shared over time steps: per-tensor scales of activations or attention
    operands (Kumar et al. 2024), also NVFP4's second level, show earlier positions later ones. A table must say so."""
    return any(
        operand in ("a", "q", "k", "v", "p") and (scaling.sharing == "tensor" or scaling.scale_type == "e4m3")
        for _, operand, scaling in structure.entries()
    )
