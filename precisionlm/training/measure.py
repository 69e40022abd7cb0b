"""What quantization does to the values of one batch: the measured half of the audit."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from precisionlm.model.linear import operand_statistics, rotated
from precisionlm.precision.binding import Grids
from precisionlm.precision.formats import Grid
from precisionlm.precision.scaling import Scaling
from precisionlm.training.step import Program, State

Statistics = dict[str, dict[str, Any]]  # site.operand → statistic → scalar or one value a layer


def operand_values(program: Program, state: State, tokens_BT1: jax.Array, grids: Grids) -> Statistics:
    """Clipped, zeros, mse and power of every quantized operand on one batch (see `operand_statistics`).

    Output gradients are those of the mean loss; forward operands are sown by the layers.
    """
    return jax.device_get(jax.jit(partial(_measure, program))(state["params"], tokens_BT1, grids))


def _measure(program: Program, params: Any, tokens_BT1: jax.Array, grids: Grids) -> Statistics:
    transformer = program.transformer()
    tokens_BT = tokens_BT1[:, :-1]
    _, sown = transformer.apply({"params": params}, tokens_BT, grids, mutable="audit")
    found: Statistics = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(sown.get("audit", {})):
        *_, site, operand, _, statistic = ("", *(str(getattr(k, "key", "")) for k in path))
        name = operand if "." in operand else f"{site}.{operand}"
        found.setdefault(name, {})[statistic] = leaf
    gradient_operands = [entry for entry in program.structure.entries() if entry[1].endswith("_dy")]
    if not gradient_operands:
        return found
    dys = _output_gradients(program, params, tokens_BT1, grids)
    for site, operand, scaling in gradient_operands:
        axis = -1 if operand == "dgrad_dy" else tuple(range(tokens_BT.ndim))
        measure = partial(_statistics_of, axis, scaling)
        by_layer = measure if site == "head" else jax.vmap(measure)
        found[f"{site}.{operand}"] = by_layer(dys[site], grids[site][operand])
    return found


def _statistics_of(axis: Any, scaling: Scaling, dy: jax.Array, grid: Grid) -> dict[str, jax.Array]:
    return operand_statistics(rotated(dy, axis, scaling), axis, scaling, grid)


def _output_gradients(program: Program, params: Any, tokens_BT1: jax.Array, grids: Grids) -> dict[str, jax.Array]:
    """site → gradient of the mean loss by the output of that site's layer: [L, B, T, …], the head's [B, T, V]."""
    transformer = program.transformer()
    tokens_BT, targets_BT1 = tokens_BT1[:, :-1], tokens_BT1[:, 1:, None]
    shapes = jax.eval_shape(lambda: transformer.init(jax.random.key(0), tokens_BT, grids))["perturbations"]
    zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)

    def logits_of(perturbations):
        return transformer.apply({"params": params, "perturbations": perturbations}, tokens_BT, grids)

    def loss(logits_BTV):
        target_BT1 = jnp.take_along_axis(logits_BTV, targets_BT1, axis=-1)
        return jnp.mean(jax.nn.logsumexp(logits_BTV, axis=-1, keepdims=True) - target_BT1)

    logits_BTV, pull_back = jax.vjp(logits_of, zeros)
    dlogits_BTV = jax.grad(loss)(logits_BTV)
    leaves = jax.tree_util.tree_leaves_with_path(pull_back(dlogits_BTV)[0])
    return {str(path[-2].key): leaf for path, leaf in leaves} | {"head": dlogits_BTV.astype(program.dtype)}
