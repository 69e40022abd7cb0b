"""The tables of docs/study.md, from the study's runs alone: `python docs/study/tables.py`.

The cost of a precision is its run's loss less the mean loss of runs of the same N and D that round to 6 bits or more
(nats/token): those differ from bf16 by less than seeds do, and their mean is less noisy than one run.
"""

from collections.abc import Iterable
from typing import Any

import numpy as np
import pandas as pd

import precisionlm

OPERANDS = {"w_bits": "weights", "a_bits": "activations", "kv_bits": "keys and values"}
ARMS = {"study-kumar": "a tensor", "study-kumar-held-out": "a tensor", "study-kumar_token": "a token"}
NAMES = {442_368: "0.44M", 1_812_480: "1.8M", 6_225_920: "6M", 14_155_776: "14M"}
BITS = list(OPERANDS)
WHAT = ("weights and activations", "both, FC2's input 8 bits", "activations", "weights")
ASTRAY = ("4a42b8492315", "f79e91e1ca3c", "6a2331a242c5")  # docs/study.md, Groups


def trained() -> pd.DataFrame:
    """Runs under WSD as they were trained, with `cost` (nats/token) and D in millions."""
    runs = precisionlm.load_runs("study-2026")
    kept = (runs.evaluation == "trained") & (runs.status == "done") & (runs.schedule == "wsd")
    runs = runs[kept & (runs.name != "study-rates")].copy()
    fine = (runs.recipe == "bf16") | runs.name.isin(list(ARMS)) & (runs.a_bits == 12) & (runs[BITS].min(axis=1) >= 6)
    reference = runs[fine].groupby(["N_params", "D_tokens"]).val_loss.mean()
    runs["reference"] = reference.reindex(pd.MultiIndex.from_frame(runs[["N_params", "D_tokens"]])).to_numpy()
    return runs.assign(cost=runs.val_loss - runs.reference, D=(runs.D_tokens / 1e6).round().astype(int))


def noise(runs: pd.DataFrame) -> Iterable[str]:
    """Differences of two seeds of one configuration, by D."""
    pairs = runs[runs.name.isin(["study-base", "study-recipes"])].groupby(["N_params", "D", "recipe"]).val_loss
    apart = (pairs.max() - pairs.min())[pairs.size() == 2].reset_index()
    by = apart.groupby("D").val_loss.agg(["size", "median", "max"])
    yield row("D", *(f"{d}M" for d in by.index), head=True)
    yield row("pairs of seeds", *by["size"])
    yield row("median difference", *(f"{x:.3f}" for x in by["median"]))
    yield row("largest", *(f"{x:.3f}" for x in by["max"]))


def alone(runs: pd.DataFrame) -> pd.DataFrame:
    """Runs of block 2 in which one operand has fewer than 12 bits: `operand`, `bits`, `arm`."""
    block = runs[runs.name.isin(list(ARMS))]
    one = block[(block[BITS] < 12).sum(axis=1) == 1]
    return one.assign(operand=one[BITS].idxmin(axis=1), bits=one[BITS].min(axis=1), arm=one.name.map(ARMS))


def costs_alone(runs: pd.DataFrame) -> Iterable[str]:
    """Mean cost over sizes of one operand's bits."""
    means = alone(runs).groupby(["operand", "arm", "bits", "D"]).cost.mean().unstack("bits")
    yield row("what is rounded", "a scale", "D", *(f"{b:g} bits" for b in means.columns), head=True)
    for operand in BITS:
        for arm, d in (("a token", 6), ("a token", 18), ("a tensor", 6), ("a tensor", 18), ("a tensor", 54)):
            if (operand, arm, d) in means.index and not (operand == "w_bits" and arm == "a token"):
                cells = ("" if np.isnan(x) else f"{x:.3f}" for x in means.loc[(operand, arm, d)])
                yield row(OPERANDS[operand], "a channel" if operand == "w_bits" else arm, f"{d}M", *cells)


