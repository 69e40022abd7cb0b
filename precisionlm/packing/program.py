"""Many runs of one program as one program: the training step under vmap, several steps a dispatch.

Everything in which the runs of a pack differ is data along a leading run axis: state, formats, hyperparameters, seeds,
positions in the corpus, and how many steps each still makes. Runs are spread over the devices of a `run` mesh axis and
never talk to each other.

Legend: R runs, K steps of a dispatch, N batches of an evaluation, B sequences, T tokens a sequence, S corpus tokens.
"""

from dataclasses import dataclass, replace
from functools import cache, partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from precisionlm.precision.binding import Structure
from precisionlm.training.optimizer import Hyper
from precisionlm.training.step import Program, State, abstract_state, sequence_losses, update

RUN = "run"


@dataclass(frozen=True)
class PackShape:
    """What a pack's executables are compiled for. program: of one run on one device; devices: a mesh of the one axis
    `run`; runs: R, a multiple of its size; steps: K; sequences: B; length: T."""

    program: Program
    devices: Mesh
    runs: int
    steps: int
    sequences: int
    length: int

    @property
    def each(self) -> NamedSharding:
        """Of arrays with a leading run axis."""
        return NamedSharding(self.devices, P(RUN))

    @property
    def shared(self) -> NamedSharding:
        """Of what every device holds whole."""
        return NamedSharding(self.devices, P())

    def alone(self) -> "PackShape":
        """The same for what has nothing to do with steps: stacks of equal shapes share executables."""
        return PackShape(self.program, self.devices, self.runs, 0, 0, 0)


def with_structure(shape: PackShape, structure: Structure) -> PackShape:
    """The same for programs of another structure."""
    return replace(shape, program=replace(shape.program, structure=structure))


def run_mesh(devices: list[jax.Device]) -> Mesh:
    """The mesh of a pack."""
    return Mesh(np.array(devices), (RUN,), axis_types=(AxisType.Auto,))


def stacked(shape: PackShape, members: list[Any]) -> Any:
    """Trees of numbers, one a run, as one tree of arrays [R, ...] on the devices: integers as int32, all else as
    float32. Fewer than R are filled up with copies of the first."""
    filled = members + members[:1] * (shape.runs - len(members))

    def stack(*leaves: Any) -> jax.Array:
        dtype = np.int32 if isinstance(leaves[0], int | np.integer) else np.float32
        return jax.device_put(np.stack([np.asarray(leaf, dtype) for leaf in leaves]), shape.each)

    return jax.tree.map(stack, *filled)


def abstract_stack(shape: PackShape) -> State:
    """Shapes, dtypes and shardings of a state [R, ...]."""
    return jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct((shape.runs, *leaf.shape), leaf.dtype, sharding=shape.each),
        abstract_state(shape.program),
    )


def abstract_arguments(shape: PackShape, grids: Any, hyper: Hyper, corpus_tokens: int) -> tuple[Any, ...]:
    """What `advance` takes, as shapes, dtypes and shardings, for members with such grids and hyperparameters and a
    corpus of so many tokens (uint16) on every device."""

    def each(x: Any) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct((shape.runs, *np.shape(x)), np.float32, sharding=shape.each)

    ints = jax.ShapeDtypeStruct((shape.runs,), np.int32, sharding=shape.each)
    windows = (shape.steps, shape.runs, shape.sequences)
    across = NamedSharding(shape.devices, P(None, RUN))
    return (
        abstract_stack(shape),
        jax.ShapeDtypeStruct((corpus_tokens,), np.uint16, sharding=shape.shared),
        jax.ShapeDtypeStruct(windows, np.int32, sharding=across),
        jax.tree.map(each, grids),
        jax.tree.map(each, hyper),
        ints,
        ints,
    )


@cache
def blank_stack(shape: PackShape) -> Any:
    """Jitted () → a state [R, ...] of zeros."""
    abstract = abstract_stack(shape)
    return jax.jit(
        lambda: jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), abstract), out_shardings=shape.each
    )


@cache
def put(shape: PackShape) -> Any:
    """Jitted (stack [R, ...], one of its members, slot) → the stack with that member in the slot; the stack is
    donated."""

    def insert(stack: Any, one: Any, slot: jax.Array) -> Any:
        return jax.tree.map(lambda many, leaf: many.at[slot].set(leaf), stack, one)

    return jax.jit(insert, donate_argnums=0, in_shardings=(shape.each, shape.shared, None), out_shardings=shape.each)


@cache
def take(shape: PackShape) -> Any:
    """Jitted (stack [R, ...], slot) → the member in the slot, whole on every device."""
    return jax.jit(lambda stack, slot: jax.tree.map(lambda many: many[slot], stack), out_shardings=shape.shared)


@cache
def advance(shape: PackShape) -> Any:
    """Jitted (state [R, ...], corpus [S] or None, batches, grids, hyper, seed [R], todo [R]) → (state, metrics [K, R]).

    batches: int32 [K, R, B], numbers of windows of the corpus, window i being tokens i·T … i·T + T; without a corpus
    the tokens themselves, [K, R, B, T + 1]. Run r makes the first todo[r] of K steps (`training.step.update`) and then
    stands still. The state is donated.
    """
    across = P(RUN)
    body = jax.shard_map(
        partial(_advance, shape),
        mesh=shape.devices,
        in_specs=(across, P(), P(None, RUN), across, across, across, across),
        out_specs=(across, P(None, RUN)),
        check_vma=False,
    )
    return jax.jit(body, donate_argnums=0, compiler_options=shape.program.compiler_options)


def _advance(
    shape: PackShape,
    state: State,
    corpus: jax.Array | None,
    batches: jax.Array,
    grids: Any,
    hyper: Hyper,
    seed: jax.Array,
    todo: jax.Array,
) -> tuple[State, dict[str, jax.Array]]:
    def one(state: State, tokens_BT1: jax.Array, grids: Any, hyper: Hyper, seed: jax.Array, goes: jax.Array) -> Any:
        after, metrics = update(shape.program, state, tokens_BT1, grids, hyper, seed)
        return jax.tree.map(partial(jnp.where, goes), after, state), metrics

    def step(state: State, now: tuple[jax.Array, jax.Array]) -> Any:
        k, batch = now
        if corpus is not None:
            batch = corpus[batch[..., None] * shape.length + jnp.arange(shape.length + 1)]
        return jax.vmap(one)(state, batch.astype(jnp.int32), grids, hyper, seed, k < todo)

    return jax.lax.scan(step, state, (jnp.arange(shape.steps), batches))


@cache
def losses(shape: PackShape) -> Any:
    """Jitted (params [R, ...], tokens [N, B, T + 1], mask [N, B, T], grids) → summed cross entropy and targets of each
    sequence of each run, float32 [N, R, 2, B]."""

    def body(params: Any, tokens_NBT1: jax.Array, mask_NBT: jax.Array, grids: Any) -> jax.Array:
        def batch(_: None, now: tuple[jax.Array, jax.Array]) -> tuple[None, jax.Array]:
            tokens_BT1, mask_BT = now
            of_one = partial(sequence_losses, shape.program)
            return None, jax.vmap(of_one, in_axes=(0, None, None, 0))(
                params, tokens_BT1.astype(jnp.int32), mask_BT, grids
            )

        return jax.lax.scan(batch, None, (tokens_NBT1, mask_NBT))[1]

    across = P(RUN)
    return jax.jit(
        jax.shard_map(
            body,
            mesh=shape.devices,
            in_specs=(across, P(), P(), across),
            out_specs=P(None, RUN),
            check_vma=False,
        )
    )
