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
from precisionlm.precision.formats import BF16
from precisionlm.precision.grid import Grid
from precisionlm.precision.native import with_code_dtypes
from precisionlm.precision.recipe import Quantization, Recipe
from precisionlm.precision.scaling import LEARNED, Parts, Scaling

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
    `unquantized` ones. execution: `simulated` or `native`. contracted_last: codes of native products are written with
    the axes at their end that the product contracts, which GPUs multiply at twice the speed; TPUs take any layout.
    """

    sites: tuple[tuple[str, tuple[tuple[str, Scaling], ...]], ...] = ()
    backward: str = "quantized"
    execution: str = "simulated"
    contracted_last: bool = True

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
    parts: Mapping[str, Parts] | None = None,
) -> tuple[Structure, Grids]:
    """Bind a recipe to a model of `layers` blocks.

    axis_sizes: site → operand → length of the axis that scales run along. platform: of the devices, which decides what
    has a native product. parts: site → the projections that its product computes together; in simulation each has
    scales of its own, as separate layers have, while a native product has one scale for what it contracts.
    Returns the structure and the grids: site → operand → Grid with a leading layer axis [L] for sites in the blocks,
    scalars for embed and head.
    Raises UserError where layers of one site differ in scale structure (they share one program), where a group, block
    or rotation does not fit, and for what has no native product.
    """
    sites: list[tuple[str, tuple[tuple[str, Scaling], ...]]] = []
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
        where = f"recipe '{recipe}': "
        for operand, scaling in bound.items():
            _check_fits(where, site, operand, bound, axis_sizes.get(site, {}))
            if scaling.clip in LEARNED and backward == "unquantized":
                raise UserError(f"{where}{scaling.clip} of {operand} needs precision.backward quantized")
        if execution == "native" and site not in ("attention", "embed"):
            bound = with_code_dtypes(where, site, operands, bound, backward, platform)
        elif parts and site in parts:
            bound = {operand: _with_parts(operand, scaling, parts[site]) for operand, scaling in bound.items()}
        if bound:
            sites.append((site, tuple(bound.items())))
    contracted_last = not (execution == "native" and platform == "tpu")
    return Structure(tuple(sites), backward, execution, contracted_last), grids_of(recipe, layers)


def grids_of(recipe: Recipe, layers: int) -> Grids:
    """site → operand → the grids of what is quantized somewhere: with a leading layer axis [L] for sites in the blocks,
    scalars for embed and head."""
    found: Grids = {}
    for site, operands in recipe.resolve(layers).items():
        for operand, cells in operands.items():
            if any(cells):
                found.setdefault(site, {})[operand] = _stack(cells, site in ("embed", "head"))
    return found


def _with_parts(operand: str, scaling: Scaling, parts: Parts) -> Scaling:
    """The scaling with scales for every projection, where one scale would reach over several."""
    along_features = operand in ("dgrad_dy", "dgrad_w") or (operand == "wgrad_dy" and scaling.per_token)
    shared = scaling.sharing == "tensor" or (scaling.sharing == "channel" and along_features)
    has_features = operand in ("w", "dgrad_w", "dgrad_dy", "wgrad_dy")
    return replace(scaling, parts=parts) if has_features and shared and scaling.clip not in LEARNED else scaling


_ROTATED_TOGETHER = {
    "a": "w",
    "w": "a",
    "dgrad_dy": "dgrad_w",
    "dgrad_w": "dgrad_dy",
    "wgrad_dy": "wgrad_x",
    "wgrad_x": "wgrad_dy",
}


def _turn(scaling: Scaling) -> tuple[int, bool]:
    return scaling.rotate, scaling.signs


def _check_fits(where: str, site: str, operand: str, bound: Mapping[str, Scaling], sizes: Mapping[str, int]) -> None:
    """Raises UserError where an operand's scaling does not fit the operand or its axis."""
    scaling, size = bound[operand], sizes.get(operand)
    if scaling.per_token:  # along the features of x or dy, as in the other products
        size = sizes.get({"wgrad_x": "a", "wgrad_dy": "dgrad_dy"}[operand])
    if scaling.rotate:
        if site in ("attention", "embed", "head") or (size is not None and size % scaling.rotate):
            raise UserError(
                f"{where}had{scaling.rotate} does not fit {operand} at '{site}' ({size} values); it rotates operands "
                "of linear layers in the blocks, in Hadamard blocks that divide them"
            )
        partner = _ROTATED_TOGETHER[operand]
        # An operand of the forward product that is not quantized rotates along.
        alone = partner not in bound and operand not in ("a", "w")
        if alone or (partner in bound and _turn(bound[partner]) != _turn(scaling)):
            raise UserError(
                f"{where}had{scaling.rotate} on {operand} at '{site}' needs the same on {partner}: both operands of a "
                "product rotate (W4A4-had64, P34=…, P56=…)"
            )
    if scaling.sharing == "group" and size is not None and size % scaling.group:
        raise UserError(f"{where}group size {scaling.group} does not divide the {size} values of {operand} at '{site}'")
    if scaling.sharing == "block":
        if operand not in ("w", "dgrad_w") or site == "embed":
            raise UserError(
                f"{where}b{scaling.group} on {operand} at '{site}': blocks of two dimensions are for weights of "
                "products"
            )
        for other in ("w", "dgrad_w"):
            length = sizes.get(other)
            if length is not None and length % scaling.group:
                raise UserError(f"{where}block size {scaling.group} does not divide the {length} rows of '{site}'")
    if scaling.trust and (site in ("attention", "embed", "head") or scaling.clip in LEARNED):
        raise UserError(
            f"{where}trust on {operand} at '{site}': it is for linear layers in the blocks, under fixed scales"
        )
    if scaling.clip in LEARNED:
        if (scaling.clip, operand) not in (("lsq", "w"), ("lwc", "w"), ("lac", "a")) or site in ("embed", "head"):
            raise UserError(
                f"{where}{scaling.clip} on {operand} at '{site}': lsq and lwc are for weights, lac for activations of "
                "linear layers in the blocks"
            )
        if scaling.stochastic or scaling.scale_type != "f32":
            raise UserError(f"{where}{scaling.clip} on {operand}: learned scales are f32 and round to nearest")


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


def leaks_future(structure: Structure) -> bool:
    """Whether a forward operand's scale is shared over time steps: per-tensor scales of activations or attention
    operands (Kumar et al. 2024), also NVFP4's second level, show earlier positions later ones. A table must say so."""
    return any(
        operand in ("a", "q", "k", "v", "p") and (scaling.sharing == "tensor" or scaling.scale_type == "e4m3")
        for _, operand, scaling in structure.entries()
    )
