"""A sweep dealt out to several workers that need not know of each other: `--shard i/n`.

Every worker deals alike, from all rows, whatever is finished: so no row is missing and none is trained twice. Rows that
can be packed together stay together as far as the shares allow, rows that begin from one trunk always.
"""

import re
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass

from precisionlm.errors import UserError
from precisionlm.sweep.rows import Row, packed_with


@dataclass(frozen=True)
class Shard:
    """Part `index`, from 0, of `count`."""

    index: int
    count: int


def parse_shard(text: str, environment: Mapping[str, str]) -> Shard:
    """`i/n`; `auto`: index and count from the scheduler that started this process; `auto/n`: the index from it, the
    count given. Raises UserError."""
    found = re.fullmatch(r"([0-9]+|auto)(?:/([0-9]+))?", text)
    if found is None or (found[1] != "auto" and found[2] is None):
        raise UserError(f"--shard {text}: must be i/n with i from 0, such as 0/4; auto; or auto/n")
    count = None if found[2] is None else int(found[2])
    shard = _of_scheduler(count, environment) if found[1] == "auto" else Shard(int(found[1]), count or 0)
    if shard.index >= shard.count:
        raise UserError(f"--shard {text}: part {shard.index} of {shard.count}: parts are counted from 0")
    return shard


def _of_scheduler(count: int | None, environment: Mapping[str, str]) -> Shard:
    """SLURM_ARRAY_TASK_*: Slurm's job arrays. SKYPILOT_JOB_RANK, SKYPILOT_NUM_JOBS: `sky jobs launch --num-jobs`;
    SKYPILOT_NODE_RANK, SKYPILOT_NUM_NODES: nodes of one SkyPilot job. JOB_COMPLETION_INDEX: Kubernetes' indexed jobs,
    which do not say how many there are, but a manifest may, as JOB_COMPLETIONS."""

    def number(name: str, otherwise: int | None = None) -> int:
        value = environment.get(name, "" if otherwise is None else str(otherwise))
        if not re.fullmatch("[0-9]+", value):
            raise UserError(f"--shard auto: {name} is '{value}', no number; give --shard i/n or auto/n")
        return int(value)

    if "SLURM_ARRAY_TASK_ID" in environment:
        task = number("SLURM_ARRAY_TASK_ID")
        if count is not None:
            return Shard(task, count)
        first, step = number("SLURM_ARRAY_TASK_MIN", 0), number("SLURM_ARRAY_TASK_STEP", 1) or 1
        tasks = number("SLURM_ARRAY_TASK_COUNT")
        last = number("SLURM_ARRAY_TASK_MAX", first + step * (tasks - 1))
        if last != first + step * (tasks - 1) or (task - first) % step:
            raise UserError(
                "--shard auto: the job array is no range of numbers; give --shard auto/n with tasks 0 to n-1"
            )
        return Shard((task - first) // step, tasks)
    for index, of in (
        ("SKYPILOT_JOB_RANK", "SKYPILOT_NUM_JOBS"),
        ("JOB_COMPLETION_INDEX", "JOB_COMPLETIONS"),
        ("SKYPILOT_NODE_RANK", "SKYPILOT_NUM_NODES"),
    ):
        if index in environment:
            if count is None and of not in environment:
                raise UserError(f"--shard auto: {index} is set, {of} is not; give --shard auto/n")
            return Shard(number(index), number(of) if count is None else count)
    raise UserError(
        "--shard auto: found no SLURM_ARRAY_TASK_ID, JOB_COMPLETION_INDEX, SKYPILOT_JOB_RANK or SKYPILOT_NODE_RANK; "
        "give --shard i/n"
    )


def deal(rows: Sequence[Row], shard: Shard) -> list[Row]:
    """The rows of a shard, in their order. All shards together are all rows, once each; the FLOPs of a shard differ
    from an equal share by at most those of one row (of one trunk, where rows share it)."""
    families: dict[Hashable, dict[Hashable, list[Row]]] = {}
    for row in rows:
        units = families.setdefault(packed_with(row.run), {})
        trunk = row.run.trunk if row.run.experiment.checkpoint.trunk else None
        units.setdefault(row.run.run_id if trunk is None else ("trunk", trunk.identity), []).append(row)
    total, before, mine = sum(row.flops - row.shared for row in rows), 0.0, set()
    for units in families.values():
        for unit in units.values():
            flops = sum(row.flops - row.shared for row in unit)
            # All work on one line, in equal pieces: a unit is of the piece in which its middle lies.
            if min(shard.count - 1, int((before + flops / 2) / total * shard.count)) == shard.index:
                mine |= {row.run.run_id for row in unit}
            before += flops
    return [row for row in rows if row.run.run_id in mine]
