"""`precisionlm bench scaling`: tokens/s of the training step over more and more of the machine's devices."""

import statistics
import time
from collections.abc import Callable
from typing import Any

import jax

from precisionlm.bench.steps import experiment_of
from precisionlm.config import MeshConfig
from precisionlm.training.optimizer import hyperparameters
from precisionlm.training.sharding import batch_sharding, make_mesh
from precisionlm.training.step import bound, initial_state, program_of, train_step

_STEPS, _ROUNDS = 8, 5


def bench_scaling(size: str, recipe: str, say: Callable[[str], None]) -> list[dict[str, Any]]:
    """Rows {size, recipe, devices, ms, tokens_per_second, speedup, efficiency}: medians over five rounds in which 1, 2,
    4, … devices (fsdp over all of them, the same sequences for each) take turns; speedup against one device of the same
    round, efficiency = speedup / devices."""
    counts = [n for n in (1, 2, 4, 8, 16) if n <= jax.device_count()]
    calls: list[Any] = []
    tokens_of: list[int] = []
    for count in counts:
        e = experiment_of(size, recipe)
        sequences = e.training.batch_size * count
        mesh = make_mesh(MeshConfig(fsdp=count), jax.devices()[:count])
        structure, grids = bound(e, jax.default_backend())
        program = program_of(e, structure, mesh)
        state = initial_state(program, 0, grids)
        shape = (sequences, e.data.sequence_length + 1)
        tokens = jax.random.randint(jax.random.key(1), shape, 0, e.model.vocab_size or 2)
        calls.append((train_step(program), [state], jax.device_put(tokens, batch_sharding(mesh)), grids, e))
        tokens_of.append(sequences * e.data.sequence_length)
        _advance(calls[-1], 3)
        say(f"{count} devices: compiled")
    seconds: list[list[float]] = [[] for _ in counts]
    for _ in range(_ROUNDS):
        for own, call in zip(seconds, calls, strict=True):
            began = time.perf_counter()
            _advance(call, _STEPS)
            own.append((time.perf_counter() - began) / _STEPS)
    rows = []
    for count, own, total in zip(counts, seconds, tokens_of, strict=True):
        speedup = statistics.median(
            (total / mine) / (tokens_of[0] / first) for mine, first in zip(own, seconds[0], strict=True)
        )
        median = statistics.median(own)
        rows.append(
            {
                "size": size,
                "recipe": recipe,
                "devices": count,
                "ms": median * 1e3,
                "tokens_per_second": total / median,
                "speedup": speedup,
                "efficiency": speedup / count,
            }
        )
    return rows


def _advance(call: Any, steps: int) -> None:
    step, held, tokens, grids, e = call
    for _ in range(steps):
        held[0], metrics = step(held[0], tokens, grids, hyperparameters(e), 0)
    jax.block_until_ready(metrics)


def as_table(rows: list[dict[str, Any]]) -> str:
    """A Markdown table, with the device and the jax version above it."""
    lines = [
        f"{jax.devices()[0].device_kind} x {jax.device_count()}, jax {jax.__version__}; fsdp over all devices",
        "",
        "| size | recipe | devices | ms/step | tokens/s | speed-up | per device |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    lines += [
        f"| {r['size']} | `{r['recipe']}` | {r['devices']} | {r['ms']:.1f} | {r['tokens_per_second']:,.0f} | "
        f"{r['speedup']:.2f} | {r['efficiency']:.2f} |"
        for r in rows
    ]
    return "\n".join(lines)
