"""Where arrays live: a table of parameter-path patterns, outside the model.

Mesh axes: replica (data parallel over slices), fsdp (data parallel, weights sharded), tensor. All Auto: the compiler
inserts the collectives.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from precisionlm.config import MeshConfig, TrainingConfig
from precisionlm.errors import UserError

AXES = ("replica", "fsdp", "tensor")

# The first pattern found at the end of a parameter's path decides; blocks' weights have a leading layer axis.
RULES: tuple[tuple[str, P], ...] = (
    (r"embedding", P("tensor", "fsdp")),
    (r"head", P("fsdp", "tensor")),
    (r"qkv/w", P(None, "fsdp", "tensor")),
    (r"out/w", P(None, "tensor", "fsdp")),
    (r"gate_up/w", P(None, "fsdp", None, "tensor")),
    (r"down/w", P(None, "tensor", "fsdp")),
    (r"scale|[aw]_clip", P()),
    (r"step|count", P()),
)


def make_mesh(config: MeshConfig, devices: list[jax.Device] | None = None) -> Mesh:
    """A (replica, fsdp, tensor) mesh over all devices. Raises UserError where the sizes do not multiply out."""
    devices = jax.devices() if devices is None else devices
    sizes = [config.replica, config.fsdp, config.tensor]
    known = int(np.prod([s for s in sizes if s != -1]))
    if sizes.count(-1) > 1 or known < 1 or len(devices) % known or (-1 not in sizes and known != len(devices)):
        raise UserError(
            f"mesh: replica {sizes[0]} x fsdp {sizes[1]} x tensor {sizes[2]} does not make {len(devices)} devices; "
            "one size may be -1"
        )
    shape = [len(devices) // known if s == -1 else s for s in sizes]
    return Mesh(np.array(devices).reshape(shape), AXES, axis_types=(AxisType.Auto,) * 3)


def check_batch(training: TrainingConfig, mesh: Mesh) -> None:
    """Raises UserError where the sequences that are in memory at a time cannot be split over the devices."""
    data_parallel = mesh.shape["replica"] * mesh.shape["fsdp"]
    sequences = training.batch_size // training.accumulate
    if sequences % data_parallel:
        what = "training.batch_size" if training.accumulate == 1 else "batch_size / accumulate ="
        raise UserError(
            f"{what} {sequences} does not divide over {data_parallel} data-parallel devices (mesh.replica x mesh.fsdp)"
        )


def partition_spec(path: str, shape: tuple[int, ...], mesh: Mesh) -> P:
    """The spec of the array at a `/`-separated path; axes that do not divide a dimension are left out of it.

    Raises ValueError for a path that no pattern matches.
    """
    for pattern, spec in RULES:
        if re.search(rf"(^|/)({pattern})$", path):
            return P(
                *(
                    axis if axis and size % mesh.shape[axis] == 0 else None
                    for axis, size in zip(spec, shape, strict=False)
                )
            )
    raise ValueError(f"no sharding rule matches parameter '{path}'; add one to precisionlm.training.sharding.RULES")


def shardings(tree: Any, mesh: Mesh) -> Any:
    """NamedShardings of a pytree of arrays or shapes, by path."""

    def one(path: tuple[Any, ...], leaf: Any) -> NamedSharding:
        name = "/".join(str(getattr(k, "key", getattr(k, "name", getattr(k, "idx", k)))) for k in path)
        return NamedSharding(mesh, partition_spec(name, leaf.shape, mesh))

    return jax.tree_util.tree_map_with_path(one, tree)


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Sequences are spread over the data-parallel axes."""
    return NamedSharding(mesh, P(("replica", "fsdp")))


@dataclass(frozen=True)
class ActivationSharding:
    """Where the model's activations live: sequences over the data-parallel axes, and under tensor parallelism features
    within attention and MLP, time steps between them (Korthikanti et al. 2022, arXiv:2205.05198). Norms, and what is
    saved of them, are then divided, and an all-reduce becomes a reduce-scatter and an all-gather. wide_sums: gradients
    of weights are summed over devices in float32."""

    mesh: Mesh
    wide_sums: bool = False

    def residual(self, x_BTD: jax.Array) -> jax.Array:
        """The residual stream between products."""
        return self._spread(x_BTD, 1)

    def features(self, x: jax.Array) -> jax.Array:
        """What goes on between two products of attention or MLP, [B, T, ..., features]."""
        return self._spread(x, x.ndim - 1)

    def by_heads(self, function: Callable[..., jax.Array], *xs_BTNH: jax.Array) -> jax.Array:
        """A function of arrays [B, T, heads, H], on every device for its own sequences and heads."""
        spec = P(("replica", "fsdp"), None, "tensor")
        mapped = jax.shard_map(function, mesh=self.mesh, in_specs=spec, out_specs=spec, check_vma=False)
        return mapped(*xs_BTNH)

    @property
    def tensor(self) -> int:
        """Devices that heads are spread over."""
        return self.mesh.shape["tensor"]

    def _spread(self, x: jax.Array, axis: int) -> jax.Array:
        spec: list[Any] = [("replica", "fsdp")] + [None] * (x.ndim - 1)
        if x.shape[axis] % self.mesh.shape["tensor"] == 0:
            spec[axis] = "tensor"
        return jax.lax.with_sharding_constraint(x, NamedSharding(self.mesh, P(*spec)))
