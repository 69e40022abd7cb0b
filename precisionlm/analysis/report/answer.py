"""The first lines of the page: what precision to train at and how sure that is, or why this table cannot tell."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from precisionlm.analysis.decisions.cautions import beyond_the_runs, left_open, of_the_fit, optimum_intervals
from precisionlm.analysis.decisions.cost import TRAIN
from precisionlm.analysis.decisions.formats import formats_under
from precisionlm.analysis.decisions.optimum import Optimum, compute_optimal
from precisionlm.analysis.decisions.summary import usual
from precisionlm.analysis.figures.draw import engineering
from precisionlm.analysis.figures.recipes import Recipes
from precisionlm.analysis.fitting.analysis import Analysis
from precisionlm.analysis.laws import LAWS
from precisionlm.analysis.laws.base import INF
from precisionlm.analysis.laws.precision import categories, reads_width, said_by, unquantized, width_named, width_of
from precisionlm.errors import UserError

CHEAP = 0.02  # nats/token: 2 % of the perplexity, below which a precision is called cheap
CANNOT = "This table cannot tell at what precision to train"
COMPARED = (16.0, 8.0, 4.0)  # widths that the best one is compared with

Point = dict[str, float]
Compared = tuple[str, float, float, float]
Found = tuple[str, Optimum, dict[str, Optimum], list[str]]


@dataclass(frozen=True)
class Price:
    """What a recipe of the table adds to the loss (nats/token), with its 95 % interval: inf where the law is undefined
    or the data leave it open. after: quantized after training. bits: its width, or the mean of its operands in
    training. runs: rows of the fit."""

    recipe: str
    after: bool
    bits: float
    runs: int
    added: float
    low: float
    high: float


@dataclass(frozen=True)
class Answer:
    """text: the answer, or why there is none. after: what quantizing after training costs, '' if the table has none.
    sure: what its certainty rests on, a sentence each. where: the size and tokens that the prices are of. prices: of
    every recipe of the table that is not the reference."""

    law: str
    text: str
    after: str = ""
    sure: tuple[str, ...] = ()
    where: str = ""
    prices: tuple[Price, ...] = ()

    @property
    def lines(self) -> tuple[str, ...]:
        """For a terminal."""
        return (f"What precision? {self.text} {self.after}".rstrip(), *(f"How sure? {text}" for text in self.sure[:1]))


def answer(analysis: Analysis, recipes: Recipes) -> Answer:
    """Of one fit. The question of training is answered at the cost of the largest run of the table."""
    law = analysis.law
    where, prices = _prices(analysis, recipes)
    after = _cheapest([p for p in prices if p.after], where, "Quantizing after training")
    if law.is_gap:
        trained = _cheapest([p for p in prices if not p.after], where, "Of the precisions that were trained")
        text = trained or f"{CANNOT}: its gaps are all of quantization after training."
        sure = [_verdict(analysis), "The law is of the loss that a precision adds. What it saves is not in it, so it "
                "names no best one for a budget."]  # fmt: skip
    elif reason := _cannot(analysis):
        text = f"{CANNOT}: {reason}."
        sure = [_verdict(analysis)] if after else []
    else:
        text, sure = _trained(analysis)
    return Answer(law.name, text, after, tuple(sure), where, tuple(prices))


def _cannot(analysis: Analysis) -> str:
    """Why nothing can be said of training; '' if something can."""
    law, columns = analysis.law, analysis.result.table.columns
    read = [s.name for s in law.symbols if s.kind in ("bits", "field", "category")]
    if not any(np.ptp(columns[name]) > 0 for name in read):
        one = read or LAWS.get(law.name, law).adapt is not None  # the member fitted leaves out what does not vary
        return f"law {law.name} " + ("saw runs of one precision of training" if one else "reads none")
    return "" if {"N", "D"} <= set(columns) else f"law {law.name} reads no size and tokens, so there is no budget"


def _trained(analysis: Analysis) -> tuple[str, list[str]]:
    """The best precision under the largest run's cost, against the others at the same cost."""
    columns = analysis.result.table.columns
    budget = TRAIN * float(np.max(columns["N"] * columns["D"]))
    try:
        label, best, others, notes = (_by_format if categories(analysis.law) else _by_width)(analysis, budget)
    except UserError as problem:
        return f"{CANNOT}: {problem}.", [_verdict(analysis)]
    size = f"{engineering(best.N)} parameters on {engineering(best.D)} tokens"
    text = (f"For the cost of the largest run ({budget:.2g} FLOPs at 16 bits), train at {label}: {size}, predicted "
            f"loss {best.loss:.4g} nats/token.")  # fmt: skip
    worse = _against(analysis, best, others)
    equal = [name for name, _, low, _ in worse if not 0.0 < low < INF]
    doubts = [f"the data do not tell it from {_listed(equal)} at the same cost"] if equal else []
    doubts += [*best.notes, *beyond_the_runs(analysis, best.N, best.D, best.P)]
    compared = [f"{name} {told(*ends)}" for name, *ends in worse]
    if compared:
        notes = [f"At the same cost the others end higher by (nats/token): {_listed(compared)}.", *notes]
    return text, [_verdict(analysis, doubts), *notes, "Costs count as proportional to bits: 6 N D P/16 FLOPs."]


