"""Costs read from HLO by hand-checked examples."""

from dataclasses import replace

import pytest

from precisionlm.cluster.hardware import V5E
from precisionlm.compiling.hlo import Array, group_size, parse
from precisionlm.compiling.hlo_costs import Collective, Product, collectives, memory_traffic, products
from precisionlm.compiling.report import out_of_memory, roofline

# A loop of 5 turns around one int8 product and one gather; a batched product spelled as a convolution.
HLO = """
HloModule example

%fused (p.0: s8[64,128], p.1: bf16[5,128,32]) -> s32[64,32] {
  %p.0 = s8[64,128]{1,0:T(8,128)(4,1)} parameter(0)
  %p.1 = bf16[5,128,32]{2,1,0} parameter(1)
  %part = bf16[1,128,32]{2,1,0} dynamic-slice(%p.1), dynamic_slice_sizes={1,128,32}
  %narrow = s8[128,32]{1,0} fusion(%part), kind=kLoop, calls=%narrowing
  ROOT %dot.1 = s32[64,32]{1,0} dot(%p.0, %narrow), lhs_contracting_dims={1}, rhs_contracting_dims={0}
}

%narrowing (q.0: bf16[1,128,32]) -> s8[128,32] {
  %q.0 = bf16[1,128,32]{2,1,0} parameter(0)
  ROOT %c.1 = s8[128,32]{1,0} convert(%q.0)
}

%below (s.0: (s32[], s8[64,128], bf16[5,128,32])) -> pred[] {
  %s.0 = (s32[], s8[64,128]{1,0}, bf16[5,128,32]{2,1,0}) parameter(0)
  %limit = s32[] constant(5)
  %turn = s32[] get-tuple-element(%s.0), index=0
  ROOT %lt = pred[] compare(%turn, %limit), direction=LT
}

%turned (t.0: (s32[], s8[64,128], bf16[5,128,32])) -> (s32[], s8[64,128], bf16[5,128,32]) {
  %t.0 = (s32[], s8[64,128]{1,0}, bf16[5,128,32]{2,1,0}) parameter(0)
  %mine = s8[64,128]{1,0} get-tuple-element(%t.0), index=1
  %all = bf16[5,128,32]{2,1,0} get-tuple-element(%t.0), index=2
  %f.1 = s32[64,32]{1,0} fusion(%mine, %all), kind=kOutput, calls=%fused
  %g.1 = s8[256,128]{1,0} all-gather(%mine), channel_id=3, replica_groups=mesh['a'=4,'b'=2] {'a'}, dimensions={0}
  ROOT %out = (s32[], s8[64,128]{1,0}, bf16[5,128,32]{2,1,0}) tuple(%mine, %mine, %all)
}

ENTRY %main (x: bf16[16,8,64], y: bf16[16,8,32], z: (s32[], s8[64,128], bf16[5,128,32])) -> bf16[16,64,32] {
  %x = bf16[16,8,64]{2,1,0} parameter(0)
  %y = bf16[16,8,32]{2,1,0:T(8,128)S(1)} parameter(1)
  %z = (s32[], s8[64,128]{1,0}, bf16[5,128,32]{2,1,0}) parameter(2)
  %w = (s32[], s8[64,128]{1,0}, bf16[5,128,32]{2,1,0}) while(%z), condition=%below, body=%turned
  %sum = f32[10]{0} all-reduce(%x), channel_id=1, replica_groups={{0,1},{2,3}}, to_apply=%narrowing
  ROOT %c = bf16[16,64,32]{2,1,0} convolution(%x, %y), window={size=16 stride=15 lhs_dilate=16}, dim_labels=0fb_0io->0bf
}
"""


def test_products_count_with_their_loops_and_types():
    found = {p.types: (p.count, p.flops) for p in products(parse(HLO))}
    assert found == {
        "s8 x s8 -> s32": (5, 5 * 2.0 * 64 * 128 * 32),
        "bf16 x bf16 -> bf16": (1, 2.0 * 16 * 64 * 8 * 32),
    }


