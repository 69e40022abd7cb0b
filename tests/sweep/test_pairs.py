"""Differences in the runs table: partners, numbers, and what has none."""

import json

import numpy as np
import pytest

from precisionlm.storage.evaluation import Evaluation
from precisionlm.storage.result import Result
from precisionlm.storage.run_directory import RunDirectory
from precisionlm.sweep.collect import collect
from precisionlm.training.run import record_evaluation

SEQUENCES, LENGTH = 120, 32


def measured(added, sequences=SEQUENCES):
    """Losses of texts of which some documents are harder, `added` nats/token above what all runs share."""
    rng = np.random.default_rng(0)
    documents = np.arange(sequences) // 6
    shared = 3 + 0.3 * rng.normal(size=sequences // 6 + 1)[documents] + 0.1 * rng.normal(size=sequences)
    own = added * (1 + 0.1 * np.random.default_rng(int(1e4 * added)).normal(size=sequences))
    counts = np.full(sequences, LENGTH, np.int32)
    return Evaluation(((shared + own) * counts).astype(np.float32), counts, documents.astype(np.int32))


def finish(root, run_id, recipe, evaluations, ptq=(), added=(), **columns):
    """A finished run's directory with evaluations name → Evaluation (None: of before sequences were kept)."""
    directory = RunDirectory(root, run_id)
    directory.create()
    directory.write_text("config.yaml", "")
    rows = [record_evaluation(directory, name, f"evaluations/{name}.npz", one) for name, one in evaluations.items()]
    row = {"run_id": run_id, "recipe": recipe, "execution": "simulated", "seed": 0, "N_params": 1000, "D_tokens": 9,
           "dataset": "d", "sequence_length": LENGTH, "batch_tokens": 64, "learning_rate": 1e-3}  # fmt: skip
    Result(status="done", reason="", row=row | columns, evaluations=rows).write(directory)
    for name, one in ptq:
        found = record_evaluation(directory, "ptq", f"ptq/{name}.npz", one)
        directory.write_json(f"ptq/{name}.json", found | {"ptq_method": "rtn", "ptq_bits": 4.0, "ptq_group": np.inf})
    for name, one, settings in added:
        found = record_evaluation(directory, settings["evaluation"], f"evaluations/{name}.npz", one)
        directory.write_json(f"evaluations/{name}.json", found | settings)
    return directory


def table(root):
    found, unfinished = collect(root)
    assert unfinished == []
    return found.set_index(["run_id", "evaluation"])


def reference(one, other):
    differences = (one.sums.astype(np.float64) - other.sums).reshape(-1, 6).sum(axis=1)
    tokens = 6 * LENGTH * len(differences)
    residuals = differences - differences.mean()
    size = len(differences)
    return differences.sum() / tokens, np.sqrt(size / (size - 1) * np.sum(residuals**2)) / tokens


def test_rows_are_compared_with_their_partners_on_the_same_sequences(tmp_path):
    plain, coarse, near, rounded, at_w8 = (measured(added) for added in (0.0, 0.2, 0.001, 0.3, 0.002))
    finish(tmp_path, "a" * 12, "bf16", {"trained": plain}, ptq=[("rtn-int4", rounded)])
    again = {"evaluation": "recipe", "eval_recipe": "W8A8", "eval_execution": "native"}
    finish(tmp_path, "b" * 12, "W4A4", {"trained": coarse, "bf16": near}, added=[("W8A8-3840", at_w8, again)])
    finish(tmp_path, "c" * 12, "W8A8", {"trained": near})
    rows = table(tmp_path)
    for run, evaluation, one, other, to in (
        ("a", "ptq", rounded, plain, "a"),
        ("b", "trained", coarse, plain, "a"),
        ("b", "bf16", near, plain, "a"),
        ("b", "recipe", at_w8, coarse, "b"),
        ("c", "trained", near, plain, "a"),
    ):
        row = rows.loc[(run * 12, evaluation)]
        assert row["delta_to"] == f"{to * 12}/trained"
        np.testing.assert_allclose([row["delta"], row["delta_se"]], reference(one, other), rtol=1e-9)
    close = rows.loc[("c" * 12, "trained")]
    assert close["delta"] == pytest.approx(0.001, rel=0.1) and close["delta_se"] < close["val_loss_se"] / 1000
    assert rows["delta"].isna().to_dict()["a" * 12, "trained"]
    recipes = rows[["eval_recipe", "eval_execution"]].apply(tuple, axis=1).to_dict()
    assert recipes["a" * 12, "ptq"] == recipes["b" * 12, "bf16"] == ("bf16", "simulated")
    assert recipes["b" * 12, "trained"] == ("W4A4", "simulated") and recipes["b" * 12, "recipe"] == ("W8A8", "native")


@pytest.mark.parametrize("column", ["seed", "N_params", "D_tokens", "dataset", "validation", "sequence_length",
                                    "batch_tokens", "learning_rate", "schedule", "warmup_steps"])  # fmt: skip
def test_a_partner_differs_in_its_recipe_alone(tmp_path, column):
    other = 7 if column in ("seed", "N_params", "D_tokens", "sequence_length", "batch_tokens", "warmup_steps") else "x"
    finish(tmp_path, "a" * 12, "bf16", {"trained": measured(0.0)}, **{column: 0.5 if "rate" in column else other})
    finish(tmp_path, "b" * 12, "W4A4", {"trained": measured(0.2)})
    assert table(tmp_path)["delta_to"].isna().all()


def test_no_difference_without_exactly_one_partner_on_the_same_sequences(tmp_path):
    finish(tmp_path, "a" * 12, "bf16", {"trained": measured(0.0)})
    finish(tmp_path, "b" * 12, "W4A4", {"trained": measured(0.2, sequences=60)})
    old = finish(tmp_path, "c" * 12, "W8A8", {"trained": measured(0.1)})
    (old.path / "evaluations" / "trained.npz").unlink()
    rows = table(tmp_path)
    assert rows["delta"].isna().all() and rows["delta_se"].isna().all() and rows["delta_to"].isna().all()
    finish(tmp_path, "d" * 12, "W3A3", {"trained": measured(0.4)})
    assert table(tmp_path)["delta_to"].notna().to_dict()["d" * 12, "trained"]
    finish(tmp_path, "e" * 12, "bf16", {"trained": measured(0.0)}, execution="native")
    assert table(tmp_path)["delta_to"].isna().all()


def test_a_checkpoint_on_the_way_is_compared_with_itself(tmp_path):
    end, before, rounded = measured(0.0), measured(0.5), measured(0.8)
    directory = finish(tmp_path, "a" * 12, "bf16", {"trained": end}, ptq=[("rtn-int4", measured(0.1))], steps=20)
    at = {"intermediate": True, "steps": 10, "D_tokens": 5}
    for name, kind, one in (("checkpoint-step10", "checkpoint", before), ("rtn-int4-step10", "ptq", rounded)):
        directory.write_json(f"ptq/{name}.json", record_evaluation(directory, kind, f"ptq/{name}.npz", one) | at)
    found, _ = collect(tmp_path)
    rows = found.set_index(["evaluation", "steps"])
    assert list(rows.loc[("ptq", 10), ["delta_to", "D_tokens"]]) == [f"{'a' * 12}/checkpoint", 5]
    np.testing.assert_allclose(rows.loc[("ptq", 10), "delta"], reference(rounded, before)[0], rtol=1e-9)
    assert rows.loc[("ptq", 20), "delta_to"] == f"{'a' * 12}/trained" and rows.loc[("ptq", 20), "D_tokens"] == 9
    assert np.isnan(rows.loc[("checkpoint", 10), "delta"]) and np.isnan(rows.loc[("trained", 20), "delta"])
    assert list(found.sort_values("steps")["intermediate"]) == [True, True, False, False]


def test_an_old_evaluation_done_again_stands_for_itself(tmp_path):
    directory = finish(tmp_path, "a" * 12, "W4A4", {"trained": measured(0.2)})
    found = json.loads((directory.path / "result.json").read_text())
    del found["evaluations"][0]["sequences"], found["evaluations"][0]["val_loss_se_sequences"]
    directory.write_json("result.json", found)
    assert table(tmp_path)["val_loss_se_sequences"].isna().all()
    again = {"evaluation": "trained", "eval_recipe": "W4A4", "eval_execution": "simulated"}
    more = record_evaluation(directory, "trained", "evaluations/W4A4-3840.npz", measured(0.2))
    directory.write_json("evaluations/W4A4-3840.json", more | again)
    rows = table(tmp_path)
    assert len(rows) == 1 and rows["val_loss_se_sequences"].notna().all()


def test_a_damaged_file_of_sequences_is_named(tmp_path):
    finish(tmp_path, "a" * 12, "bf16", {"trained": measured(0.0)})
    directory = finish(tmp_path, "b" * 12, "W4A4", {"trained": measured(0.2)})
    (directory.path / "evaluations" / "trained.npz").write_bytes(b"PK")
    rows, unfinished = collect(tmp_path)
    assert len(rows) == 2 and rows["delta"].isna().all()
    assert len(unfinished) == 1 and "trained.npz: no losses of sequences" in unfinished[0]
