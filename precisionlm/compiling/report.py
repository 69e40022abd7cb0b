"""What is known of a train step that was compiled but not run, and how it is printed."""

import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from precisionlm.cluster.hardware import GIB, Chip, chip_of
from precisionlm.compiling.hlo_costs import Collective, Product
from precisionlm.json_text import dumps

FITS, OUT_OF_MEMORY, NOT_TRIED, FAILED, TIMED_OUT = "fits", "out of memory", "not tried", "failed", "timed out"


@dataclass(frozen=True)
class Report:
    """One device's part of a train step. Bytes, FLOPs and seconds of one step of one device.

    status: fits, out of memory, not tried (a smaller model did not fit), failed or timed out; detail says why.
    memory: arguments, outputs, aliased (outputs that reuse arguments), temporaries (all beside the arguments at the
    peak), code (not in the peak), peak; of a program that does not fit, what the compiler said: needed, available.
    attention: its kernel, and why no fused one if none (what a fused one costs is counted by formula,
    `compiling.kernels`). flops: `formula` of training.flops, `program` from the compiled products (with recomputation
    and what is computed though masked), `compiler` as XLA counts (loop bodies once, no kernels).
    seconds: a roofline ESTIMATE, not a measurement: `compute` at the chip's peak for each product's type, `memory` and
    `links` at full bandwidth, `step` the largest, as if the three overlapped perfectly; None for an unknown chip.
    """

    name: str
    recipe: str
    non_embedding: int
    topology: str
    devices: int
    device_kind: str
    mesh: dict[str, int]
    batch_tokens: int
    status: str
    detail: str = ""
    compile_seconds: float = 0.0
    attention: str = ""
    memory: dict[str, float] | None = None
    flops: dict[str, float] | None = None
    products: tuple[Product, ...] = ()
    collectives: tuple[Collective, ...] = ()
    memory_traffic: float = 0.0
    seconds: dict[str, float] | None = None

    @property
    def utilization(self) -> float | None:
        """Estimated upper bound of the model FLOPs utilization: formula FLOPs at the bf16 peak over the estimate."""
        chip = chip_of(self.device_kind)
        if not (chip and self.seconds and self.flops):
            return None
        return self.flops["formula"] / chip.bf16 / self.seconds["step"]


def roofline(
    chip: Chip, products_: Sequence[Product], collectives_: Sequence[Collective], memory_bytes: float
) -> dict[str, float]:
    """Estimated seconds: compute, memory, links, and the largest of them as `step`.

    A product runs at the peak of its wider operand: 8-bit floats and integers at theirs where the chip has such units,
    float32 at HIGHEST precision in six bf16 passes, everything else at the bf16 peak. Collectives are rings over one
    axis of links.
    """
    compute = sum(p.flops / _peak(chip, p.types) for p in products_)
    memory = memory_bytes / chip.hbm_bandwidth
    links = sum(c.bytes for c in collectives_) / chip.link_bandwidth if chip.link_bandwidth else 0.0
    return {"compute": compute, "memory": memory, "links": links, "step": max(compute, memory, links)}


def _peak(chip: Chip, types: str) -> float:
    operands = re.split(r" x | -> ", types)[:2]
    if all(re.fullmatch(r"[su][248]", o) for o in operands):
        return chip.int8 or chip.bf16
    if all(o.startswith("f8") for o in operands):
        return chip.fp8 or chip.bf16
    return chip.bf16 / 6 if types.endswith("highest") else chip.bf16


def out_of_memory(message: str) -> dict[str, float] | None:
    """needed and available bytes from the compiler's message; None where it is about something else."""
    if "RESOURCE_EXHAUSTED" not in message:
        return None
    size = r"([\d.]+[KMGT]?)"
    for pattern in (rf"Used {size} of {size} hbm", rf"\({size}\) exceeds available HBM \({size}\)"):
        if found := re.search(pattern, message):
            return {"needed": _size(found[1]), "available": _size(found[2])}
    return {}


