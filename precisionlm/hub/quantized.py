"""The quantized weights of a model as compressed-tensors has them: every linear layer's tensors, and the groups of
`config.json` that say which layer is in which layout."""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from precisionlm.config import ModelConfig
from precisionlm.errors import UserError
from precisionlm.hub.layouts import Layout, layout_of, pack, tensor_scale
from precisionlm.hub.names import PROJECTIONS, linear, split
from precisionlm.precision.binding import Grids, Structure
from precisionlm.precision.grid import Grid, round_to_grid
from precisionlm.precision.learned import kept_extent, weights_extent
from precisionlm.precision.quantize import fake_quantize, quantize
from precisionlm.precision.recipe import BLOCK_LINEAR, Quantization, Recipe
from precisionlm.precision.scales import scale_of
from precisionlm.precision.scaling import Scaling
from precisionlm.ptq.blocks import PART
from precisionlm.training.run import Run

_MOST_REPEATS = 4  # in a pattern for names of layers
Cells = dict[tuple[int, str], Quantization | None]  # layer, site → what a weight or an activation gets


@dataclass(frozen=True)
class Scheme:
    """How one linear layer is quantized. activations: by the reader as it computes, as a config group has it."""

    layout: Layout
    activations: dict[str, Any] | None


def cells_of(recipe: Recipe, layers: int, operand: str) -> Cells:
    """What a recipe gives an operand of the blocks' linear layers."""
    table = recipe.resolve(layers)
    return {(layer, site): table[site][operand][layer] for site in BLOCK_LINEAR for layer in range(layers)}


def schemes_of(weights: Cells, activations: Cells, short: bool) -> dict[tuple[int, str], Scheme]:
    """layer, site → how its weight is stored; those that are not quantized are absent. short: scales that are bfloat16
    numbers are stored as such, in which readers then multiply. Raises UserError for a format without a layout."""
    found = {}
    for cell, quantization in weights.items():
        if quantization is not None:
            dynamic = dynamic_activations(activations.get(cell))
            int8 = dynamic is not None and dynamic["type"] == "int"
            layout = layout_of(quantization, int8)
            found[cell] = Scheme(replace(layout, short=layout.short and short), dynamic)
    return found


def dynamic_activations(quantization: Quantization | None) -> dict[str, Any] | None:
    """Activations that readers quantize too: int8 and FP8 with a scale a token. None for all others."""
    if quantization is None or replace(quantization.scaling, stochastic=False, code_dtype="", trust=False) != Scaling():
        return None
    kind = {"int8": "int", "e4m3fn": "float"}.get(quantization.format.name)
    shared = {"num_bits": 8, "symmetric": True, "strategy": "token", "dynamic": True}
    return None if kind is None else {"type": kind} | shared


def packed(model: ModelConfig, layer: int, site: str, layout: Layout, values: Any, scales: Any) -> dict[str, Any]:
    """name → tensor of one site's linear layers. values: codes times scales, both [in, …], float32."""
    values, scales = np.asarray(values), np.broadcast_to(np.asarray(scales), np.shape(values))
    upper = tensor_scale(scales) if layout.format == "nvfp4-pack-quantized" else None
    parts = zip(split(model, site, values).items(), split(model, site, scales).values(), strict=True)
    return {
        f"{linear(layer, projection)}.{name}": tensor
        for (projection, own), own_scales in parts
        for name, tensor in pack(layout, own, own_scales, upper).items()
    }


def trained_weights(run: Run, params: Any) -> Iterator[tuple[int, str, jax.Array, jax.Array]]:
    """(layer, site, values, scales) of every weight that the run's own recipe quantizes, as its forward pass has it."""
    structure = run.program.structure
    for site in BLOCK_LINEAR:
        scaling, own = structure.site(site).get("w"), params["blocks"][PART[site]][site]
        if scaling is None:
            continue
        for layer, w in enumerate(own["w"]):
            grid: Grid = jax.tree.map(lambda g, i=layer: jnp.asarray(g[i]), run.grids[site]["w"])
            learned = own["w_clip"][layer] if scaling.clip in ("lsq", "lwc") else None
            if float(grid.on) > 0:
                yield layer, site, *rounded(w, learned, scaling, grid)


