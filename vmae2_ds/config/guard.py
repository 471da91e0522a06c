"""Configuration of the guards of a run."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from vmae2_ds.config.strict import LONG_S, MANY, Count, StrictModel, Whole, switched_off_by

_NO_SPIKES = switched_off_by("--guard.on-spike off")


class GuardConfig(StrictModel):
    """What a run does about spikes, hangs and lost ranks."""

    on_spike: Literal["off", "warn", "skip", "rollback"] = "warn"
    """What to do when the loss or the gradient norm is far above that of the recent steps. off: nothing; warn: log it;
    skip: do not apply that step's update; rollback: return to a checkpoint and continue without that step's samples."""
    history: int = Field(100, ge=8, le=10**6)
    """Number of recent good steps that a new step is compared with; spikes are only detected after half as many."""
    deviations: float = Field(6, gt=0, le=MANY, json_schema_extra=_NO_SPIKES)
    """A step is a spike when its loss or gradient norm exceeds the median of the recent steps by more than this many
    robust standard deviations (1.4826 x MAD, of logarithms) and also by the factor --guard.loss-ratio or
    --guard.norm-ratio."""
    loss_ratio: float = Field(1.5, gt=1, le=MANY, json_schema_extra=_NO_SPIKES)
    """Smallest factor over the recent median at which a loss (the mean over ranks, or the worst rank's) can be a spike."""
    norm_ratio: float = Field(10, gt=1, le=MANY, json_schema_extra=_NO_SPIKES)
    """Smallest factor over the recent median at which a gradient norm, before clipping, can be a spike."""
    rollback_skip: Count = 1
    """How many steps' samples a rollback leaves out: the step with the spike and the steps just before it."""
    max_rollbacks: Whole = 3
    """Number of rollbacks allowed; the next spike after them stops the run with exit code 76."""
    hang_minutes: float = Field(20, ge=0, le=LONG_S / 60, json_schema_extra=switched_off_by("0"))
    """When no step has finished for this many minutes, every rank writes its Python stack traces into the run folder and
    exits with code 78. Keep it below --train.collective-timeout-s; 0 turns the limit off."""
    hang_slow_minutes: float = Field(
        120, gt=0, le=LONG_S / 60, json_schema_extra=switched_off_by("--guard.hang-minutes 0, for both limits")
    )
    """The limit of --guard.hang-minutes for slow phases: the start, a save, a validation."""
    watch_ranks: bool = True
    """When one rank dies, end all other ranks within seconds with exit code 78, whatever the launcher does."""
