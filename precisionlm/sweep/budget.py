"""What a sweep may cost, checked before anything runs."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Self

from pydantic import Field, field_validator, model_validator

from precisionlm.cluster.hardware import ASSUMED_MFU, Chip, chip_hours, chip_named
from precisionlm.errors import UserError
from precisionlm.sections import Section

if TYPE_CHECKING:
    from precisionlm.sweep.rows import Row


class Budget(Section):
    """Caps on all rows of a sweep, those that are finished too, so that the same file is always answered alike."""

    flops: float | None = Field(None, gt=0, description="of training, by formula (16-bit-equivalent operations)")
    chip_hours: float | None = Field(None, gt=0, description="of one chip, for these FLOPs")
    chip: str | None = Field(None, description="name of the chip; the one at hand if absent")
    mfu: float = Field(ASSUMED_MFU, gt=0, le=1, description="share of its bf16 peak that is assumed")

    @field_validator("chip")
    @classmethod
    def _known(cls, name: str | None) -> str | None:
        try:
            return None if name is None else chip_named(name).name
        except UserError as error:
            raise ValueError(str(error)) from None

    @model_validator(mode="after")
    def _caps(self) -> Self:
        if self.flops is None and self.chip_hours is None:
            raise ValueError("give flops or chip_hours, or both")
        return self

    def check(self, rows: Sequence["Row"], source: str, at_hand: Chip | None) -> None:
        """Raises UserError, beginning with `source`, where the rows cost more. at_hand: the chip that is meant where
        the budget names none."""
        flops = sum(row.flops - row.shared for row in rows)
        if self.flops is not None and flops > self.flops:
            cap = f"the cap is {self.flops:.3g}"
            raise UserError(f"{source}: budget.flops: {len(rows)} runs cost {flops:.3g} FLOPs, {cap}")
        if self.chip_hours is None:
            return
        chip = at_hand if self.chip is None else chip_named(self.chip)
        if chip is None:
            raise UserError(f"{source}: budget.chip_hours: this device's peak is not known; add chip, such as H100 SXM")
        hours = chip_hours(chip, flops, self.mfu)
        if hours > self.chip_hours:
            raise UserError(
                f"{source}: budget.chip_hours: {len(rows)} runs cost {hours:,.3g} hours of one {chip.name} at "
                f"{self.mfu:.0%} of its bf16 peak, the cap is {self.chip_hours:,.3g}"
            )
