"""The bench of whole steps times training that is training: random tokens that are never learned, every variant in
every round."""

import math

import jax
import numpy as np
import pytest

from precisionlm.bench import scaling, steps
from precisionlm.bench.precision import as_table, bench_precision
from precisionlm.bench.steps import SIZES, experiment_of, measure_steps
from precisionlm.bench.tokens import fresh_batches, learned
from precisionlm.errors import UserError
from precisionlm.training.sharding import make_mesh
from tests.cli.test_cli import precisionlm

ENTROPY = math.log(SIZES["tiny"][4])  # nats/token of uniform random tokens


@pytest.fixture
def one_device(monkeypatch):
    monkeypatch.setattr(steps, "make_mesh", lambda mesh: make_mesh(mesh, jax.devices()[:1]))


def fast_learners(*recipes):
    """Variants that know a batch by heart after they have met it a few times."""
    found = []
    for recipe in recipes:
        e = experiment_of("tiny", recipe)
        optimizer = e.optimizer.model_copy(update={"learning_rate": 3e-3, "warmup_steps": 0})
        found.append((recipe, e.model_copy(update={"optimizer": optimizer})))
    return found


@pytest.mark.parametrize("backward", [pytest.param(True, marks=pytest.mark.long), False])
def test_no_variant_trains_on_tokens_that_another_has_seen(backward, one_device):
    rows = measure_steps(fast_learners("bf16", "W8A8"), rounds=2, backward=backward)
    for row in rows:
        assert row.error == "" and len(row.seconds) == 2 and min(row.seconds) > 0
        assert ENTROPY - 0.05 < row.loss < ENTROPY + 0.5


def test_tokens_that_are_known_are_an_error_of_the_row(one_device, monkeypatch):
    drawn = steps.fresh_batches
    monkeypatch.setattr(steps, "fresh_batches", lambda *words: drawn(*words[:4]))  # whatever the turn and the variant
    first, *_, last = sorted(measure_steps(fast_learners("bf16", "W8A8"), rounds=2), key=lambda row: row.loss)
    assert first.loss < last.loss and first.loss < ENTROPY - 0.2
    assert (
        first.error
        == f"loss {first.loss:.3f} on uniform random tokens, whose entropy is 6.238: tokens were seen before"
    )
    assert "tokens were seen before" in as_table(
        [
            {"size": "tiny", "recipe": "bf16", "pass": name, "error": first.error}
            for name in ("forward", "forward+backward")
        ]
    )


def test_chance_is_no_error():
    assert learned(ENTROPY, 512) == learned(ENTROPY - 0.05, 512) == learned(float("nan"), 512) == ""
    assert learned(0.1, 50304) != ""


def test_batches_are_others_for_every_turn_and_variant():
    sharding = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    drawn = [fresh_batches(2, (4, 33), 512, sharding, *where) for where in ((0, 0), (0, 1), (1, 0))]
    flat = {batch.tobytes() for batches in drawn for batch in map(np.asarray, batches)}
    assert len(flat) == 6


def test_scaling_repeats_no_batch(monkeypatch):
    say = []
    monkeypatch.setattr(jax, "device_count", lambda: 2)
    rows = scaling.bench_scaling("tiny", "bf16", ["fsdp", "replica"], ["bfloat16", "float32"], 2, say.append)
    lanes = [(r["devices"], r["mesh"], r["reduce_dtype"]) for r in rows]
    assert lanes[0] == (1, "", "") and len(set(lanes)) == len(lanes) == len(say)
    assert {lane[1:] for lane in lanes if lane[0] == 2} == {
        (axis, dtype) for axis in ("fsdp", "replica") for dtype in ("bfloat16", "float32")
    }
    for row in rows:
        assert row["low"] <= row["speedup"] <= row["high"] and row["tokens_per_second"] > 0
        assert row["error"] == "" and row["loss"] > ENTROPY - 0.05
    assert rows[0]["speedup"] == rows[0]["low"] == rows[0]["high"] == 1.0
    assert scaling.as_table([rows[0] | {"error": learned(0.1, 512)}]).endswith("tokens were seen before")
    with pytest.raises(UserError, match=r"--mesh fsd: .*fsdp"):
        scaling.bench_scaling("tiny", "bf16", ["fsd"], ["bfloat16"], 1, say.append)
    with pytest.raises(UserError, match=r"--reduce-dtype bf16: .*bfloat16"):
        scaling.bench_scaling("tiny", "bf16", ["fsdp"], ["bf16"], 1, say.append)


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
    assert found.returncode == 2 and found.stderr.strip().splitlines()[-1].endswith("--rounds 0: must be 1 to 1,000")
