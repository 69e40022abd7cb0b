"""The table of chips: names as jax reports them, internal consistency, nothing for the unknown."""

import jax
import pytest
from jax.experimental.pallas import tpu

from precisionlm.cluster.hardware import CHIPS, chip_of, model_flops_utilization


@pytest.mark.parametrize(
    ("kind", "bf16", "hbm"),
    [
        ("TPU v5 lite", 197e12, 16 * 2**30),
        ("TPU v5", 459e12, 95 * 2**30),
        ("TPU v6 lite", 918e12, 32 * 2**30),
        ("NVIDIA H100 80GB HBM3", 989.4e12, 80e9),
        ("NVIDIA H200", 989.4e12, 141e9),
    ],
)
def test_known_chips(kind, bf16, hbm):
    chip = chip_of(kind)
    assert (chip.bf16, chip.hbm_bytes) == (pytest.approx(bf16), pytest.approx(hbm))


def test_tpu_peaks_agree_with_jaxs_own_table():
    kinds = {"TPU_V4": "TPU v4", "TPU_V5E": "TPU v5 lite", "TPU_V5P": "TPU v5", "TPU_V6E": "TPU v6 lite"}
    for version, kind in kinds.items():
        generation = tpu.ChipVersion[version]
        cores, ours = generation.num_physical_tensor_cores_per_chip, chip_of(kind)
        per_core = tpu.get_tpu_info_for_chip(generation, 1)
        assert ours.bf16 == pytest.approx(cores * per_core.bf16_ops_per_second, rel=0.01)
        if per_core.int8_ops_per_second:
            assert ours.int8 == pytest.approx(cores * per_core.int8_ops_per_second, rel=0.01)
        assert ours.hbm_bytes == pytest.approx(cores * per_core.hbm_capacity_bytes, rel=0.02)
        assert ours.hbm_bandwidth == pytest.approx(cores * per_core.mem_bw_bytes_per_second, rel=0.13)


def test_rates_never_fall_with_narrower_numbers_and_memory_is_not_faster_than_arithmetic():
    for chip in CHIPS.values():
        assert (chip.int8 or chip.bf16) >= chip.bf16
        assert (chip.fp8 or chip.bf16) >= chip.bf16
        assert 50 < chip.bf16 / chip.hbm_bandwidth < 1000
        assert chip.link_bandwidth is None or chip.link_bandwidth < chip.hbm_bandwidth


def test_an_unknown_chip_has_no_utilization():
    kind = jax.devices()[0].device_kind
    assert chip_of(kind) is None
    assert model_flops_utilization(kind, 1e12) is None
    assert model_flops_utilization("TPU v5 lite", 98.5e12) == pytest.approx(0.5)
