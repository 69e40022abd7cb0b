"""The real train step, compiled for TPUs that are not here: does it fit, what does it multiply, send and wait for.

Each compilation runs in a process of its own, so that libtpu and its environment never touch the caller and a crash of
the compiler is a row of the report. Needs libtpu (extra `tpu-aot`), no TPU and no data.
"""

import importlib.util
import json
import math
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from precisionlm.cluster.children import end_with_parent, parental
from precisionlm.cluster.hardware import chip_of
from precisionlm.compiling.hlo import parse
from precisionlm.compiling.hlo_costs import collectives, memory_traffic, products
from precisionlm.compiling.report import (
    FAILED,
    FITS,
    NOT_TRIED,
    OUT_OF_MEMORY,
    TIMED_OUT,
    Report,
    out_of_memory,
    report_of,
    roofline,
)
from precisionlm.config import Experiment, MeshConfig
from precisionlm.errors import UserError
from precisionlm.model.presets import non_embedding_parameters
from precisionlm.training.flops import training_flops_per_token
from precisionlm.training.sharding import check_batch, make_mesh
from precisionlm.training.step import Program, bound, program_of

_BAD_INPUT = "bad input"
_CORPUS = 200_000_000  # tokens that a device holds beside a pack

# Without these libtpu asks a metadata server that only a TPU machine has.
_ENVIRONMENT = {
    "JAX_PLATFORMS": "cpu",
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_ACCELERATOR_TYPE": "v5litepod-16",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
    "TPU_STDERR_LOG_LEVEL": "3",
    "TPU_MIN_LOG_LEVEL": "3",
    "JAX_TRACEBACK_FILTERING": "off",  # else the last line of an error is a note on that
}


def compile_for(
    experiment: Experiment, topology: str, timeout_seconds: float = 3600.0, pack: int | None = None
) -> Report:
    """Compile one experiment's train step for a topology such as v5e:2x2, v5e:16x16, v5p:2x2x4 or v6e:4x4; with `pack`
    a step of so many such runs on each device (`packing.program`).

    Out of memory, a crash or a time-out of the compiler is a report. Raises UserError for what no compiler can mend: no
    libtpu, an unknown topology, a vocabulary that is not given, a mesh or batch that does not fit the devices.
    """
    if importlib.util.find_spec("libtpu") is None:
        raise UserError("compiling for TPU needs libtpu, which is not installed: pip install 'precisionlm[tpu-aot]'")
    if pack is not None and pack < 1:
        raise UserError(f"--pack {pack}: at least 1 run on every device")
    if experiment.model.vocab_size is None:
        raise UserError("model.vocab_size is missing: ahead-of-time compilation reads no data, so it must be given")
    started = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        answer = Path(folder) / "report.json"
        request = {"experiment": experiment.model_dump(), "topology": topology, "pack": pack, "answer": str(answer)}
        try:
            with parental() as (variables, pass_fds):  # an interrupted command leaves no compiler behind
                worker = subprocess.run(
                    [sys.executable, "-m", __name__],
                    input=json.dumps(request),
                    env=os.environ | _ENVIRONMENT | variables,
                    pass_fds=pass_fds,
                    capture_output=True,
                    text=True,
                    timeout=timeout_seconds,
                    check=False,
                )
        except subprocess.TimeoutExpired:
            return _without_program(experiment, topology, TIMED_OUT, f"after {timeout_seconds:g} s of compiling")
        seconds = time.monotonic() - started
        if not answer.exists():
            last = (worker.stderr.strip().splitlines() or ["no message"])[-1]
            detail = f"the compiler's process ended with code {worker.returncode}: {last[:300]}"
            return _without_program(experiment, topology, FAILED, detail, seconds)
        found = json.loads(answer.read_text())
    if found["status"] == _BAD_INPUT:
        raise UserError(found["detail"])
    return report_of(found)


