"""Every law on the study's table: `python docs/study/laws.py` writes docs/study_laws.md (15 minutes).

Laws are compared on the rows that all of a block can use, by their errors on rows held out of the fit; each is then
fitted to its block, with intervals of 95 %. Those of groups, which read a gap of their own, are in tables.py.
"""

import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

import precisionlm
from precisionlm.whole_file import written

OUT = Path(__file__).resolve().parents[1] / "study_laws.md"
STARTS, BOOTSTRAP = 200, 100
WSD = "evaluation == 'trained' and schedule == 'wsd' and D_tokens >= 5e6"
RTN = "evaluation == 'ptq' and ptq_method == 'rtn' and ptq_scale == 'channel'"
ROUNDED = f"{RTN} and D_tokens >= 5e6 and intermediate != True"
KUMAR = (
    "operand_costs,kumar_neff,kumar_neff_beta,kumar_no_offsets,kumar_free_power,kumar_neff_wa,kumar_neff_wa_beta,"
    "kumar_neff_a,kumar_neff_a_beta,kumar_neff_w,kumar_neff_w_beta,kumar_free_power_w,kumar_additive,kumar_deff,"
    "kumar_multiplicative,kumar_tied,kumar_untied,gaussian_mse,gaussian_mse_beta,chinchilla"
)


@dataclass(frozen=True)
class Block:
    """Rows, and the laws that read them."""

    title: str
    where: str
    laws: str


BLOCKS = (
    Block(
        "bf16, WSD, D > 5M",
        f"{WSD} and recipe == 'bf16' and name in ['study-base', 'study-held-out', 'study-held-out-second']",
        "chinchilla,chinchilla_tied,kaplan,kaplan_offset,data_constrained,data_constrained_beta",
    ),
    Block(
        "Kumar et al.'s recipe and bf16, WSD, D > 5M, 3 bits and more",
        f"{WSD} and w_bits >= 3 and a_bits >= 3 and kv_bits >= 3 and name in ['study-base', 'study-held-out', "
        "'study-kumar', 'study-kumar-held-out', 'study-kumar-second', 'study-held-out-second']",
        KUMAR,
    ),
    Block(
        "the same with a scale a token",
        f"{WSD} and w_bits >= 3 and a_bits >= 3 and kv_bits >= 3 and name in ['study-base', 'study-held-out', "
        "'study-kumar_token', 'study-held-out-second']",
        "operand_costs,kumar_neff,kumar_neff_beta,kumar_no_offsets,kumar_free_power,chinchilla",
    ),
    Block(
        "floats of P2, P4 and P6 and bf16, 0.44M and 1.8M",
        f"{WSD} and N_params < 2e6 and name in ['study-base', 'study-held-out', 'study-floats', "
        "'study-held-out-second'] and (w_bits < 16 or recipe == 'bf16')",
        "sun,kumar_neff_w,kumar_neff_w_beta,gaussian_mse,gaussian_mse_beta,format_gap,format_gap_scaled,chinchilla",
    ),
    Block(
        "recipes made for low precision and bf16, 0.44M and 1.8M",
        f"{WSD} and N_params < 2e6 and name in ['study-base', 'study-held-out', 'study-recipes', "
        "'study-held-out-second']",
        "frantar,format_gap,format_gap_scaled,chinchilla",
    ),
    Block(
        "weights rounded to nearest after training in bf16, int2 to int6, D > 5M",
        f"{ROUNDED} and ptq_format in ['int2', 'int3', 'int4', 'int5', 'int6']",
        "ouyang,kumar_ptq,kumar_ptq_schedule",
    ),
    Block(
        "the same, int3 to int6, D > 10M",
        f"{ROUNDED} and ptq_format in ['int3', 'int4', 'int5', 'int6'] and D_tokens >= 1e7",
        "ouyang,kumar_ptq,kumar_ptq_schedule",
    ),
    Block(
        "losses in bf16 and after rounding, int3 to int6, D > 5M, WSD",
        "schedule == 'wsd' and D_tokens >= 5e6 and intermediate != True and name in ['study-base', 'study-held-out', "
        "'study-held-out-second'] and (evaluation == 'trained' or (evaluation == 'ptq' and ptq_method == 'rtn' and "
        "ptq_scale == 'channel' and ptq_format in ['int3', 'int4', 'int5', 'int6']))",
        "kumar,kumar_beta",
    ),
)


def section(block: Block, runs: pd.DataFrame) -> Iterable[str]:
    """A block: its rows, the laws side by side, the constants of each."""
    laws = block.laws.split(",")
    found = precisionlm.compare(runs, laws, where=block.where, starts=STARTS)
    table = found.table
    yield f"\n## {block.title}\n"
    yield f'    precisionlm compare --runs study-2026 --laws {block.laws} \\\n      --where "{block.where}"\n'
    yield f"{found.rows} rows; " + "; ".join(f"{s.name}: {s.what}" for s in found.splits) + ".\n"
    yield (
        "| law | constants | status | " + " | ".join(f"held out: {s.name}" for s in found.splits) + " | all rows | R² |"
    )
    yield "| --- | --- | --- |" + " --- |" * len(found.splits) + " --- | --- |"
    for score in found.scores:
        if score.fit is None:
            yield f"| {score.name} | | not fitted: {score.problem} |" + " |" * (len(found.splits) + 2)
            continue
        errors = [f"{score.held_out[s.name].rms:.3f}" if s.name in score.held_out else "" for s in found.splits]
        own = table.loc[score.name]
        yield " | ".join([f"| {score.name}", str(own["constants"]), own["status"], *errors,
                          f"{score.fit.rms_log:.3f}", f"{score.fit.r2:.3f} |"])  # fmt: skip
    yield "\n| law | constants, 95 % intervals |\n| --- | --- |"
    for score in found.scores:
        if score.fit is None:
            continue
        try:
            fit = precisionlm.fit(runs, score.name, where=block.where, starts=STARTS, bootstrap=BOOTSTRAP)
        except precisionlm.UserError as error:
            yield f"| {score.name} | not fitted: {error} |"
            continue
        yield f"| {score.name} | {', '.join(constants(fit))} |"


def constants(fit: Any) -> Iterable[str]:
    """Each constant with its interval, if that is narrower than twice the value."""
    for name, value in fit.params.items():
        low, high = fit.intervals.get(name, (float("nan"), float("nan")))
        wide = not high - low < 2 * max(abs(value), 0.1)
        yield f"{name} {value:.3g}" + (" (not settled)" if wide else f" [{low:.3g}, {high:.3g}]")


if __name__ == "__main__":
    runs = precisionlm.load_runs("study-2026")
    lines = ["# Every law on the study's table", ""]
    lines.append(
        "Written by `python docs/study/laws.py`. Errors are root mean squares of ln(predicted/observed), on rows held "
        "out of the fit and on all; not settled: an interval wider than twice the value. [The study](study.md) says "
        "what it means."
    )
    for block in BLOCKS:
        print(block.title, file=sys.stderr, flush=True)
        lines += section(block, runs)
    with written(OUT) as file:
        file.write_bytes(("\n".join(lines) + "\n").encode())
