"""Which value each operand of a layer's three matrix products takes: Figure 2 of Sun et al. 2025 (arXiv:2501.02423).

    product                     left                          right
    forward   y  = x w          P1 a                          P2 w
    dgrad     dx = dy wᵀ        P3 dgrad_dy, else plain       P4 dgrad_w, else what P2 gave, else plain
    wgrad     dw = xᵀ dy        P5 wgrad_dy, else plain       P6 wgrad_x, else what P1 gave, else plain

"What P2 gave" is the quantized value of the forward product (the straight-through estimator), taken with backward
`quantized`; with `unquantized` the gradient products take what was there before. Attention's products q·k and p·v have
no gradient operands of their own, and follow the same table with (q, k) and (p, v) in the places of (a, w).
"""

from collections.abc import Collection
from dataclasses import dataclass


@dataclass(frozen=True)
class Source:
    """The value of one operand. operand: whose quantization it went through, None for a plain value; forward: it is the
    value that the forward product took."""

    operand: str | None
    forward: bool = False


PLAIN = Source(None)


@dataclass(frozen=True)
class Product:
    """One of the three products, with AQT's name of it."""

    name: str
    left: Source
    right: Source


def products(
    quantized: Collection[str], backward: str, operands: tuple[str, str] = ("a", "w")
) -> tuple[Product, Product, Product]:
    """The three products of a site. quantized: operands with a quantization of their own; backward: `quantized` or
    `unquantized`; operands: the names of the forward product's two."""
    left, right = operands

    def own(operand: str, reused: str | None = None) -> Source:
        if operand in quantized:
            return Source(operand)
        if reused in quantized and backward == "quantized":
            return Source(reused, forward=True)
        return PLAIN

    return (
        Product("fwd", own(left), own(right)),
        Product("dlhs", own("dgrad_dy"), own("dgrad_w", reused=right)),
        Product("drhs", own("wgrad_dy"), own("wgrad_x", reused=left)),
    )
