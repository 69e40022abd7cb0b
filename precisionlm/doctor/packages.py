"""Python, the package and the libraries it stands on: are they there, and of versions that were tested?"""

import re
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import precisionlm
from precisionlm.doctor.finding import Finding
from precisionlm.training.provenance import package_version

# As pyproject.toml asks for them (tests compare): at least, and below.
PYTHON = ((3, 11), (3, 14))
JAX = ((0, 10, 2), (0, 13))
CUDA_JAX = (0, 11, 2)  # the first whose scatter-adds of embedding gradients do not take 500 ms (openxla/xla#46225)
LIBRARIES = ("flax", "optax", "orbax-checkpoint", "grain", "aqtp")
EXTRAS = {
    "hf": ("datasets", "safetensors", "transformers", "torch", "compressed-tensors"),
    "track": ("tensorboardX", "wandb"),
    "gcs": ("gcsfs",),
    "s3": ("s3fs",),
    "datatrove": ("datatrove", "orjson"),
    "tpu-aot": ("libtpu",),
}


def python() -> Finding:
    """The interpreter."""
    here = sys.version_info[:2]
    text = f"{sys.version.split()[0]} at {sys.executable}"
    if here < PYTHON[0]:
        return Finding("python", "problem", text, f"install Python {_dotted(PYTHON[0])} or newer")
    if here >= PYTHON[1]:
        return Finding("python", "warning", text, f"tested are {_dotted(PYTHON[0])} to 3.{PYTHON[1][1] - 1}")
    return Finding("python", "ok", text)


def package() -> Finding:
    """precisionlm itself."""
    return Finding("precisionlm", "ok", f"{package_version()} at {Path(precisionlm.__file__).parent}")


def jax() -> Finding:
    """jax, jaxlib and what is built on them."""
    versions = {name: installed(name) for name in ("jax", "jaxlib", *LIBRARIES)}
    text = ", ".join(f"{name} {found or 'missing'}" for name, found in versions.items())
    if missing := [name for name, found in versions.items() if found is None]:
        return Finding("jax", "problem", text, f"pip install {' '.join(missing)}")
    import jax  # whose own message says why, where it cannot be imported

    if numbers(jax.__version__) < numbers(versions["jaxlib"] or ""):
        return Finding("jax", "problem", text, f"jaxlib is newer than jax: pip install jaxlib=={jax.__version__}")
    if not JAX[0] <= numbers(jax.__version__) < JAX[1]:
        tested = f"at least {_dotted(JAX[0])}, below {_dotted(JAX[1])}"
        return Finding("jax", "warning", text, f"tested is jax of {tested}: pip install 'jax>={_dotted(JAX[0])},"
                       f"<{_dotted(JAX[1])}'")  # fmt: skip
    if jax.default_backend() == "gpu" and numbers(jax.__version__) < CUDA_JAX:
        advice = f"gradients of embeddings are slow before jax {_dotted(CUDA_JAX)}: pip install 'precisionlm[cuda]'"
        return Finding("jax", "warning", text, f"{advice} (Python 3.12 or newer)")
    return Finding("jax", "ok", text)


def extras() -> Finding:
    """What is only needed for some things: nothing that is absent is wrong."""
    absent = {extra: [name for name in names if installed(name) is None] for extra, names in EXTRAS.items()}
    there = ", ".join(extra for extra, missing in absent.items() if not missing) or "none installed"
    how = [f"precisionlm[{extra}] for {', '.join(missing)}" for extra, missing in absent.items() if missing]
    return Finding("extras", "ok", there, f"where needed, pip install {'; '.join(how)}" if how else "")


def installed(name: str) -> str | None:
    """The version of a distribution; None without it."""
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def numbers(text: str) -> tuple[int, ...]:
    """`0.11.2.dev3` → (0, 11, 2)."""
    match = re.match(r"\d+(\.\d+)*", text)
    return tuple(map(int, match[0].split("."))) if match else ()


def _dotted(of: tuple[int, ...]) -> str:
    return ".".join(map(str, of))
