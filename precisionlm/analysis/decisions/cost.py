"""What a training or an inference token costs at P bits, in 16-bit-equivalent FLOPs."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from precisionlm.analysis.table import files as tables
from precisionlm.analysis.table.cells import numbers
from precisionlm.errors import UserError

TRAIN, INFER = 6.0, 2.0  # FLOPs per parameter and token, Kaplan et al. 2020


@dataclass(frozen=True)
class Cost:
    """C = 6 N D r(P) + 2 N T r(P), T inference tokens over the model's life.

    r(P) = (P + offset) / 16 (Kumar et al. 2024: offset 0; Sun et al. 2025: k (P + b) with k = 6/16, b = offset), or
    interpolated in `bits` where measured: seconds per token at a width over seconds at 16 bits.
    """

    offset: float = 0.0
    bits: tuple[float, ...] = ()
    ratio: tuple[float, ...] = ()
    inference_tokens: float = 0.0

    def relative(self, p: Any) -> Any:
        """r(P): cost of a token at P bits over that at 16 bits."""
        return np.interp(p, self.bits, self.ratio) if self.bits else (np.asarray(p, float) + self.offset) / 16.0

    def total(self, n: Any, d: Any, p: Any) -> Any:
        """FLOPs of training on d tokens and serving the inference tokens."""
        return (TRAIN * np.asarray(d) + INFER * self.inference_tokens) * np.asarray(n) * self.relative(p)

    def tokens(self, compute: Any, n: Any, p: Any) -> Any:
        """Training tokens that `compute` FLOPs leave; not positive where inference alone is dearer."""
        return (compute / (np.asarray(n) * self.relative(p)) - INFER * self.inference_tokens) / TRAIN

    def size(self, compute: Any, d: Any, p: Any) -> Any:
        """Parameters that `compute` FLOPs pay for at d training tokens."""
        return compute / ((TRAIN * np.asarray(d) + INFER * self.inference_tokens) * self.relative(p))


def parse_cost(text: str, inference_tokens: float = 0.0) -> Cost:
    """`linear`, `linear:OFFSET`, or a .csv/.parquet file with columns bits and seconds (one row at 16 bits)."""
    if inference_tokens < 0:
        raise UserError(f"--inference-tokens {inference_tokens:g}: must not be negative")
    kind, _, value = text.partition(":")
    if kind == "linear":
        try:
            offset = float(value or 0.0)
        except ValueError as problem:
            raise UserError(f"--cost '{text}': expected linear:NUMBER") from problem
        return Cost(offset=offset, inference_tokens=inference_tokens)
    if not tables.is_table(text):
        raise UserError(f"--cost '{text}': expected linear, linear:OFFSET or a .csv or .parquet file")
    frame = tables.read(text)
    missing = [c for c in ("bits", "seconds") if c not in frame.columns]
    if missing:
        raise UserError(f"{text}: a measured cost needs columns bits and seconds; missing {', '.join(missing)}")
    bits, seconds = numbers(frame, "bits"), numbers(frame, "seconds")
    if not (16 in bits and (bits > 0).all() and (seconds > 0).all()):  # a missing one is not positive either
        raise UserError(f"{text}: a measured cost needs positive bits and seconds and a row at 16 bits")
    widths = np.unique(bits)
    mean = np.array([seconds[bits == width].mean() for width in widths])
    ratio = mean / mean[widths == 16]
    return Cost(0.0, tuple(widths.tolist()), tuple(ratio.tolist()), inference_tokens)
