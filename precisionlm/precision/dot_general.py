"""Recipe → AQT dot-general. The only file that imports aqt.

AQT's DotGeneral carries the three products of a linear layer (forward, input gradient, weight gradient) and the custom
gradient. Its quantizer is ours (`GridQuantizer`): values go through traced grids in float32 and come back dequantized
in the compute dtype before each product, so every format of one scale structure runs in one executable. Which value an
operand takes is the table in `precision.products`.

Execution `native` runs the products of linear layers whose operands are quantized on codes, int8 or int4 → int32 or
fp8 → the compute dtype, with the scales applied to the output; a gradient product whose output gradient is not
quantized takes the forward pass's codes back in the compute dtype. It differs from `simulated` by the rounding of
output and scales to the compute dtype.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from aqt.jax.v2 import aqt_dot_general, aqt_tensor, config, utils
from jax import lax
from jax.ad_checkpoint import checkpoint_name
from jax.experimental.layout import Layout, with_layout_constraint

from precisionlm.precision.binding import Structure
from precisionlm.precision.grid import Grid
from precisionlm.precision.products import Product, Source, products
from precisionlm.precision.quantize import (
    TAG,
    axes_last,
    block_hadamard,
    codes_of,
    named,
    operand_key,
    quantize,
    values_of,
)
from precisionlm.precision.scaling import LEARNED, Scaling

PRODUCT_TAG = "product"  # a native product under its scales, for remat policies: its codes' product is twice as large


@partial(
    jax.tree_util.register_dataclass,
    data_fields=["grid", "key", "original", "extent"],
    meta_fields=["tag", "scaling", "axis"],
)
@dataclass(frozen=True)
class Operand:
    """How one operand of a product is quantized. tag: site.operand; scaling: of the recipe; axis: along which scales
    run, if not the contracted one. grid: of this layer; key: for stochastic rounding; original: what it is quantized
    from where the value at hand is a copy in a shorter dtype, or quantized already; extent: what maps to the largest
    value, one a sharer, where known."""

    tag: str
    scaling: Scaling
    axis: int | None
    grid: Grid
    key: jax.Array | None
    original: jax.Array | None
    extent: jax.Array | None


@utils.flax_slots_kw_only_dataclass
class GridQuantizer(aqt_dot_general.DotGeneralQuantizer):
    """AQT's quantizer of one product's two operands, each None where it stays as it is. dtype: in which operands enter
    the product, if not their own. rotate, signs: Hadamard blocks of both along the contracted axis. Where
    `scaling.code_dtype` names a dtype, codes and scales are handed on, not dequantized values, laid out as
    `Structure.contracted_last` says."""

    lhs: Any = utils.dynamic_field(default=None)
    rhs: Any = utils.dynamic_field(default=None)
    dtype: Any = utils.static_field(default=None)
    rotate: int = utils.static_field(default=0)
    signs: bool = utils.static_field(default=False)
    contracted_last: bool = utils.static_field(default=True)

    def init_calibration(self):
        """Nothing to learn: scales come from the values."""

    def calibrate(self, lhs, rhs, dimension_numbers, lhs_mode, rhs_mode):
        (lhs_axes, rhs_axes), _ = dimension_numbers
        tensor = partial(
            _operand_tensor,
            dtype=self.dtype,
            rotate=self.rotate,
            signs=self.signs,
            contracted_last=self.contracted_last,
        )
        return (lhs, tensor(lhs, lhs_axes, self.lhs)), (rhs, tensor(rhs, rhs_axes, self.rhs))

    def calculate_qvalue(self, lhs, lhs_qt, rhs, rhs_qt):
        return (lhs_qt, None), (rhs_qt, None)

    def swap_lhs_and_rhs(self):
        self.lhs, self.rhs = self.rhs, self.lhs

    def assert_calib_shared_axes_value(self, lhs_val, rhs_val, msg):
        """Axes come with each product."""

    def set_context(self, lhs_context, rhs_context):
        """Keys come with each operand."""


def _operand_tensor(x, axes, operand, dtype, rotate, signs, contracted_last):
    """x as AQT's QTensor. In simulation it holds dequantized values under a scale of one: AQT then multiplies by exact
    ones only, and may reuse the value in the gradient products whatever the number and shape of the real scales. For a
    native product it holds codes under their scale, and AQT scales the output."""
    turned = partial(block_hadamard, axis=axes[-1], size=rotate, signs=signs) if rotate else lambda x: x
    x = turned(x).astype(dtype or x.dtype)
    value, scale = x, jnp.ones((1,) * x.ndim, x.dtype)
    if operand is not None:
        precise = x if operand.original is None else turned(operand.original)
        axes = tuple(axes) if operand.axis is None else (operand.axis,)
        if operand.scaling.per_token:
            axes = tuple(i for i in range(x.ndim) if i not in axes)
        scaling, grid, key, tag = operand.scaling, operand.grid, operand.key, operand.tag
        if scaling.code_dtype:
            y = values_of(precise, operand.extent, tag)
            last = axes if contracted_last else ()
            codes, scale = codes_of(y, axes, scaling, grid, key, operand.extent, tag, last)
            # AQT multiplies int4 as int8 where the host is a CPU, also when it compiles for a TPU: `_product` narrows.
            value = named(codes.astype("int8" if scaling.code_dtype == "int4" else scaling.code_dtype), TAG, tag)
        else:
            value = quantize(precise, axes, scaling, grid, key, operand.extent, tag, x.dtype)
    return aqt_tensor.QTensor(qvalue=value, scale=[scale], scale_t=None, bias=[], dequant_dtype=x.dtype)


def dot_general(
    structure: Structure,
    site: str,
    grids: Mapping[str, Grid] | None,
    key: jax.Array | None = None,
    originals: Mapping[str, jax.Array] | None = None,
    extent: jax.Array | None = None,
    operands: tuple[str, str] = ("a", "w"),
    rhs_axis: int | None = None,
) -> Callable[..., jax.Array]:
    """A drop-in for `jax.lax.dot_general` with the site's operands quantized, in the product and its gradients.

    operands: the recipe's names of lhs and rhs. grids: operand → Grid of this layer. key: for stochastic rounding, new
    every step and layer. originals: operand → the values to quantize from where those at hand are a copy in the compute
    dtype (weights: more exact, and no pass over the copy) or went through a learned scale. extent: max|lhs| along the
    contracted axis, where its producer knows it. rhs_axis: along which scales of rhs run, if not the contracted axis.
    """
    # Operands with learned scales come quantized (`precision.learned`).
    scaled = {o: s for o, s in structure.site(site).items() if s.clip not in LEARNED}
    left, right = operands
    table = products(structure.site(site), structure.backward, operands)
    if not any(source.operand in scaled for product in table for source in (product.left, product.right)):
        return _plain_product

    def operand(name: str) -> Operand:
        scaling, tag = scaled[name], f"{site}.{name}"
        forward = {"dgrad_w": right, "wgrad_x": left}.get(name, name)
        return Operand(
            tag=tag,
            scaling=scaling,
            axis=rhs_axis if name == right else None,
            grid=dict(grids or {})[name],
            key=operand_key(key, tag) if scaling.stochastic else None,
            original=(originals or {}).get(forward),
            extent=extent if name == left else None,
        )

    def code_dtype(source: Source) -> str:
        return scaled[source.operand].code_dtype if source.operand in scaled else ""

    def configure(raw: Any, product: Product, dtype: Any, result: Any, compute: Any) -> None:
        """One of AQT's three products, as the table says. dtype: of its operands, if not their own; result: of its
        output, if not that of its operands; compute: what native products of floats give."""
        native = code_dtype(product.left), code_dtype(product.right)
        both = all(native)
        # A native gradient product makes the forward pass's codes again, in its own layout: one scale a tensor, so they
        # are the same ones.
        reused = product.right.forward and not both
        lhs, rhs = (
            None if source.operand not in scaled or (source.forward and reused) else operand(source.operand)
            for source in (product.left, product.right)
        )
        # The forward product's operands come rotated.
        turn = (lhs.scaling.rotate, lhs.scaling.signs) if lhs is not None and product.name != "fwd" else (0, False)
        last = structure.contracted_last
        raw.dg_quantizer = GridQuantizer(
            lhs=lhs, rhs=rhs, dtype=dtype, rotate=turn[0], signs=turn[1], contracted_last=last
        )
        raw.rhs.use_fwd_quant = reused and product.right.operand in scaled
        if both:
            raw.lhs.dequant_mode = raw.rhs.dequant_mode = config.DequantMode.OUTPUT
            raw.dg_accumulator_dtype = jnp.int32 if native[0].startswith("int") else None
            raw.dot_general = partial(_native_product, code_dtypes=native, result=compute, contracted_last=last)
        else:
            raw.lhs.dequant_mode = raw.rhs.dequant_mode = config.DequantMode.THIS_INPUT
            raw.dot_general = partial(_product, result=result)

    def multiply(lhs, rhs, dimension_numbers, precision=None, preferred_element_type=None):
        # AQT's output has the dtype of its inputs: for a wider one they enter wider, and the products take them back.
        result = preferred_element_type or lhs.dtype
        wider = result != lhs.dtype
        aqt = config.default_unquantized_config()
        for product in table:
            raw = getattr(aqt, product.name)
            configure(raw, product, lhs.dtype if wider else None, result if wider else None, lhs.dtype)
        # Outside a trace AQT promotes concrete arrays as dtypes, which jax deprecates.
        run = jax.jit(lambda lhs, rhs: aqt(lhs, rhs, dimension_numbers))
        y = run(lhs.astype(result), rhs.astype(result))
        return checkpoint_name(y, PRODUCT_TAG) if code_dtype(table[0].left) or code_dtype(table[0].right) else y

    return multiply


def _plain_product(lhs, rhs, dimension_numbers, precision=None, preferred_element_type=None):
    if rhs.dtype == lhs.dtype:
        return _product(lhs, rhs, dimension_numbers, precision, preferred_element_type)
    return _of_weights(lhs, rhs)


def _narrowed(x: jax.Array, w: jax.Array) -> jax.Array:
    """x [..., in] @ w [in, ...] in x's dtype."""
    return _product(x, w.astype(x.dtype), (((x.ndim - 1,), (0,)), ((), ())))