def _verdict(analysis: Analysis, doubts: Sequence[str] = ()) -> str:
    """Whether to rely on it, and why not."""
    doubts = [*doubts, *of_the_fit(analysis)]
    if doubts:
        return f"Not sure: {'; '.join(doubts)}."
    return (f"As sure as the 95 % intervals in brackets say ({analysis.intervals_from}): the fit converged, and runs "
            f"scatter around it by {100 * analysis.result.rms_log:.2g} %.")  # fmt: skip


def _by_width(analysis: Analysis, budget: float) -> Found:
    law, params, at = analysis.law, analysis.result.params, usual(analysis)
    if not reads_width(law):
        raise UserError(f"law {law.name} is of single formats whose cost it does not know")
    best = compute_optimal(law, params, budget, at=at)
    low, high = optimum_intervals(analysis, budget, at=at).get("P", (np.nan, np.nan))
    if open_ := left_open({"the best number of bits": (low, high)}):
        raise UserError(open_[0])
    others = {}
    for bits in (b for b in COMPARED if abs(b - best.P) > 0.75):
        try:
            others[f"{bits:g} bits"] = compute_optimal(law, params, budget, bits=bits, at=at)
        except UserError:  # undefined there
            continue
    between = f" [{low:.3g}, {high:.3g}]" if np.isfinite([low, high]).all() else ""
    return f"{best.P:.3g}{between} bits, all operands alike", best, others, []


def _by_format(analysis: Analysis, budget: float) -> Found:
    law, params = analysis.law, analysis.result.params
    choices = formats_under(law, params, budget, at=usual(analysis), analysis=analysis)
    known = {choice.name: choice.best for choice in choices if choice.best}
    if not known:
        raise UserError(choices[0].reason)
    (label, best), *others = known.items()
    lost = [choice.name for choice in choices if not choice.best]
    sure = [f"Not compared, because what they cost is not known: {_listed(lost)}."] if lost else []
    named = f"{label} bits" if label == f"{best.P:g}" else f"{label} ({best.P:g} bits)"
    return named, best, dict(others[:6]), sure


def _against(analysis: Analysis, best: Optimum, others: Mapping[str, Optimum]) -> list[Compared]:
    """How much higher the loss at each other optimum is, with its interval; the points stay where they are."""
    if not others:
        return []
    points = [{**one.columns, "N": one.N, "D": one.D} for one in (best, *others.values())]
    columns = {k: np.array([p[k] for p in points]) for k in points[0]}

    def higher(params: Mapping[str, float]) -> np.ndarray:
        loss = analysis.law.predict(params, columns)
        return loss[1:] - loss[0]

    ends = zip(higher(analysis.result.params), *analysis.intervals_of(higher), strict=True)
    return [(name, float(more), float(low), float(high)) for name, (more, low, high) in zip(others, ends, strict=True)]


