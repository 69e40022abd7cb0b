"""Fixtures: runs tables made from a law with known constants, and the public tables where they are at hand."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from precisionlm.analysis.laws import get

PUBLIC = Path(__file__).resolve().parents[2] / "shared" / "runs"


@pytest.fixture
def public():
    """A function: name -> path of a public table; skips where the tables are absent."""

    def path(name: str) -> Path:
        if not (PUBLIC / name).is_file():
            pytest.skip(f"public table {name} is not on this machine (expected under {PUBLIC})")
        return PUBLIC / name

    return path


@pytest.fixture
def kumar_runs():
    """A function: seed, noise -> the grid of Kumar et al. (4 sizes, 5 budgets, widths one operand at a time)."""

    def make(seed: int = 0, noise: float = 0.002, ptq: bool = True, constants: dict | None = None) -> pd.DataFrame:
        rng = np.random.default_rng(seed)
        law = get("kumar")
        params = law.published[0].as_dict() | (constants or {})
        rows = []
        widths = [(16, 16, 16)]
        widths += [(p, 16, 16) for p in (3, 4, 5, 6, 8, 12)]
        widths += [(16, p, 16) for p in (4, 5, 6, 8, 12)]
        widths += [(16, 16, p) for p in (4, 5, 6, 8, 12)]
        widths += [(p, p, p) for p in (4, 6, 8)]
        for n in (30e6, 60e6, 110e6, 220e6):
            for d in (1.5e9, 3e9, 6e9, 13e9, 26e9):
                for w, a, kv in widths:
                    for post in (np.nan, 3.0, 4.0, 5.0, 6.0) if ptq and w == a == kv == 16 else (np.nan,):
                        rows.append({"run_id": f"{n:g}-{d:g}-{w}-{a}-{kv}", "N_params": n, "D_tokens": d,
                                     "w_bits": w, "a_bits": a, "kv_bits": kv, "ptq_bits": post, "status": "done",
                                     "evaluation": "trained" if np.isnan(post) else "ptq"})  # fmt: skip
        frame = pd.DataFrame(rows)
        columns = {"N": frame.N_params, "D": frame.D_tokens, "P_w": frame.w_bits, "P_a": frame.a_bits,
                   "P_kv": frame.kv_bits, "P_post": frame.ptq_bits.fillna(np.inf)}  # fmt: skip
        loss = law.predict(params, {k: v.to_numpy(float) for k, v in columns.items()})
        return frame.assign(val_loss=loss * np.exp(noise * rng.normal(size=len(frame))))

    return make


@pytest.fixture
def tiny_runs():
    """24 rows: 2 sizes x 2 budgets x (bf16, W4A8, W3A8), the bf16 ones also after post-training quantization."""
    rng = np.random.default_rng(0)
    law = get("kumar")
    params = {"A": 40.0, "alpha": 0.25, "B": 300.0, "E": 1.2, "gamma_w": 2.6, "n_w": 0.3, "gamma_a": 2.2, "n_a": 0.2,
              "gamma_kv": 0.95, "n_kv": 0.0, "C_T": 0.06, "gamma_D": 0.4, "gamma_N": 0.2, "gamma_post": 1.2,
              "b": 0.0}  # fmt: skip
    rows = []
    for n in (40_000, 160_000):
        for d in (500_000, 1_500_000):
            for recipe, w, a in (("bf16", 16.0, 16.0), ("W4A8", 4.0, 8.0), ("W3A8", 3.0, 8.0)):
                for post in (np.nan, 3.0, 4.0, 6.0) if recipe == "bf16" else (np.nan,):
                    after = np.inf if np.isnan(post) else post
                    loss = law.predict(params, {"N": n, "D": d, "P_w": w, "P_a": a, "P_kv": 16.0, "P_post": after})[0]
                    rows.append({"run_id": f"{n}-{d}-{recipe}", "recipe": recipe, "status": "done", "N_params": n,
                                 "N_total": n + 30_000, "D_tokens": d, "w_bits": w, "a_bits": a, "kv_bits": 16.0,
                                 "evaluation": "trained" if np.isnan(post) else "ptq", "ptq_bits": post,
                                 "val_loss": loss * np.exp(0.004 * rng.normal()), "val_loss_se": 0.01})  # fmt: skip
    return pd.DataFrame(rows)
