"""From a law and constants (published or fitted) to a decision."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from precisionlm.analysis import laws
from precisionlm.analysis.decisions.cautions import (
    beyond_the_runs,
    left_open,
    of_the_fit,
    optimum_intervals,
    positive_interval,
)
from precisionlm.analysis.decisions.cost import INFER, TRAIN
from precisionlm.analysis.decisions.design import next_runs
from precisionlm.analysis.decisions.formats import combinations, formats_under
from precisionlm.analysis.decisions.optimum import (
    Optimum,
    compute_optimal,
    critical_data,
    iso_loss_size,
)
from precisionlm.analysis.decisions.question import Options, Question, question
from precisionlm.analysis.decisions.words import describe
from precisionlm.analysis.fitting.analysis import Analysis
from precisionlm.analysis.laws.base import INF
from precisionlm.analysis.laws.precision import (
    categories,
    columns_at,
    in_words,
    label_of,
    reads_width,
    said_by,
    too_coarse,
    unquantized,
)
from precisionlm.errors import UserError
from precisionlm.json_text import dumps

WIDTHS = (2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0, 10.0, 12.0, 16.0)  # of equal-loss and equal-cost sets
UNITS = {"N": "non-embedding parameters", "D": "training tokens", "P": "bits per value", "loss": "nats/token",
         "compute": "16-bit-equivalent FLOPs"}  # fmt: skip


@dataclass(frozen=True)
class Plan:
    """A decision. `found` is what `precisionlm plan --json` prints: what was asked decides which keys it has. `repr` is
    what it prints without."""

    found: Mapping[str, Any]

    @property
    def N(self) -> float | None:
        """Non-embedding parameters; None where nothing of the kind was asked."""
        return self.found.get("N")

    @property
    def D(self) -> float | None:
        """Training tokens."""
        return self.found.get("D")

    @property
    def P(self) -> float | None:
        """Bits of a value."""
        return self.found.get("P")

    @property
    def loss(self) -> float | None:
        """Predicted loss, nats/token."""
        return self.found.get("loss")

    @property
    def intervals(self) -> dict[str, tuple[float, float]]:
        """N, D, P, loss or D_critical -> 95 % interval; empty for published constants."""
        return {name: (low, high) for name, (low, high) in self.found.get("intervals", {}).items()}

    @property
    def notes(self) -> tuple[str, ...]:
        """What the numbers rest on, in plain sentences."""
        return tuple(self.found["notes"])

    def __repr__(self) -> str:
        return describe(self.found)

    def to_dict(self) -> dict[str, Any]:
        """The decision as plain data."""
        return dict(self.found)

    def to_json(self) -> str:
        """`to_dict` as JSON; numbers that are not finite become null."""
        return dumps(self.found, indent=2)


def plan(law: str | Analysis, options: Options) -> Plan:
    """Decide by a fit, or by the published constants of a law. Raises UserError."""
    asked, source = question(law, options)
    fitted = asked.fitted
    out: dict[str, Any] = {"law": asked.law.name, "source": source, "params": dict(asked.params), "units": UNITS,
                           "notes": list(asked.notes)}  # fmt: skip
    if fitted:
        out |= {"status": fitted.status, "warnings": list(fitted.warnings)}
    if options.next is not None:
        found = _next(asked, options.next, options.quantity)
    elif options.critical:
        found = _critical(asked)
    elif options.iso_loss is not None:
        found = _iso_loss(asked, options.iso_loss)
    elif asked.compute is None:
        found = _point(asked)
    else:
        found = _budget(asked, options.cost) | {"compute": asked.compute}
        found["notes"] += _without_offsets(asked, options)
    return Plan(out | found | {"notes": [*out["notes"], *found.get("notes", [])]})


def _budget(asked: Question, cost_name: str) -> dict[str, Any]:
    """The best size, tokens and width or format under a budget, what else it buys, and what its numbers rest on."""
    law, cost, at, bits, compute = asked.law, asked.cost, asked.at, asked.bits, asked.compute
    assert compute is not None
    kept = {"n": asked.n, "d": asked.d}
    out: dict[str, Any] = {"notes": []}
    if all(s.name in at for s in categories(law)):
        best = compute_optimal(law, asked.params, compute, cost, bits=bits, at=at, **kept)
    else:
        choices = formats_under(law, asked.params, compute, cost, bits=bits, at=at, analysis=asked.fitted, **kept)
        if choices[0].best is None:
            raise UserError(f"no format of law {law.name} can be bought: {choices[0].name}: {choices[0].reason}")
        best, bits, at = choices[0].best, choices[0].bits, choices[0].at
        out["formats"] = [{"format": c.name, "P": c.bits} | _bought(c.best, c.reason) for c in choices]
    fixed = reads_width(law) and bits is None and None in (asked.n, asked.d)
    if fixed:
        out["iso_cost"] = [{"P": width} | _at_cost(asked, width) for width in WIDTHS]
        if any(row["N"] is None for row in out["iso_cost"]):
            out["notes"].append(f"undefined: {law.undefined}")
    if not reads_width(law) and bits is None:
        out["notes"].append("the law does not read the bits of training: costs are those of 16 bits; see --bits")
    out |= {"cost": cost_name, "N": best.N, "D": best.D, "P": best.P, "loss": best.loss,
            "format": label_of(law, best.columns), "tokens_per_parameter": best.D / best.N,
            "training_flops": float(TRAIN * best.N * best.D * cost.relative(best.P)),
            "serving_flops": float(INFER * best.N * cost.inference_tokens * cost.relative(best.P)),
            "columns": in_words(law, best.columns)}  # fmt: skip
    out["notes"] += [*best.notes, *_serving(asked, best, out["serving_flops"])]
    if best.D < best.N and asked.fitted is None:
        out["notes"].append(f"{best.D / best.N:.2g} tokens per parameter: laws are fitted on runs with more of them")
    if asked.fitted:
        between = optimum_intervals(asked.fitted, compute, cost, bits=bits, at=at, **kept)
        between["loss"] = _of_loss(asked.fitted, best.columns | {"N": best.N, "D": best.D})
        out["intervals"] = {k: list(v) for k, v in between.items()}
        out["notes"] += [*beyond_the_runs(asked.fitted, best.N, best.D, best.P), *left_open(between)]
        out["notes"] += of_the_fit(asked.fitted)
    return out


def _bought(best: Optimum | None, reason: str) -> dict[str, Any]:
    return {"N": None, "D": None, "loss": None, "why": reason} if best is None else (
        {"N": best.N, "D": best.D, "loss": best.loss})  # fmt: skip


def _at_cost(asked: Question, bits: float) -> dict[str, Any]:
    """What the same budget buys at another width; None and the reason where the law is undefined there."""
    assert asked.compute is not None
    try:
        best = compute_optimal(asked.law, asked.params, asked.compute, asked.cost, asked.n, asked.d, bits, asked.at)
    except UserError as problem:
        return _bought(None, str(problem))
    return _bought(best, "")


def _serving(asked: Question, best: Optimum, flops: float) -> list[str]:
    """What serving takes from the budget, and which size would be best without it."""
    if not flops:
        return []
    assert asked.compute is not None
    text = (
        f"serving {asked.cost.inference_tokens:.3g} tokens is paid from the budget: {flops / asked.compute:.0%} of it"
    )
    if asked.n is None and asked.d is None:
        free = replace(asked.cost, inference_tokens=0.0)
        alone = compute_optimal(asked.law, asked.params, asked.compute, free, bits=best.P, at=best.columns)
        text += f"; without it the best size at this precision would be {alone.N:.3g}"
    return [text]


def _of_loss(fitted: Analysis, columns: Mapping[str, Any]) -> tuple[float, float]:
    """95 % interval of the law's loss at a point."""
    return fitted.interval_of(lambda params: float(fitted.law.predict(params, columns)[0]))


