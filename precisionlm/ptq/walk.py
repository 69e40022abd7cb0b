"""From the first block to the last: every weight is quantized by what its block sees behind quantized ones."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial, reduce
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from precisionlm.precision.binding import Grids, PackedGrids, Structure
from precisionlm.precision.grid import Grid
from precisionlm.precision.recipe import BLOCK_LINEAR
from precisionlm.precision.scaling import Scaling
from precisionlm.ptq import awq, blocks
from precisionlm.ptq.gptq import gptq
from precisionlm.ptq.method import Method
from precisionlm.ptq.qep import corrected
from precisionlm.ptq.rtn import rotated, rounded
from precisionlm.ptq.scales import weight_scales
from precisionlm.training.evaluate import place
from precisionlm.training.step import Program

OnWeight = Callable[[int, str, jax.Array, jax.Array], None]
"""Layer, site, a weight's values [in, …] and their scales, of the same shape (of a rotated weight: before it is turned
back)."""


@dataclass(frozen=True)
class Quantized:
    """params: those of the model with its weights quantized. damping: largest one that a Hessian needed, a share of its
    mean diagonal; NaN where none was used. fallbacks: `layer.site` of the weights whose Hessian could not be used, so
    that they are rounded to nearest (gptq) or as they came (qep)."""

    params: Any
    damping: float
    fallbacks: tuple[str, ...]


@dataclass
class _Stream:
    """What goes through the blocks: every calibration batch behind the quantized ones, and behind the others."""

    quantized: list[jax.Array]
    original: list[jax.Array]


def quantize_blocks(
    program: Program,
    params: Any,
    batches: Sequence[np.ndarray],
    own_grids: Grids,
    structure: Structure,
    grids: Grids,
    method: Method,
    on_layer: Callable[[int], None] = lambda layer: None,
    on_weight: OnWeight | None = None,
) -> Quantized:
    """Quantize the weights of the blocks' linear layers by a method that calibrates.

    program, own_grids: the model with its weights as they are and everything else as it is evaluated; batches: tokens
    int32 [B, T] each; structure, grids: of the weights (`evaluate.bound_to`). on_layer is called before each block,
    on_weight after each weight.
    """
    layers, everywhere = program.model.layers, NamedSharding(program.mesh, P())
    x = [blocks.embedding(program)(params, place(tokens, program), own_grids) for tokens in batches]
    stream = _Stream(x, x)
    done, dampings = [], dict[str, jax.Array]()
    for number in range(layers):
        on_layer(number)
        original = jax.tree.map(lambda p, i=number: jax.device_put(p[i], everywhere), params["blocks"])
        own = blocks.of_layer(own_grids, layers, number)
        of_site = {
            site: (structure.site(site)["w"], jax.tree.map(lambda g, i=number: jnp.asarray(g[i]), grids[site]["w"]))
            for site in BLOCK_LINEAR
        }
        told = partial(on_weight, number) if on_weight else None
        layer, found = _quantize_block(program, original, stream, own, of_site, method, told)
        dampings |= {f"{number}.{site}": damping for site, damping in found.items()}
        done.append(layer)
        if number + 1 < layers:
            step = blocks.advance(program)
            before = stream.original
            stream.quantized = [step(layer, x, own) for x in stream.quantized]
            stream.original = [step(original, x, own) for x in before] if method.corrected else stream.quantized
    stacked = jax.tree.map(lambda old, *new: jax.device_put(jnp.stack(new), old.sharding), params["blocks"], *done)
    numbers = {name: np.asarray(values) for name, values in dampings.items()}
    return Quantized(
        params | {"blocks": stacked},
        max((float(v.max()) for v in numbers.values() if np.isfinite(v).all()), default=math.nan),
        tuple(name for name, v in numbers.items() if not np.isfinite(v).all()),
    )


def _quantize_block(
    program: Program,
    original: Any,
    stream: _Stream,
    own: PackedGrids,
    of_site: dict[str, tuple[Scaling, Grid]],
    method: Method,
    on_weight: Callable[[str, jax.Array, jax.Array], None] | None,
) -> tuple[Any, dict[str, jax.Array]]:
    """One block with its weights quantized, and the dampings of its sites."""
    layer, dampings = original, dict[str, jax.Array]()
    for sites in [(site,) for site in BLOCK_LINEAR] if method.sequential else [BLOCK_LINEAR]:
        seen = _seen(program, layer, original, stream, own, sites, method)
        used: dict[str, list[jax.Array]] = {site: [] for site in sites}
        for site in sites if method.corrected else ():
            w, damping = corrected(_flat(blocks.weight(layer, site)), seen[site]["hessian"], seen[site]["drift"])
            layer = blocks.with_weight(layer, site, w.reshape(blocks.weight(layer, site).shape))
            used[site].append(damping)
        for site in sites if method.name == "awq" else ():
            layer = _scaled(program, layer, stream, own, site, of_site[site], seen[site]["magnitude"], method)
        for site in sites:
            w, (scaling, grid) = blocks.weight(layer, site), of_site[site]
            before = w
            if method.name == "gptq":
                w, damping = _by_hessian(w, scaling, grid, method.searched, seen[site]["hessian"])
                used[site].append(damping)
            else:
                w = rounded(w, scaling, grid, method.searched)
            layer = blocks.with_weight(layer, site, w)
            if on_weight:
                on_weight(site, w, weight_scales(rotated(before, scaling), scaling, grid, method.searched))
        dampings |= {site: jnp.stack(values) for site, values in used.items() if values}
    return layer, dampings


def _seen(
    program: Program,
    layer: Any,
    original: Any,
    stream: _Stream,
    own: PackedGrids,
    sites: tuple[str, ...],
    method: Method,
) -> dict[str, blocks.Moments]:
    """site → the moments that the method asks for, means over all calibration tokens."""
    hessian = ("hessian",) if method.name == "gptq" or method.corrected else ()
    drift = ("drift",) if method.corrected else ()
    wanted = hessian + drift + (("magnitude",) if method.name == "awq" else ())
    step, pairs = blocks.observe(program, sites, wanted), zip(stream.quantized, stream.original, strict=True)
    sums = reduce(partial(jax.tree.map, jnp.add), (step(layer, x, original, before, own) for x, before in pairs))
    tokens = sum(x.shape[0] * x.shape[1] for x in stream.quantized)
    return jax.tree.map(lambda total: total / tokens, sums)


def _scaled(
    program: Program,
    layer: Any,
    stream: _Stream,
    own: PackedGrids,
    site: str,
    of_site: tuple[Scaling, Grid],
    magnitude_I: jax.Array,
    method: Method,
) -> Any:
    """The block with AWQ's best scales of one site folded in."""
    scaling, grid = of_site
    magnitude_I = awq.shared_magnitude(program.model, site, magnitude_I)
    enters = blocks.inputs_of(program, blocks.ENTERS[blocks.PART[site]])
    score = awq.errors(program, site, scaling, method.searched)
    found = sum(score(layer, enters(layer, x, own), magnitude_I, own, grid) for x in stream.quantized)
    ratio = awq.RATIOS[awq.best(np.asarray(found))]
    return awq.folded(program.model, layer, site, awq.channel_scales(magnitude_I, jnp.float32(ratio)))


def _by_hessian(
    w: jax.Array, scaling: Scaling, grid: Grid, searched: bool, hessian: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """A weight [in, …] by GPTQ, in the Hadamard blocks of its scaling (MR-GPTQ, arXiv:2509.23202); its damping."""
    turned, hessian = rotated(w, scaling), rotated(rotated(hessian, scaling), scaling, axis=1)
    scales = weight_scales(turned, scaling, grid, searched)
    found, damping = gptq(_flat(turned), _flat(scales), hessian, grid)
    return rotated(found.reshape(w.shape), scaling), damping


def _flat(w: jax.Array) -> jax.Array:
    return w.reshape(len(w), -1)
