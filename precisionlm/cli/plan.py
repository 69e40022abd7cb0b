"""The verb plan: from a law and constants (published or fitted) to a decision."""

import argparse
import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from precisionlm.analysis import laws
from precisionlm.analysis.decisions.cost import Cost, parse_cost
from precisionlm.analysis.decisions.design import next_runs
from precisionlm.analysis.decisions.optimum import (
    compute_optimal,
    critical_data,
    has_precision,
    iso_loss_size,
    optimum_interval,
    precision_columns,
)
from precisionlm.analysis.fitting.analyze import Analysis
from precisionlm.analysis.laws.base import INF, Law
from precisionlm.cli.assignments import numbers
from precisionlm.errors import UserError

HIGH = 1e3  # bits that stand for unquantized training operands where only post-training width matters
WIDTHS = (2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0, 10.0, 12.0, 16.0)  # of equal-loss and equal-cost sets


def add_plan_arguments(parser: argparse.ArgumentParser) -> None:
    """What to decide, and what is already decided."""
    parser.add_argument("--published", action="store_true", help="use the constants its paper prints")
    parser.add_argument("--with-fit", action="store_true", help="use constants fitted to --runs, with intervals")
    parser.add_argument("--no-offsets", action="store_true", help="Kumar's law without the offsets n_x of its appendix")
    parser.add_argument("--compute", type=float, metavar="C", help="budget, 16-bit-equivalent FLOPs")
    parser.add_argument("--size", "--N", dest="size", type=float, metavar="N", help="keep this many parameters")
    parser.add_argument(
        "--tokens", "--D", dest="tokens", type=float, metavar="D", help="keep this many training tokens"
    )
    parser.add_argument("--bits", "--P", dest="bits", type=float, metavar="P", help="keep this width")
    parser.add_argument("--format", metavar="eXmY", help="keep this float format, such as e4m3 (bf16 is e8m7)")
    parser.add_argument("--block", type=float, metavar="B", help="elements that share a scale, for laws that read it")
    parser.add_argument("--at", metavar="S=VALUE,...", help="values of the law's other symbols, such as P_post=4")
    parser.add_argument("--cost", default="linear", help="linear, linear:OFFSET, or a table with columns bits, seconds")
    parser.add_argument("--inference-tokens", type=float, default=0.0, metavar="T", help="tokens to be served later")
    parser.add_argument("--critical", action="store_true", help="tokens beyond which more training hurts, for --size")
    parser.add_argument("--iso-loss", type=float, metavar="LOSS", help="sizes that reach this loss at 2 to 16 bits")
    parser.add_argument("--next", type=int, metavar="K", help="the K runs to add to --runs that narrow --quantity most")
    parser.add_argument("--quantity", default="P", help="a constant's name, or P: the optimal bits (default)")
    parser.add_argument("--json", action="store_true", help="print one JSON object")


def plan(arguments: argparse.Namespace, fitted: Analysis | None) -> dict[str, Any]:
    """The decision as plain data. fitted: the user's own fit, None for published constants."""
    law, params, source = _constants(arguments, fitted)
    at = _values(arguments, law)
    cost = parse_cost(arguments.cost, arguments.inference_tokens)
    out: dict[str, Any] = {"law": law.name, "source": source, "params": dict(params), "notes": []}
    samples = fitted.bootstrap.samples if fitted and fitted.bootstrap else None
    if fitted:
        out |= {"status": fitted.result.status.value, "warnings": list(dict.fromkeys(fitted.warnings))}
    if arguments.next is not None:
        return out | _next(arguments, fitted, law, cost, at)
    if arguments.critical:
        return out | _critical(arguments, law, params, at, samples)
    if arguments.iso_loss is not None:
        return out | _iso_loss(arguments, law, params, at)
    if arguments.compute is None:
        return out | _point(arguments, law, params, at, samples)
    kept = {"n": arguments.size, "d": arguments.tokens, "bits": arguments.bits}
    best = compute_optimal(law, params, arguments.compute, cost, at=at, **kept)
    out |= {"compute": arguments.compute, "cost": arguments.cost, "N": best.N, "D": best.D, "P": best.P,
            "loss": best.loss, "tokens_per_parameter": best.D / best.N, "columns": best.columns}  # fmt: skip
    out["notes"] += [*best.notes, *_why(law, arguments)]
    if not has_precision(law) and arguments.bits is None:
        out["notes"].append("the law does not read the bits of training: costs are those of 16 bits; see --bits")
    if has_precision(law) and arguments.bits is None and None in (arguments.size, arguments.tokens):
        out["iso_cost"] = _iso_cost(law, params, arguments.compute, cost, arguments.size, arguments.tokens, at)
    if samples is not None:
        intervals = optimum_interval(law, samples, arguments.compute, cost, at=at, **kept)
        here = dict(best.columns) | {"N": best.N, "D": best.D}
        assert fitted and fitted.bootstrap
        low, high = fitted.bootstrap.band(here)
        out["intervals"] = {k: list(v) for k, v in intervals.items()} | {"loss": [float(low[0]), float(high[0])]}
        out["notes"] += _extrapolation(fitted, best.N, best.D)
    return out


