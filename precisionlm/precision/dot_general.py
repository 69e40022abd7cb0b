"""Recipe → AQT dot-general. The only file that imports aqt.

AQT's DotGeneral carries the three products of a linear layer (forward, input gradient, weight gradient) and the custom
gradient. Its quantizer is ours (`GridQuantizer`): values go through traced grids in float32 and come back dequantized
in the compute dtype before each product, so every format of one scale structure runs in one executable.

Execution `native` runs the products of linear layers whose operands are quantized on codes, int8 or int4 → int32 or
fp8 → the compute dtype, with the scales applied to the output; a gradient product whose output gradient is not
quantized takes the forward pass's codes back in the compute dtype. It differs from `simulated` by the rounding of
output and scales to the compute dtype.

Straight-through estimator: gradients pass the rounding unchanged, and the gradient products use the forward pass's
quantized operands (`Structure.backward`). An operand of a gradient product with a quantization of its own (Sun et al.
2025: P3…P6) is quantized from its unquantized value along the axis that this product contracts.
"""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from aqt.jax.v2 import aqt_dot_general, aqt_tensor, config, utils
from jax import lax
from jax.ad_checkpoint import checkpoint_name
from jax.experimental.layout import Layout, with_layout_constraint

from precisionlm.precision.binding import Structure
from precisionlm.precision.formats import Grid, round_to_grid
from precisionlm.precision.scaling import LEARNED, Scaling, scale_of

_GRADIENT_OPERANDS = ("dgrad_dy", "dgrad_w", "wgrad_dy", "wgrad_x")
PRODUCT_TAG = "product"  # a native product under its scales, for remat policies: its codes' product is twice as large
TAG = "quantized:"  # prefix of the names that mark quantized values in a program, for audit.py and remat policies


def quantize(
    x: jax.Array,
    axis: int | tuple[int, ...],
    scaling: Scaling,
    grid: Grid,
    key: jax.Array | None = None,
    magnitude: jax.Array | None = None,
) -> jax.Array:
    """x rounded to the grid under its scales, in x's dtype; no gradient rule.

    Arithmetic is float32: q = round(x * (1 / s)), result q * s. axis: who shares a channel or group scale (groups run
    along the last of several axes). key: for stochastic rounding. magnitude: what maps to the largest value, one a
    sharer, where known (`scaling.magnitude_of`).
    """
    y = _values(x, magnitude)
    q, scale = _codes(y, axis, scaling, grid, key, magnitude)
    return jnp.where(grid.on > 0, q * scale, y).astype(x.dtype)


def _values(x: jax.Array, magnitude: jax.Array | None) -> jax.Array:
    """x in float32, for one pass over it if its magnitude is known, else for two."""
    if x.dtype != jnp.bfloat16:
        return x.astype(jnp.float32)
    if magnitude is None:
        # The barrier makes both passes read the bf16 values from memory; without it compilers hand on the float32 that
        # x was computed in, twice the bytes and not the values that x has.
        x = lax.optimization_barrier(x)
    return lax.reduce_precision(x.astype(jnp.float32), exponent_bits=8, mantissa_bits=7)


def _codes(y, axis, scaling, grid, key, magnitude, last=()):
    """(values of the grid, scales), float32. last: axes that a product of codes contracts. Rounding sees them at the
    end, so that the codes are written in that layout by the pass that makes them."""
    scale = scale_of(y, axis, scaling, grid, magnitude)
    order = _order(y.ndim, last)
    noise = jax.random.uniform(key, y.shape).transpose(order) if scaling.stochastic and key is not None else None
    q = round_to_grid((y * (1.0 / scale)).transpose(order), grid, noise)
    return q.transpose(np.argsort(order)), scale


def _order(rank: int, last: tuple[int, ...]) -> tuple[int, ...]:
    """The order of axes with some at the end."""
    return (*(i for i in range(rank) if i not in last), *last)