def compile_sweep(
    experiments: Sequence[Experiment],
    topology: str,
    timeout_seconds: float = 3600.0,
    report: Callable[[float, str], None] = lambda share, text: None,
    pack: int | None = None,
) -> list[Report]:
    """Compile every program of a sweep once, small models first. Where one does not fit, larger models that are alike
    in everything else are not tried.

    Runs that share a program (number of tokens, widths of one format family) share a row.
    """
    programs: dict[str, Experiment] = {}
    for experiment in experiments:
        programs.setdefault(_program_key(experiment), experiment)
    ordered = sorted(programs.values(), key=lambda e: non_embedding_parameters(e.model))
    too_large: dict[str, str] = {}
    rows = []
    for index, experiment in enumerate(ordered):
        report(index / len(ordered), f"{experiment.name} {experiment.precision.recipe}")
        alike = _program_key(experiment, with_model=False)
        if alike in too_large:
            row = _without_program(experiment, topology, NOT_TRIED, f"{too_large[alike]} does not fit")
        else:
            row = compile_for(experiment, topology, timeout_seconds, pack)
        if row.status == OUT_OF_MEMORY:
            too_large[alike] = experiment.name or f"N {row.non_embedding:,}"
        rows.append(row)
    return rows


def _program_key(e: Experiment, with_model: bool = True) -> str:
    """Equal for experiments whose compiled steps are equal, up to the model if it is left out."""
    structure, _ = bound(e, "tpu")
    t = e.training
    static: list[Any] = [
        structure,
        t.dtype,
        t.remat,
        t.on_nan,
        t.batch_size,
        t.accumulate,
        t.loss_chunks,
        t.unroll,
        t.reduce_dtype,
    ]
    static += [e.data.sequence_length, e.mesh]
    return repr([*static, e.model] if with_model else static)


def _without_program(e: Experiment, topology: str, status: str, detail: str, seconds: float = 0.0) -> Report:
    return Report(
        e.name,
        e.precision.recipe,
        non_embedding_parameters(e.model),
        topology,
        0,
        "",
        {},
        e.batch_tokens,
        status,
        detail,
        seconds,
    )


def _devices(topology: str) -> list[Any]:
    """The compiler's devices of a topology that is not here. Raises UserError."""
    from jax.experimental import topologies

    try:
        devices = list(topologies.get_topology_desc(platform="tpu", topology_name=topology).devices)
    except Exception as error:  # libtpu's own errors are of several types
        first = (str(error).splitlines() or [type(error).__name__])[0]
        known = "such as v5e:2x2, v5e:16x16, v5p:2x2x4 or v6e:4x4"
        raise UserError(f"topology '{topology}': libtpu knows none of this name, {known}: {first}") from None
    chips = math.prod(int(side) for side in topology.partition(":")[2].split("x"))
    if len(devices) != chips:
        raise UserError(
            f"topology '{topology}': the compiler shows {len(devices)} cores for {chips} chips; "
            "use a generation whose chip is one device: v5e, v5p, v6e"
        )
    return devices


def _program(e: Experiment, devices: list[Any]) -> Program:
    """The experiment's program on these devices; on one of them whatever mesh it asks for. Raises UserError."""
    return program_of(e, bound(e, "tpu")[0], make_mesh(e.mesh if len(devices) > 1 else MeshConfig(), devices))


def _lowered_step(e: Experiment, program: Program) -> tuple[Any, dict[str, int]]:
    """The train step, and its mesh. Raises UserError."""
    import jax
    import jax.numpy as jnp

    from precisionlm.training.optimizer import hyperparameters
    from precisionlm.training.step import abstract_state, train_step

    mesh, (_, grids) = program.mesh, bound(e, "tpu")
    check_batch(e.training, mesh)
    tokens = jax.ShapeDtypeStruct((e.training.batch_size, e.data.sequence_length + 1), jnp.int32)
    arguments = (abstract_state(program), tokens, grids, hyperparameters(e), e.training.seed)
    return train_step(program).lower(*arguments), {str(axis): size for axis, size in mesh.shape.items()}


