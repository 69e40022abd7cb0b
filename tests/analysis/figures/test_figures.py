"""Figures drawn from a table: each appears where the rows allow it, shows the rows' numbers, and else stays away."""

import numpy as np
import pandas as pd
import pytest

from precisionlm.analysis import laws
from precisionlm.analysis.figures import kumar, stepwise, sun
from precisionlm.analysis.figures import rows as figure_rows


@pytest.fixture
def float_runs():
    """Simulated runs of Sun et al.'s law: three sizes, three budgets, six float formats, two blocks, one tensor."""
    law, rows = laws.get("sun"), []
    params = law.published[0].as_dict()
    for n in (4e7, 1.6e8, 6.8e8):
        for d in (1e10, 3e10, 1e11):
            shared = {"N_params": n, "D_tokens": d, "a_bits": 16.0, "wgrad_x_bits": 16.0}
            loss = law.predict(params, {"N": n, "D": d, "E": 8, "M": 7, "log2B": 0})[0]
            rows.append(shared | {"val_loss": loss, "w_bits": 16.0, "w_exponent": 8.0, "w_mantissa": 7.0,
                                  "w_group": np.nan, "w_scale": "none", "recipe": "bf16"})  # fmt: skip
            for e, m in ((1, 1), (2, 1), (3, 1), (1, 2), (1, 3), (0, 3)):
                for block, scale, x in ((32.0, "group", 16.0), (128.0, "group", 4.0), (np.inf, "tensor", 16.0)):
                    log2 = 13.1567 if np.isinf(block) else np.log2(block)
                    loss = law.predict(params, {"N": n, "D": d, "E": e, "M": m, "log2B": log2})[0]
                    rows.append(shared | {"val_loss": loss, "w_bits": 1.0 + e + m, "w_exponent": e, "w_mantissa": m,
                                          "w_group": block, "w_scale": scale, "wgrad_x_bits": x,
                                          "recipe": f"W=e{e}m{m}-g{block:g}"})  # fmt: skip
    return pd.DataFrame(rows)


def test_every_comparison_of_runs_is_drawn(float_runs):
    drawn = figure_rows.draw(float_runs)
    assert set(drawn) == {"exponent_mantissa", "target_sets", "scale_sharing", "integer_and_float", "recipes"}
    bars = drawn["target_sets"].axes[0].patches
    runs = figure_rows.trained(float_runs)
    cell = runs[(runs["N_params"] == 4e7) & (runs["D_tokens"] == 1e10) & (runs["w_bits"] < 16)]
    expected = sorted([cell[cell["wgrad_x_bits"] < 16]["_gap"].mean(), cell[cell["wgrad_x_bits"] == 16]["_gap"].mean()])
    assert [b.get_height() for b in bars] == pytest.approx(expected)


def test_two_forms_are_fitted_on_the_same_rows(float_runs):
    drawn = sun.pairs_of_forms(float_runs[float_runs["w_group"] != 128.0])
    titles = [ax.get_title() for ax in drawn["fig01_kumar_and_sun_forms"].axes]
    first, second = (float(t.split("residual ")[1].split(" %")[0]) for t in titles)
    assert second < 0.1 < first
    assert "fig08_chinchilla_and_kaplan_forms" not in drawn  # nine unquantized runs are too few


def test_the_steps_of_suns_law_come_back_from_its_runs(float_runs):
    params = laws.get("sun").published[0].as_dict()
    runs = stepwise.trained(float_runs)
    blocks = stepwise.blocked(runs[runs["w_bits"] < 16])
    cells = stepwise.lines(blocks, np.log2(blocks["w_group"]))
    assert stepwise.powers(cells, "slope") == pytest.approx((-params["alpha"], params["beta"]), rel=1e-6)
    unquantized = runs[runs["w_bits"] == 16].sort_values(["N_params", "D_tokens"])["val_loss"]
    assert cells["intercept"].to_numpy() == pytest.approx(unquantized.to_numpy())
    drawn = stepwise.draw(float_runs)
    assert set(drawn) == {"fig10_exponent_bits", "fig10_mantissa_bits", "fig11_block_size", "fig12_tensor_scale"}
    assert f"δ = {params['delta']:.2f}" in drawn["fig10_exponent_bits"].get_suptitle()
    equivalent = np.concatenate([line.get_ydata() for line in drawn["fig12_tensor_scale"].axes[0].get_lines()])
    assert len(equivalent) == 9 and equivalent == pytest.approx(13.1567)
    one_size = float_runs[float_runs["N_params"] == 4e7]
    assert stepwise.draw(one_size) == {}  # powers of N cannot be told
    assert stepwise.draw(one_size.drop(columns="w_scale")) == {}


def test_runs_of_equal_cost_are_found_and_others_draw_nothing():
    law = laws.get("kumar")
    params = law.published[0].as_dict()
    rows = [{"N_params": n, "D_tokens": 16e9, "w_bits": p, "a_bits": p, "kv_bits": p,
             "val_loss": law.predict(params, {"N": n, "D": 16e9, "P_w": p, "P_a": p, "P_kv": p})[0]}
            for p, n in kumar.MATCHED.items()]  # fmt: skip
    frame = pd.DataFrame(rows)
    assert set(figure_rows.draw(frame)) == {"compute_matched"}
    predicted = kumar.equal_cost(law, params).axes[0].patches
    seen = figure_rows.draw(frame)["compute_matched"].axes[0].patches
    assert [b.get_height() for b in seen] == pytest.approx([b.get_height() for b in predicted])
    assert [round(b.get_height(), 3) for b in seen] == [3.171, 3.092, 3.091, 3.14, 3.23]
    assert figure_rows.draw(frame.iloc[:2]) == {} and figure_rows.draw(frame[["val_loss"]]) == {}
    assert figure_rows.draw(frame.iloc[:0]) == {}
