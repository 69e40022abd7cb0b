"""Figures of fits: every recipe drawn, looking the same in all of them, with axes that hold the data."""

import json

import numpy as np
import pandas as pd
import pytest
from matplotlib.colors import to_rgba

from precisionlm.analysis.figures import checks, curves, effective, rows
from precisionlm.analysis.figures.draw import bins
from precisionlm.analysis.figures.fitted import of_fit
from precisionlm.analysis.figures.learning import curves as learning
from precisionlm.analysis.figures.recipes import recipes_of
from precisionlm.analysis.fitting.analyze import analyze
from precisionlm.analysis.fitting.compare import score
from precisionlm.analysis.fitting.held_out import make_splits
from precisionlm.analysis.fitting.objective import Objective

FORMATS = {"bf16": 1.0, "int8": 0.99, "int6": 0.93, "int5": 0.85, "int4": 0.7, "e2m1": 0.62, "mxfp4": 0.64,
           "int3": 0.45, "e1m1": 0.3, "int2": 0.16, "ternary": 0.1, "int1": 0.05}  # fmt: skip


def runs(formats=FORMATS, loss="val_loss"):
    """3 sizes x 3 budgets of every format, Chinchilla's law at N eff."""
    rng, made = np.random.default_rng(0), []
    for n in (3e7, 1e8, 3e8):
        for d in (1e9, 3e9, 1e10):
            for name, share in formats.items():
                value = 406.4 * (n * share) ** -0.34 + 410.7 * d**-0.28 + 1.69
                bits = 16.0 if name == "bf16" else 4.0
                made.append({"N_params": n, "D_tokens": d, "recipe": name, "w_bits": bits,
                             loss: value * np.exp(0.002 * rng.normal())})  # fmt: skip
    return pd.DataFrame(made)


@pytest.fixture(scope="module")
def frame():
    return runs()


@pytest.fixture(scope="module")
def fits(frame):
    return [analyze(frame, "frantar", starts=8, resamples=8), analyze(frame, "chinchilla", starts=8)]


@pytest.fixture(scope="module")
def recipes(frame, fits):
    return recipes_of(frame, fits)


def looks(figure):
    """Label -> (colour, marker) of everything in the legends of a figure's axes."""
    found = {}
    for ax in figure.axes:
        for line, label in zip(*ax.get_legend_handles_labels(), strict=True):
            found.setdefault(label, set()).add((line.get_color(), line.get_marker()))
    return found


def test_a_recipe_looks_the_same_in_every_figure_of_every_fit(frame, fits, recipes):
    seen = {}
    for analysis in fits:
        made = of_fit(analysis, recipes)
        for name in ("loss_vs_tokens", "residuals"):
            shown = looks(made[name])
            assert set(shown) == set(FORMATS), name  # all twelve, the worst too
            for recipe, found in shown.items():
                seen.setdefault(recipe, set()).update(found)
    assert all(len(found) == 1 for found in seen.values())
    assert len({look for found in seen.values() for look in found}) == len(FORMATS)  # no two alike
    bars = rows.draw(frame, recipes)["recipes"].axes[0]
    names = [label.get_text() for label in bars.get_yticklabels()]
    colours = dict(zip(names, [bar.get_facecolor() for bar in bars.patches], strict=True))
    assert len(colours) == len(FORMATS) - 1
    assert all(to_rgba(recipes.looks[name].colour) == colour for name, colour in colours.items())


def test_recipes_of_a_fit_have_colours_of_their_own_in_a_table_of_many_more():
    names = [f"W{w}A{a}" for w in range(2, 9) for a in range(2, 9)]
    kept = names[3::6][:8]
    table = runs({name: 1 - 0.01 * i for i, name in enumerate(names)})
    fit = analyze(table, "chinchilla", where=f"recipe in {kept}", starts=4)
    found = recipes_of(table, [fit])
    assert len(found.looks) == len(names) and list(found.looks) == list(recipes_of(table).looks)
    own = [found.looks[name] for name in found.order(found.of(fit))]
    assert len({look.colour for look in own}) == len({look.marker for look in own}) == len(own) == 8
    assert sorted(look.place for look in found.looks.values()) == list(range(len(names)))


def test_a_hundred_rows_of_forty_recipes_are_told_apart_in_grey():
    frame = pd.DataFrame({"recipe": [f"r{i}" for i in range(40)], "w_bits": 4.0})
    made = recipes_of(frame).looks
    assert len({(look.colour, look.marker) for look in made.values()}) == 40
    assert len({(look.marker, str(look.dash)) for look in list(made.values())[:40]}) == 40  # without colour


def test_every_format_has_its_line_and_the_axes_hold_the_data(frame, fits, recipes):
    figure = curves.loss_vs_tokens(fits[0], recipes)
    panels = [ax for ax in figure.axes if ax.get_title()]
    assert [ax.get_title() for ax in panels] == ["N = 30M", "N = 100M", "N = 300M"]
    low, high = panels[0].get_ylim()
    assert low < frame["val_loss"].min() and high > frame["val_loss"].max()
    for ax in panels:
        left, right = ax.get_xlim()
        assert left < 1e9 and right > 1e10
        drawn = [line for line in ax.get_lines() if len(line.get_xdata()) == 60]
        assert len(drawn) == len(FORMATS) and len({line.get_color() for line in drawn}) > 7
        assert len(ax.collections) == len(FORMATS)  # a band each
    alike = curves.loss_vs_tokens(fits[1], recipes)  # this law does not tell formats apart
    assert all(sum(len(line.get_xdata()) == 60 for line in ax.get_lines()) == 1 for ax in alike.axes if ax.get_title())