def _lowered_pack(e: Experiment, program: Program, devices: list[Any], runs: int) -> tuple[Any, dict[str, int]]:
    """One step of `runs` runs on each device, and its mesh. Raises UserError."""
    from precisionlm.packing.program import PackShape, abstract_arguments, advance, run_mesh
    from precisionlm.training.optimizer import hyperparameters

    _, grids = bound(e, "tpu")
    total = runs * len(devices)
    shape = PackShape(program, run_mesh(devices), total, 1, e.training.batch_size, e.data.sequence_length)
    arguments = abstract_arguments(shape, grids, hyperparameters(e), _CORPUS)
    return advance(shape).lower(*arguments), {"run": len(devices)}


def _work(e: Experiment, topology: str, pack: int | None) -> dict[str, Any]:
    """In the compiler's own process: the fields of a Report."""
    import jax

    devices = _devices(topology)
    row = asdict(_without_program(e, topology, FAILED, ""))
    row |= {"devices": len(devices), "device_kind": devices[0].device_kind}
    program = _program(e, devices if pack is None else devices[:1])
    row["attention"] = str(program.attention(e.data.sequence_length))
    if pack is None:
        lowered, row["mesh"] = _lowered_step(e, program)
    else:
        lowered, row["mesh"] = _lowered_pack(e, program, devices, pack)
    row["batch_tokens"] *= 1 if pack is None else pack * len(devices)  # of all runs
    started = time.monotonic()
    try:
        compiled = lowered.compile()
    except jax.errors.JaxRuntimeError as error:
        memory = out_of_memory(str(error))
        status = FAILED if memory is None else OUT_OF_MEMORY
        detail = "" if memory else str(error).splitlines()[0][:300]
        seconds = time.monotonic() - started
        return row | {"status": status, "detail": detail, "memory": memory, "compile_seconds": seconds}
    seconds = time.monotonic() - started
    module = parse(compiled.as_text())
    done, sent, traffic = products(module), collectives(module, len(devices)), memory_traffic(module)
    formula = training_flops_per_token(e.model, row["non_embedding"], e.data.sequence_length)
    chip = chip_of(devices[0].device_kind)
    return row | {
        "status": FITS,
        "compile_seconds": seconds,
        "memory": _memory(compiled.memory_analysis()),
        "flops": {
            "formula": formula * row["batch_tokens"] / len(devices),
            "program": sum(p.flops for p in done),
            "compiler": float((compiled.cost_analysis() or {}).get("flops", 0.0)),
        },
        "products": done,
        "collectives": sent,
        "memory_traffic": traffic,
        "seconds": roofline(chip, done, sent, traffic) if chip else None,
    }


def _memory(m: Any) -> dict[str, float]:
    """Bytes by kind, of the executable's memory_analysis().

    The peak is the compiler's own, which it holds against the chip's memory when it accepts or refuses a program. Its
    temp_size_in_bytes is not in it: that is no peak, and of accepted programs it can exceed the chip's memory.
    """
    peak = m.peak_memory_in_bytes
    return {
        "arguments": m.argument_size_in_bytes,
        "outputs": m.output_size_in_bytes,
        "aliased": m.alias_size_in_bytes,
        "temporaries": peak - m.argument_size_in_bytes,
        "code": m.generated_code_size_in_bytes,
        "peak": peak,
    }


def _main() -> None:
    end_with_parent()
    request = json.load(sys.stdin)
    try:
        found = _work(Experiment.model_validate(request["experiment"]), request["topology"], request["pack"])
    except UserError as error:
        found = {"status": _BAD_INPUT, "detail": str(error)}
    answer = Path(request["answer"])
    part = answer.with_suffix(".part")
    part.write_text(json.dumps(found, default=asdict))
    part.rename(answer)


if __name__ == "__main__":
    _main()
