"""The training and evaluation steps: built once for everything static, called with every number that a run varies."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache, partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from precisionlm.config import Experiment, ModelConfig
from precisionlm.model.fused import Kernel, fitting, platform_kernel
from precisionlm.model.placement import UNPLACED
from precisionlm.model.transformer import Transformer, axis_sizes, projections
from precisionlm.precision.binding import Grids, Structure, bind, blank_grids
from precisionlm.precision.recipe import parse_recipe
from precisionlm.training.cross_entropy import cross_entropy
from precisionlm.training.optimizer import LEARNED_SCALES, Hyper, adamw, learning_rate, learning_rates
from precisionlm.training.sharding import ActivationSharding, batch_sharding, shardings

State = dict[str, Any]  # params, opt_state, step
JOINED = 1 << 28  # bytes of collectives that XLA joins into one under FSDP on GPUs


@dataclass(frozen=True)
class Program:
    """Everything that decides a compiled step. Runs with equal programs (and batch shapes) share executables."""

    model: ModelConfig
    structure: Structure
    dtype: str
    remat: str
    skip_nan: bool
    mesh: Mesh
    accumulate: int = 1
    loss_chunks: int = 1
    unroll: int = 1
    deterministic: bool = False
    wide_sums: bool = False

    @property
    def platform(self) -> str:
        """What the mesh is of: cpu, gpu or tpu."""
        return _platform(self.mesh)

    @property
    def on_gpu(self) -> bool:
        """Whether the mesh is of GPUs."""
        return self.platform == "gpu"

    @property
    def compiler_options(self) -> dict[str, bool | int]:
        """What XLA is told of a training step; nothing where it is not for GPUs.

        Under FSDP it joins gathers of weights and scatters of gradients up to 256 MiB: at 1.2B two H100s then make 1.98
        times the tokens/s of one, 1.94 as XLA has it (docs/performance.md). For native products its trials of Triton
        kernels are most of compiling (at width 4096 on one H100 65 s for int8 and 121 s for fp8; 9 and 8 s without
        them), and cuBLASLt's are taken in the end; without the trials the int8 step is 3 % quicker."""
        if not self.on_gpu:
            return {}
        options: dict[str, bool | int] = {}
        if self.deterministic:
            options["xla_gpu_deterministic_ops"] = True
        if self.structure.execution == "native":
            options["xla_gpu_enable_triton_gemm"] = False
        if self.mesh.shape["fsdp"] > 1:
            options["xla_gpu_all_gather_combine_threshold_bytes"] = JOINED
            options["xla_gpu_reduce_scatter_combine_threshold_bytes"] = JOINED
        return options

    def transformer(self) -> Transformer:
        """The model of this program."""
        placed = ActivationSharding(self.mesh, self.wide_sums) if self.mesh.size > 1 else UNPLACED
        return Transformer(self.model, self.structure, self.dtype, self.remat, self._kernel, placed, self.unroll)

    def attention(self, sequence_length: int) -> Kernel:
        """What computes attention of sequences of so many tokens, and why no fused kernel if none does."""
        return fitting(self._kernel, self.model, self.structure, sequence_length, self.mesh.shape["tensor"])

    @property
    def _kernel(self) -> Kernel:
        return platform_kernel(self.platform, self.dtype, self.deterministic)


def _platform(mesh: Mesh) -> str:
    return mesh.devices.flat[0].platform


def program_of(experiment: Experiment, structure: Structure, mesh: Mesh) -> Program:
    """The program of an experiment on a mesh."""
    t = experiment.training
    return Program(
        experiment.model,
        structure,
        t.dtype,
        t.remat,
        t.on_nan == "skip",
        mesh,
        t.accumulate,
        t.loss_chunks,
        t.unroll or (experiment.model.layers if _platform(mesh) == "gpu" else 1),
        t.deterministic,
        # CPUs add up in float32 whatever they are given, and lack some products of bfloat16 that give float32.
        t.reduce_dtype == "float32" and _platform(mesh) != "cpu",
    )


def bound(experiment: Experiment, platform: str) -> tuple[Structure, Grids]:
    """The experiment's recipe bound to its model, for devices of a platform. Raises UserError (`binding.bind`)."""
    model, precision = experiment.model, experiment.precision
    return bind(
        parse_recipe(precision.recipe),
        model.layers,
        axis_sizes(model, experiment.data.sequence_length),
        precision.backward,
        precision.execution,
        platform,
        projections(model),
    )


