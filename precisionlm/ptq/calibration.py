"""The text by whose inputs methods choose: windows of the split that a run was trained on."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from precisionlm.data.source import unique_sequences
from precisionlm.errors import UserError
from precisionlm.training.run import Run


@dataclass(frozen=True)
class Calibration:
    """So many different windows of the run's training split, of the length of its sequences, drawn by the seed."""

    sequences: int = 128
    seed: int = 0

    def columns(self, run: Run) -> dict[str, Any]:
        """What the runs table says of it."""
        return {
            "ptq_calibration": f"train {run.dataset.meta.train.sha256[:12]}",
            "ptq_calibration_sequences": self.sequences,
            "ptq_calibration_seed": self.seed,
            "ptq_calibration_tokens": self.sequences * run.experiment.data.sequence_length,
        }

    def batch_size(self, run: Run) -> int:
        """Sequences at a time: the most that divide them, are spread evenly over the devices, and fit where training's
        do. Raises UserError where there is no such number or the split has fewer windows."""
        e, mesh = run.experiment, run.program.mesh
        there = unique_sequences(run.dataset, e.data.sequence_length, e.data.unique_tokens)
        if not 1 <= self.sequences <= there:
            raise UserError(f"{self.sequences} calibration sequences: the training split has {there} of them")
        devices = mesh.shape["replica"] * mesh.shape["fsdp"]
        most = e.training.batch_size // e.training.accumulate
        fitting = [b for b in range(devices, most + 1, devices) if self.sequences % b == 0]
        if not fitting:
            raise UserError(f"{self.sequences} calibration sequences do not divide over {devices} devices")
        return fitting[-1]

    def batches(self, run: Run) -> list[np.ndarray]:
        """Tokens, int32 [batch_size, T] each."""
        e, size = run.experiment, self.batch_size(run)
        T = e.data.sequence_length
        there = unique_sequences(run.dataset, T, e.data.unique_tokens)
        chosen = np.sort(np.random.default_rng(self.seed).choice(there, self.sequences, replace=False))
        windows = run.train_batches().batch_of(chosen)["tokens"][:, :T]
        return list(windows.reshape(-1, size, T))
