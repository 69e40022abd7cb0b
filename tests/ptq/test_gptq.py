"""GPTQ against a float64 implementation written for this test, row by row and without blocks; QEP; the ladder."""

import jax.numpy as jnp
import numpy as np
import pytest

from precisionlm.precision.recipe import parse_recipe
from precisionlm.ptq.gptq import gptq
from precisionlm.ptq.hessian import inverse_root
from precisionlm.ptq.qep import corrected
from precisionlm.ptq.rtn import rounded
from precisionlm.ptq.scales import weight_scales

ROWS, COLUMNS = 300, 40  # two whole blocks of 128 and a part of one


def inputs(rng, size=ROWS, samples=None):
    """Correlated inputs whose channels differ in size: [samples, size], float32."""
    mix = rng.normal(size=(size, size)) / np.sqrt(size) + np.diag(rng.lognormal(0, 1, size))
    return (rng.normal(size=(samples or 4 * size, size)) @ mix).astype(np.float32)


def quantization(text):
    found = parse_recipe(f"W={text}").commonest("w")
    return found.scaling, found.format.grid(), found.format


def nearest(x, fmt):
    """The nearest of the format's values, float64."""
    values = fmt.values()
    above = np.clip(np.searchsorted(values, x), 1, len(values) - 1)
    return np.where(x - values[above - 1] <= values[above] - x, values[above - 1], values[above])


def reference(w, scales, hessian, fmt, damping=0.01):
    """IST-DASLab/gptq's algorithm (arXiv:2210.17323, Algorithm 1) in float64, one row after the other: codes."""
    w, scales, hessian = (np.asarray(x, np.float64).copy() for x in (w, scales, hessian))
    size = len(w)
    diagonal = np.diag(hessian).copy()
    dead = diagonal == 0
    hessian[dead, dead] = 1
    w[dead] = 0
    hessian += damping * diagonal.mean() * np.eye(size)
    order = np.argsort(-diagonal, kind="stable")
    w, scales, hessian = w[order], scales[order], hessian[np.ix_(order, order)]
    upper = np.linalg.cholesky(np.linalg.inv(hessian)).T
    codes = np.zeros_like(w)
    for i in range(size):
        codes[i] = nearest(w[i] / scales[i], fmt)
        error = (w[i] - codes[i] * scales[i]) / upper[i, i]
        w[i:] -= np.outer(upper[i, i:], error)
    return codes[np.argsort(order)]


def layer_error(x, w, q):
    return float(np.linalg.norm(x.astype(np.float64) @ (np.asarray(w, np.float64) - np.asarray(q, np.float64))))


@pytest.mark.parametrize(
    "text", ["int2", "int3/g60", "int4/g100", "int5/tensor", "int8/g30", "e2m1/g20/sbf16", "mxfp4", "nvfp4"]
)
def test_codes_are_those_of_a_float64_implementation(text):
    rng = np.random.default_rng(len(text))
    size = 320 if text in ("mxfp4", "nvfp4") else ROWS
    x, w = inputs(rng, size), (rng.normal(size=(size, COLUMNS)) * 0.02).astype(np.float32)
    x[:, 7] = 0
    hessian = (x.T @ x / len(x)).astype(np.float32)
    scaling, grid, fmt = quantization(text)
    scales = np.asarray(weight_scales(jnp.asarray(w), scaling, grid))
    found, damping = gptq(w, scales, hessian, grid)
    codes = np.asarray(found, np.float64) / scales
    assert float(damping) == pytest.approx(0.01)
    right = reference(w, scales, hessian, fmt)
    assert np.mean(np.abs(codes - right) < 1e-4) >= 0.999
    assert not codes[7].any()
    rtn = np.asarray(rounded(jnp.asarray(w), scaling, grid))
    if fmt.bits < 8:
        assert layer_error(x, w, found) < 0.9 * layer_error(x, w, rtn)


def test_all_widths_and_formats_share_one_executable():
    rng = np.random.default_rng(3)
    x, w = inputs(rng, 64), rng.normal(size=(64, 8)).astype(np.float32)
    before = gptq._cache_size()
    for text in ("int2", "int3/g16", "int8", "e3m2/g32", "mxfp4", "nvfp4", "int4full/tensor"):
        scaling, grid, _ = quantization(text)
        gptq(w, weight_scales(jnp.asarray(w), scaling, grid), x.T @ x, grid)
    assert gptq._cache_size() == before + 1


def test_layer_error_is_no_more_than_that_of_rounding_to_nearest():
    scaling, _, _ = quantization("int4")
    wins = []
    for seed in range(40):
        rng = np.random.default_rng(seed)
        x, w = inputs(rng, 48, 256), rng.normal(size=(48, 24)).astype(np.float32)
        _, grid, _ = quantization(f"int{2 + seed % 5}")
        found, _ = gptq(w, weight_scales(jnp.asarray(w), scaling, grid), x.T @ x / len(x), grid)
        wins.append(layer_error(x, w, found) <= layer_error(x, w, rounded(jnp.asarray(w), scaling, grid)))
    assert np.mean(wins) >= 0.95