# 2 sequences, 4 query heads over 2 of keys, 1024 tokens in 2 blocks, heads of 64; keys lie in fast memory.
SPLASH = """
HloModule example

ENTRY %main (x: bf16[2,4,1024,64]) -> bf16[2,4,1024,64] {
  %next = s8[1,2,2]{2,1,0} constant({...})
  %q = bf16[2,4,1024,64]{3,2,1,0} parameter(0)
  %k = bf16[2,2,1024,64]{3,2,1,0:T(8,128)(2,1)S(1)} parameter(1)
  %v = bf16[2,2,1024,64]{3,2,1,0} parameter(2)
  %s = s32[1024,128]{1,0} iota(), iota_dimension=0
  %l = f32[2,4,8,1024]{3,2,1,0} parameter(3)
  %splash_mha_fwd_residuals.1 = (bf16[2,4,1024,64]{3,2,1,0}) custom-call(%next, %next, %q, %k, %v, /*index=5*/%s), custom_call_target="tpu_custom_call", frontend_attributes={kernel_metadata={
"xprof_metadata":"{\"block_q\": 512}"
}}
  %splash_mha_dkv_no_residuals.1 = (bf16[2,2,1024,64]{3,2,1,0}) custom-call(%next, %next, %q, %k, %v, %l, %q, %l, %s), custom_call_target="tpu_custom_call"
  ROOT %splash_mha_dq_no_residuals.1 = (bf16[2,4,1024,64]{3,2,1,0}) custom-call(%next, %next, %q, %k, %v, %l, %q, %l, %s), custom_call_target="tpu_custom_call"
}
"""  # noqa: E501


# A windowed product: shards go round a ring, two in a turn, and an unsigned counter goes up by two to 8.
WINDOWED = """
HloModule example

%body (b: (u32[], bf16[4,4])) -> (u32[], bf16[4,4]) {
  %b = (u32[], bf16[4,4]{1,0}) parameter(0)
  %two = u32[] constant(2)
  %i = u32[] get-tuple-element(%b), index=0
  %w = bf16[4,4]{1,0} get-tuple-element(%b), index=1
  %d = bf16[4,4]{1,0} dot(%w, %w), lhs_contracting_dims={1}, rhs_contracting_dims={0}
  %next = u32[] add(%i, %two)
  ROOT %out = (u32[], bf16[4,4]{1,0}) tuple(%next, %d)
}

%until (c: (u32[], bf16[4,4])) -> pred[] {
  %limit = u32[] constant(8)
  %c = (u32[], bf16[4,4]{1,0}) parameter(0)
  %j = u32[] get-tuple-element(%c), index=0
  ROOT %lt = pred[] compare(%j, %limit), direction=LT
}

ENTRY %main (a: (u32[], bf16[4,4])) -> (u32[], bf16[4,4]) {
  %a = (u32[], bf16[4,4]{1,0}) parameter(0)
  ROOT %loop = (u32[], bf16[4,4]{1,0}) while(%a), condition=%until, body=%body
}
"""


# Into fast memory and out of it, while other things are done; a slice is all that is read of what is sliced.
MEANWHILE = """
HloModule example

ENTRY %main (x: bf16[8,128]) -> bf16[8,128] {
  %x = bf16[8,128]{1,0} parameter(0)
  %part = ((bf16[8,128]{1,0}), bf16[2,128]{1,0:T(8,128)S(1)}, s32[]{:S(2)}) slice-start(%x), slice={[0:2], [0:128]}
  %part.1 = bf16[2,128]{1,0:T(8,128)S(1)} slice-done(%part)
  %whole = (bf16[2,128]{1,0}, bf16[2,128]{1,0:T(8,128)S(1)}, u32[]{:S(2)}) copy-start(%part.1)
  %whole.1 = bf16[2,128]{1,0} copy-done(%whole)
  %sent = (bf16[2,128]{1,0}, bf16[2,128]{1,0}, u32[]{:S(2)}) collective-permute-start(%whole.1), channel_id=1
  ROOT %sent.1 = bf16[2,128]{1,0} collective-permute-done(%sent)
}
"""


def test_what_goes_on_meanwhile_is_read_and_written_once():
    part = 2 * 128 * 2
    assert memory_traffic(parse(MEANWHILE)) == part + part + 2 * part


def test_loops_turn_as_often_as_their_counter_takes():
    assert [(p.count, p.flops) for p in products(parse(WINDOWED))] == [(4, 4 * 2.0 * 4**3)]
    by_one = WINDOWED.replace("constant(2)", "constant(1)")
    assert products(parse(by_one))[0].count == 8


