"""precisionlm: what numeric precision costs a language model, and the best precision for a budget."""

__version__: str
"""Of git tags, as the package was installed; of a source tree that is not installed, the one to come."""


def __getattr__(name: str) -> str:
    if name != "__version__":
        raise AttributeError(f"module 'precisionlm' has no attribute '{name}'")
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version("precisionlm")
    except PackageNotFoundError:
        return "0.1.0.dev0"
