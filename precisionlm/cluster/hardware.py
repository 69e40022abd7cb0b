"""Accelerators by the name that jax gives them: peak rates, memory and links, for utilization and rooflines.

Dense peaks (vendors' sparse figures halved), per device as jax counts devices (v5p: both cores of a chip are one).
TPU: jax's own table (jax.experimental.pallas.tpu.TpuInfo) for arithmetic and Google Cloud's system-architecture pages
(cloud.google.com/tpu/docs/v4, v5e, v5p, v6e) for memory, bandwidth and links. NVIDIA: the A100 (2021), H100 (2023),
H200 (2024), L4, L40S and DGX B200 data sheets.
"""

from dataclasses import dataclass

from precisionlm.errors import UserError, nearest

GB, GIB, TERA = 1e9, 2**30, 1e12
ASSUMED_MFU = 0.4  # model FLOPs/s over the bf16 peak, where a plan is given none


@dataclass(frozen=True)
class Chip:
    """Peaks in operations/s (a multiply and an add are two; None: no such units), memory in bytes, rates per second.

    link_bandwidth: what a device can send at once along one mesh axis: two links of a TPU's torus, or a GPU's NVLink
    (None: neither). Networks between slices or hosts are slower and not in this table.
    """

    name: str
    bf16: float
    int8: float | None
    fp8: float | None
    hbm_bytes: int
    hbm_bandwidth: float
    link_bandwidth: float | None


def _chip(name: str, bf16: float, int8: float | None, fp8: float | None, hbm: float, bandwidth: float, link: float):
    """Peaks in tera, bandwidths in giga, memory in bytes."""
    int8, fp8 = (peak and peak * TERA for peak in (int8, fp8))
    return Chip(name, bf16 * TERA, int8, fp8, int(hbm), bandwidth * GB, link * GB or None)


V4 = _chip("TPU v4", 275, 275, None, 32 * GIB, 1228, 100)
V5E = _chip("TPU v5e", 197, 394, None, 16 * GIB, 819, 100)
V5P = _chip("TPU v5p", 459, 918, None, 95 * GIB, 2765, 200)
V6E = _chip("TPU v6e", 918, 1836, None, 32 * GIB, 1638, 200)
A100_40 = _chip("A100 40GB SXM", 312, 624, None, 40 * GB, 1555, 300)
A100_80 = _chip("A100 80GB SXM", 312, 624, None, 80 * GB, 2039, 300)
A100_PCIE = _chip("A100 80GB PCIe", 312, 624, None, 80 * GB, 1935, 0)
H100 = _chip("H100 SXM", 989.4, 1978.9, 1978.9, 80 * GB, 3350, 450)
H100_PCIE = _chip("H100 PCIe", 756, 1513, 1513, 80 * GB, 2000, 0)
H200 = _chip("H200 SXM", 989.4, 1978.9, 1978.9, 141 * GB, 4800, 450)
B200 = _chip("B200", 2250, 4500, 4500, 180 * GB, 7700, 900)
L4 = _chip("L4", 121, 242, 242, 24 * GB, 300, 0)
L40S = _chip("L40S", 362, 733, 733, 48 * GB, 864, 0)

# Both spellings of a TPU generation have been seen: the short one of the compiler and the product's.
CHIPS: dict[str, Chip] = {
    "TPU v4": V4,
    "TPU v5 lite": V5E,
    "TPU v5e": V5E,
    "TPU v5": V5P,
    "TPU v5p": V5P,
    "TPU v6 lite": V6E,
    "TPU v6e": V6E,
    "NVIDIA A100-SXM4-40GB": A100_40,
    "NVIDIA A100-SXM4-80GB": A100_80,
    "NVIDIA A100 80GB PCIe": A100_PCIE,
    "NVIDIA H100 80GB HBM3": H100,
    "NVIDIA H100 PCIe": H100_PCIE,
    "NVIDIA H200": H200,
    "NVIDIA B200": B200,
    "NVIDIA L4": L4,
    "NVIDIA L40S": L40S,
}


# As people say them, where the table has several.
_SHORT = {"A100": A100_80.name, "H100": H100.name, "H200": H200.name}


def chip_of(device_kind: str) -> Chip | None:
    """The chip that jax calls `device_kind`, or None: utilization of an unknown chip is left out, never guessed."""
    return CHIPS.get(device_kind)


def chip_named(name: str) -> Chip:
    """The chip of this table's own name, such as `H100 SXM` or `TPU v5e`; `H100` alone is the SXM one. Raises
    UserError."""
    known = {chip.name: chip for chip in CHIPS.values()}
    name = _SHORT.get(name, name)
    if name not in known:
        raise UserError(f"chip '{name}' is unknown; {nearest(name, list(known))}")
    return known[name]


def chip_hours(chip: Chip, flops: float, mfu: float) -> float:
    """Hours of one chip that `flops` model FLOPs take at a share `mfu` of its bf16 peak."""
    return flops / (chip.bf16 * mfu) / 3600


def model_flops_utilization(device_kind: str, flops_per_second: float) -> float | None:
    """A device's achieved rate of model FLOPs over its bf16 peak, whatever the precision; None for an unknown chip."""
    chip = chip_of(device_kind)
    return flops_per_second / chip.bf16 if chip else None
