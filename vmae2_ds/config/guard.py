"""Configuration of the guards of a run."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from vmae2_ds.config.ranges import MANY
from vmae2_ds.config.strict import LONG_S, Count, StrictModel, Whole, switched_off_by

_NO_SPIKES = switched_off_by("--guard.on-spike off")


class GuardConfig(StrictModel):
    """What a run does about spikes, hangs and lost ranks."""

    on_spike: Literal["off", "warn", "skip", "rollback"] = "warn"
    """Where the loss or the gradient norm is far above the steps before. warn: say so; skip: leave the update out; rollback: go
    back to a checkpoint and on without the step's samples."""
    history: int = Field(100, ge=8, le=10**6)
    """Good steps that a new one is compared with; with fewer than half of them nothing is a spike."""
    deviations: float = Field(6, gt=0, le=MANY, json_schema_extra=_NO_SPIKES)
    """A spike is above their median by so many robust deviations (1.4826 MAD, of logarithms), and by a factor of ..."""
    loss_ratio: float = Field(1.5, gt=1, le=MANY, json_schema_extra=_NO_SPIKES)
    """... so much at least, for the loss, of all ranks together and of the worst one ..."""
    norm_ratio: float = Field(10, gt=1, le=MANY, json_schema_extra=_NO_SPIKES)
    """... and so much for the gradient norm before clipping."""
    rollback_skip: Count = 1
    """Steps whose samples a rollback leaves out: the one with the spike and those before it."""
    max_rollbacks: Whole = 3
    """The next spike after so many rollbacks stops the run (exit code 76)."""
    hang_minutes: float = Field(20, ge=0, le=LONG_S / 60, json_schema_extra=switched_off_by("0"))
    """No step finished for so long: every rank writes its Python stacks into the run folder and ends with exit code 78. Keep it
    below the collective timeout; 0: wait for ever."""
    hang_slow_minutes: float = Field(
        120, gt=0, le=LONG_S / 60, json_schema_extra=switched_off_by("--guard.hang-minutes 0, for both limits")
    )
    """The same limit for what is no step: the start, a save, a validation."""
    watch_ranks: bool = True
    """A rank that dies ends all others within seconds (exit code 78), without a launcher's help."""