def _without_offsets(asked: Question, options: Options) -> list[str]:
    """How much of the best width rests on offsets, for a law that has a form with and one without them."""
    law = asked.law
    if not law.without_offsets or asked.fitted or options.bits is not None or options.format:
        return []
    pair = [other for other in laws.LAWS.values() if other.without_offsets == law.without_offsets]
    best = {other.name: compute_optimal(other, other.published[0].as_dict(), 1e21).P for other in pair}
    without = best.pop(law.without_offsets)
    with_them = next(iter(best.values()))
    return [
        "size, tokens and width free, the best width is where N_eff(P)/(N P) peaks, at every budget: "
        f"P = {with_them:.2f} with the offsets of the paper's appendix, {without:.2f} without them"
    ]


def _critical(asked: Question) -> dict[str, Any]:
    law, n = asked.law, asked.n
    if n is None:
        raise UserError("--critical needs --size N")
    post = next((s.name for s in law.symbols if s.kind == "ptq_bits"), None)
    columns: dict[str, float] = {"N": n} | unquantized(law)
    if post is not None:
        if asked.bits is None and post not in asked.at:
            raise UserError("--critical needs the width after post-training quantization: --bits P")
        columns |= ({} if asked.bits is None else {post: asked.bits}) | asked.at
    else:
        said = said_by(law, asked.params, asked.bits, at=asked.at)
        columns |= {k: float(v) for k, v in columns_at(law, asked.params, at=said | asked.at).items()}
    found = critical_data(law, asked.params, columns)
    out: dict[str, Any] = {"N": n, "D_critical": None if found == INF else found, "notes": [],
                           "format": label_of(law, columns), "columns": in_words(law, columns)}  # fmt: skip
    if found == INF:
        out["notes"] = ["more tokens never hurt under this law here"]
    elif asked.fitted:
        between = positive_interval(asked.fitted, lambda params: critical_data(law, params, columns))
        out["intervals"] = {"D_critical": list(between)}
        out["notes"] += [*beyond_the_runs(asked.fitted, n, found), *left_open({"the critical tokens": between})]
    out["notes"] += of_the_fit(asked.fitted) if asked.fitted else []
    return out


