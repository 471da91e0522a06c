"""What goes on at resume besides weights and optimizer."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any


@dataclass
class TrainState:
    """What goes on at resume, the same on every rank."""

    step: int = 0
    """Optimizer steps done, skipped ones included."""
    skipped_steps: int = 0
    skipped_in_a_row: int = 0
    videos_tried: int = 0
    bad_videos: int = 0
    source_videos: dict[str, int] = field(default_factory=dict)
    """Videos used, by source; 0 for checkpoints written before it was counted."""
    reader: str | None = None
    """What --data.reader auto chose at the start, kept so that a resumed run reads the same frames."""
    attention: tuple[str, ...] | None = None
    """Kernels of encoder and decoder, as the model has them, kept so that a resumed run computes the same bits."""
    compile: str | None = None
    """What --train.compile auto chose at the start, kept for the same reason."""
    spikes: int = 0
    recent: dict[str, list[float]] = field(default_factory=dict)
    """Values of the last good steps (guard: SpikeGuard), which the next step is compared with."""
    normaliser: float | None = None
    """Running number of what is supervised in a step, where the objective divides by one (train/normaliser.py)."""
    rollbacks: int = 0
    rolled_back_to: list[int] = field(default_factory=list)
    """Steps of the checkpoints that were gone back to, in order."""
    skipped_windows: list[int] = field(default_factory=list)
    """Stretches of the sample order that rollbacks leave out (data/sources/order.py:window_of)."""

    def to_dict(self) -> dict[str, Any]:
        """Plain values for the checkpoint."""
        return asdict(self)