def growth(runs: pd.DataFrame) -> Iterable[str]:
    """Cost = C D^γ_D / N^γ_N exp(-P/γ), of one operand alone, at widths whose cost stands out of the noise."""
    yield row("what is rounded", "a scale", "bits", "runs", "γ_D", "γ_N", "γ", head=True)
    singles = alone(runs)
    for operand, arm, widths in (("w_bits", "a tensor", (2, 3)), ("a_bits", "a tensor", (4, 5, 6)),
                                 ("kv_bits", "a tensor", (2, 3, 4)), ("a_bits", "a token", (3, 4)),
                                 ("kv_bits", "a token", (2, 3))):  # fmt: skip
        part = singles[
            (singles.operand == operand) & (singles.arm == arm) & singles.bits.isin(widths) & (singles.D > 5)
        ]
        table = part[["run_id", "N_params", "D_tokens", "seed"]].assign(gap=part.cost, ptq_bits=part.bits)
        fit = precisionlm.fit(table, "kumar_ptq", starts=60, bootstrap=200)
        shared = "a channel" if operand == "w_bits" else arm
        told = (constant(fit, name) for name in ("gamma_D", "gamma_N", "gamma_post"))
        yield row(OPERANDS[operand], shared, ", ".join(map(str, widths)), fit.rows_used, *told)


def three_times(runs: pd.DataFrame) -> Iterable[str]:
    """The same two sizes at 6M and 18M tokens: how much more one operand's bits cost, where both costs stand out."""
    part = alone(runs)
    part = part[(part.N_params < 2e6) & part.D.isin([6, 18])]
    means = part.groupby(["operand", "arm", "bits", "D"]).cost.mean().unstack("D")
    means = means[(means[6] > 0.015) & (means[18] < 2)]
    widths = (2, 3, 4, 5, 6)
    yield row("what is rounded", "a scale", *(f"{b} bits" for b in widths), head=True)
    for operand, arm in (("w_bits", "a tensor"), ("a_bits", "a token"), ("a_bits", "a tensor"), ("kv_bits", "a token"),
                         ("kv_bits", "a tensor")):  # fmt: skip
        factors = (means[18] / means[6]).loc[(operand, arm)]
        cells = (f"{factors[b]:.1f}" if b in factors else "" for b in widths)
        yield row(OPERANDS[operand], "a channel" if operand == "w_bits" else arm, *cells)


def constant(fit: Any, name: str) -> str:
    """A constant of a fit with its interval, if the refits settle it."""
    low, high = fit.intervals[name]
    return f"{fit.params[name]:.2f} " + (f"[{low:.2f}, {high:.2f}]" if high - low < 10 else "(not settled)")


def together(runs: pd.DataFrame) -> Iterable[str]:
    """Runs with two or three operands at once, against the sum of what each costs alone."""
    singles = alone(runs).groupby(["arm", "N_params", "D", "operand", "bits"]).cost.mean()
    block = runs[runs.name.isin(list(ARMS)) & (runs.D > 5)]
    several = block[(block[BITS] < 12).sum(axis=1) > 1].assign(arm=lambda r: r.name.map(ARMS))
    several["summed"] = [
        sum(singles.get((r.arm, r.N_params, r.D, b, getattr(r, b)), np.nan) for b in BITS) for r in several.itertuples()
    ]
    several = several[several.summed.notna() & (several.cost > 0.05)]
    yield row("a scale", "D", "runs that cost over 0.05", "cost / sum of costs alone, median", "middle half", head=True)
    for (arm, d), part in several.groupby(["arm", "D"]):
        low, middle, high = (part.cost / part.summed).quantile([0.25, 0.5, 0.75])
        yield row(arm, f"{d}M", len(part), f"{middle:.2f}", f"{low:.2f} to {high:.2f}")


