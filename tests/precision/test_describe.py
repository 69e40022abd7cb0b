"""What a row of the table says about precision: the truth for mixtures, and enough to tell any two recipes apart."""

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from precisionlm.columns import NAMES, OPERANDS
from precisionlm.config import ModelConfig
from precisionlm.errors import UserError
from precisionlm.model.transformer import axis_sizes
from precisionlm.precision.binding import bind
from precisionlm.precision.describe import precision_columns
from precisionlm.precision.recipe import parse_recipe

MODEL = ModelConfig(layers=3, width=64, heads=4, kv_heads=2, mlp_width=192, vocab_size=128)
SIZES = axis_sizes(MODEL, 64)


def bound(text, backward="quantized"):
    return bind(parse_recipe(text), MODEL.layers, SIZES, backward)


def columns(text, backward="quantized"):
    return precision_columns(parse_recipe(text), bound(text, backward)[0], SIZES, MODEL.layers)


def test_columns_are_the_tables():
    found = columns("W4A8KV4-g64@down:A=e4m3@head:W8")
    assert set(found) <= set(NAMES)
    assert {name.removesuffix("_bits") for name in found if name.endswith("_bits")} == set(OPERANDS)
    assert (found["w_bits"], found["a_format"], found["w_group"], found["kv_bits"]) == (4, "int8", 64, 4)
    assert (found["q_format"], found["head_w_bits"], found["p_bits"]) == ("bf16", 8, 16)


@pytest.mark.parametrize(
    ("recipe", "expected"),
    [
        ("W4A4@first:bf16", {"w_format": "int4", "w_share": 2 / 3, "a_format": "int4", "a_share": 2 / 3}),
        ("first:W8A8@last:W8A8", {"w_format": "int8", "w_share": 2 / 3}),
        ("first:W8A8", {"w_format": "bf16", "w_share": 2 / 3, "a_share": 2 / 3}),
        # Inputs: 64 of qkv, out and gate_up, 192 of down, one layer of three.
        ("W4A4@down[1]:A8", {"a_format": "int4", "a_share": 1 - 192 / 384 / 3, "w_share": 1.0}),
        # Weights of a layer: qkv 64 x 128, out 64 x 64, gate_up 64 x 384... here its 192, down 192 x 64.
        ("W4@down:W8", {"w_format": "int4"}),
        ("W4A4KV4@first:KV=int8", {"kv_bits": 4.0, "kv_share": 2 / 3}),
        ("bf16", {"w_format": "bf16", "w_share": 1.0, "w_scale": "none", "w_rounding": "none"}),
        ("W4-sr-had64-mse", {"w_clip": "mse", "w_rounding": "stochastic", "w_rotation": 64}),
        ("P6=e1m1/g32/token", {"wgrad_x_scale": "token-group", "wgrad_x_group": 32.0}),
    ],
)
def test_mixtures_are_seen(recipe, expected):
    found = columns(recipe)
    assert {name: found[name] for name in expected} == pytest.approx(expected)


def test_a_layer_that_is_not_there_is_refused_before_anything_is_trained():
    with pytest.raises(UserError, match="layer 5 of a model with 3 layers"):
        bound("W4A4@down[5]:A8")


def test_gradient_operands_are_described_by_the_values_they_take():
    reused = columns("P2=e2m1")
    assert (reused["dgrad_w_format"], reused["wgrad_x_format"], reused["dgrad_dy_format"]) == ("e2m1", "bf16", "bf16")
    assert columns("P2=e2m1", "unquantized")["dgrad_w_format"] == "bf16"
    assert columns("W4A8,P4=int6")["dgrad_w_format"] == "int6" and columns("W4A8")["wgrad_x_format"] == "int8"


ALIKE = [  # that had equal columns once
    ("W4A4", "W4A4-mse"), ("W4A4", "W4A4-edge"), ("W4A4", "W4A4-sr"), ("W4A4-had32", "W4A4-had64"),
    ("W=int4/g32", "W=int4/g32/sbf16"), ("W=int4/g32", "W=int4/b32"), ("P2=e2m1", "P2=e2m1,P4=e2m1"),
    ("mxfp4", "int4/g32"), ("mxfp4", "mxfp4/e8m0up"), ("P6=int4", "P6=int4/token"), ("W=int4", "W=int4full"),
    ("W4@down:A8", "W4@out:A8"), ("W4A4@first:bf16", "W4A4@last:bf16"),
]  # fmt: skip


@pytest.mark.parametrize(("one", "other"), ALIKE)
def test_arms_that_looked_alike_are_told_apart(one, other):
    assert columns(one) != columns(other)


def test_backward_is_told_apart():
    assert columns("W4A4") != columns("W4A4", "unquantized")


formats = st.sampled_from(["int4", "int8", "e2m1", "mxfp4", "int4full", "e4m3fn"])
words = st.sampled_from(["", "/tensor", "/g32", "/mse", "/sr", "/sbf16", "/edge", "/had32"])
entry = st.tuples(st.sampled_from(["W", "A", "KV", "P3", "P4", "P5", "P6", "S"]), formats, words)
override = st.sampled_from(["", "@down:A8", "@first:bf16", "@last:W3", "@qkv|out:W8", "@head:W8", "@embed:W4"])
recipes = st.tuples(st.lists(entry, min_size=1, max_size=3, unique_by=lambda e: e[0]), override).map(
    lambda drawn: ",".join(f"{o}={f}{w}" for o, f, w in drawn[0]) + drawn[1]
)


@settings(max_examples=150, deadline=None)
@given(one=recipes, other=recipes, backward=st.sampled_from(["quantized", "unquantized"]))
def test_recipes_of_different_programs_or_grids_have_different_columns(one, other, backward):
    try:
        (s, g), (t, h) = bound(one), bound(other, backward)
    except UserError:  # words that fit nothing, rotations without a partner
        return
    same = s == t and jax.tree.structure(g) == jax.tree.structure(h)
    same = same and all(map(np.array_equal, jax.tree.leaves(g), jax.tree.leaves(h)))
    if not same:
        assert columns(one) != columns(other, backward)
