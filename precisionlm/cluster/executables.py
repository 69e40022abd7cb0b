"""Compiled programs kept between commands: on accelerators compiling takes longer than many a run."""

import os
from pathlib import Path

import jax


def keep_executables() -> None:
    """Have JAX keep executables on disk, on accelerators and unless JAX_COMPILATION_CACHE_DIR names a place already:
    in XDG_CACHE_HOME or ~/.cache. JAX_ENABLE_COMPILATION_CACHE=false keeps none. Not on CPUs, where they compile fast
    and other machines' would not run."""
    named = getattr(jax.config, "jax_compilation_cache_dir")  # noqa: B009 (untyped in jax)
    if named is None and jax.default_backend() != "cpu":
        cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
        jax.config.update("jax_compilation_cache_dir", str(cache / "precisionlm" / "executables"))