def test_attention_kernels_count_by_formula():
    pair = 2 * 2 * 4 * 1024 * 1024 * 64 * 3 / 4  # one product of three of the four pairs of blocks
    found = {p.types: (p.count, p.flops) for p in products(parse(SPLASH))}
    assert found == {f"bf16 x bf16 -> splash {k}": (1, n * pair) for k, n in (("fwd", 2), ("dq", 3), ("dkv", 4))}
    q, kv, schedule, sequence, statistics = 2**20, 2**19, 2 * 4, 2**19, 2**18
    values_again = (1.5 * 2 - 1) * kv  # by 1.5 blocks of queries on average, of each of two heads
    forward = schedule + q + kv + sequence + q + values_again
    dq = schedule + q + kv + 2 * statistics + q + sequence + q + values_again
    dkv = schedule + q + kv + 2 * statistics + q + sequence + kv + 0.5 * 2 * q
    assert memory_traffic(parse(SPLASH)) == forward + dq + dkv
    with pytest.raises(ValueError, match="other: a Pallas kernel whose cost has no formula"):
        products(parse(SPLASH.replace("%splash_mha_fwd_residuals.1", "%other")))


def test_collectives_count_ring_traffic():
    found = {(c.kind, c.dtype): (c.count, c.bytes) for c in collectives(parse(HLO), devices=8)}
    assert found == {
        ("all-gather", "s8"): (5, 5 * 3.0 * 64 * 128),
        ("all-reduce", "bf16"): (1, 2 * 0.5 * 16 * 8 * 64 * 2.0),
    }


def test_traffic_counts_slices_and_leaves_fast_memory_out():
    x, result = 16 * 8 * 64 * 2, 16 * 64 * 32 * 2
    fused = 64 * 128 + 128 * 32 * 2 + 64 * 32 * 4
    gathered = 64 * 128 + 256 * 128
    condition = 1 + 4 + 4
    reduced = x + 10 * 4
    assert memory_traffic(parse(HLO)) == 5 * (fused + gathered + condition) + reduced + x + result


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("replica_groups=mesh['a'=4,'b'=2] {'b'}", 2),
        ("replica_groups=mesh['a'=4,'b'=2] {'a','b'}", 8),
        ("replica_groups=mesh['a'=4,'b'=2] {'a':(1)2}", 2),
        ("replica_groups=[2,4]<=[8]", 4),
        ("replica_groups={{0,2,4},{1,3,5}}", 3),
        ("to_apply=%add", 8),
    ],
)
def test_group_sizes_in_all_notations(text, size):
    assert group_size(text, devices=8) == size


@pytest.mark.parametrize(("dtype", "size"), [("s4", 4), ("f8e4m3fn", 8), ("bf16", 16), ("pred", 8), ("f32", 32)])
def test_sizes_of_types(dtype, size):
    assert Array(dtype, (10,)).bytes == 10 * size / 8


def test_a_text_without_entry_is_refused():
    with pytest.raises(ValueError, match="no ENTRY"):
        parse("HloModule empty")


def test_roofline_takes_the_slowest_of_three_and_each_types_own_peak():
    bf16, int8 = Product("bf16 x bf16 -> f32", 1, 197e12), Product("s8 x s8 -> s32", 1, 197e12)
    sent = [Collective("all-gather", "bf16", 1, 50e9)]
    assert roofline(V5E, [bf16], [], 0.0)["step"] == pytest.approx(1.0)
    assert roofline(V5E, [bf16, int8], sent, 0.0) == pytest.approx(
        {"compute": 1.5, "memory": 0.0, "links": 0.5, "step": 1.5}
    )
    assert roofline(V5E, [replace(bf16, types="f32 x f32 -> f32 highest")], [], 0.0)["step"] == pytest.approx(6.0)
    assert roofline(V5E, [replace(bf16, types="bf16 x s8 -> f32")], [], 819e9 * 3)["step"] == pytest.approx(3.0)


@pytest.mark.parametrize(
    ("message", "memory"),
    [
        (
            "RESOURCE_EXHAUSTED: Ran out of memory on HBM, the total memory required for HLO temporaries (74.68G) "
            "exceeds available HBM (15.75G). HLO module: jit_update.",
            {"needed": 74.68 * 2**30, "available": 15.75 * 2**30},
        ),
        (
            "RESOURCE_EXHAUSTED: Ran out of memory in memory space hbm. Used 17.50G of 15.75G hbm. Exceeded capacity",
            {"needed": 17.5 * 2**30, "available": 15.75 * 2**30},
        ),
        ("RESOURCE_EXHAUSTED: something else", {}),
        ("INTERNAL: RET_CHECK failure", None),
    ],
)
def test_the_compilers_words_for_out_of_memory(message, memory):
    assert out_of_memory(message) == pytest.approx(memory) if memory else out_of_memory(message) == memory
