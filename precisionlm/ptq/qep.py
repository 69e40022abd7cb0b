"""Quantization error propagation (Arai and Ichikawa 2025, arXiv:2504.09629): before it is quantized, a weight makes up
for what the quantization of earlier layers did to its inputs."""

from functools import partial

import jax
import jax.numpy as jnp
from jax import lax

from precisionlm.ptq.hessian import UNTUNED, inverse_root

_STRENGTH = 0.5  # α of the paper, whose 1 would trust the calibration data wholly


@partial(jax.jit, compiler_options=UNTUNED)
def corrected(w: jax.Array, hessian: jax.Array, drift: jax.Array) -> tuple[jax.Array, jax.Array]:
    """(W + α H⁻¹ C W, damping) for W [in, out]: half the way to the least squares solution of x_q W' = x W.

    hessian: mean of x_q x_qᵀ over inputs x_q of the quantized model; drift: C, the mean of x_q (x - x_q)ᵀ, x being the
    same inputs of the unquantized one. damping: as `inverse_root` says; NaN where H cannot be used, and W is unchanged.
    """
    root, damping = inverse_root(hessian)
    product = lambda a, b: jnp.matmul(a, b, precision=lax.Precision.HIGHEST)  # noqa: E731
    change = product(root.T, product(root, product(drift, w)))
    usable = jnp.isfinite(damping) & jnp.isfinite(change).all()
    return jnp.where(usable, w + _STRENGTH * change, w), jnp.where(usable, damping, jnp.nan)
