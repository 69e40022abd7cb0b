"""Whole training steps, timed side by side: every variant compiled first, then measured in turn, round after round."""

import random
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from precisionlm.bench.tokens import fresh_batches, learned
from precisionlm.config import Experiment, build
from precisionlm.errors import UserError, nearest
from precisionlm.model.transformer import parameter_counts
from precisionlm.training.optimizer import hyperparameters
from precisionlm.training.sharding import batch_sharding, make_mesh
from precisionlm.training.step import abstract_state, bound, eval_step, initial_state, program_of, train_step

# name: layers, width, heads, MLP width, vocabulary, sequences, tokens per sequence
SIZES = {
    "tiny": (2, 64, 2, 192, 512, 8, 128),
    "0.44M": (4, 96, 3, 256, 8192, 32, 256),
    "1.8M": (6, 160, 5, 416, 8192, 32, 256),
    "6M": (8, 256, 4, 672, 8192, 32, 256),
    "14M": (8, 384, 6, 1024, 8192, 32, 256),
    "3M": (6, 192, 3, 512, 8192, 64, 512),
    "85M": (12, 768, 12, 2048, 50304, 32, 1024),
    "1.2B": (24, 2048, 16, 5440, 50304, 8, 1024),
    "wide": (6, 4096, 32, 10880, 50304, 8, 1024),
}


@dataclass
class Measured:
    """One variant: label, seconds per step of every round, temporary memory (bytes), seconds to compile; loss: the
    lowest mean over a turn (nats/token); error: why it could not be compiled, or why its times are not to be trusted.
    """

    label: str
    seconds: list[float] = field(default_factory=list)
    temporary: int = 0
    compile_seconds: float = 0.0
    loss: float = float("nan")
    error: str = ""

    @property
    def median(self) -> float:
        """Median seconds per step over the rounds."""
        return statistics.median(self.seconds) if self.seconds else float("nan")


def experiment_of(size: str, recipe: str, **training: Any) -> Experiment:
    """The experiment of a named size at a recipe, `native:` before it for native execution; its data is never opened.
    Raises UserError for an unknown size."""
    return build(tree_of(size, recipe, **training), "bench")


def tree_of(size: str, recipe: str, **training: Any) -> dict[str, Any]:
    """The same as a tree, which says nothing but what differs from the defaults: any version of the program reads it.
    Raises UserError for an unknown size."""
    if size not in SIZES:
        raise UserError(f"--size {size}: {nearest(size, list(SIZES))}")
    execution, recipe = ("native", recipe[7:]) if recipe.startswith("native:") else ("simulated", recipe)
    layers, width, heads, mlp_width, vocabulary, sequences, length = SIZES[size]
    return {
        "model": {
            "layers": layers,
            "width": width,
            "heads": heads,
            "mlp_width": mlp_width,
            "vocab_size": vocabulary,
        },
        "data": {"path": "none", "sequence_length": length},
        "optimizer": {"learning_rate": 3e-4},
        "precision": {"recipe": recipe, "execution": execution},
        "training": {"steps": 1000, "batch_size": sequences} | training,
    }


def non_embedding(size: str) -> int:
    """N of a named size (count)."""
    e = experiment_of(size, "bf16")
    return parameter_counts(
        abstract_state(program_of(e, bound(e, jax.default_backend())[0], make_mesh(e.mesh)))["params"]
    )[0]


def measure_steps(
    experiments: Sequence[tuple[str, Experiment]],
    rounds: int = 5,
    steps: int = 8,
    backward: bool = True,
    say: Callable[[str], None] = lambda text: None,
) -> list[Measured]:
    """Time the training step (or, without backward, the evaluation step) of every experiment of one model size.

    All share one state and take turns of `steps` steps in each of `rounds` rounds, so that a drift of the machine meets
    all of them alike; in another order every round, since what ran just before leaves its clock and temperature behind.
    Every step of every variant has random tokens of its own, drawn before its turn, since all train the same weights: a
    batch that is met twice is learned by heart, and its gradients are no longer those of training. A variant that
    cannot compile, and one whose loss shows that tokens were known, is returned with its error. Raises UserError
    where the devices cannot share a batch.
    """
    mesh = make_mesh(experiments[0][1].mesh)
    e0 = experiments[0][1]
    shape = (e0.training.batch_size, e0.data.sequence_length + 1)
    if shape[0] % mesh.size:
        raise UserError(
            f"bench: {shape[0]} sequences a step do not divide over {mesh.size} devices; try another --size"
        )

    vocabulary, sharding = e0.model.vocab_size or 2, batch_sharding(mesh)
    first = fresh_batches(1, shape, vocabulary, sharding)[0]
    mask = jax.device_put(jnp.ones((shape[0], shape[1] - 1), bool), batch_sharding(mesh))
    structure0, grids0 = bound(e0, jax.default_backend())
    state = initial_state(program_of(e0, structure0, mesh), 0, grids0)
    found: list[Measured] = []
    callables: list[tuple[Any, tuple[Any, ...]] | None] = []
    for label, e in experiments:
        structure, grids = bound(e, jax.default_backend())
        grids = jax.device_put(grids)
        program, row = program_of(e, structure, mesh), Measured(label)
        found.append(row)
        began = time.perf_counter()
        arguments: tuple[Any, ...] = (grids, jax.device_put(hyperparameters(e)), 0)
        try:
            if backward:
                compiled = train_step(program).lower(state, first, *arguments).compile()
            else:
                arguments = (mask, grids)
                compiled = eval_step(program).lower(state["params"], first, *arguments).compile()
        except Exception as error:
            row.error = f"{type(error).__name__}: {str(error)[:200]}"
            callables.append(None)
            say(f"{label}: {row.error}")
            continue
        row.compile_seconds = time.perf_counter() - began
        row.temporary = compiled.memory_analysis().temp_size_in_bytes
        callables.append((compiled, arguments))
        say(f"{label}: compiled in {row.compile_seconds:.1f} s")
    turns, order = list(enumerate(zip(found, callables, strict=True))), random.Random(0)
    for turn in range(rounds + 1):  # the first one warms up
        for variant, (row, call) in order.sample(turns, len(turns)):
            if call is None:
                continue
            compiled, arguments = call
            tokens_of_steps = fresh_batches(steps if turn else 2, shape, vocabulary, sharding, turn, variant)
            losses = []
            began = time.perf_counter()
            for tokens in tokens_of_steps:
                if backward:
                    state, metrics = compiled(state, tokens, *arguments)
                else:
                    metrics = compiled(state["params"], tokens, *arguments)
                losses.append(metrics["loss"] if backward else metrics)
            jax.block_until_ready(metrics)
            if turn:
                row.seconds.append((time.perf_counter() - began) / steps)
            means = [float(one if backward else one[0].sum() / one[1].sum()) for one in losses]
            row.loss = float(np.fmin(row.loss, np.mean(means)))
    for row in found:
        row.error = row.error or learned(row.loss, vocabulary)
    return found