@partial(jax.jit, static_argnames=("scaling",))
def rounded(w: jax.Array, learned: jax.Array | None, scaling: Scaling, grid: Grid) -> tuple[jax.Array, jax.Array]:
    """(values, scales) of a weight [in, …] under a recipe's scaling, under those that are trained
    (`precision.learned`) where there are any."""
    y, extent = w.astype(jnp.float32), None
    if learned is not None:
        extent = weights_extent(learned) if scaling.clip == "lsq" else kept_extent(y, 0, scaling, grid, learned)
    scales = jnp.broadcast_to(scale_of(y, 0, scaling, grid, extent), y.shape)
    return round_to_grid(y * (1.0 / scales), grid) * scales, scales


def with_rounded_ends(structure: Structure, grids: Grids, params: Any, tied: bool) -> Any:
    """Parameters whose embedding and head hold the values that the recipe rounds them to: files have no layout for
    them. Raises UserError where both are one matrix."""
    embed, head = structure.site("embed").get("w"), structure.site("head").get("w")
    if tied and (embed or head):
        raise UserError(
            "the recipe quantizes an embedding and a head that are one matrix (model.tie_embeddings), each in its own "
            "way; that cannot be exported"
        )
    if embed:
        rows = fake_quantize(params["embedding"], -1, embed, grids["embed"]["w"], "embed.w")
        params = params | {"embedding": rows}
    if head:
        params = params | {"head": quantize(params["head"], 0, head, grids["head"]["w"])}
    return params


def quantization_config(model: ModelConfig, schemes: Mapping[tuple[int, str], Scheme]) -> dict[str, Any]:
    """`quantization_config` of config.json: a group a scheme, over all linear layers where there is one for all."""
    groups: list[tuple[Scheme, list[tuple[int, str]]]] = []
    for cell, scheme in schemes.items():
        own = next((cells for other, cells in groups if other == scheme), None)
        if own is None:
            groups.append((scheme, own := []))
        own.append(cell)
    plain = [(layer, site) for site in BLOCK_LINEAR for layer in range(model.layers) if (layer, site) not in schemes]
    whole = len(groups) == 1 and not plain
    formats = list(dict.fromkeys(scheme.layout.format for scheme, _ in groups))
    config_groups = {
        f"group_{i}": {
            "targets": ["Linear"] if whole else _targets(model, cells),
            "weights": scheme.layout.scheme,
            **({"input_activations": scheme.activations} if scheme.activations else {}),
            "format": scheme.layout.format,
        }
        for i, (scheme, cells) in enumerate(groups)
    }
    return {
        "quant_method": "compressed-tensors",
        "format": formats[0] if len(formats) == 1 else "mixed-precision",
        "quantization_status": "compressed",
        "ignore": ["lm_head", *(_targets(model, plain) if plain else ())],
        "config_groups": config_groups,
    }


def _targets(model: ModelConfig, cells: list[tuple[int, str]]) -> list[str]:
    """Patterns of the linear layers of cells, and of no others."""
    found = []
    for site in BLOCK_LINEAR:
        layers = [layer for layer, other in cells if other == site]
        if not layers:
            continue
        number = r"\d+" if len(layers) == model.layers else f"({'|'.join(map(str, layers))})"
        found += [rf"re:.*layers\.{number}\.{re.escape(projection)}$" for projection in PROJECTIONS[site]]
    return found


def _pattern(text: str) -> "re.Pattern[str]":
    """A pattern from a file that others wrote. Raises UserError for what could be matched for hours."""
    if len(re.findall(r"[*+{]", text)) > _MOST_REPEATS or re.search(r"\)[*+{]", text):
        raise UserError(f"the target 're:{text}' is not read here: it repeats groups, or too much")
    return re.compile(text)


def group_of(config: Mapping[str, Any], name: str) -> dict[str, Any] | None:
    """The config group of a linear layer by its name; None for one that is not quantized."""

    def hit(target: str) -> bool:
        if target.startswith("re:"):
            return _pattern(target[3:]).match(name) is not None
        return target == name or name.endswith(f".{target}") or target == "Linear"

    if any(hit(target) for target in config.get("ignore") or () if target != "Linear"):
        return None
    return next(
        (g for g in (config.get("config_groups") or {}).values() if any(map(hit, g.get("targets") or ()))), None
    )
