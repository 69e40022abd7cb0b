"""`precisionlm bench scaling`: tokens/s of the training step over more and more of the machine's devices, by mesh axis
and by the dtype in which devices add up gradients."""

import random
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from precisionlm.bench.steps import experiment_of
from precisionlm.bench.tokens import fresh_batches, learned
from precisionlm.config import Experiment, MeshConfig
from precisionlm.errors import UserError, nearest
from precisionlm.training.optimizer import hyperparameters
from precisionlm.training.sharding import batch_sharding, make_mesh
from precisionlm.training.step import bound, initial_state, program_of, train_step

_STEPS = 8
AXES, REDUCE_DTYPES = ("fsdp", "replica"), ("bfloat16", "float32")


@dataclass
class _Stage:
    """Training on so many devices along one axis of the mesh. held: the state, shared by stages of one mesh; tokens: of
    a step; seconds: a step, of every round; loss: the lowest mean of a round (nats/token)."""

    experiment: Experiment
    devices: int
    axis: str
    mesh: Mesh
    step: Any
    held: dict[Mesh, Any]
    grids: Any
    seconds: list[float] = field(default_factory=list)
    loss: float = float("nan")

    @property
    def tokens(self) -> int:
        return self.experiment.batch_tokens * self.devices

    def advance(self, steps: int, turn: int, variant: int) -> None:
        """So many steps, on tokens of their own, and their time."""
        e = self.experiment
        shape = (e.training.batch_size * self.devices, e.data.sequence_length + 1)
        batches = fresh_batches(steps, shape, e.model.vocab_size or 2, batch_sharding(self.mesh), turn, variant)
        hyper, losses, state = hyperparameters(e), [], self.held[self.mesh]
        began = time.perf_counter()
        for batch in batches:
            state, metrics = self.step(state, batch, self.grids, hyper, 0)
            losses.append(metrics["loss"])
        jax.block_until_ready(losses)
        self.seconds.append((time.perf_counter() - began) / steps)
        self.held[self.mesh] = state
        self.loss = float(np.fmin(self.loss, np.mean([float(loss) for loss in losses])))


def bench_scaling(
    size: str, recipe: str, axes: Sequence[str], reduce_dtypes: Sequence[str], rounds: int, say: Callable[[str], None]
) -> list[dict[str, Any]]:
    """Rows {size, recipe, devices, mesh, reduce_dtype, ms, tokens_per_second, speedup, low, high, efficiency, loss,
    error}: medians over rounds in which one device, and 2, 4, … along each axis (replica or fsdp, the same sequences a
    device) at each dtype take turns, in another order every round. speedup, and its least and largest of a round,
    against one device of the same round; efficiency = speedup / devices. No step sees a batch twice; error says where
    a loss shows otherwise. Raises UserError for an unknown size, axis or dtype."""
    for name, asked, valid in (("--mesh", axes, AXES), ("--reduce-dtype", reduce_dtypes, REDUCE_DTYPES)):
        for word in asked:
            if word not in valid:
                raise UserError(f"{name} {word}: {nearest(word, list(valid))}")
    counts = [n for n in (2, 4, 8, 16) if n <= jax.device_count()]
    lanes = [(1, "fsdp", "bfloat16"), *((n, axis, dtype) for n in counts for axis in axes for dtype in reduce_dtypes)]
    held: dict[Mesh, Any] = {}
    stages = []
    for variant, (count, axis, dtype) in enumerate(lanes):
        stages.append(_stage(size, recipe, count, axis, dtype, held))
        stages[-1].advance(3, 0, variant)
        stages[-1].seconds.clear()
        say(f"{count} devices, {axis}, {dtype}: compiled")
    order = random.Random(0)
    for turn in range(rounds):
        for variant in order.sample(range(len(stages)), len(stages)):
            stages[variant].advance(_STEPS, turn + 1, variant)
    return [_row(size, recipe, stage, stages[0]) for stage in stages]


def _stage(size: str, recipe: str, count: int, axis: str, dtype: str, held: dict[Mesh, Any]) -> _Stage:
    e = experiment_of(size, recipe, reduce_dtype=dtype)
    mesh = make_mesh(MeshConfig(**{"replica": 1, "fsdp": 1, axis: count}), jax.devices()[:count])
    structure, grids = bound(e, jax.default_backend())
    program = program_of(e, structure, mesh)
    if mesh not in held:
        held[mesh] = initial_state(program, 0, grids)
    return _Stage(e, count, axis, mesh, train_step(program), held, grids)


def _row(size: str, recipe: str, stage: _Stage, alone: _Stage) -> dict[str, Any]:
    pairs = zip(stage.seconds, alone.seconds, strict=True)
    speedups = [(stage.tokens / mine) / (alone.tokens / first) for mine, first in pairs]
    speedup, median = statistics.median(speedups), statistics.median(stage.seconds)
    return {
        "size": size,
        "recipe": recipe,
        "devices": stage.devices,
        "mesh": stage.axis if stage.devices > 1 else "",
        "reduce_dtype": stage.experiment.training.reduce_dtype if stage.devices > 1 else "",
        "ms": median * 1e3,
        "tokens_per_second": stage.tokens / median,
        "speedup": speedup,
        "low": min(speedups),
        "high": max(speedups),
        "efficiency": speedup / stage.devices,
        "loss": stage.loss,
        "error": learned(stage.loss, stage.experiment.model.vocab_size or 2),
    }


def as_table(rows: list[dict[str, Any]]) -> str:
    """A Markdown table, with the device and the jax version above it."""
    lines = [
        f"{jax.devices()[0].device_kind} x {jax.device_count()}, jax {jax.__version__}; speed-up: median (least to "
        "largest of a round)",
        "",
        "| size | recipe | devices | mesh | gradients added up in | ms/step | tokens/s | speed-up | per device |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    lines += [
        f"| {r['size']} | `{r['recipe']}` | {r['devices']} | {r['mesh']} | {r['reduce_dtype']} | {r['ms']:.1f} "
        f"| {r['tokens_per_second']:,.0f} | {r['speedup']:.2f} ({r['low']:.2f} to {r['high']:.2f}) "
        f"| {r['efficiency']:.2f} |{' ' + r['error'] if r['error'] else ''}"
        for r in rows
    ]
    return "\n".join(lines)
