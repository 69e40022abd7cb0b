"""`precisionlm bench scaling`: tokens/s of the training step over more and more of the machine's devices."""

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from precisionlm.bench.steps import experiment_of
from precisionlm.bench.tokens import fresh_batches, learned
from precisionlm.config import Experiment, MeshConfig
from precisionlm.training.optimizer import hyperparameters
from precisionlm.training.sharding import batch_sharding, make_mesh
from precisionlm.training.step import bound, initial_state, program_of, train_step

_STEPS, _ROUNDS = 8, 5


@dataclass
class _Stage:
    """Training on so many devices. tokens: of a step; seconds: a step, of every round; loss: the lowest mean of a
    round (nats/token)."""

    experiment: Experiment
    devices: int
    mesh: Mesh
    step: Any
    state: Any
    grids: Any
    tokens: int
    seconds: list[float] = field(default_factory=list)
    loss: float = float("nan")

    def advance(self, steps: int, turn: int) -> None:
        """So many steps, on tokens of their own, and their time."""
        e = self.experiment
        shape = (e.training.batch_size * self.devices, e.data.sequence_length + 1)
        batches = fresh_batches(steps, shape, e.model.vocab_size or 2, batch_sharding(self.mesh), turn)
        hyper, losses = hyperparameters(e), []
        began = time.perf_counter()
        for batch in batches:
            self.state, metrics = self.step(self.state, batch, self.grids, hyper, 0)
            losses.append(metrics["loss"])
        jax.block_until_ready(losses)
        self.seconds.append((time.perf_counter() - began) / steps)
        self.loss = float(np.fmin(self.loss, np.mean([float(loss) for loss in losses])))


def bench_scaling(size: str, recipe: str, say: Callable[[str], None]) -> list[dict[str, Any]]:
    """Rows {size, recipe, devices, ms, tokens_per_second, speedup, efficiency, loss, error}: medians over five rounds
    in which 1, 2, 4, … devices (fsdp over all of them, the same sequences for each) take turns; speedup against one
    device of the same round, efficiency = speedup / devices. Each trains weights of its own, on tokens that no step
    sees twice; error says where its loss shows otherwise."""
    stages = []
    for count in [n for n in (1, 2, 4, 8, 16) if n <= jax.device_count()]:
        stages.append(_stage(size, recipe, count))
        stages[-1].advance(3, 0)
        stages[-1].seconds.clear()
        say(f"{count} devices: compiled")
    for turn in range(_ROUNDS):
        for stage in stages:
            stage.advance(_STEPS, turn + 1)
    return [_row(size, recipe, stage, stages[0]) for stage in stages]


def _stage(size: str, recipe: str, count: int) -> _Stage:
    e = experiment_of(size, recipe)
    mesh = make_mesh(MeshConfig(fsdp=count), jax.devices()[:count])
    structure, grids = bound(e, jax.default_backend())
    program = program_of(e, structure, mesh)
    state = initial_state(program, 0, grids)
    return _Stage(e, count, mesh, train_step(program), state, grids, e.batch_tokens * count)


def _row(size: str, recipe: str, stage: _Stage, alone: _Stage) -> dict[str, Any]:
    pairs = zip(stage.seconds, alone.seconds, strict=True)
    speedup = statistics.median((stage.tokens / mine) / (alone.tokens / first) for mine, first in pairs)
    median = statistics.median(stage.seconds)
    return {
        "size": size,
        "recipe": recipe,
        "devices": stage.devices,
        "ms": median * 1e3,
        "tokens_per_second": stage.tokens / median,
        "speedup": speedup,
        "efficiency": speedup / stage.devices,
        "loss": stage.loss,
        "error": learned(stage.loss, stage.experiment.model.vocab_size or 2),
    }


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
        f"{r['speedup']:.2f} | {r['efficiency']:.2f} |{' ' + r['error'] if r['error'] else ''}"
        for r in rows
    ]
    return "\n".join(lines)