def initial_state(program: Program, seed: int, grids: Grids, weights: Any = None) -> State:
    """Fresh optimizer moments, and fresh weights unless `weights` (without learned scales) are given. Equal seeds give
    equal weights whatever the recipe; precision is no part of initialization but for learned scales, which start from
    the weights and their grids."""
    structure = program.structure.trained()
    needed = {site: {o: grids[site][o] for o in structure.site(site)} for site, _ in structure.sites}
    return _initializer(program.model, structure, program.dtype, program.mesh)(jax.random.key(seed), needed, weights)


@cache
def _initializer(model: ModelConfig, structure: Structure, dtype: str, mesh: Mesh) -> Any:
    init = partial(_init, model, structure, dtype)
    return jax.jit(init, out_shardings=shardings(_state_shapes(model, structure, dtype), mesh))


def _init(
    model: ModelConfig, structure: Structure, dtype: str, key: jax.Array, grids: Grids, weights: Any = None
) -> State:
    tokens_BT = jnp.zeros((1, 2), jnp.int32)
    params = Transformer(model, Structure(), dtype).init(key, tokens_BT, {})["params"] if weights is None else weights
    if structure.sites:  # learned scales come to finished weights: a module with more parameters draws other weights
        transformer, rngs = Transformer(model, structure, dtype), {"params": key}
        params = transformer.apply({"params": params}, tokens_BT, grids, mutable="params", rngs=rngs)[1]["params"]
    moments = adamw(dict.fromkeys(("clip_norm", "beta1", "beta2", "epsilon", "weight_decay"), 0.0)).init(params)
    return {"params": params, "opt_state": moments, "step": jnp.zeros((), jnp.int32)}


@cache
def _state_shapes(model: ModelConfig, structure: Structure, dtype: str) -> Any:
    grids = blank_grids(structure, model.layers)
    return jax.eval_shape(partial(_init, model, structure, dtype), jax.random.key(0), grids)


def abstract_state(program: Program) -> State:
    """Shapes, dtypes and shardings of the state, without making it."""
    shapes = _state_shapes(program.model, program.structure.trained(), program.dtype)
    return jax.tree.map(
        lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
        shapes,
        shardings(shapes, program.mesh),
    )


def without_learned_scales(params: Any) -> Any:
    """The parameters of the same model at bf16."""
    if not isinstance(params, Mapping):
        return params
    return {name: without_learned_scales(leaf) for name, leaf in params.items() if name not in LEARNED_SCALES}


def token_losses(
    program: Program, params: Any, tokens_BT1: jax.Array, grids: Grids, key: jax.Array | None
) -> tuple[jax.Array, jax.Array]:
    """Cross entropy of each next token (nats) and its log-normalizer, both float32 [B, T]. With `loss_chunks` C, the
    logits of T / C tokens of every sequence are in memory at a time; the backward pass computes them again."""
    transformer = program.transformer()
    x_BTD: Any = transformer.apply({"params": params}, tokens_BT1[:, :-1], grids, key, method="hidden")

    def losses(x_BTD: jax.Array, targets_BT: jax.Array, key: jax.Array | None) -> tuple[jax.Array, jax.Array]:
        logits_BTV: Any = transformer.apply({"params": params}, x_BTD, grids, key, method="logits")
        return cross_entropy(logits_BTV, targets_BT, program.on_gpu and program.mesh.shape["tensor"] == 1)

    if program.loss_chunks == 1:
        return losses(x_BTD, tokens_BT1[:, 1:], key)

    def in_chunks(y: jax.Array) -> jax.Array:
        return jnp.moveaxis(y.reshape(y.shape[0], program.loss_chunks, -1, *y.shape[2:]), 1, 0)

    # A key of its own for every chunk: rounding noise must not repeat.
    keys = None if key is None else jax.random.split(key, program.loss_chunks)
    chunks = in_chunks(x_BTD), in_chunks(tokens_BT1[:, 1:]), keys
    found = jax.lax.map(jax.checkpoint(lambda c: losses(*c)), chunks)
    nll_BT, log_z_BT = (jnp.moveaxis(y_CBT, 0, 1).reshape(y_CBT.shape[1], -1) for y_CBT in found)
    return nll_BT, log_z_BT


