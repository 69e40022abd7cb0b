"""precisionlm: what numeric precision costs a language model, and the best precision for a budget.

`load_runs`, `fit`, `compare`, `plan`: from a table of runs to a law, a comparison, a decision. `Recipe`, `quantize`:
what a precision recipe says, and what it makes of an array. `UserError`: what all of them raise for bad input.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from precisionlm.analysis import load_runs
    from precisionlm.api import compare, fit, plan
    from precisionlm.errors import UserError
    from precisionlm.precision.arrays import quantize
    from precisionlm.precision.recipe import Recipe

__all__ = ["Recipe", "UserError", "__version__", "compare", "fit", "load_runs", "plan", "quantize"]

__version__: str
"""Of git tags, as the package was installed; of a source tree that is not installed, the one to come."""

# Imported where they are used first: pandas and JAX take seconds.
_HOMES = {
    "load_runs": "analysis",
    **dict.fromkeys(("fit", "compare", "plan"), "api"),
    "UserError": "errors",
    "quantize": "precision.arrays",
    "Recipe": "precision.recipe",
}


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(f"precisionlm.{_HOMES[name]}"), name)
    if name != "__version__":
        raise AttributeError(f"module 'precisionlm' has no attribute '{name}'")
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version("precisionlm")
    except PackageNotFoundError:
        return "0.1.0.dev0"


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