def _prices(analysis: Analysis, recipes: Recipes) -> tuple[str, list[Price]]:
    """What each recipe adds at the size and tokens of the largest run: to the unquantized one, and quantization after
    training to what was trained."""
    law, table = analysis.law, analysis.result.table
    if not {"N", "D"} <= set(table.columns):
        return "", []
    largest = int(np.argmax(table.columns["N"] * table.columns["D"]))
    at = {k: float(table.columns[k][largest]) for k in ("N", "D")}
    post = next((s.name for s in law.symbols if s.kind == "ptq_bits"), "")
    labels, rows = recipes.of(analysis), []
    for name in recipes.order(labels):
        here = np.flatnonzero(labels == name)
        point = {k: float(v[here[0]]) for k, v in table.columns.items()} | at
        after = bool(post) and np.isfinite(point[post])
        base = {**point, post: INF} if after else _unquantized(analysis, point)
        if law.is_gap or (base is not None and base != point):
            width = point[post] if after else float(width_of(law, point))
            rows.append((name, after, width if np.isfinite(width) else width_named(name), len(here), point, base or {}))
    if not rows:
        return "", []
    points = {k: np.array([row[4][k] for row in rows]) for k in rows[0][4]}
    bases = {k: np.array([row[5].get(k, np.nan) for row in rows]) for k in points}

    def added(params: Mapping[str, float]) -> np.ndarray:
        return law.predict(params, points) - (0.0 if law.is_gap else law.predict(params, bases))

    with np.errstate(invalid="ignore"):
        ends = zip(added(analysis.result.params), *analysis.intervals_of(added), strict=True)
    prices = [Price(*row[:4], *map(float, numbers)) for row, numbers in zip(rows, ends, strict=True)]
    return f"N = {engineering(at['N'])} and D = {engineering(at['D'])} tokens", prices


def _unquantized(analysis: Analysis, point: Point) -> Point | None:
    """The same point in bf16; None where the law has no such."""
    law = analysis.law
    try:
        return {**point, **unquantized(law), **said_by(law, analysis.result.params, name="bf16")}
    except UserError:
        wide = {s.name: [i for i, level in enumerate(s.levels) if width_named(level) >= 16] for s in categories(law)}
        return {**point, **{k: float(v[0]) for k, v in wide.items()}} if wide and all(wide.values()) else None


def _cheapest(prices: Sequence[Price], where: str, lead: str) -> str:
    """The fewest bits whose interval is cheap, else the least that any adds; '' without prices."""
    known = [p for p in prices if np.isfinite([p.added, p.low, p.high]).all()]
    if not known:
        return f"{lead}: the data do not determine what any of {len(prices)} precisions adds." if prices else ""
    cheap = [p for p in known if p.high < CHEAP]
    best = min(cheap or known, key=lambda p: (p.bits, p.added) if cheap else (p.added, p.bits))
    below = f"interval below {CHEAP:g} nats/token (2 % of the perplexity) at {where}"
    adds = f"{best.recipe} adds {told(best.added, best.low, best.high)}"
    return (
        f"{lead}, the narrowest with an {below}: {adds}."
        if cheap
        else f"{lead}, none has an {below}: {adds}, the least."
    )


def told(value: float, low: float, high: float) -> str:
    """A number and its 95 % interval; what the data leave open has none."""
    if not np.isfinite(value):
        return "undefined"
    return f"{value:.2g} [{low:.2g}, {high:.2g}]" if np.isfinite([low, high]).all() else f"{value:.2g} (not determined)"


def _listed(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
