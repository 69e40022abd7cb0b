"""How fast the fitter is, on synthetic tables of the sizes that people fit, in a process that has compiled nothing."""

import time
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd

from precisionlm.analysis.fitting.analyze import analyze
from precisionlm.analysis.fitting.bootstrap import bootstrap
from precisionlm.analysis.fitting.fit import fit
from precisionlm.analysis.fitting.objective import Objective
from precisionlm.analysis.fitting.solve import compile_count
from precisionlm.analysis.laws.chinchilla import CHINCHILLA
from precisionlm.analysis.laws.frantar import QUEST_LAW
from precisionlm.analysis.laws.kumar import KUMAR, UNIFIED
from precisionlm.analysis.table.read import prepare

C_X = {"C_w": 0.5, "C_a": 0.5, "C_kv": 0.5}  # not published; any positive value serves for a timing


def chinchilla_runs(rows: int = 240, noise: float = 0.01, seed: int = 0) -> pd.DataFrame:
    """Random (N, D) over the range of Hoffmann et al. with losses of their published law and log-normal noise."""
    rng = np.random.default_rng(seed)
    law = CHINCHILLA
    n, d = np.exp(rng.uniform(np.log(6e7), np.log(1.6e10), rows)), np.exp(rng.uniform(np.log(6e8), np.log(3e11), rows))
    loss = law.predict(law.published[0].as_dict(), {"N": n, "D": d}) * np.exp(noise * rng.normal(size=rows))
    return pd.DataFrame({"N_params": n, "D_tokens": d, "val_loss": loss})


def unified_runs(rows: int = 1000, noise: float = 0.002, seed: int = 0) -> pd.DataFrame:
    """Random points of Kumar et al.'s grid (sizes, budgets, widths, post-training widths) under their unified law."""
    rng = np.random.default_rng(seed)
    pick: Any = rng.choice
    columns = {
        "N": pick([30e6, 60e6, 110e6, 220e6], rows), "D": pick([1.5e9, 3e9, 6e9, 13e9, 26e9], rows),
        "P_w": pick([3.0, 4, 5, 6, 8, 12, 16], rows), "P_a": pick([4.0, 5, 6, 8, 12, 16], rows),
        "P_kv": pick([4.0, 5, 6, 8, 12, 16], rows), "P_post": pick([2.0, 3, 4, 5, 6, np.inf], rows),
    }  # fmt: skip
    params = KUMAR.published[0].as_dict() | C_X
    loss = UNIFIED.predict(params, columns) * np.exp(noise * rng.normal(size=rows))
    names = {s.name: s.column for s in UNIFIED.symbols}
    return pd.DataFrame({names[k]: v for k, v in columns.items()}).assign(val_loss=loss)


def format_runs(rows: int = 1028, formats: int = 16, noise: float = 0.004, seed: int = 0) -> pd.DataFrame:
    """Random (N, D) at one of `formats` formats or bf16, whose multiplier of N falls from 1 to 0.08."""
    rng = np.random.default_rng(seed)
    n = rng.choice([3e7, 5e7, 1e8, 2e8, 4e8, 8e8], rows)
    d = n * rng.choice([12.0, 25.0, 50.0, 100.0, 200.0, 400.0], rows)
    kind = rng.integers(0, formats + 1, rows)
    kept = np.exp(-2.5 * np.maximum(kind - 1, 0) / formats)
    loss = CHINCHILLA.predict({"A": 400.0, "alpha": 0.34, "B": 1500.0, "beta": 0.32, "E": 1.7}, {"N": n * kept, "D": d})
    names = np.array(["bf16", *(f"f{i:02d}" for i in range(formats))])[kind]
    noisy = loss * np.exp(noise * rng.normal(size=rows))
    return pd.DataFrame({"N_params": n, "D_tokens": d, "recipe": names, "val_loss": noisy})


def bench_fit(chinchilla: pd.DataFrame | None = None, where: str | None = None) -> dict[str, Any]:
    """Seconds of wall time, compilation included: Chinchilla with 4500 starts, 4000 bootstrap refits, a second fit of
    the same shape, Kumar's unified law on 1000 rows with 500 starts and 1000 refits, 16 formats on 1028 rows, and
    Chinchilla on 100,000 rows.

    chinchilla: a table to use in place of the synthetic one (columns N_params, D_tokens, val_loss), or its rows where
    an expression is true.
    """
    table = prepare(CHINCHILLA, chinchilla_runs() if chinchilla is None else chinchilla, where=where)
    first, seconds = _timed(lambda: fit(table, starts=4500))
    compiled = compile_count()
    boot, boot_seconds = _timed(lambda: bootstrap(first, 4000, over="row"))
    _, again = _timed(lambda: fit(table, Objective("huber", 2e-3), starts=4500))
    recompiled = compile_count() - compiled
    unified_table = prepare(replace(UNIFIED, adapt=None), unified_runs())
    unified, unified_seconds = _timed(lambda: fit(unified_table, starts=500))
    _, refits_seconds = _timed(lambda: bootstrap(unified, 1000))
    formats, formats_seconds = _timed(lambda: analyze(format_runs(), QUEST_LAW.name).result)
    many = prepare(CHINCHILLA, chinchilla_runs(100_000))
    _, many_seconds = _timed(lambda: fit(many))
    return {
        "chinchilla_rows": len(table), "chinchilla_4500_starts_s": seconds, "chinchilla_share_at_optimum": first.share,
        "chinchilla_objective": first.objective_value, "bootstrap_4000_refits_s": boot_seconds,
        "bootstrap_finished": len(boot.samples), "second_fit_s": again, "recompilations_of_second_fit": recompiled,
        "unified_rows": len(unified_table), "unified_500_starts_s": unified_seconds,
        "unified_share_at_optimum": unified.share, "unified_status": unified.status.value,
        "unified_1000_refits_s": refits_seconds, "formats_rows": formats.rows_used,
        "formats_500_starts_s": formats_seconds, "formats_share_at_optimum": formats.share,
        "rows_100000_500_starts_s": many_seconds,
    }  # fmt: skip


def _timed(work: Any) -> tuple[Any, float]:
    began = time.perf_counter()
    result = work()
    return result, round(time.perf_counter() - began, 3)
