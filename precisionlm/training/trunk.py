"""WSD branch and decay (Hu et al. 2024, arXiv:2404.06395): budgets that share a trunk train it once.

Under `wsd` two runs that differ in their budgets alone are one run until the earlier decay begins. With
`checkpoint.trunk` a run keeps its state of that moment in RUN/trunk, and a new run begins from the latest such state
that lies on its own way, of any run beside it: bit for bit the run that it would have been (on the same mesh).
"""

import sys
from dataclasses import dataclass
from typing import Any

from precisionlm.config import Experiment
from precisionlm.errors import UserError
from precisionlm.identity import run_id
from precisionlm.storage.run_directory import RunDirectory
from precisionlm.training.optimizer import hyperparameters

_RECORD = "trunk.json"


@dataclass(frozen=True)
class Trunk:
    """identity: equal for runs that are one run until their decay begins; steps: how many (count) come before it."""

    identity: str
    steps: int


def trunk_of(experiment: Experiment, dataset_hash: str) -> Trunk | None:
    """The trunk of a run; None for schedules that fall from the beginning."""
    o, training = experiment.optimizer, experiment.training
    if o.schedule != "wsd":
        return None
    warmup = int(hyperparameters(experiment)["warmup"])
    schedule = o.model_copy(update={"warmup_steps": warmup, "warmup_fraction": 0.0, "decay_fraction": 1.0})
    common = experiment.model_copy(update={"optimizer": schedule, "training": training.model_copy(update={"steps": 1})})
    before_decay = max(warmup, int(training.steps * (1 - o.decay_fraction)))
    return Trunk(run_id(common, dataset_hash), min(before_decay, training.steps))


def is_kept(directory: RunDirectory) -> bool:
    """Whether that state is complete."""
    return directory.read_json(_RECORD) is not None


def publish(directory: RunDirectory, trunk: Trunk, state: str) -> None:
    """Others may begin from the state now: it (in a folder of checkpoints) and the metrics up to it are on disk."""
    directory.write_json(_RECORD, {"identity": trunk.identity, "steps": trunk.steps, "state": state})


def latest_shared(directory: RunDirectory, trunk: Trunk) -> dict[str, Any] | None:
    """The latest state on the way of the run in `directory`, among the runs beside it: run_id, steps, state."""
    found = []
    for path in directory.path.parent.glob(f"*/{_RECORD}"):
        try:
            record = RunDirectory.at(path.parent).read_json(_RECORD)
            identity, steps, state = record["identity"], int(record["steps"]), str(record["state"])
        except (UserError, TypeError, KeyError, ValueError):
            print(f"left out: {path}: no record of a shared trunk; restore or remove it", file=sys.stderr)
            continue
        if identity == trunk.identity and 0 < steps <= trunk.steps:
            own = path.parent / "trunk"  # found also where the folder moved, or --out was written otherwise
            found.append({"run_id": path.parent.name, "steps": steps, "state": str(own) if own.exists() else state})
    return max(found, key=lambda branch: (branch["steps"], branch["run_id"]), default=None)
