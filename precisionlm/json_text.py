"""JSON as everybody reads it: numbers that are not finite become null."""

import json
import math
from typing import Any


def dumps(content: Any, indent: int | None = None) -> str:
    """Plain JSON (RFC 8259, which has no Infinity and no NaN) of dicts, lists, tuples, text and numbers."""
    return json.dumps(_finite(content), indent=indent, allow_nan=False)


def _finite(content: Any) -> Any:
    if isinstance(content, dict):
        return {str(key): _finite(value) for key, value in content.items()}
    if isinstance(content, list | tuple):
        return [_finite(value) for value in content]
    return None if isinstance(content, float) and not math.isfinite(content) else content