def describe(result: Mapping[str, Any]) -> str:
    """The decision in words."""
    lines = [f"{result['law']}: constants from {result['source']}"]
    between = result.get("intervals", {})
    labels = {"compute": "budget (FLOPs)", "N": "parameters N", "D": "training tokens D", "P": "bits P",
              "loss": "loss (nats/token)", "tokens_per_parameter": "tokens per parameter",
              "D_critical": "critical tokens"}  # fmt: skip
    for key, label in labels.items():
        if result.get(key) is not None:
            interval = "  [{:.4g}, {:.4g}]".format(*between[key]) if key in between else ""
            lines.append(f"  {label:<22}{result[key]:.5g}{interval}")
    for entry in result.get("iso_loss", []):
        size = "no size reaches it" if entry["N"] is None else f"N = {entry['N']:.4g}"
        lines.append(f"  P = {entry['P']:<5g} {size}")
    for entry in result.get("iso_cost", []):
        bought = "undefined" if entry["N"] is None else (
            f"N = {entry['N']:.4g}, D = {entry['D']:.4g}, loss {entry['loss']:.5g}")  # fmt: skip
        lines.append(f"  the same budget at P = {entry['P']:<4g} {bought}")
    for i, run in enumerate(result.get("next", []), 1):
        where = ", ".join(f"{k} = {v:.4g}" for k, v in run["columns"].items())
        lines.append(f"  {i}. {where}: {run['flops']:.2g} FLOPs, standard error then {run['error']:.3g}")
    lines += [f"note: {note}" for note in result.get("notes", [])]
    lines += [f"warning: {warning}" for warning in result.get("warnings", [])]
    return "\n".join(lines)


def _constants(arguments: argparse.Namespace, fitted: Analysis | None) -> tuple[Law, dict[str, float], str]:
    if fitted:
        return fitted.law, fitted.result.params, f"a fit of {fitted.result.rows_used} rows of {arguments.runs}"
    name = arguments.law
    if arguments.no_offsets:
        if name not in ("kumar", "kumar_no_offsets"):
            raise UserError(f"--no-offsets belongs to law kumar, not to {name}")
        name = "kumar_no_offsets"
    law = laws.get(name)
    if not law.published:
        raise UserError(f"law {law.name} has no published constants; give --runs FILE to fit it")
    printed = law.published[0]
    return law, printed.as_dict(), printed.source + (f" ({printed.note})" if printed.note else "")


def _values(arguments: argparse.Namespace, law: Law) -> dict[str, float]:
    """Values of the law's symbols from --at, --block and --format."""
    at = numbers("--at", arguments.at, "SYMBOL=NUMBER")
    names = {s.name for s in law.symbols}
    for name in at:
        if name not in names:
            raise UserError(f"--at {name}: law {law.name} has the symbols {', '.join(sorted(names))}")
    if "log2B" in names and "log2B" not in at:
        at["log2B"] = float(np.log2(arguments.block or 128.0))
    if "G" in names and arguments.block:
        at["G"] = arguments.block
    if arguments.format:
        found = re.fullmatch(r"e(\d+)m(\d+)", arguments.format.lower().replace("bf16", "e8m7"))
        if not found or "E" not in names:
            raise UserError(f"--format {arguments.format}: expected eXmY such as e4m3, with a float law such as sun")
        at |= {"E": float(found[1]), "M": float(found[2])}
        arguments.bits = at["E"] + at["M"] + 1.0
    return at


def _why(law: Law, arguments: argparse.Namespace) -> list[str]:
    """Why Kumar's optimum is where it is: the offsets decide."""
    if law.name not in ("kumar", "kumar_no_offsets") or not arguments.published or arguments.bits is not None:
        return []
    both = []
    for name in ("kumar", "kumar_no_offsets"):
        other = laws.get(name)
        best = compute_optimal(other, other.published[0].as_dict(), 1e21)
        both.append(best.P)
    return [
        "size, tokens and width free, the best width is where N_eff(P)/(N P) peaks, at every budget: "
        f"P = {both[0]:.2f} with the offsets n_x of the paper's appendix, {both[1]:.2f} without them; the offset of "
        "per-tensor activations (n_a = 1.41) accounts for most of the difference"
    ]


