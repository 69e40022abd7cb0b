"""A law of the user's own, from a Python file: `my_law.py:law` (docs/own_law.md)."""

import importlib.util
from functools import cache
from pathlib import Path

import numpy as np

from precisionlm.analysis.laws.base import Law
from precisionlm.errors import UserError

SAMPLE = 3  # rows that a law is tried on when it is read


def is_own(name: str) -> bool:
    """Whether a law's name points into a file."""
    return name.partition(":")[0].endswith(".py")


def load(text: str) -> Law:
    """The law NAME of FILE.py, given as FILE.py:NAME. Runs the file.

    Raises UserError, in one line, if there is no such file or name, if the file fails, or if the law's formula does not
    give a number per row, with NumPy and with JAX.
    """
    path, _, name = text.partition(":")
    file = Path(path)
    if not file.is_file():
        raise UserError(f"--law {text}: no file {path}")
    if not name:
        raise UserError(f"--law {text}: expected FILE.py:NAME, the name of a law in that file")
    return _read(str(file.resolve()), file.stat().st_mtime_ns, name, text)


@cache
def _read(path: str, changed: int, name: str, text: str) -> Law:
    """Cached by file and time of change: a law read twice is the same law, and its fits share one compilation."""
    spec = importlib.util.spec_from_file_location(f"own_law_{Path(path).stem}", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as problem:  # the file is the user's: whatever it raises is about it
        raise UserError(f"{text.partition(':')[0]}: {_in_one_line(problem)}") from problem
    law = getattr(module, name, None)
    if not isinstance(law, Law):
        there = sorted(key for key, value in vars(module).items() if isinstance(value, Law))
        raise UserError(f"--law {text}: no law '{name}' in the file; it has {', '.join(there) or 'none'}")
    _try(law, text)
    return law


def _try(law: Law, text: str) -> None:
    """Evaluate the formula once with NumPy and once as JAX traces it."""
    import jax
    import jax.numpy as jnp

    columns = {symbol.name: np.full(SAMPLE, 2.0) for symbol in law.symbols}
    middle = [float(np.clip(np.mean(p.start), *p.bounds)) for p in law.parameters]

    def traced(point: jax.Array) -> jax.Array:
        return jnp.asarray(law.formula(law.constants_at(point), law.with_logs(columns), jnp))

    try:
        hash(law)
        shapes = [np.shape(law.evaluate(middle, law.with_logs(columns))),
                  jax.eval_shape(traced, jnp.zeros(len(middle))).shape]  # fmt: skip
    except Exception as problem:  # the formula is the user's
        raise UserError(f"--law {text}: its formula fails: {_in_one_line(problem)}") from problem
    if any(shape not in ((), (SAMPLE,)) for shape in shapes):
        raise UserError(f"--law {text}: its formula gives {shapes[0]} values for {SAMPLE} rows; one a row is right")


def _in_one_line(problem: BaseException) -> str:
    return f"{type(problem).__name__}: {(str(problem).splitlines() or [''])[0]}"