def _loss_and_gradients(
    program: Program, params: Any, tokens_BT1: jax.Array, grids: Grids, hyper: Hyper, key: jax.Array | None
) -> tuple[jax.Array, Any]:
    """Mean loss (nats/token) and the gradients of the objective, over `accumulate` parts of the batch in turn."""

    def objective(params, tokens_BT1, key):
        nll_BT, log_z_BT = token_losses(program, params, tokens_BT1, grids, key)
        loss = jnp.mean(nll_BT)
        return loss + hyper["z_loss"] * jnp.mean(log_z_BT**2), loss

    differentiate = jax.value_and_grad(objective, has_aux=True)
    parts = program.accumulate
    if parts == 1:
        (_, loss), gradients = differentiate(params, tokens_BT1, key)
        return loss, gradients
    # Every part takes rows from every device.
    tokens_PBT1 = jnp.swapaxes(tokens_BT1.reshape(-1, parts, tokens_BT1.shape[1]), 0, 1)
    if program.mesh.size > 1:
        across = NamedSharding(program.mesh, P(None, *batch_sharding(program.mesh).spec))
        tokens_PBT1 = jax.lax.with_sharding_constraint(tokens_PBT1, across)

    def add(total, part):
        index, tokens_BT1 = part
        own_key = None if key is None else jax.random.fold_in(key, index)
        (_, loss), gradients = differentiate(params, tokens_BT1, own_key)
        return jax.tree.map(lambda a, b: a + b / parts, total, (loss, gradients)), None

    zero = (jnp.zeros((), jnp.float32), jax.tree.map(jnp.zeros_like, params))
    return jax.lax.scan(add, zero, (jnp.arange(parts), tokens_PBT1))[0]


def update(program: Program, state: State, tokens_BT1: jax.Array, grids: Grids, hyper: Hyper, seed: jax.Array):
    """One optimizer step: (state, tokens int32 [B, T + 1], grids, hyperparameters, seed) → (state, metrics).

    Metrics: loss (nats/token), grad_norm, learning_rate, finite (0 where loss or gradient was not finite).
    """
    stochastic = any(scaling.stochastic for _, _, scaling in program.structure.entries())
    key = jax.random.fold_in(jax.random.key(seed), state["step"]) if stochastic else None
    loss, gradients = _loss_and_gradients(program, state["params"], tokens_BT1, grids, hyper, key)
    grad_norm = optax.tree.norm(gradients)
    rate = learning_rate(state["step"], hyper)
    direction, opt_state = adamw(hyper).update(gradients, state["opt_state"], state["params"])
    rates = learning_rates(state["params"], rate, hyper)
    params = jax.tree.map(lambda p, u, r: p - r * u, state["params"], direction, rates)
    finite = jnp.isfinite(loss) & jnp.isfinite(grad_norm)
    if program.skip_nan:
        params, opt_state = jax.tree.map(
            partial(jnp.where, finite), (params, opt_state), (state["params"], state["opt_state"])
        )
    metrics = {"loss": loss, "grad_norm": grad_norm, "learning_rate": rate, "finite": finite.astype(jnp.float32)}
    return {"params": params, "opt_state": opt_state, "step": state["step"] + 1}, metrics


def everywhere(program: Program, tree: Any) -> Any:
    """Numbers (equal on all processes) as arrays on every device, so that a step copies nothing from the host."""
    sharding = NamedSharding(program.mesh, P())
    return jax.tree.map(lambda x: jax.make_array_from_process_local_data(sharding, np.asarray(x, _dtype_of(x))), tree)


def _dtype_of(x: Any) -> Any:
    return np.int32 if isinstance(x, int) else np.float32


@cache
def train_step(program: Program) -> Any:
    """The jitted `update`; the state is donated."""
    state = jax.tree.map(lambda leaf: leaf.sharding, abstract_state(program))
    replicated = NamedSharding(program.mesh, P())
    return jax.jit(
        partial(update, program),
        in_shardings=(state, batch_sharding(program.mesh), replicated, replicated, replicated),
        out_shardings=(state, replicated),
        donate_argnums=0,
        compiler_options=program.compiler_options,
    )


def sequence_losses(
    program: Program, params: Any, tokens_BT1: jax.Array, mask_BT: jax.Array, grids: Grids
) -> jax.Array:
    """Summed cross entropy (nats) and targets (count) of each sequence where the mask is true, float32 [2, B]."""
    nll_BT, _ = token_losses(program, params, tokens_BT1, grids, None)
    return jnp.stack([jnp.where(mask_BT, nll_BT, 0.0).sum(axis=-1), mask_BT.sum(axis=-1).astype(jnp.float32)])


@cache
def eval_step(program: Program) -> Any:
    """The jitted `sequence_losses`."""
    params = jax.tree.map(lambda leaf: leaf.sharding, abstract_state(program)["params"])
    replicated = NamedSharding(program.mesh, P())
    return jax.jit(
        partial(sequence_losses, program),
        in_shardings=(params, batch_sharding(program.mesh), batch_sharding(program.mesh), replicated),
        out_shardings=replicated,
    )
