"""Learned scales: gradients against finite differences and the papers' formulas, training, what they leave alone."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from precisionlm.config import Experiment
from precisionlm.errors import UserError
from precisionlm.precision.binding import bind
from precisionlm.precision.formats import parse_format
from precisionlm.precision.learned import (
    initial_log_extent,
    kept_extent,
    learned_quantize,
    weights_extent,
)
from precisionlm.precision.recipe import parse_recipe
from precisionlm.precision.scales import shape_of_scales
from precisionlm.precision.scaling import Scaling
from precisionlm.training.execute import train
from precisionlm.training.run import prepare_run
from precisionlm.training.step import initial_state

GRID = parse_format("int4").grid()
W = jax.random.normal(jax.random.key(0), (64, 32))
SHARINGS = [Scaling("tensor", clip="lsq"), Scaling(clip="lsq"), Scaling("group", 16, clip="lsq")]


def with_(experiment: Experiment, recipe: str, **training) -> Experiment:
    return experiment.model_copy(
        update={
            "precision": experiment.precision.model_copy(update={"recipe": str(parse_recipe(recipe))}),
            "training": experiment.training.model_copy(update=training),
        }
    )


@pytest.mark.parametrize("scaling", SHARINGS, ids=lambda s: s.sharing)
def test_lsqs_gradient_is_the_papers(scaling):
    """Esser et al. 2020, equation 3: round(w/s) - w/s inside, the end of the range outside; times 1/sqrt(N Q)."""
    u = initial_log_extent(W, 0, scaling, GRID) - 0.5  # so that some weights lie outside
    assert u.shape == shape_of_scales(W.shape, 0, scaling)
    dy = jax.random.normal(jax.random.key(1), W.shape)
    loss = lambda w, u: jnp.sum(dy * learned_quantize(w, weights_extent(u), 0, scaling, "t.w", GRID))  # noqa: E731
    dw, du = jax.grad(loss, (0, 1))(W, u)
    parts = {"tensor": W.reshape(1, -1), "channel": W.T, "group": W.reshape(4, 16, 32).swapaxes(1, 2).reshape(-1, 16)}
    v = np.asarray(parts[scaling.sharing], np.float64)
    g = np.asarray({"tensor": dy.reshape(1, -1), "channel": dy.T}.get(
        scaling.sharing, dy.reshape(4, 16, 32).swapaxes(1, 2).reshape(-1, 16)), np.float64)  # fmt: skip
    s = np.exp(np.asarray(u, np.float64)).reshape(-1, 1) / 7
    inside = np.abs(v / s) <= 7
    ds = np.where(inside, np.rint(v / s) - v / s, np.sign(v) * 7) * g
    expected = (ds.sum(1) * s[:, 0]) / np.sqrt(v.shape[1] * 7)
    np.testing.assert_allclose(np.asarray(du).reshape(-1), expected, rtol=2e-4, atol=1e-5)
    outside = np.abs(W) > np.broadcast_to(np.exp(u) if scaling.sharing != "group" else 0, W.shape)
    if scaling.sharing != "group":
        np.testing.assert_array_equal(dw, np.where(outside, 0.0, dy))


def test_clipped_values_move_the_share_as_finite_differences_say():
    """Where everything is clipped the output is the clipping point, a smooth function of the parameter."""
    x = jnp.sign(W) * (1.0 + 0.01 * jnp.abs(W))  # of nearly equal magnitude: all beyond half the largest
    scaling, dy = Scaling(clip="lac"), jax.random.normal(jax.random.key(2), W.shape)

    def loss(u):
        magnitude = kept_extent(x, -1, scaling, GRID, u)
        return jnp.sum(dy * learned_quantize(x, magnitude, -1, scaling, "t.a", GRID))

    at, h = jnp.float32(np.log(0.5)), 1e-2
    numeric = (loss(at + h) - loss(at - h)) / (2 * h) / np.sqrt(32 * 7)
    assert float(jax.grad(loss)(at)) == pytest.approx(float(numeric), rel=1e-3)


def test_lac_keeps_everything_at_the_start():
    scaling = Scaling(clip="lac")
    m = kept_extent(W, -1, scaling, GRID, jnp.float32(0.0))
    np.testing.assert_array_equal(m, jnp.abs(W).max(-1, keepdims=True))
    assert kept_extent(W, -1, scaling, GRID, jnp.float32(-1.0)).max() < jnp.abs(W).max()


def test_weights_start_equal_and_scales_train(experiment, tmp_path):
    learned = with_(experiment, "W=int3/lsq,A=int4/lac", steps=12)
    plain = with_(experiment, "W3A4", steps=12)
    states = []
    for e in (learned, plain):
        run = prepare_run(e)
        states.append(initial_state(run.program, 0, run.grids)["params"])
    flat = [{jax.tree_util.keystr(p): v for p, v in jax.tree_util.tree_leaves_with_path(s)} for s in states]
    clips = {name for name in flat[0] if "_clip" in name}
    assert len(clips) == 8 and set(flat[0]) - clips == set(flat[1])  # two at each of four sites
    for name in flat[1]:
        np.testing.assert_array_equal(flat[0][name], flat[1][name])
    outcome = train(learned, tmp_path)
    losses = outcome.result.row["train_loss"], train(plain, tmp_path).result.row["train_loss"]
    assert all(np.isfinite(losses)) and abs(losses[0] - losses[1]) < 0.5
    from precisionlm.storage.checkpoint import restore_params
    from precisionlm.training.step import abstract_state

    run = prepare_run(learned)
    _, after = restore_params(outcome.path / "checkpoints", abstract_state(run.program)["params"])
    moved = [
        np.abs(np.asarray(leaf) - np.asarray(flat[0][jax.tree_util.keystr(path)])).max()
        for path, leaf in jax.tree_util.tree_leaves_with_path(after)
        if "_clip" in jax.tree_util.keystr(path)
    ]
    assert sum(m > 1e-4 for m in moved) == 8 and max(moved) < 0.05  # their own rate: 1e-3 a step at most


def test_learned_scales_evaluate_at_bf16_too(experiment, tmp_path):
    e = with_(experiment, "W=int3/lsq", steps=2, eval_bf16=True)
    names = [row["evaluation"] for row in train(e, tmp_path).result.evaluations]
    assert names == ["trained", "bf16"]


def test_formats_of_one_structure_share_a_step(experiment):
    programs = {prepare_run(with_(experiment, r)).program for r in ("W=int3/lsq", "W=int4/lsq", "W=e2m1/lsq")}
    assert len(programs) == 1


@pytest.mark.parametrize(
    ("recipe", "message", "backward"),
    [
        ("W4,A=int4/lsq", "lsq and lwc are for weights", "quantized"),
        ("W=int4/lac", "lac for activations", "quantized"),
        ("W4@head:W=int4/lsq", "lsq and lwc are for weights", "quantized"),
        ("W=int4/lsq/e8m0", "learned scales are f32", "quantized"),
        ("W=int4/lsq", "needs precision.backward quantized", "unquantized"),
    ],
)
def test_what_cannot_be_learned_is_an_error(recipe, message, backward):
    with pytest.raises(UserError, match=message):
        bind(parse_recipe(recipe), 2, {}, backward)
