"""Explanations say what the recipe's binding does."""

import pytest

from precisionlm.precision.explain import as_text, bits_per_value, explain, plot
from precisionlm.precision.recipe import parse_recipe


@pytest.mark.parametrize(
    ("recipe", "bits"),
    [("W4", 4), ("W4-g128", 4.25), ("mxfp4", 4.25), ("mxfp6_e3m2", 6.25), ("mxfp8", 8.25), ("nvfp4", 4.5)],
)
def test_bits_count_the_scales(recipe, bits):
    assert bits_per_value(parse_recipe(recipe).commonest("w")) == bits


def test_a_scale_a_channel_counts_where_its_length_is_known():
    assert bits_per_value(parse_recipe("W4").commonest("w"), axis=64) == 4.5
    assert bits_per_value(None) == 16


def test_rows_name_sites_operands_and_layers():
    rows = {(r["site"], r["operand"]): r for r in explain(parse_recipe("W4A4-g128@down:A8@last:A6"), layers=3)}
    assert set(rows) == {(s, o) for s in ("qkv", "out", "gate_up", "down") for o in ("a", "w")}
    assert rows["qkv", "w"]["scale"] == "groups of 128" and rows["qkv", "w"]["layers"] == "all"
    assert rows["down", "a"]["format"] == "int6" and rows["down", "a"]["layers"] == [2]


def test_text_and_plot(tmp_path):
    text = as_text(parse_recipe("W=e2m1,A=e4m3,P6=ternary"))
    assert "e2m1: ±0 0.5 1 1.5 2 3 4 6" in text and "levels3: ±0 1" in text and "255 values up to ±480" in text
    assert as_text(parse_recipe("bf16")) == "recipe bf16: every operand in bf16"
    plot(parse_recipe("W=e2m1,A=int4"), tmp_path / "grid.png")
    assert (tmp_path / "grid.png").read_bytes()[:4] == b"\x89PNG"


@pytest.mark.parametrize(
    ("recipe", "words"),
    [
        ("W=e5m10", ["smallest above zero", "16 "]),
        ("W=e8m7", ["smallest above zero"]),
        ("W4A4-mse-had64", ["best for normal values", "rotated in Hadamard blocks of 64"]),
        ("W=int4/lsq,A=int4/lac", ["trained step size (lsq)", "trained share of the largest (lac)"]),
        ("W=int4full,S=uint8", ["int4full: -8 -7", "values up to 0 to 255"]),
        ("P6=e1m1/g32/token", ["groups of 32 channels of a token"]),
    ],
)
def test_everything_is_said_of_every_recipe(recipe, words, tmp_path):
    text = as_text(parse_recipe(recipe))
    assert all(word in text for word in words)
    plot(parse_recipe(recipe), tmp_path / "grids.png")
    assert (tmp_path / "grids.png").stat().st_size > 1000