def _narrowed_fwd(x, w):
    return _narrowed(x, w), (x, w)


def _narrowed_bwd(kept, dy):
    """The gradient of w leaves its product in w's own dtype."""
    x, w = kept
    (dx,) = jax.vjp(lambda x: _narrowed(x, w), x)[1](dy)
    rows = tuple(range(x.ndim - 1))
    return dx, _product(x, dy, ((rows, rows), ((), ())), preferred_element_type=w.dtype)


_of_weights = jax.custom_vjp(_narrowed)
_of_weights.defvjp(_narrowed_fwd, _narrowed_bwd)


def _product(lhs, rhs, dimension_numbers, precision=None, preferred_element_type=None, result=None):
    # Backends' default precision truncates float32 operands to TF32 or bfloat16.
    precision = lax.Precision.HIGHEST if lhs.dtype == jnp.float32 else lax.Precision.DEFAULT
    return lax.dot_general(lhs, rhs, dimension_numbers, precision, preferred_element_type or result)


def _native_product(
    lhs, rhs, dimension_numbers, preferred_element_type=None, precision=None, *, code_dtypes, result, contracted_last
):
    """The product of codes."""
    lhs, rhs = lhs.astype(code_dtypes[0]), rhs.astype(code_dtypes[1])
    if contracted_last:
        (lhs_axes, rhs_axes), _ = dimension_numbers
        lhs, rhs = _contracted_last(lhs, lhs_axes), _contracted_last(rhs, rhs_axes)
        lhs_last, rhs_last = (tuple(range(x.ndim - len(lhs_axes), x.ndim)) for x in (lhs, rhs))
        dimension_numbers = ((lhs_last, rhs_last), ((), ()))
    return lax.dot_general(lhs, rhs, dimension_numbers, preferred_element_type=preferred_element_type or result)


def _contracted_last(x: jax.Array, axes: tuple[int, ...]) -> jax.Array:
    """x with these axes moved to its end, in memory too: without the constraint compilers choose another layout there,
    without the barrier they fold the move into the product."""
    x = x.transpose(axes_last(x.ndim, axes))
    return lax.optimization_barrier(with_layout_constraint(x, Layout(tuple(range(x.ndim)))))
