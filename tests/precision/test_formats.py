"""Value grids against independent references, bit for bit."""

import jax
import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from precisionlm.errors import UserError
from precisionlm.precision.formats import parse_format
from precisionlm.precision.grid import round_to_grid

OCP = {
    "e4m3fn": ml_dtypes.float8_e4m3fn,
    "e5m2": ml_dtypes.float8_e5m2,
    "e2m1": ml_dtypes.float4_e2m1fn,
    "e3m2": ml_dtypes.float6_e3m2fn,
    "e2m3": ml_dtypes.float6_e2m3fn,
}
ROUND = jax.jit(round_to_grid)


def wide_values(count: int = 120_000) -> np.ndarray:
    """Normal values over twelve binades, with ties and edges of every grid among them."""
    rng = np.random.default_rng(0)
    values = rng.standard_normal(count) * 2.0 ** rng.integers(-9, 9, count)
    return np.concatenate([values, np.arange(-512, 513) / 64, [0.0, -0.0]]).astype(np.float32)


@pytest.mark.parametrize("name", OCP)
def test_floats_equal_ml_dtypes_bit_for_bit(name):
    grid = parse_format(name).grid()
    x = wide_values()
    reference = np.clip(x, -grid.qmax, grid.qmax).astype(OCP[name]).astype(np.float32)
    ours = np.asarray(ROUND(x, grid))
    assert len(x) >= 100_000
    np.testing.assert_array_equal(ours, reference)


def reference_nearest(x: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Nearest of a sorted list by search in float64, ties to the even index counted from zero."""
    positive = values[values >= 0]
    a = np.minimum(np.abs(x.astype(np.float64)), positive[-1])
    high = np.clip(np.searchsorted(positive, a), 1, len(positive) - 1)
    low = high - 1
    up, down = positive[high] - a, a - positive[low]
    pick = np.where(up == down, np.where(high % 2 == 0, high, low), np.where(up < down, high, low))
    return (np.sign(x) * positive[pick]).astype(np.float32)


FLOATS = [f"e{e}m{m}" for e in range(1, 6) for m in range(1, 6)] + ["e2m8", "e6m1", "e0m7", "e0m3"]


@pytest.mark.parametrize("name", [*(f"int{b}" for b in range(2, 13)), "ternary", "levels5", "levels11", *FLOATS])
def test_every_grid_equals_a_search_over_its_values(name):
    fmt = parse_format(name)
    values = fmt.values()
    x = (wide_values() * np.float32(fmt.grid().qmax / 8)).astype(np.float32)
    # float64 search ties are exact here, and even codes are even indices: codes count up from zero.
    np.testing.assert_array_equal(np.asarray(ROUND(x, fmt.grid())), reference_nearest(x, values))


def test_integers_equal_numpy():
    x = wide_values() * 20
    for bits in range(2, 13):
        qmax = 2 ** (bits - 1) - 1
        ours = np.asarray(ROUND(x, parse_format(f"int{bits}").grid()))
        np.testing.assert_array_equal(ours, np.clip(np.rint(x), -qmax, qmax))


def test_one_compilation_serves_every_format():
    fn = jax.jit(lambda x, grid: round_to_grid(x, grid))
    x = wide_values(100)
    for name in ("int2", "int8", "e4m3", "e2m1", "e8m7", "ternary", "bf16"):
        fn(x, parse_format(name).grid())
    assert fn._cache_size() == 1


@settings(max_examples=60, deadline=None)
@given(
    name=st.sampled_from(["int3", "int8", "e2m1", "e4m3", "e3m0", "e1m6", "levels5", "e5m10"]),
    raw=st.lists(st.floats(-3e4, 3e4, width=32), min_size=8, max_size=8),
)
def test_rounding_is_idempotent_monotone_symmetric_and_near(name, raw):
    fmt = parse_format(name)
    grid = fmt.grid()
    x = np.sort(np.array(raw, np.float32))
    q = np.asarray(ROUND(x, grid))
    np.testing.assert_array_equal(np.asarray(ROUND(q, grid)), q)
    assert (np.diff(q) >= 0).all()
    np.testing.assert_array_equal(np.asarray(ROUND(-x, grid)), -q)
    inside = np.abs(x) <= grid.qmax
    step = np.clip(2.0 ** np.floor(np.log2(np.maximum(np.abs(x), 1e-30))), grid.low, grid.high) * grid.fine
    assert (np.abs(q - x)[inside] <= step[inside] / 2).all()


@pytest.mark.parametrize("name", ["int4", "e4m3", "e2m1", "int12"])
def test_a_grid_of_constants_rounds_like_a_traced_one(name):
    grid, x = parse_format(name).grid(), wide_values(5000)
    np.testing.assert_array_equal(np.asarray(jax.jit(lambda x: round_to_grid(x, grid))(x)), np.asarray(ROUND(x, grid)))


def test_values_of_a_format_are_exact():
    for name in ("int4", "e2m1", "e4m3", "e3m0"):
        fmt = parse_format(name)
        values = fmt.values().astype(np.float32)
        np.testing.assert_array_equal(np.asarray(ROUND(values, fmt.grid())), values)


def test_known_largest_values():
    largest = {"e4m3": 480, "e4m3fn": 448, "e5m2": 57344, "e2m1": 6, "e3m2": 28, "e2m3": 7.5, "int4": 7, "e0m7": 127}
    assert {name: float(parse_format(name).grid().qmax) for name in largest} == largest


@pytest.mark.parametrize(
    ("word", "message"),
    [("int1", "from 2 to 12"), ("e9m1", "X ≤ 8"), ("levels4", "must be odd"), ("f4m3", "did you mean"), ("", "valid")],
)
def test_nonsense_formats_are_one_clear_line(word, message):
    with pytest.raises(UserError, match=message) as caught:
        parse_format(word)
    assert "\n" not in str(caught.value)