def _critical(arguments: argparse.Namespace, law: Law, params: Mapping[str, float], at: dict[str, float],
              samples: Any) -> dict[str, Any]:  # fmt: skip
    if arguments.size is None:
        raise UserError("--critical needs --size N")
    columns: dict[str, float] = {"N": arguments.size}
    names = {s.name for s in law.symbols}
    if "P_post" in names:
        if arguments.bits is None and "P_post" not in at:
            raise UserError("--critical needs the width after post-training quantization: --bits P")
        columns |= {"P_post": arguments.bits if arguments.bits is not None else at["P_post"]}
        columns |= {k: at.get(k, HIGH) for k in ("P_w", "P_a", "P_kv") if k in names}
    else:
        missing = [s.name for s in law.symbols if s.name not in ("N", "D") and s.name not in at]
        if missing:
            raise UserError(f"--critical: law {law.name} needs {', '.join(missing)}: --at or --format")
        columns |= {k: v for k, v in at.items() if k in names}
    found = critical_data(law, params, columns)
    out: dict[str, Any] = {"N": arguments.size, "D_critical": None if found == INF else found, "columns": columns}
    if found == INF:
        out["notes"] = ["more tokens never hurt under this law here"]
    elif samples is not None:
        each = [critical_data(law, dict(zip(law.names, s, strict=True)), columns) for s in samples[:200]]
        out["intervals"] = {"D_critical": [float(np.percentile(each, q, method="nearest")) for q in (2.5, 97.5)]}
    return out


def _point(arguments: argparse.Namespace, law: Law, params: Mapping[str, float], at: dict[str, float],
           samples: Any) -> dict[str, Any]:  # fmt: skip
    if arguments.size is None or arguments.tokens is None:
        raise UserError(
            "plan needs --compute C; or --size and --tokens (loss there); or --critical, --iso-loss, --next"
        )
    bits = 16.0 if arguments.bits is None else arguments.bits
    columns = {k: float(v) for k, v in precision_columns(law, params, bits, at).items()}
    columns |= {"N": arguments.size, "D": arguments.tokens}
    loss = float(law.predict(params, columns)[0])
    out: dict[str, Any] = {"N": arguments.size, "D": arguments.tokens, "P": bits, "loss": loss, "columns": columns}
    if loss == INF:
        out["notes"] = [f"the law is undefined there: {law.undefined}"]
    elif samples is not None:
        draws = law.evaluate(list(samples.T[:, :, None]), law.complete(columns))
        out["intervals"] = {"loss": [float(v) for v in np.percentile(draws, (2.5, 97.5))]}
    return out


def _iso_loss(
    arguments: argparse.Namespace, law: Law, params: Mapping[str, float], at: dict[str, float]
) -> dict[str, Any]:
    if arguments.tokens is None:
        raise UserError("--iso-loss needs --tokens D")
    widths = np.array(WIDTHS) if has_precision(law) else np.array([16.0])
    columns = dict(precision_columns(law, params, widths, at)) | {"D": np.full(len(widths), arguments.tokens)}
    sizes = iso_loss_size(law, params, arguments.iso_loss, columns)
    rows = [{"P": float(p), "N": float(n) if np.isfinite(n) else None} for p, n in zip(widths, sizes, strict=True)]
    return {"D": arguments.tokens, "iso_loss": rows}


def _iso_cost(
    law: Law, params: Mapping[str, float], compute: float, cost: Cost, n: float | None, d: float | None,
    at: Mapping[str, float],
) -> list[dict[str, float | None]]:  # fmt: skip
    """What the same budget buys at other widths: the best N, D and the loss; None where the law is undefined."""
    rows: list[dict[str, float | None]] = []
    for bits in WIDTHS:
        try:
            best = compute_optimal(law, params, compute, cost, n=n, d=d, bits=bits, at=at)
            rows.append({"P": bits, "N": best.N, "D": best.D, "loss": best.loss})
        except UserError:
            rows.append({"P": bits, "N": None, "D": None, "loss": None})
    return rows


def _next(
    arguments: argparse.Namespace, fitted: Analysis | None, law: Law, cost: Cost, at: dict[str, float]
) -> dict[str, Any]:
    if fitted is None:
        raise UserError("--next needs a fit: give --runs FILE")
    value = None
    if arguments.quantity == "P":
        if not has_precision(law):
            raise UserError(f"law {law.name} has no optimal bits; name a constant with --quantity")
        value = lambda params: compute_optimal(law, params, arguments.compute or 1e21, cost, at=at).P  # noqa: E731
    found = next_runs(fitted.result, arguments.next, arguments.quantity, cost=cost, value=value)
    runs = [{"columns": r.columns, "flops": r.flops, "error": r.error} for r in found.runs]
    return {"quantity": found.quantity, "value": found.value, "error": found.error, "next": runs,
            "notes": [f"{found.quantity} = {found.value:.4g} ± {found.error:.3g} now", *found.notes]}  # fmt: skip


def _extrapolation(fitted: Analysis, n: float, d: float) -> list[str]:
    notes = []
    for name, value in (("N", n), ("D", d)):
        largest = float(fitted.result.table.columns[name].max())
        if value > 3 * largest:
            notes.append(f"{name} is {value / largest:.3g} times the largest in the table: an extrapolation")
    return notes