@partial(jax.custom_vjp, nondiff_argnums=(1, 2, 3))
def _straight_through(x, axis, scaling, tag, grid, key):
    return checkpoint_name(quantize(x, axis, scaling, grid, key), tag)


def _straight_through_fwd(x, axis, scaling, tag, grid, key):
    return _straight_through(x, axis, scaling, tag, grid, key), None


def _straight_through_bwd(axis, scaling, tag, residual, dy):
    return dy, None, None


_straight_through.defvjp(_straight_through_fwd, _straight_through_bwd)


def block_hadamard(x: jax.Array, axis: int, size: int) -> jax.Array:
    """x times an orthonormal Hadamard matrix in blocks of `size` (a power of two) along an axis; its own inverse.

    Rotating both operands of a product along the contracted axis leaves the product as it is and spreads outliers.
    """
    axis %= x.ndim
    blocks = x.reshape(*x.shape[:axis], -1, size, *x.shape[axis + 1 :])
    matrix = np.ones((1, 1))
    while len(matrix) < size:
        matrix = np.block([[matrix, matrix], [matrix, -matrix]])
    rotated = jnp.tensordot(blocks, jnp.asarray(matrix * size**-0.5, x.dtype), axes=(axis + 1, 0))
    return jnp.moveaxis(rotated, -1, axis + 1).reshape(x.shape)


def fake_quantize(
    x: jax.Array, axis: int, scaling: Scaling, grid: Grid, tag: str, key: jax.Array | None = None
) -> jax.Array:
    """`quantize` with the straight-through gradient; `tag` (site.operand) marks the value for the audit."""
    return _straight_through(x, axis, scaling, TAG + tag, grid, key)


@utils.flax_slots_kw_only_dataclass
class GridQuantizer(aqt_dot_general.DotGeneralQuantizer):
    """AQT's quantizer of one product's two operands. lhs, rhs: (tag, scaling) or None for an unquantized operand.
    rhs_master: rhs in float32, to quantize from, where rhs is a copy of it in a shorter dtype. lhs_magnitude: max|lhs|
    along its contracted axis, where known. rhs_axis: along which the scales of rhs run, if not the contracted one.
    dtype: in which operands enter the product, if not their own. rotate: size of Hadamard blocks of both operands along
    the contracted axis. Where `scaling.codes` names a dtype, codes and scales are handed on, not dequantized values."""

    lhs: Any = utils.static_field(default=None)
    rhs: Any = utils.static_field(default=None)
    lhs_grid: Any = utils.dynamic_field(default=None)
    rhs_grid: Any = utils.dynamic_field(default=None)
    rhs_master: Any = utils.dynamic_field(default=None)
    lhs_magnitude: Any = utils.dynamic_field(default=None)
    rhs_axis: Any = utils.static_field(default=None)
    dtype: Any = utils.static_field(default=None)
    rotate: int = utils.static_field(default=0)
    key: Any = utils.dynamic_field(default=None)

    def init_calibration(self):
        """Nothing to learn: scales come from the values."""

    def calibrate(self, lhs, rhs, dimension_numbers, lhs_mode, rhs_mode):
        (lhs_axes, rhs_axes), _ = dimension_numbers
        if self.rhs_axis is not None:
            rhs_axes = (self.rhs_axis,)
        keys = jax.random.split(self.key) if self.key is not None else (None, None)
        master = self.rhs_master
        if self.rotate:
            lhs, rhs = (block_hadamard(x, a[-1], self.rotate) for x, a in ((lhs, lhs_axes), (rhs, rhs_axes)))
            master = None if master is None else block_hadamard(master, rhs_axes[-1], self.rotate)
        tensor = partial(_operand_tensor, dtype=self.dtype)
        return (
            (lhs, tensor(lhs, lhs_axes, self.lhs, self.lhs_grid, keys[0], magnitude=self.lhs_magnitude)),
            (rhs, tensor(rhs, rhs_axes, self.rhs, self.rhs_grid, keys[1], master=master)),
        )

    def calculate_qvalue(self, lhs, lhs_qt, rhs, rhs_qt):
        return (lhs_qt, None), (rhs_qt, None)

    def swap_lhs_and_rhs(self):
        self.lhs, self.rhs = self.rhs, self.lhs
        self.lhs_grid, self.rhs_grid = self.rhs_grid, self.lhs_grid

    def assert_calib_shared_axes_value(self, lhs_val, rhs_val, msg):
        """Axes come with each product."""

    def set_context(self, lhs_context, rhs_context):
        self.key = lhs_context.key


