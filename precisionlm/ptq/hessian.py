"""Second moments of a layer's inputs, and the root of their inverse where they have one."""

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

# Tried one after the other, in shares of the mean and of the largest value of the diagonal: more damping, then a floor
# under the eigenvalues.
_DAMPING = np.array([*np.arange(1, 11) * 0.01, *[0.1] * 6], np.float32)
_FLOOR = np.array([*[0.0] * 10, *10.0 ** np.arange(-6, 0)], np.float32)

# For programs that run once a matrix: XLA's trials of kernels for GPUs take longer than all their runs.
UNTUNED = {"xla_gpu_autotune_level": 0, "xla_gpu_enable_triton_gemm": False}


def second_moment(x: jax.Array, y: jax.Array) -> jax.Array:
    """Σ x yᵀ over all axes but the last, float32 [in, in]; exact products, summed in float32."""
    rows = tuple(range(x.ndim - 1))
    precision = lax.Precision.HIGHEST if x.dtype == jnp.float32 else lax.Precision.DEFAULT
    return lax.dot_general(x, y, ((rows, rows), ((), ())), precision, jnp.float32)


def inverse_root(hessian: jax.Array) -> tuple[jax.Array, jax.Array]:
    """(U, damping) with U upper triangular and Uᵀ U = (H + damping · mean(diag H) · I)⁻¹, for a float32 H [n, n] whose
    zero diagonal values (inputs that are always zero) count as one.

    The damping is the least of a ladder, from 0.01 on, at which the Cholesky factor is finite; NaN where none is, and U
    means nothing then. U comes from the factor H = V Vᵀ, V upper triangular, as V⁻¹: the second factorization that
    others make of an inverse is not needed.
    """
    diagonal, identity = jnp.diagonal(hessian), jnp.eye(len(hessian), dtype=jnp.float32)
    mean, largest = jnp.mean(diagonal), jnp.max(diagonal)
    alive = hessian + jnp.diag(jnp.where(diagonal == 0, 1.0, 0.0))

    def attempt(carry):
        k, _, _ = carry
        added = jnp.asarray(_DAMPING)[k] * mean + jnp.asarray(_FLOOR)[k] * largest
        factor = jnp.linalg.cholesky((alive + added * identity)[::-1, ::-1])[::-1, ::-1]
        root = jax.scipy.linalg.solve_triangular(factor, identity, lower=False)
        return k + 1, root, jnp.where(mean > 0, added / mean, _DAMPING[0])

    def failed(carry):
        k, root, _ = carry
        return (k < len(_DAMPING)) & ((k == 0) | ~jnp.isfinite(root).all())

    _, root, damping = lax.while_loop(failed, attempt, (0, identity, jnp.float32(0)))
    return root, jnp.where(jnp.isfinite(root).all(), damping, jnp.nan)