def _point(asked: Question) -> dict[str, Any]:
    law, n, d = asked.law, asked.n, asked.d
    if n is None or d is None:
        raise UserError(
            "plan needs --compute C; or --size and --tokens (loss there); or --critical, --iso-loss, --next"
        )
    bits = 16.0 if asked.bits is None else asked.bits
    at = columns_at(law, asked.params, bits if reads_width(law) else None, at=asked.at)
    columns = {k: float(v) for k, v in at.items()} | {"N": n, "D": d}
    loss = float(law.predict(asked.params, columns)[0])
    out: dict[str, Any] = {"N": n, "D": d, "P": bits, "loss": loss, "format": label_of(law, columns), "notes": [],
                           "columns": in_words(law, columns)}  # fmt: skip
    if loss == INF:
        out["notes"] = [too_coarse(law, asked.params, columns)]
    elif asked.fitted:
        between = {"loss": _of_loss(asked.fitted, columns)}
        out["intervals"] = {k: list(v) for k, v in between.items()}
        out["notes"] += [*beyond_the_runs(asked.fitted, n, d, bits), *left_open(between), *of_the_fit(asked.fitted)]
    return out


def _iso_loss(asked: Question, loss: float) -> dict[str, Any]:
    """Sizes of equal loss, a row a width, or a format of a law that has constants of each."""
    law, d = asked.law, asked.d
    if d is None:
        raise UserError("--iso-loss needs --tokens D")
    names = [s.name for s in categories(law)]
    rows = []
    if names:
        for codes, width in combinations(law, asked.at, asked.fitted).items():
            at = asked.at | dict(zip(names, codes, strict=True))
            rows.append(({"format": label_of(law, at), "P": width}, columns_at(law, asked.params, at=at)))
    else:
        widths = WIDTHS if reads_width(law) and asked.bits is None else (16.0 if asked.bits is None else asked.bits,)
        for bits in widths:
            columns = columns_at(law, asked.params, bits if reads_width(law) else None, at=asked.at)
            rows.append(({"P": bits}, columns))
    found = []
    for row, columns in rows:
        size = float(iso_loss_size(law, asked.params, loss, {**columns, "D": np.array([d])})[0])
        defined = np.isfinite(law.predict(asked.params, {**columns, "N": 1e12, "D": d})).all()
        why = "" if np.isfinite(size) else "no size reaches it" if defined else (
            too_coarse(law, asked.params, {**columns, "N": 1e12, "D": d}))  # fmt: skip
        found.append(row | ({"N": size} if np.isfinite(size) else {"N": None, "why": why}))
    return {"D": d, "iso_loss": found, "notes": of_the_fit(asked.fitted) if asked.fitted else []}


def _next(asked: Question, count: int, quantity: str) -> dict[str, Any]:
    law, fitted = asked.law, asked.fitted
    if fitted is None:
        raise UserError("--next needs a fit: give --runs FILE")
    value: Callable[[Mapping[str, float]], float] | None = None
    notes = []
    if quantity == "P":
        if not reads_width(law):
            raise UserError(f"law {law.name} has no optimal bits; name a constant with --quantity")
        budget = asked.compute or 1e21
        notes = [f"P is the best width for {budget:.3g} FLOPs; --compute says for which budget"]

        def value(params: Mapping[str, float]) -> float:
            return compute_optimal(law, params, budget, asked.cost, at=asked.at).P

    found = next_runs(fitted.result, count, quantity, cost=asked.cost, value=value)
    runs = [{"columns": in_words(law, r.columns), "format": label_of(law, r.columns), "flops": r.flops,
             "error": r.error} for r in found.runs]  # fmt: skip
    return {"quantity": found.quantity, "value": found.value, "error": found.error, "next": runs,
            "notes": [f"{found.quantity} = {found.value:.4g} ± {found.error:.3g} now", *notes, *found.notes,
                      *of_the_fit(fitted)]}  # fmt: skip
