"""The bench of whole steps times training that is training: random tokens that are never learned, every variant in
every round."""

import math

import jax
import pytest

from precisionlm.bench import steps
from precisionlm.bench.precision import as_table, bench_precision
from precisionlm.bench.steps import SIZES, experiment_of, measure_steps
from precisionlm.errors import UserError
from precisionlm.training.sharding import make_mesh
from tests.cli.test_cli import precisionlm


@pytest.mark.parametrize(("backward", "rounds"), [(True, 8), (False, 2)])
def test_no_batch_is_learned_by_heart(backward, rounds, monkeypatch):
    monkeypatch.setattr(steps, "make_mesh", lambda mesh: make_mesh(mesh, jax.devices()[:1]))
    variants = [(recipe, experiment_of("tiny", recipe)) for recipe in ("bf16", "W8A8")]
    rows = measure_steps(variants, rounds=rounds, backward=backward)
    expected = math.log(SIZES["tiny"][4])  # nats/token of uniform random tokens
    for row in rows:
        assert row.error == "" and len(row.seconds) == rounds and min(row.seconds) > 0
        assert row.loss == pytest.approx(expected, abs=0.3)


def test_table_has_every_recipe_in_both_passes():
    rows = bench_precision(["tiny"], ["W8A8"], lambda text: None, rounds=2)
    assert [(row["recipe"], row["pass"]) for row in rows] == [
        (recipe, name) for name in ("forward", "forward+backward") for recipe in ("bf16", "W8A8")
    ]
    for row in rows:
        assert row["low"] <= row["high"] and row["memory"] > 0 and row["error"] == ""
    assert as_table(rows).count("| tiny |") == 2


def test_devices_that_cannot_share_a_batch_are_refused():
    with pytest.raises(UserError, match="3 sequences a step do not divide over 8 devices"):
        measure_steps([("bf16", experiment_of("tiny", "bf16", batch_size=3))])


def test_no_rounds_is_one_line():
    found = precisionlm("bench", "precision", "--size", "tiny", "--rounds", 0)
    assert found.returncode == 2 and found.stderr.strip().splitlines()[-1].endswith("--rounds 0: at least 1")