def _operand_tensor(x, axes, operand, grid, key, master=None, magnitude=None, dtype=None):
    """x as AQT's QTensor. In simulation it holds dequantized values under a scale of one: AQT then multiplies by exact
    ones only, and may reuse the value in the gradient products whatever the number and shape of the real scales. For a
    native product it holds codes under their scale, and AQT scales the output."""
    x = x.astype(dtype or x.dtype)
    value, scale = x, jnp.ones((1,) * x.ndim, x.dtype)
    if operand is not None:
        tag, scaling = operand
        precise = x if master is None else master
        if scaling.codes:
            y, axes = _values(precise, magnitude), tuple(axes)
            codes, scale = _codes(y, axes, scaling, grid, key, magnitude, last=axes)
            # AQT multiplies int4 as int8 where the host is a CPU, also when it compiles for a TPU: `_product` narrows.
            codes = codes.astype("int8" if scaling.codes == "int4" else scaling.codes)
            value = checkpoint_name(codes, TAG + tag)
        else:
            quantized = quantize(precise, tuple(axes), scaling, grid, key, magnitude)
            value = checkpoint_name(quantized.astype(x.dtype), TAG + tag)
    return aqt_tensor.QTensor(qvalue=value, scale=[scale], scale_t=None, bias=[], dequant_dtype=x.dtype)


