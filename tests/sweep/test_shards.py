"""Dealing out the rows of a sweep: complete, disjoint, even, and as the scheduler numbers its jobs."""

from dataclasses import replace
from itertools import pairwise

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from precisionlm.config import build
from precisionlm.errors import UserError
from precisionlm.sweep.rows import packed_with, plan
from precisionlm.sweep.shards import Shard, deal, parse_shard
from precisionlm.training.trunk import Trunk

from ..conftest import tiny_tree


@pytest.fixture(scope="module")
def families(tokens_folder, tmp_path_factory):
    """A row of each of three families."""
    tree = tiny_tree(tokens_folder)
    experiments = [
        build(tree | {"model": tree["model"] | {"layers": layers}, "checkpoint": {"trunk": True}}, "test")
        for layers in (1, 2, 3)
    ]
    return plan(experiments, tmp_path_factory.mktemp("runs"))


ROWS = st.lists(
    st.tuples(st.integers(0, 2), st.floats(1, 1e3), st.sampled_from([None, None, "a", "b"])), min_size=1, max_size=40
)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(ROWS, st.integers(1, 9))
def test_shards_are_complete_disjoint_even_and_keep_together_what_belongs_together(families, drawn, count):
    rows = []
    for i, (family, flops, trunk) in enumerate(drawn):
        base = families[family]
        shared = None if trunk is None else Trunk(f"{trunk}{family}", 1)
        rows.append(replace(base, run=replace(base.run, run_id=f"{i:012d}", trunk=shared), flops=flops, status="new"))
    shards = [deal(rows, Shard(i, count)) for i in range(count)]
    dealt = [row for shard in shards for row in shard]
    assert sorted(row.run.run_id for row in dealt) == [row.run.run_id for row in rows]
    assert all(shard == [row for row in rows if row in shard] for shard in shards)
    finished = [replace(row, status="done") if i % 2 else row for i, row in enumerate(rows)]
    again = [[row.run.run_id for row in deal(finished, Shard(i, count))] for i in range(count)]
    assert again == [[row.run.run_id for row in shard] for shard in shards]  # whatever is finished
    units = {}
    for row in rows:
        units.setdefault(row.run.trunk or row.run.run_id, []).append(row)
    for unit in units.values():
        assert sum(unit[0] in shard for shard in shards) == sum(any(r in shard for r in unit) for shard in shards) == 1
    largest = max(sum(row.flops for row in unit) for unit in units.values())
    for shard in shards:
        assert abs(sum(row.flops for row in shard) - sum(row.flops for row in rows) / count) <= largest * (1 + 1e-9)
    kinds = [[packed_with(row.run) for row in rows].index(packed_with(row.run)) for row in rows]
    order = {kind: place for place, kind in enumerate(dict.fromkeys(kinds))}
    of_shard = [sorted({order[kinds[int(row.run.run_id)]] for row in shard}) for shard in shards if shard]
    assert all(before[-1] <= after[0] for before, after in pairwise(of_shard))  # families are cut, not scattered


@pytest.mark.parametrize(
    ("text", "environment", "expected"),
    [
        ("0/4", {}, (0, 4)),
        ("3/4", {"SLURM_ARRAY_TASK_ID": "7"}, (3, 4)),
        ("auto", {"SLURM_ARRAY_TASK_ID": "3", "SLURM_ARRAY_TASK_COUNT": "4", "SLURM_ARRAY_TASK_MIN": "1"}, (2, 4)),
        (
            "auto",
            {"SLURM_ARRAY_TASK_ID": "7", "SLURM_ARRAY_TASK_COUNT": "4", "SLURM_ARRAY_TASK_MIN": "1",
             "SLURM_ARRAY_TASK_MAX": "7", "SLURM_ARRAY_TASK_STEP": "2"},
            (3, 4),
        ),
        ("auto/8", {"SLURM_ARRAY_TASK_ID": "3", "SLURM_ARRAY_TASK_COUNT": "1", "SLURM_ARRAY_TASK_MIN": "3"}, (3, 8)),
        ("auto", {"JOB_COMPLETION_INDEX": "0", "JOB_COMPLETIONS": "5"}, (0, 5)),
        ("auto/5", {"JOB_COMPLETION_INDEX": "4"}, (4, 5)),
        ("auto", {"SKYPILOT_NODE_RANK": "1", "SKYPILOT_NUM_NODES": "2"}, (1, 2)),
        ("auto", {"SKYPILOT_JOB_RANK": "2", "SKYPILOT_NUM_JOBS": "3", "SKYPILOT_NODE_RANK": "0",
                  "SKYPILOT_NUM_NODES": "1"}, (2, 3)),
    ],
)  # fmt: skip
def test_a_shard_by_number_and_from_the_scheduler(text, environment, expected):
    assert parse_shard(text, environment) == Shard(*expected)


@pytest.mark.parametrize(
    ("text", "environment", "message"),
    [
        ("4/4", {}, "part 4 of 4: parts are counted from 0"),
        ("0/0", {}, "parts are counted from 0"),
        ("2", {}, "must be i/n with i from 0"),
        ("a/b", {}, "must be i/n with i from 0"),
        ("auto", {}, "found no SLURM_ARRAY_TASK_ID"),
        ("auto", {"JOB_COMPLETION_INDEX": "4"}, "JOB_COMPLETIONS is not; give --shard auto/n"),
        ("auto", {"SLURM_ARRAY_TASK_ID": "3"}, "SLURM_ARRAY_TASK_COUNT is '', no number"),
        (
            "auto",
            {"SLURM_ARRAY_TASK_ID": "7", "SLURM_ARRAY_TASK_COUNT": "3", "SLURM_ARRAY_TASK_MIN": "1",
             "SLURM_ARRAY_TASK_MAX": "9"},
            "the job array is no range of numbers",
        ),
        ("auto/2", {"JOB_COMPLETION_INDEX": "2"}, "part 2 of 2"),
    ],
)  # fmt: skip
def test_what_is_no_shard_is_one_line(text, environment, message):
    with pytest.raises(UserError, match="--shard") as caught:
        parse_shard(text, environment)
    assert message in str(caught.value) and "\n" not in str(caught.value)
