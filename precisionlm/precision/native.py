"""What chips multiply: the dtypes of codes in native products, and what has no native product.

int4 (TPU) or int8 for integers, float8 for OCP floats (not on TPU), one scale a channel or tensor. A gradient product
whose output gradient is not quantized runs in bf16; one whose other operand has no quantization of its own takes the
forward pass's, if that has one scale a tensor.
"""

from collections.abc import Mapping
from dataclasses import replace

from precisionlm.errors import UserError
from precisionlm.precision.products import products
from precisionlm.precision.recipe import LINEAR_OPERANDS, Quantization
from precisionlm.precision.scaling import LEARNED, Scaling

Cells = tuple[Quantization | None, ...]  # what an operand gets, by layer

_FORWARD = {"dgrad_w": "w", "wgrad_x": "a"}  # operands of gradient products → the forward product's
_FLOATS = {"e4m3fn": "float8_e4m3fn", "mxfp8": "float8_e4m3fn", "e5m2": "float8_e5m2"}


def with_code_dtypes(
    where: str, site: str, operands: Mapping[str, Cells], bound: Mapping[str, Scaling], backward: str, platform: str
) -> dict[str, Scaling]:
    """The site's scalings with the dtype in which each operand enters its native products.

    operands: what each gets by layer; bound: those that are quantized. Raises UserError, which begins with `where`, for
    what has no native product on the platform.
    """
    there = f"{where}no native execution at '{site}': "
    found = {o: _code_dtype(operands[o], f"{where}no native execution for {o} at '{site}': ") for o in bound}
    if found and not {"a", "w"} <= set(found):
        raise UserError(f"{there}weights and activations must both be quantized there")
    _check_gradients(there, found, bound, backward)
    _check_pairs(there, found, backward)
    if platform == "tpu":
        if any(dtype.startswith("float8") for dtype in found.values()):
            raise UserError(f"{there}these TPUs have no float8 products; use simulated")
        if all(q.format.bits <= 4 for cells in operands.values() for q in cells if q):
            found = dict.fromkeys(found, "int4")
    return {operand: replace(scaling, code_dtype=found[operand]) for operand, scaling in bound.items()}


def _code_dtype(cells: Cells, here: str) -> str:
    """The dtype that holds an operand's codes, the same in all layers. Raises UserError."""
    found = set()
    for cell in cells:
        if cell is None:
            raise UserError(f"{here}some layers are bf16, and all layers share one program; use simulated")
        narrow = cell.format.kind == "int" and cell.format.bits <= 8 and not cell.format.unsigned
        dtype = "int8" if narrow else _FLOATS.get(cell.format.name)
        if dtype is None or cell.scaling.sharing not in ("channel", "tensor") or not _one_scale(cell.scaling):
            raise UserError(
                f"{here}{cell}; native products take int2 to int8, e4m3fn and e5m2 per channel or tensor; use simulated"
            )
        found.add(dtype)
    if len(found) > 1:
        raise UserError(f"{here}layers mix {' and '.join(sorted(found))}; use simulated")
    return found.pop()


def _one_scale(scaling: Scaling) -> bool:
    """Whether a scale is constant along the axis that its product contracts, and made from the values at hand."""
    return scaling.clip not in LEARNED and not scaling.per_token


def _check_gradients(there: str, found: Mapping[str, str], bound: Mapping[str, Scaling], backward: str) -> None:
    """Both operands of a gradient product have codes along its own axis, or neither has."""
    for dy, other in (("dgrad_dy", "dgrad_w"), ("wgrad_dy", "wgrad_x")):
        forward = _FORWARD[other]
        reused = backward == "quantized" and forward in bound and bound[forward].sharing == "tensor"
        if dy in found and not (other in found or reused):
            number = LINEAR_OPERANDS.index(other) + 1
            raise UserError(
                f"{there}{dy} meets {forward}, whose scales run along another axis than this product; give {other} a "
                f"quantization of its own (P{number}=…), or {forward} one scale a tensor"
            )
        if other in found and dy not in found:
            raise UserError(f"{there}{other} is quantized but {dy} is not; give both or neither")


def _check_pairs(there: str, found: Mapping[str, str], backward: str) -> None:
    """Chips multiply integers by integers and floats by floats, and no e5m2 by e5m2."""
    for product in products(found, backward):
        left, right = product.left.operand, product.right.operand
        if left and right and found[left] == found[right] == "float8_e5m2":
            other = {"dlhs": "dgrad_w", "drhs": "wgrad_x"}.get(product.name, right)
            raise UserError(f"{there}{left} and {other} are both e5m2, which chips do not multiply; make one e4m3fn")
    if len({dtype.startswith("int") for dtype in found.values()}) > 1:
        raise UserError(f"{there}operands mix integers and floats")