def floats(runs: pd.DataFrame) -> Iterable[str]:
    """Block 3: mean cost over sizes (and D) of a format."""
    block = runs[runs.name == "study-floats"]
    format_ = block.w_format.where(block.w_bits < 16, block.dgrad_w_format.where(block.dgrad_w_bits < 16,
                                                                                 block.wgrad_x_format))  # fmt: skip
    has = [block.w_bits < 16, block.wgrad_x_bits < 16, block.dgrad_w_bits < 16]
    where = np.select([has[0] & has[1], has[0], has[2]], ["P2, P4, P6", "P2, P4", "P4"], "P6")
    means = (
        block.assign(format=format_, where=where).groupby(["format", "where", "D"]).cost.mean().unstack(["where", "D"])
    )
    columns = [("P2, P4, P6", 6), ("P2, P4, P6", 18), ("P2, P4", 6), ("P2, P4", 18), ("P4", 6), ("P6", 6)]
    yield row("format", "bits", *(f"{w}, {d}M" for w, d in columns), head=True)
    widths = {name: 1 + sum(int(c) for c in name if c.isdigit()) for name in means.index}
    for name in sorted(means.index, key=lambda n: (widths[n], n)):
        yield row(name, widths[name], *(f"{means.loc[name, c]:+.3f}" for c in columns))


def recipes(runs: pd.DataFrame) -> Iterable[str]:
    """Block 5 at the smallest size: cost, and the tokens and the parameters that bf16 would need for the same loss."""
    block = runs[(runs.name == "study-recipes") & (runs.N_params == 442_368)]
    bf16 = runs[runs.N_params == 442_368].groupby("D").reference.first()
    cost = block.groupby(["recipe", "D"]).cost.mean().unstack("D")
    kinds = ("cost", "tokens", "parameters")
    yield row("recipe", *(f"{kind}, {d}M" for kind in kinds for d in (6, 18)), head=True)
    for name, costs in cost.sort_values(18).iterrows():
        worth = {d: np.exp(np.interp(-(bf16[d] + costs[d]), -bf16.to_numpy(), np.log(bf16.index))) / d for d in (6, 18)}
        kept = {d: np.exp(-costs[d] / slope(runs, d)) for d in (6, 18)}
        yield row(f"`{name}`", *(f"{x:.3f}" for x in costs), *(f"{x:.0%}" for x in [*worth.values(), *kept.values()]))


def grouped() -> pd.DataFrame:
    """Block 4's runs of 4 bits: `cost` against the run of 12 bits of the same N and D, `what` is of 4 bits, `G`, D."""
    block = trained()
    block = block[block.name == "study-groups"]
    fine = block[block.recipe == "W12A12"].set_index(["N_params", "D"]).val_loss
    cost = block.val_loss - fine.reindex(pd.MultiIndex.from_frame(block[["N_params", "D"]])).to_numpy()
    both = (block.w_bits < 12) & (block.a_bits < 12)
    what = np.select(
        [block.recipe.str.contains("@down"), both, block.w_bits < 12], [WHAT[1], WHAT[0], WHAT[3]], WHAT[2]
    )
    sharing = np.where(block.w_bits < 12, block.w_group, block.a_group)
    block = block.assign(cost=cost, what=what, G=sharing)
    return block[(block.recipe != "W12A12") & block.cost.notna() & ~block.run_id.isin(ASTRAY)]


def groups(runs: pd.DataFrame) -> Iterable[str]:
    """Block 4: mean cost over three sizes by what shares a scale; activations' over weights', and both over the sum."""
    means = grouped().groupby(["what", "D", "G"]).cost.mean().unstack("G")
    yield row("4 bits", "D", *(f"G = {g:g}" for g in means.columns[:-1]), "channel or token", head=True)
    for what in WHAT:
        for d in (6, 18):
            yield row(what, f"{d}M", *(f"{x:.3f}" for x in means.loc[(what, d)]))
    for d in (6, 18):
        both, _, a, w = (means.loc[(what, d)] for what in WHAT)
        yield row("activations over weights", f"{d}M", *(f"{x:.1f}" for x in a / w))
        yield row("both over their sum", f"{d}M", *(f"{x:.2f}" for x in both / (a + w)))


def group_powers(runs: pd.DataFrame) -> Iterable[str]:
    """Block 4: Chen et al.'s k D^γ_D (log2 G)^γ_G / N^γ_N, of runs with groups."""
    block = grouped()
    yield row("4 bits", "runs", "γ_D", "γ_N", "γ_G", "γ_G of Chen et al.", head=True)
    for what, theirs in zip(WHAT, (0.7779, 0.3407, 0.9812, 0.3533), strict=True):
        part = block[(block.what == what) & np.isfinite(block.G)]
        table = part[["run_id", "N_params", "D_tokens", "seed"]].assign(gap=part.cost, w_group=part.G)
        fit = precisionlm.fit(table, "chen_gap", starts=60, bootstrap=200)
        powers = (constant(fit, name) for name in ("gamma_D", "gamma_N", "gamma_G"))
        yield row(what, fit.rows_used, *powers, f"{theirs:.2f}")


