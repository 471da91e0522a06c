"""What one kind of training brings to a session: its data set, objective, validation and figures."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from vmae2_ds.config.run_plan import RunPlan
from vmae2_ds.config.stages import AnyRun
from vmae2_ds.contracts import Movable
from vmae2_ds.data.feed.dataset import VideoDataset
from vmae2_ds.data.sources.mixture import Mixture
from vmae2_ds.dist import Ranks
from vmae2_ds.train.build import Objective, make_objective
from vmae2_ds.train.validate import Validate


@dataclass(frozen=True)
class Extras:
    """What a stage has besides, once the ranks have met and the videos are known."""

    make_objective: Callable[[AnyRun], Objective] = make_objective
    prepare: Callable[[Movable], Movable] = lambda batch: batch
    """What becomes of a micro batch before the objective gets it."""
    identity: Mapping[str, Any] = field(default_factory=dict)
    """More that a resumed run must share, as plain JSON."""
    frozen_macs: int = 0
    """Of one clip's forward pass through what does not learn."""
    about: tuple[str, ...] = ()
    """Lines for the log."""


@dataclass(frozen=True)
class Stage:
    """What one kind of training brings to a session."""

    dataset: Callable[[Mixture], VideoDataset[Any]]
    attention: Callable[[RunPlan, torch.device], tuple[str, ...]]
    """Kernel names for the model's `use_attention`."""
    forward_macs: int
    """Of one clip, without recomputation."""
    about_clip: str
    """What becomes of a clip's cubes, for the log."""
    has_draws: bool
    """Whether the model draws in its forward pass: stochastic depth, dropout."""
    ema_decay: float = 0.0
    """Of a running mean of the weights; 0: none."""
    validation: Callable[[Ranks], Validate] | None = None
    validate_every: float = 1.0
    """Epochs between them."""
    extras: Callable[[Mixture, Ranks], Extras] = lambda mixture, ranks: Extras()
