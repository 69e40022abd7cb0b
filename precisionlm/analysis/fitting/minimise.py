"""The compiled part of the minimiser: a batch of problems (lanes) advanced side by side, in float64.

Reweighted Gauss-Newton steps, which descend from anywhere, until the objective moves by less than `SWITCH`, then
Newton steps with the exact Hessian. Levenberg damping makes every accepted step a descent. Bounds are an active set: a
coordinate on its bound with the gradient pointing outwards is frozen.

Rows come in chunks, whose sums are added up, so that memory does not grow with the table.
"""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from precisionlm.analysis.fitting.objective import huber, residual

FEW = 8  # constants up to which derivatives are taken side by side
SWITCH = 5e-3
TOLERANCE = 1e-10
MAX_DAMPING = 1e8

# Half the compile time of the default, at the same speed: these kernels are small and element-wise.
COMPILER = {"xla_backend_optimization_level": 1}


class Lane(NamedTuple):
    """The state of one minimisation; arrays of a batch have one more axis in front."""

    low: Any
    high: Any
    step: Any
    trial: Any
    point: Any
    value: Any
    gradient: Any
    hessian: Any
    damping: Any
    newton: Any
    done: Any


@partial(jax.jit, static_argnames=("law", "scale"), compiler_options=COMPILER)
def advance(law, scale, columns, observed, delta, lanes, weights, until):
    """Advance every lane until it is done or has made `until` steps.

    columns: symbol -> (chunks, rows); observed alike; weights (lanes, chunks, rows).
    """

    # With many constants one derivative at a time is 1.5 times faster: side by side they recompute shared parts.
    each = jax.lax.map if len(law.parameters) > FEW else lambda push, basis: jax.vmap(push)(basis)

    def slope(r, weight):
        return weight * jnp.clip(r, -delta, delta)

    def derivatives(point, chunk, seen, weight, curved):
        """Residuals, their Jacobian (p, n), the gradient, and where `curved` the curvature of the residuals."""

        def residuals(z):
            return residual(scale, law.formula(law.constants_at(z), chunk, jnp), seen)

        if not curved:
            r, push = jax.linearize(residuals, point)
            jacobian = each(push, jnp.eye(point.size))
            return r, jacobian, jacobian @ slope(r, weight), 0.0

        def residuals_and_pull(z):
            r, back = jax.vjp(residuals, z)
            return r, back(jax.lax.stop_gradient(slope(r, weight)))[0]

        (r, gradient), push = jax.linearize(residuals_and_pull, point)
        jacobian, curvature = each(push, jnp.eye(point.size))
        return r, jacobian, gradient, curvature

    def expand_chunk(point, chunk, seen, weight, newton, curved):
        """Objective, gradient and (Gauss-)Newton Hessian of some rows at a point."""
        r, jacobian, gradient, curvature = derivatives(point, chunk, seen, weight, curved)
        value = jnp.sum(weight * huber(r, delta))
        inside = jnp.abs(r) <= delta
        row = weight * jnp.where(
            inside, 1.0, jnp.where(newton & curved, 0.0, delta / jnp.where(inside, 1.0, jnp.abs(r)))
        )
        hessian = (jacobian * row) @ jacobian.T + jnp.where(newton, curvature, 0.0)
        return value, gradient, hessian

    def expand(point, weight, newton, curved):
        def chunk(i):
            rows = {name: values[i] for name, values in columns.items()}
            return expand_chunk(point, rows, observed[i], weight[i], newton, curved)

        def add(i, total):
            return jax.tree.map(jnp.add, total, chunk(i))

        value, gradient, hessian = jax.lax.fori_loop(1, len(observed), add, chunk(0)) if len(observed) > 1 else chunk(0)
        return jnp.where(jnp.isfinite(value), value, jnp.inf), gradient, hessian

    def step(lane: Lane, expansion):
        low, high = lane.low, lane.high
        value, gradient, hessian = expansion
        better = value < lane.value
        first = jnp.isinf(lane.value)
        gain = jnp.where(first, 1.0, (lane.value - value) / lane.value)
        damping = jnp.where(better, jnp.maximum(lane.damping * 0.2, 1e-14), lane.damping * 5.0)
        damping = jnp.where(first, lane.damping, damping)
        hopeless = first & ~better
        done = (better & (gain < TOLERANCE) & lane.newton) | (damping > MAX_DAMPING) | hopeless
        newton = lane.newton | (better & (gain < SWITCH))

        def keep(new, old):
            return jnp.where(better, new, old)

        point, gradient = keep(lane.trial, lane.point), keep(gradient, lane.gradient)
        hessian = keep(hessian, lane.hessian)
        free = (high > low) & ~(((point <= low) & (gradient > 0)) | ((point >= high) & (gradient < 0)))
        diagonal = jnp.abs(jnp.diag(hessian))
        diagonal = jnp.maximum(diagonal, 1e-12 * diagonal.max()) + 1e-300
        matrix = jnp.where(free[:, None] & free[None, :], hessian, 0.0)
        matrix = matrix + jnp.diag(damping * diagonal + jnp.where(free, 0.0, 1.0))
        move = -_solved(matrix, jnp.where(free, gradient, 0.0))
        trial = jnp.clip(jnp.where(jnp.isfinite(move), point + move, point), low, high)
        return Lane(low, high, lane.step + 1, trial, point, keep(value, lane.value), gradient, hessian, damping, newton,
                    done)  # fmt: skip

    def active(lanes):
        return ~lanes.done & (lanes.step < until)

    def once(lanes):
        # Second derivatives add half to the work, so a batch goes without until half of its lanes have come near.
        moving = active(lanes)
        plain, curved = (jax.vmap(partial(expand, curved=c)) for c in (False, True))
        near = 2 * jnp.sum(lanes.newton & moving) > jnp.sum(moving)
        expansion = jax.lax.cond(near, curved, plain, lanes.trial, weights, lanes.newton)
        moved = jax.vmap(step)(lanes, expansion)
        return jax.tree.map(
            lambda new, old: jnp.where(moving.reshape(-1, *[1] * (new.ndim - 1)), new, old), moved, lanes
        )

    return jax.lax.while_loop(lambda lanes: jnp.any(active(lanes)), once, lanes)


def _solved(matrix, right):
    """matrix⁻¹ right by elimination without pivots, which compiles in a third of the time of LAPACK's.

    Near an optimum the matrix is positive definite and pivots are not needed; elsewhere a poor move is refused, and
    the damping that follows makes the diagonal dominate.
    """

    def eliminate(i, rows):
        row = rows[i] / rows[i, i]
        return (rows - rows[:, i, None] * row).at[i].set(row)

    return jax.lax.fori_loop(0, right.size, eliminate, jnp.concatenate([matrix, right[:, None]], 1))[:, -1]
