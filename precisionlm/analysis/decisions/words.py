"""A decision in words, for a terminal."""

from collections.abc import Mapping
from typing import Any

LABELS = {
    "compute": "budget (16-bit-equivalent FLOPs)", "training_flops": "  of it training, 6 N D r(P)",
    "serving_flops": "  of it serving, 2 N T r(P)", "N": "non-embedding parameters N", "D": "training tokens D",
    "tokens_per_parameter": "tokens per parameter", "P": "bits P", "loss": "loss (nats/token)",
    "D_critical": "critical tokens",
}  # fmt: skip


def describe(result: Mapping[str, Any]) -> str:
    """The decision, line by line: numbers with intervals and units, what else was weighed, notes, warnings."""
    status = f"; status {result['status']}" if "status" in result else ""
    lines = [f"{result['law']}: constants from {result['source']}{status}"]
    between = result.get("intervals", {})
    split = result.get("serving_flops", 0.0) > 0
    for key, label in LABELS.items():
        if result.get(key) is None or (key.endswith("_flops") and not split):
            continue
        shown = "  [{:.4g}, {:.4g}]".format(*between[key]) if key in between else ""
        lines.append(f"  {label:<34}{result[key]:.5g}{shown}")
        if key == "P" and result.get("format"):
            lines.append(f"  {'format':<34}{result['format']}")
    if result.get("format") and result.get("P") is None:
        lines.append(f"  {'format':<34}{result['format']}")
    for row in result.get("iso_loss", []):
        size = _bought(row) if row["N"] is None else f"N = {row['N']:.4g}"
        lines.append(f"  {_precision(row)} {size}")
    for row in result.get("formats", []):
        lines.append(f"  the same budget in {_precision(row)} {_bought(row)}")
    for row in result.get("iso_cost", []):
        lines.append(f"  the same budget at {_precision(row)} {_bought(row)}")
    for i, run in enumerate(result.get("next", []), 1):
        where = ", ".join(f"{k} = {v if isinstance(v, str) else f'{v:.4g}'}" for k, v in run["columns"].items())
        lines.append(f"  {i}. {where}: {run['flops']:.2g} FLOPs, standard error then {run['error']:.3g}")
    lines += [f"note: {note}" for note in dict.fromkeys(result.get("notes", []))]
    lines += [f"warning: {warning}" for warning in result.get("warnings", []) if _new(warning, result)]
    return "\n".join(lines)


def _new(warning: str, result: Mapping[str, Any]) -> bool:
    """Whether no note says it already."""
    return not any(warning in note for note in result.get("notes", []))


def _precision(row: Mapping[str, Any]) -> str:
    return f"{row['format']:<12}" if "format" in row else f"P = {row['P']:<5g}"


def _bought(row: Mapping[str, Any]) -> str:
    if row["N"] is None:
        return row["why"].partition(": ")[0]
    return f"N = {row['N']:.4g}, D = {row['D']:.4g}, loss {row['loss']:.5g}"