def dot_general(
    structure: Structure,
    site: str,
    grids: Mapping[str, Grid] | None,
    key: jax.Array | None = None,
    master: jax.Array | None = None,
    magnitude: jax.Array | None = None,
    operands: tuple[str, str] = ("a", "w"),
    rhs_axis: int | None = None,
) -> Callable[..., jax.Array]:
    """A drop-in for `jax.lax.dot_general` with the site's operands quantized, in the product and its gradients.

    operands: the recipe's names of lhs and rhs. grids: operand → Grid of this layer. key: for stochastic rounding, new
    every step and layer. master: the float32 weights of which rhs is the copy in the compute dtype; weights are then
    quantized from them, which is more exact and costs no pass over the copy. magnitude: max|lhs| along the contracted
    axis, where its producer knows it. rhs_axis: along which scales of rhs run, if not the contracted axis.
    """
    # Operands with learned scales come quantized (`precision.learned`).
    scaled = {o: (f"{site}.{o}", s) for o, s in structure.site(site).items() if s.clip not in LEARNED}
    grid = dict(grids or {})
    left, right = operands
    if not any(name in scaled for name in (*operands, *_GRADIENT_OPERANDS)):
        return lax.dot_general
    reuse = structure.backward == "quantized"

    def codes(lhs: str, rhs: str) -> tuple[str, str]:
        left, right = (scaled[o][1].codes if o in scaled else "" for o in (lhs, rhs))
        return left, right

    def quantizer(lhs: str, rhs: str, salt: int, dtype: Any) -> GridQuantizer:
        stochastic = any(o in scaled and scaled[o][1].stochastic for o in (lhs, rhs))
        return GridQuantizer(
            lhs=scaled.get(lhs),
            rhs=scaled.get(rhs),
            lhs_grid=grid.get(lhs),
            rhs_grid=grid.get(rhs),
            lhs_magnitude=magnitude if lhs == left and lhs in scaled else None,
            rhs_master=master if rhs in (right, "dgrad_w") and rhs in scaled else None,
            rhs_axis=rhs_axis if rhs == right else None,
            rotate=scaled[lhs][1].rotate if lhs in scaled and lhs != left else 0,
            dtype=dtype,
            key=jax.random.fold_in(key, salt) if stochastic and key is not None else None,
        )

    def configuration(dtype: Any, result: Any, compute: Any) -> Any:
        aqt = config.default_unquantized_config()
        # A native gradient product makes the forward pass's codes again, in its own layout: one scale a tensor, so
        # they are the same ones.
        dgrad_w = right if codes("dgrad_dy", right)[0] and "dgrad_w" not in scaled else "dgrad_w"
        wgrad_x = left if codes("wgrad_dy", left)[0] and "wgrad_x" not in scaled else "wgrad_x"
        products = ((aqt.fwd, left, right), (aqt.dlhs, "dgrad_dy", dgrad_w), (aqt.drhs, "wgrad_dy", wgrad_x))
        for salt, (raw, lhs, rhs) in enumerate(products):
            raw.dg_quantizer = quantizer(lhs, rhs, salt, dtype)
            if any(native := codes(lhs, rhs)):
                raw.lhs.dequant_mode = raw.rhs.dequant_mode = config.DequantMode.OUTPUT
                raw.dg_accumulator_dtype = jnp.int32 if native[0].startswith("int") else None
                raw.dot_general = partial(_native_product, codes=native, result=compute)
            else:
                raw.lhs.dequant_mode = raw.rhs.dequant_mode = config.DequantMode.THIS_INPUT
                raw.dot_general = partial(_product, result=result)
        aqt.dlhs.rhs.use_fwd_quant = reuse and right in scaled and dgrad_w not in scaled
        aqt.drhs.rhs.use_fwd_quant = reuse and left in scaled and wgrad_x not in scaled
        return aqt

    def product(lhs, rhs, dimension_numbers, precision=None, preferred_element_type=None):
        # AQT's output has the dtype of its inputs: for a wider one they enter wider, and the products take them back.
        result = preferred_element_type or lhs.dtype
        wider = result != lhs.dtype
        aqt = configuration(lhs.dtype if wider else None, result if wider else None, lhs.dtype)
        # Outside a trace AQT promotes concrete arrays as dtypes, which jax deprecates.
        run = jax.jit(lambda lhs, rhs: aqt(lhs, rhs, dimension_numbers))
        product = run(lhs.astype(result), rhs.astype(result))
        return checkpoint_name(product, PRODUCT_TAG) if any(codes(left, right)) else product

    return product


def _product(lhs, rhs, dimension_numbers, preferred_element_type=None, precision=None, result=None):
    # AQT asks for DEFAULT precision, which truncates float32 operands to bf16 on TPU.
    precision = lax.Precision.HIGHEST if lhs.dtype == jnp.float32 else lax.Precision.DEFAULT
    return lax.dot_general(lhs, rhs, dimension_numbers, precision, preferred_element_type or result)


def _native_product(lhs, rhs, dimension_numbers, preferred_element_type=None, precision=None, codes=(), result=None):
    """The product of codes, both contracted on their last axes: GPUs run it at twice the speed of other layouts."""
    (lhs_axes, rhs_axes), _ = dimension_numbers
    lhs, rhs = _contracted_last(lhs.astype(codes[0]), lhs_axes), _contracted_last(rhs.astype(codes[1]), rhs_axes)
    lhs_last, rhs_last = (tuple(range(x.ndim - len(lhs_axes), x.ndim)) for x in (lhs, rhs))
    dimensions = ((lhs_last, rhs_last), ((), ()))
    return lax.dot_general(lhs, rhs, dimensions, preferred_element_type=preferred_element_type or result)


def _contracted_last(x: jax.Array, axes: tuple[int, ...]) -> jax.Array:
    """x with these axes moved to its end, in memory too: without the constraint compilers choose another layout there,
    without the barrier they fold the move into the product."""
    x = x.transpose(_order(x.ndim, axes))
    return lax.optimization_barrier(with_layout_constraint(x, Layout(tuple(range(x.ndim)))))
