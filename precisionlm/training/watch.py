"""When a run has diverged."""

from typing import Any

from precisionlm.config import TrainingConfig
from precisionlm.errors import DivergedError

_SKIPS_UNTIL_DIVERGED = 100  # steps in a row without a finite gradient, under on_nan: skip


class Watch:
    """Sees the metrics of every step of a run, in order. position: that of a checkpoint, empty at the start."""

    def __init__(self, config: TrainingConfig, position: dict[str, Any]):
        self.skipped: int = position.get("skipped", 0)  # steps in a row
        self.skipped_steps: int = position.get("skipped_steps", 0)  # in all
        self._config = config

    def position(self) -> dict[str, int]:
        """What a checkpoint keeps of it."""
        return {"skipped": self.skipped, "skipped_steps": self.skipped_steps}

    def see(self, step: int, values: dict[str, float]) -> None:
        """Raises DivergedError."""
        finite = values["finite"] == 1.0
        if not finite and self._config.on_nan == "stop":
            raise DivergedError(f"loss or gradient not finite at step {step}")
        self.skipped = 0 if finite else self.skipped + 1
        self.skipped_steps += not finite
        if self.skipped >= _SKIPS_UNTIL_DIVERGED:
            raise DivergedError(f"{self.skipped} steps in a row, up to step {step}, had no finite gradient")
        if finite and values["loss"] > self._config.divergence_loss:
            raise DivergedError(f"loss {values['loss']:.2f} nats/token at step {step} is above divergence_loss")

    def conclude(self) -> None:
        """After the last step. Raises DivergedError where most steps were skipped: what is left is no model trained on
        the tokens that the run counts."""
        steps = self._config.steps
        if 2 * self.skipped_steps > steps:
            raise DivergedError(f"{self.skipped_steps} of {steps} steps had no finite gradient and were skipped")