def _size(text: str) -> float:
    """`15.75G` → bytes."""
    unit = text[-1] if text[-1] in "KMGT" else ""
    return float(text.removesuffix(unit)) * 1024.0 ** " KMGT".index(unit or " ")


def report_of(tree: dict[str, Any]) -> Report:
    """A report from its JSON tree."""
    nested = {
        "products": tuple(Product(**product) for product in tree.get("products", ())),
        "collectives": tuple(Collective(**collective) for collective in tree.get("collectives", ())),
    }
    return Report(**(tree | nested))


def as_json(reports: Sequence[Report]) -> str:
    """A JSON list; fields as `Report`."""
    return dumps([asdict(r) | {"utilization": r.utilization} for r in reports], indent=1)


def answered(rows: Sequence["Report"]) -> bool:
    """Whether the compiler said of any whether it fits."""
    return any(row.status not in (FAILED, TIMED_OUT) for row in rows)


def as_text(reports: Sequence[Report]) -> str:
    """One line a program: memory against HBM, FLOPs, bytes over links, and the estimated step."""
    columns = [
        "model",
        "N",
        "recipe",
        "topology",
        "mesh",
        "status",
        "GiB/HBM",
        "TFLOPs",
        "links GB",
        "step ms*",
        "MFU*",
    ]
    rows = [columns, *(_row(r) for r in reports)]
    widths = [max(len(row[i]) for row in rows) for i in range(len(columns))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    lines += [f"{r.name}: {r.detail}" for r in reports if r.detail]
    return "\n".join(
        [*lines, "per device and step; * estimate from a roofline with perfect overlap, not a measurement"]
    )


def _row(r: Report) -> list[str]:
    chip = chip_of(r.device_kind)
    mesh = " x ".join(f"{axis} {size}" for axis, size in r.mesh.items() if size > 1)
    sizes = r.memory or {}
    used = sizes.get("peak", sizes.get("needed"))
    available = sizes.get("available", chip.hbm_bytes if chip else None)  # the compiler keeps some of HBM for itself
    memory = f"{used / GIB:.2f}/{available / GIB:.4g}" if used and available else ""
    cells = [r.name, f"{r.non_embedding:,}", r.recipe, r.topology, mesh, r.status, memory]
    if not (r.flops and r.seconds):
        return [*cells, "", "", "", ""]
    sent = sum(c.bytes for c in r.collectives) / 1e9
    step = f"{r.seconds['step'] * 1e3:.1f}"
    return [*cells, f"{r.flops['formula'] / 1e12:.2f}", f"{sent:.2f}", step, f"{r.utilization or 0:.0%}"]


def details(r: Report) -> str:
    """Everything about one compiled step: memory by kind, products by type, collectives by kind, the roofline."""
    lines = [as_text([r])]
    if r.attention:
        lines.append(f"attention: {r.attention}")
    if r.memory:
        lines.append("memory, GiB: " + ", ".join(f"{kind} {size / GIB:.3f}" for kind, size in r.memory.items()))
    if r.flops:
        lines.append("TFLOPs: " + ", ".join(f"{kind} {flops / 1e12:.3f}" for kind, flops in r.flops.items()))
    for p in r.products:
        lines.append(f"  product     {p.types:28} {p.count:7,} a step  {p.flops / 1e12:10.3f} TFLOPs")
    for c in r.collectives:
        lines.append(f"  collective  {c.kind + ' ' + c.dtype:28} {c.count:7,} a step  {c.bytes / 1e9:10.3f} GB sent")
    if r.seconds:
        lines.append("estimated ms: " + ", ".join(f"{kind} {s * 1e3:.1f}" for kind, s in r.seconds.items()))
        lines.append(f"memory traffic {r.memory_traffic / 1e9:.1f} GB; compiled in {r.compile_seconds:.0f} s")
    return "\n".join(lines)
