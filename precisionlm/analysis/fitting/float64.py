"""Double precision on the host for as long as a calculation lasts: training in the same process keeps float32."""

from collections.abc import Iterator
from contextlib import contextmanager

import jax


@contextmanager
def float64() -> Iterator[None]:
    """float64 JAX on the CPU within the block, in this thread. An accelerator would only add latency."""
    with jax.enable_x64(True), jax.default_device(jax.devices("cpu")[0]):
        yield
