"""A state copied from the devices into their hosts' memory, so that training may go on while the copy is written."""

from typing import Any

import jax

from precisionlm.errors import UserError


def on_hosts(state: Any) -> Any:
    """The state in the hosts' memory, as the devices will have copied it: nothing waits here but for memory that was
    never used before. The state may be donated as soon as this returns. What several devices of one host hold alike (a
    replica axis within it) is there as often. Raises UserError if it does not fit."""
    arrays, tree = jax.tree.flatten(state)
    # A shard at a time, so that no program runs over all processes: those would have to start in the same order
    # everywhere, which a thread does not keep.
    shards = [[shard.data for shard in array.addressable_shards] for array in arrays]
    try:
        copies = jax.device_put(shards, jax.tree.map(_page_locked, shards))
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        size = sum(shard.nbytes for shard in jax.tree.leaves(shards))
        raise UserError(
            f"checkpoints: the hosts' page-locked memory, which a save copies the state into, has no room for "
            f"{size / 1e9:.1f} GB; on GPUs XLA_PJRT_GPU_HOST_MEMORY_LIMIT_GB says how much it may take (64 if absent)"
        ) from None
    wholes = [
        jax.make_array_from_single_device_arrays(array.shape, _page_locked(array), own)
        for array, own in zip(arrays, copies, strict=True)
    ]
    return jax.tree.unflatten(tree, wholes)


def get_memory(state: Any) -> None:
    """Have the memory that copies of such a state take: a second a GB, where it is page-locked, and JAX keeps it."""
    on_hosts(state)


def _page_locked(array: jax.Array) -> jax.sharding.Sharding:
    return array.sharding.with_memory_kind("pinned_host")
