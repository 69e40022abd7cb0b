"""The recipe grammar: every spelling reads, prints and reads back; nonsense gives one clear line."""

import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from precisionlm.errors import UserError
from precisionlm.precision.binding import bind, leaks_future
from precisionlm.precision.recipe import LINEAR_OPERANDS, parse_recipe

SPELLINGS = {
    "W4A8KV8": "W4A8KV8",
    "W4A4-g128": "W4A4-g128",
    "W8A8@down:A8": "W8A8@down:A8",
    "W=e4m3,A=e4m3,P246=e2m1": "W=e2m1,A=e4m3,P4=e2m1,P6=e2m1",
    "bf16": "bf16",
    "int4": "W4A4",
    "mxfp4": "W=mxfp4,A=mxfp4",
    "W4A4@first:bf16": "W4A4@*[0]:bf16",
    "W4,A=int8/tensor": "W4,A=int8/tensor",
    "W4A4-token": "W4A4",
    "W3.5A16": "A16,W=levels11",
    "W4A4@head:W8A8@embed:W8": "W4A4@head:W8A8@embed:W8",
    "W4A4@down[0,-1]:A8": "W4A4@down[0,-1]:A8",
    "W=mxfp4,A=mxfp8,G=mxfp4/sr": "W=mxfp4,A=mxfp8,G=mxfp4/sr",
    "W4A4-mse-had64": "W4A4-mse-had64",
}


@pytest.mark.parametrize(("text", "canonical"), SPELLINGS.items())
def test_spellings_print_canonically_and_read_back(text, canonical):
    recipe = parse_recipe(text)
    assert str(recipe) == canonical
    assert parse_recipe(canonical) == recipe


formats = st.sampled_from(["int2", "int8", "e4m3", "e2m1", "levels5", "mxfp4", "nvfp4", "bf16"])
modifiers = st.lists(st.sampled_from(["g32", "tensor", "e8m0", "edge", "mse", "sr", "had16"]), max_size=2, unique=True)
entries = st.dictionaries(
    st.sampled_from(["W", "A", "KV", "Q", "S", "P3", "P4", "P5", "P6"]),
    st.tuples(formats, modifiers),
    min_size=1,
    max_size=4,
)


@settings(max_examples=150, deadline=None)
@given(entries=entries, common=modifiers, override=st.sampled_from(["", "@down:A8", "@last:bf16", "@qkv|out:W=e3m2"]))
def test_random_recipes_round_trip(entries, common, override):
    text = ",".join(f"{operand}={'/'.join([fmt, *mods])}" for operand, (fmt, mods) in entries.items())
    try:
        recipe = parse_recipe("-".join([text, *common]) + override)
    except UserError as error:  # words that say nothing, as some of these do
        assert re.search(r"applies to no operand|says nothing of|changes nothing|both say", str(error))
        return
    assert parse_recipe(str(recipe)) == recipe
    assert str(parse_recipe(str(recipe))) == str(recipe)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("W4A4@dwn:A8", "did you mean 'down'"),
        ("W1A8", "from 2 to 12"),
        ("W4B8", "cannot read 'W4B8'"),
        ("W=e9m3", "did you mean 'e4m3'"),
        ("W4A4-h128", "did you mean 'g128'"),
        ("mxfp5", "no format 'mxfp5'"),
        ("", "empty recipe"),
        ("W4A4@down:KV8", "has no operand 'k'"),
        ("W4W8", "given twice"),
        ("P7=int4", "no operand 'P7'"),
        ("W4A4@A8", "site:"),
        ("W4A4-had48", "a power of two"),
        ("W4A4@head[0]:A8", "has no layers"),
        ("W4A4@down[x]:A8", "is no place"),
        ("Q8-KV4-S8", "operands stand together"),
        ("KV4-banana", "no modifier 'banana'"),
        ("KV4-g32", "'-g32' applies to no operand"),
        ("W16-foo", "no modifier 'foo'"),
        ("W=bf16/foo", "no modifier 'foo'"),
        ("W=bf16/g32", "'g32' says nothing of w"),
        ("W16A16-g32", "'-g32' applies to no operand"),
        ("W4A4@first[3]:A8", "is a layer already"),
        ("W4A4-g32-g64", "'g32' and 'g64' both say the sharing"),
        ("W=int4/g32/g64", "'g32' and 'g64' both say the sharing"),
        ("P2=int4,P2=int8", "operand 'w' is given twice"),
        ("P22=int4", "names an operand twice"),
        ("W=int4/e8m0/edge", "'edge' changes nothing"),
        ("W=int4/token", "'token' says nothing of w"),
        ("A=int8/b16", "'b16' says nothing of a"),
        ("P6=int8/token/tensor", "both say who shares a scale"),
    ],
)
def test_nonsense_is_one_clear_line(text, message):
    with pytest.raises(UserError) as caught:
        parse_recipe(text)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_overrides_reach_their_sites_only():
    table = parse_recipe("W4A4KV8@down:A8@first:bf16").resolve(3)
    assert [str(q) if q else None for q in table["down"]["a"]] == [None, "int8", "int8"]
    assert [str(q) if q else None for q in table["qkv"]["a"]] == [None, "int4", "int4"]
    assert [str(q) if q else None for q in table["attention"]["k"]] == [None, "int8", "int8"]
    assert table["head"]["w"] == (None,) and table["embed"]["w"] == (None,)


def test_suns_numbers_name_the_operands_of_the_three_products():
    table = parse_recipe("P123456=e2m1").resolve(1)
    assert all(str(table["out"][operand][0]) == "e2m1" for operand in LINEAR_OPERANDS)


def test_equal_structures_differ_in_grids_alone():
    three, eight = (bind(parse_recipe(r), 2, {}) for r in ("W3A8", "W=e4m3,A=e2m1"))
    assert three[0] == eight[0]
    assert float(three[1]["qkv"]["w"].qmax[0]) == 3 and float(eight[1]["qkv"]["w"].qmax[0]) == 480
    assert bind(parse_recipe("W3A8-g32"), 2, {})[0] != three[0]


def test_layers_are_switched_by_the_grid():
    structure, grids = bind(parse_recipe("W4A4@first:bf16"), 3, {})
    assert structure == bind(parse_recipe("W4A4"), 3, {})[0]
    np.testing.assert_array_equal(grids["qkv"]["w"].on, [0, 1, 1])


def test_what_does_not_fit_a_model_is_an_error():
    with pytest.raises(UserError, match="group size 48 does not divide the 64 values of a at 'qkv'"):
        bind(parse_recipe("W4A4-g48"), 2, {"qkv": {"a": 64, "w": 64}})
    with pytest.raises(UserError, match="had64 does not fit a at 'qkv'"):
        bind(parse_recipe("W4A4-had64"), 2, {"qkv": {"a": 96, "w": 96}})
    with pytest.raises(UserError, match="must share one scale structure"):
        bind(parse_recipe("W4A4@first:W=int4/g32"), 2, {})
    with pytest.raises(UserError, match="layer 5 of a model with 2 layers"):
        bind(parse_recipe("W4A4@down[5]:A8"), 2, {})


def test_scales_over_time_are_flagged():
    assert not leaks_future(bind(parse_recipe("W4A4KV4S8-g32"), 1, {})[0])
    assert not leaks_future(bind(parse_recipe("W=int4/tensor"), 1, {})[0])
    assert leaks_future(bind(parse_recipe("W4,A=int8/tensor"), 1, {})[0])
    assert leaks_future(bind(parse_recipe("nvfp4"), 1, {})[0])