def test_the_ladder_raises_damping_then_a_floor_then_gives_up():
    rng = np.random.default_rng(0)
    x = inputs(rng, 32)
    good = x.T @ x / len(x)
    mean, largest = np.diag(good).mean(), np.diag(good).max()
    root, damping = inverse_root(good)
    inverse = np.linalg.inv(good.astype(np.float64) + 0.01 * mean * np.eye(32))
    np.testing.assert_allclose(np.asarray(root).T @ np.asarray(root), inverse, rtol=2e-3, atol=2e-5 * inverse.max())
    assert float(damping) == pytest.approx(0.01) and not np.tril(np.asarray(root), -1).any()
    values, vectors = np.linalg.eigh(good.astype(np.float64))

    def lowest(share_of_mean):
        """The same with its lowest eigenvalue that far below zero."""
        lowered = values.copy()
        lowered[0] = -share_of_mean * mean
        return (vectors * lowered) @ vectors.T

    assert float(inverse_root(jnp.asarray(lowest(0.035), jnp.float32))[1]) == pytest.approx(0.04, rel=0.02)
    low = lowest(0.1 + 0.005 * largest / mean)
    assert float(inverse_root(jnp.asarray(low, jnp.float32))[1]) == pytest.approx(0.1 + 0.01 * largest / mean, rel=0.1)
    for hopeless in (lowest(50.0), np.full((32, 32), np.nan), good * np.inf):
        w = rng.normal(size=(32, 5)).astype(np.float32)
        scaling, grid, _ = quantization("int3")
        found, damping = gptq(w, weight_scales(jnp.asarray(w), scaling, grid), jnp.asarray(hopeless, jnp.float32), grid)
        assert np.isnan(damping)
        np.testing.assert_array_equal(found, rounded(jnp.asarray(w), scaling, grid))
    found, damping = gptq(w, weight_scales(jnp.asarray(w), scaling, grid), jnp.zeros((32, 32)), grid)
    assert float(damping) == pytest.approx(0.01) and not np.asarray(found).any()


def test_qep_goes_half_the_way_to_the_least_squares_solution():
    rng = np.random.default_rng(1)
    x = inputs(rng, 40, 2000)
    behind = x + 0.1 * rng.normal(size=x.shape).astype(np.float32) * np.abs(x).mean(0)
    w = rng.normal(size=(40, 12)).astype(np.float32)
    hessian, drift = behind.T @ behind / len(x), behind.T @ (x - behind) / len(x)
    found, damping = corrected(w, hessian, drift)
    h = hessian.astype(np.float64) + 0.01 * np.diag(hessian).mean() * np.eye(40)
    np.testing.assert_allclose(found, w + 0.5 * np.linalg.solve(h, drift.astype(np.float64) @ w), atol=2e-4)
    assert float(damping) == pytest.approx(0.01)
    assert np.linalg.norm(x @ w - behind @ np.asarray(found)) < np.linalg.norm(x @ w - behind @ w)
    unchanged, damping = corrected(w, np.full_like(hessian, np.nan), drift)
    np.testing.assert_array_equal(unchanged, w)
    assert np.isnan(damping)


@pytest.mark.parametrize("text", ["int3", "int4/g16", "mxfp4", "nvfp4", "e2m1/tensor", "int4/sbf16"])
def test_searched_scales_err_no_more_and_are_of_the_formats_kind(text):
    rng = np.random.default_rng(5)
    w = jnp.asarray(rng.standard_t(4, size=(64, 12)), jnp.float32)
    scaling, grid, _ = quantization(text)
    given, searched = (np.asarray(weight_scales(w, scaling, grid, how)) for how in (False, True))
    size = {"group": scaling.group, "tensor": 64}.get(scaling.sharing, 64)

    def errors(scales):
        x = np.asarray(w, np.float64)
        codes = nearest(x / scales, quantization(text)[2])
        return ((codes * scales - x) ** 2).reshape(64 // size, size, 12).sum(axis=1)

    ours, theirs = errors(searched), errors(given)
    if scaling.sharing == "tensor":
        ours, theirs = ours.sum(), theirs.sum()
    assert np.all(ours <= theirs * (1 + 1e-5)) and np.sum(ours) < np.sum(theirs)
    if scaling.scale_type == "e8m0":
        assert not np.any(np.log2(searched) % 1)
    if scaling.scale_type == "bf16":
        np.testing.assert_array_equal(searched, searched.astype(jnp.bfloat16).astype(np.float32))
    if scaling.scale_type == "e4m3":  # one tensor's scale, and block scales that E4M3 has
        blocks = searched / (np.abs(np.asarray(w)).max() / (448 * 6))
        np.testing.assert_allclose(blocks, np.asarray(jnp.asarray(blocks, jnp.float8_e4m3fn), np.float32), rtol=1e-5)
    if text == "int3":  # brute force over the same multiples
        best = theirs
        for multiple in np.linspace(0.98, 0.3, 35):
            best = np.minimum(best, errors(given * np.float32(multiple)))
        np.testing.assert_allclose(ours, best, rtol=1e-4)


def test_rotated_weights_are_rounded_where_they_are_rotated_and_turned_back():
    rng = np.random.default_rng(8)
    w = rng.normal(size=(32, 6)).astype(np.float32)
    w[3] *= 30
    scaling, grid, _ = quantization("int4/had16")
    plain, _, _ = quantization("int4")
    block = np.array([[1.0]])
    while len(block) < 16:
        block = np.block([[block, block], [block, -block]])
    turn = np.kron(np.eye(2), block / 4)
    found = np.asarray(rounded(jnp.asarray(w), scaling, grid))
    np.testing.assert_allclose(
        found, turn @ np.asarray(rounded(jnp.asarray(turn @ w, jnp.float32), plain, grid)), atol=1e-4
    )
    others = np.abs(found - w)[4:].mean(), np.abs(np.asarray(rounded(jnp.asarray(w), plain, grid)) - w)[4:].mean()
    assert others[0] < others[1]  # the outlier's channel no longer sets the step of all