def test_effective_parameters_of_every_format_have_intervals(fits, recipes):
    ax = effective.by_recipe(fits[0], recipes).axes[0]
    names = [label.get_text() for label in ax.get_yticklabels()]
    shown = dict(zip(names, [bar.get_width() for bar in ax.patches], strict=True))
    assert set(shown) == set(FORMATS) and shown["bf16"] == 1.0
    assert shown["int4"] == pytest.approx(fits[0].result.params["eff_int4"])
    share, band = effective.shares(fits[0], {k: v[:5] for k, v in fits[0].result.table.columns.items()})
    assert (band[0] <= share + 1e-9).all() and (share <= band[1] + 1e-9).all()
    assert effective.by_recipe(fits[1], recipes) is None


def test_residuals_stand_along_width_size_and_tokens(fits, recipes):
    figure = checks.residuals(fits[0], recipes)
    assert [ax.get_xlabel() for ax in figure.axes[1:]] == [
        "mean bits of the operands in training", "parameters N", "training tokens D"
    ]  # fmt: skip
    matrix = checks.correlations(fits[1])
    assert [t.get_text() for t in matrix.axes[0].get_yticklabels()] == ["A", "alpha", "B", "beta", "E"]


def test_held_out_rows_are_drawn_fold_by_fold(fits):
    result = fits[1].result
    splits = make_splits(result.table, 3)
    scored = score("chinchilla", result.table, Objective(), 8, splits, given=result)
    assert scored.fit is result  # not fitted again
    figure = checks.held_out(scored, splits)
    folds = [line for line in figure.axes[0].get_lines() if str(line.get_label()).startswith("fold")]
    assert len(folds) == 3 and sum(len(line.get_xdata()) for line in folds) == len(result.table)
    assert len({line.get_color() for line in folds}) == 3
    assert "rows" in figure.axes[0].get_title() and "rms" in figure.axes[0].get_title()


def test_recipes_are_named_by_whatever_the_table_has():
    bits = pd.DataFrame({"w_bits": [4.0, 16.0], "a_bits": [8.0, 16.0], "ptq_bits": [np.nan, 3.0]})
    assert list(recipes_of(bits).labels) == ["W4A8", "W16A16 PTQ3"]
    passes = pd.DataFrame({"fwd_format": ["mxfp4"], "bwd_format": ["bf16"]})
    assert list(recipes_of(passes).labels) == ["fwd mxfp4 bwd bf16"]
    assert list(recipes_of(pd.DataFrame({"N": [1.0]})).labels) == ["all runs"]
    long = pd.DataFrame({"recipe": ["x" * 60 + "a", "x" * 60 + "a", "y" * 30 + "x" * 30 + "a"]})
    assert len(set(recipes_of(long).labels)) == 2


def test_bins_keep_near_values_together():
    assert [middle for middle, _ in bins(np.array([1e9, 1.01e9, 3e9, 9e9]))] == pytest.approx([1.005e9, 3e9, 9e9])
    many = np.geomspace(1e7, 1e10, 100)
    masks = [mask for _, mask in bins(many, 4)]
    assert len(masks) == 4 and np.stack(masks).sum(0).tolist() == [1] * 100


def test_learning_curves_are_read_from_metrics(tmp_path):
    frame = pd.DataFrame({"run_id": ["a", "b", "c"], "N_params": [1e6] * 3, "batch_tokens": [1000] * 3,
                          "recipe": ["bf16", "int4", "int4"]})  # fmt: skip
    for run in "ab":
        (tmp_path / run).mkdir()
        lines = [{"step": i, "loss": 5.0 - 0.01 * i} for i in range(1, 101)] + [{"step": 100, "val_loss": 4.0}]
        text = "\n".join(json.dumps(line) for line in lines)
        (tmp_path / run / "metrics.jsonl").write_text(text + '\n{"step": 101, "lo')
    recipes = recipes_of(frame)
    figure = learning(frame, recipes, tmp_path)
    drawn = [line for line in figure.axes[0].get_lines() if len(line.get_xdata()) == 100]
    assert [line.get_color() for line in drawn] == [recipes.looks[name].colour for name in ("bf16", "int4")]
    assert drawn[0].get_xdata()[-1] == 100_000
    assert learning(frame, recipes, tmp_path / "nowhere") is None
    assert learning(frame.drop(columns="batch_tokens"), recipes, tmp_path) is None


def test_labels_leave_out_what_all_recipes_say_alike():
    def labels(*recipes):
        return list(recipes_of(pd.DataFrame({"recipe": recipes})).labels)

    tensor = ["W4,A=int8/tensor,KV=int3/tensor", "W12,A=int12/tensor,KV=int12/tensor", "bf16"]
    assert labels(*tensor) == ["W4,A=int8,KV=int3", "W12,A=int12,KV=int12", "bf16"]
    assert labels("W4,A=int8/tensor", "W4,A=int8/g32") == ["W4,A=int8/tensor", "W4,A=int8/g32"]
    assert labels("W4,A=int8/tensor", "W4A8") == ["W4,A=int8/tensor", "W4A8"]
    assert labels("W=e1m1,P6=e1m1/token", "P6=e2m1/token@down:A8") == ["W=e1m1,P6=e1m1", "P6=e2m1@down:A8"]
