"""precisionlm: what numeric precision costs a language model, and the best precision for a budget."""

__version__ = "0.1.0"
