"""The machine: devices and their memory, fused attention, where executables are kept, room on the disk."""

import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

from precisionlm.doctor.finding import Finding

GIB = 2**30
LITTLE, NONE = 10 * GIB, GIB // 4  # of free disk: a few checkpoints of 1.2B parameters; not even small runs
_MUCH = 50 * GIB  # of kept executables
# What is there where JAX might use more than CPUs: its name, the extra that it needs, files of its driver.
UNUSED = (
    ("an NVIDIA GPU", "cuda", ("/dev/nvidia0", "/proc/driver/nvidia/gpus")),
    ("a TPU", "tpu", ("/dev/accel0", "/dev/vfio/0")),
)


def devices() -> Finding:
    """What computes; a warning where an accelerator is there and not used."""
    import jax

    kinds: dict[str, list[Any]] = {}
    for device in jax.devices():
        kinds.setdefault(device.device_kind, []).append(device)
    text = ", ".join(f"{len(those)} x {kind}{_memory(those[0])}" for kind, those in kinds.items())
    if jax.default_backend() != "cpu":
        return Finding("devices", "ok", text)
    text += f", {len(os.sched_getaffinity(0))} cores"
    for what, extra, paths in UNUSED:
        if any(Path(path).exists() for path in paths):
            chosen = os.environ.get("JAX_PLATFORMS")
            how = f"JAX_PLATFORMS={chosen} chooses so" if chosen else f"pip install 'precisionlm[{extra}]'"
            return Finding("devices", "warning", text, f"{what} seems to be here, and JAX does not use it: {how}")
    return Finding("devices", "ok", text)


def _memory(device: Any) -> str:
    limit = (device.memory_stats() or {}).get("bytes_limit") if device.platform != "cpu" else None
    return f" ({limit / GIB:.0f} GiB each)" if limit else ""


def attention() -> Finding:
    """Which kernel models of bfloat16 get, and why none of the fused ones."""
    import jax

    from precisionlm.model.fused import platform_kernel

    kernel = platform_kernel(jax.default_backend(), "bfloat16", False)
    if kernel.reason:
        return Finding("attention", "ok", f"explicit products: {kernel.reason}")
    return Finding("attention", "ok", f"fused: {kernel.name}, for activations in bfloat16")


def executables() -> Finding:
    """Where compiled programs are kept between commands."""
    import jax

    from precisionlm.cluster.executables import keep_executables

    keep_executables()
    named = getattr(jax.config, "jax_compilation_cache_dir")  # noqa: B009 (untyped in jax)
    if not getattr(jax.config, "jax_enable_compilation_cache"):  # noqa: B009
        return Finding("executables", "ok", "not kept: JAX_ENABLE_COMPILATION_CACHE=false")
    if named is None:
        return Finding("executables", "ok", "not kept: on CPUs programs compile fast")
    if "://" in named:
        return Finding("executables", "ok", f"kept at {named}, which was not asked")
    folder = Path(named)
    if reason := unwritable(folder):
        advice = "every command compiles anew: make it writable, or name another in JAX_COMPILATION_CACHE_DIR"
        return Finding("executables", "warning", f"{folder}: {reason}", advice)
    sizes = [entry.stat().st_size for entry in folder.iterdir() if entry.is_file()] if folder.is_dir() else []
    text = f"{folder}: {len(sizes):,} files, {sum(sizes) / GIB:.1f} GiB"
    if sum(sizes) > _MUCH:
        return Finding("executables", "warning", text, "nothing of it is needed: remove what is old")
    return Finding("executables", "ok", text)


def disk() -> Finding:
    """Room in the working folder, where runs go by default."""
    here = Path.cwd()
    free = shutil.disk_usage(here).free
    text = f"{free / GIB:,.1f} GiB free at {here}"
    if reason := unwritable(here):
        return Finding("disk", "problem", f"{text}: {reason}", "work in a folder that can be written, or give --out")
    if free < NONE:
        return Finding("disk", "problem", text, "make room: runs would stop at their first checkpoint")
    if free < LITTLE:
        advice = "a checkpoint takes 12 bytes a parameter, and two are kept: make room, or set checkpoint.folder"
        return Finding("disk", "warning", text, advice)
    return Finding("disk", "ok", text)


def unwritable(folder: Path) -> str:
    """Why no file can be made in a folder, or in the nearest one above that is there; empty if one can."""
    there = next(path for path in (folder, *folder.parents) if path.exists())
    try:
        with tempfile.TemporaryFile(dir=there):
            return ""
    except OSError as error:
        return f"cannot be written: {error.strerror or error}"