def slope(runs: pd.DataFrame, d: int) -> float:
    """Nats/token a factor e of parameters, between the two smallest sizes at d million tokens."""
    loss = runs[runs["D"] == d].groupby("N_params").reference.first()
    return (loss[442_368] - loss[1_812_480]) / np.log(1_812_480 / 442_368)


def shares(runs: pd.DataFrame) -> dict[str, pd.Series]:
    """Effective over real parameters by bits, of weights, activations (and keys and values) alike, at the smallest
    size: exp(-cost/s), s the slope of the loss in log N to the next size. Costs of single operands are added up."""
    singles, found = alone(runs), {}
    small = runs.N_params == 442_368
    quest = runs[small & runs.recipe.str.contains("trust")]
    for arm, d in (("a token", 6), ("a tensor", 6), ("a tensor", 18), ("QuEST's", 6), ("QuEST's", 18)):
        if arm == "QuEST's":
            cost = quest[quest["D"] == d].groupby("w_bits").cost.mean()
        else:
            of_arm = (singles.arm == arm) | (singles.operand == "w_bits") & (singles.arm == "a tensor")
            part = singles[of_arm & (singles["D"] == d) & (singles.N_params == 442_368)]
            cost = part.groupby(["bits", "operand"]).cost.mean().unstack().dropna().sum(axis=1)
        found[f"{arm}, {d}M"] = np.exp(-cost.clip(lower=0) / slope(runs, d))
    return found


def per_bit(runs: pd.DataFrame) -> Iterable[str]:
    """`shares`, and where share over bits is largest: the precision with which a budget of N P buys most."""
    widths = (2, 3, 4, 5, 6, 8)
    yield row("scales, D", *(f"{b} bits" for b in widths), "most per bit at", head=True)
    for told, share in shares(runs).items():
        each = share / share.index.to_numpy(float)
        # No share exceeds 1, so that a width not run, beyond the widest, can buy more only up to 1 over that much.
        open_ = [b for b in range(int(share.index.max()) + 1, 17) if 1 / b > each.max()]
        most = f"{each.idxmax():g} bits" + "".join(f", or {b}, not run" for b in open_)
        yield row(told, *(f"{share[b]:.2f}" if b in share else "" for b in widths), most)


def after(runs: pd.DataFrame) -> Iterable[str]:
    """Loss after rounding to nearest, a scale a channel, at the end of runs under WSD, by tokens: mean over seeds."""
    rounded = precisionlm.load_runs("study-2026")
    kept = (rounded.evaluation == "ptq") & (rounded.ptq_method == "rtn") & (rounded.ptq_scale == "channel")
    kept &= rounded.name != "study-held-out-second"  # other D
    kept &= (rounded.schedule == "wsd") & ~rounded.intermediate.fillna(False).astype(bool)
    rounded = rounded[kept].assign(D=lambda r: (r.D_tokens / 1e6).round().astype(int))
    means = rounded.groupby(["N_params", "ptq_format", "D"]).val_loss.mean().unstack("D")
    yield row("size", "weights", *(f"{d}M" for d in means.columns), head=True)
    for size, name in NAMES.items():
        for format_ in ("int2", "int3", "int4"):
            yield row(name, format_, *("" if np.isnan(x) else f"{x:.3f}" for x in means.loc[(size, format_)]))


def row(*cells: object, head: bool = False) -> str:
    """A line of a Markdown table; after a heading, the line below it."""
    line = "| " + " | ".join(map(str, cells)) + " |"
    return f"{line}\n|{' --- |' * len(cells)}" if head else line


if __name__ == "__main__":
    runs = trained()
    for table in (
        noise,
        costs_alone,
        three_times,
        growth,
        together,
        per_bit,
        floats,
        groups,
        group_powers,
        recipes,
        after,
    ):
        print(f"{table.__name__}\n")
        print("\n".join(table(runs)) + "\n")
