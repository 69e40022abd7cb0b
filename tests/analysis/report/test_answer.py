"""What the page says first: an answer with its certainty, or why the table has none; and the runs that fit worst."""

import re

import numpy as np
import pandas as pd
import pytest

from precisionlm.analysis.figures.recipes import recipes_of
from precisionlm.analysis.fitting.analyze import analyze
from precisionlm.analysis.laws import get
from precisionlm.analysis.report.answer import CANNOT, answer
from precisionlm.analysis.report.interactive import names_of
from precisionlm.analysis.report.residuals import farthest, standardised

KEPT = {"bf16": 1.0, "int8": 0.98, "int4": 0.7, "int2": 0.2}


def formats(kept=KEPT, noise=1e-3, seed=0):
    """Runs of a law in which a format keeps a share of the parameters."""
    rows = [
        {"N_params": n, "D_tokens": d, "recipe": name, "val_loss": 406 * (n * x) ** -0.34 + 411 * d**-0.28 + 1.69}
        for n in (3e7, 1e8, 3e8) for d in (1e9, 3e9, 1e10) for name, x in kept.items()
    ]  # fmt: skip
    frame = pd.DataFrame(rows)
    frame["val_loss"] *= np.exp(noise * np.random.default_rng(seed).normal(size=len(frame)))
    return frame


def answered(frame, law, **options):
    analysis = analyze(frame, law, starts=4, **options)
    return answer(analysis, recipes_of(frame, [analysis]))


def test_the_best_format_is_named_with_what_the_others_lose():
    said = answered(formats(), "frantar")
    assert "train at int4 (4 bits)" in said.text and "do not tell" not in said.sure[0]
    higher = next(line for line in said.sure if line.startswith("At the same cost the others end higher"))
    assert re.search(r": int8 0\.0\d+ \[.*\], int2 0\.0\d+ \[.*\] and bf16 0\.1\d \[", higher)
    assert "proportional to bits" in said.sure[-1]
    prices = {price.recipe: price for price in said.prices}
    assert set(prices) == {"int8", "int4", "int2"} and said.where == "N = 300M and D = 10B tokens"
    for name, price in prices.items():
        truth = 406 * (3e8 * KEPT[name]) ** -0.34 - 406 * 3e8**-0.34
        assert price.low < truth < price.high and abs(price.added - truth) < 0.01
    assert said.lines[0].startswith("What precision? For the cost") and len(said.lines) == 2


def test_formats_that_the_data_do_not_tell_apart_are_said_so():
    said = answered(formats({"bf16": 1.0, "int4": 0.7, "fp4": 0.7}, noise=0.003), "frantar")
    assert said.sure[0].startswith("Not sure: the data do not tell it from ") and "4" in said.text


def test_a_table_of_one_precision_cannot_tell(tiny_runs):
    one = answered(tiny_runs[tiny_runs.recipe == "bf16"], "kumar")
    assert one.text == f"{CANNOT}: law kumar saw runs of one precision of training." and one.after
    none = answered(formats(), "chinchilla_tied")
    assert none.text == f"{CANNOT}: law chinchilla_tied reads none." and not none.prices and not none.sure


def test_the_best_width_has_an_interval_and_ptq_a_price(kumar_runs):
    said = answered(kumar_runs(noise=0.001), "kumar")
    published = get("kumar").published[0].as_dict()
    assert "bits, all operands alike" in said.text and "[" in said.text and "predicted loss" in said.text
    assert said.after.startswith("Quantizing after training, the narrowest with an interval below 0.02")
    after = [price for price in said.prices if price.after]
    assert [price.bits for price in after] == [6.0, 5.0, 4.0, 3.0] and published["gamma_post"] > 0
    assert all(price.low <= price.added <= price.high for price in after)
    assert [p.added for p in after] == sorted(p.added for p in after)


def test_a_law_of_the_gap_has_prices_and_no_budget(kumar_runs):
    said = answered(kumar_runs(noise=0.0005), "kumar_ptq")
    assert (
        said.text == f"{CANNOT}: its gaps are all of quantization after training."
        and "adds 0.0" in said.after
        and "names no best one" in said.sure[1]
    )


def test_the_worst_run_is_named():
    frame = formats().assign(run_id=[f"run{i}" for i in range(36)], seed=[i % 2 for i in range(36)])
    frame.loc[17, "val_loss"] *= 1.02
    analysis = analyze(frame, "frantar", starts=4)
    found, names = standardised(analysis), names_of(frame)
    table = farthest(analysis, found, recipes_of(frame, [analysis]), names[analysis.result.table.rows])
    first = dict(zip(table["head"], table["rows"][0], strict=True))
    assert first["run"] == "run17, seed 1" and first["recipe"] == "int8"
    assert float(first["standard deviations"]) < -3 and table["told"].startswith("1 of 36 rows lie more than 3")
    assert np.sum(np.abs(found.far) > 3) == 1 and len(table["rows"]) == 10


def test_residuals_are_divided_by_what_their_leverage_leaves():
    """Over tables of one law and noise, every row's standardised residual has the same spread, whatever its leverage;
    without the division that of the rows at the corners is smaller."""
    far, plain = [], []
    for seed in range(40):
        analysis = analyze(formats({"bf16": 1.0}, seed=seed), "chinchilla", starts=4)
        found = standardised(analysis)
        far.append(found.far)
        plain.append(analysis.result.residuals / found.scatter)
    spread, uneven = np.std(far, axis=0), np.std(plain, axis=0)
    assert spread.max() / spread.min() < uneven.max() / uneven.min()
    assert spread == pytest.approx(np.ones(9), abs=0.35)


def test_rows_without_names_are_numbered():
    assert list(names_of(pd.DataFrame({"loss": [1.0, 2.0]}))) == ["row 1", "row 2"]
    frame = pd.DataFrame({"name": ["a", None], "run_id": ["x", None], "seed": [0, 1], "ptq_method": ["none", "gptq"]})
    assert list(names_of(frame)) == ["a x, seed 0", "row 2, gptq, seed 1"]
