"""What a stage of the table brings where torch is: its objective and parameter groups, and what a session needs of it."""

from __future__ import annotations

import pkgutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Generic, NamedTuple, TypeVar

from torch import nn

from vmae2_ds.config.run import RunConfig
from vmae2_ds.config.run_plan import RunPlan
from vmae2_ds.config.stages import STAGES
from vmae2_ds.contracts import Movable
from vmae2_ds.data.feed.dataset import VideoDataset
from vmae2_ds.data.sources.inputs import Inputs
from vmae2_ds.data.sources.mixture import Mixture
from vmae2_ds.dist import Ranks
from vmae2_ds.model.kernel_support import AttentionShape
from vmae2_ds.train.normaliser import Normaliser
from vmae2_ds.train.validate import Validate

Config = TypeVar("Config", bound=RunConfig)


@dataclass(frozen=True)
class Extras:
    """What a stage has besides, once the ranks have met and the videos are known."""

    make_objective: Callable[[RunConfig], nn.Module] | None = None
    """Instead of the stage's own, `Training.make_objective`."""
    prepare: Callable[[Movable], Movable] = lambda batch: batch
    """Function that a micro batch goes through before the objective gets it."""
    identity: Mapping[str, Any] = field(default_factory=dict)
    """More that a resumed run must share, as plain JSON."""
    frozen_macs: int = 0
    """Multiply-accumulates of one clip's forward pass through models that do not learn."""
    about: tuple[str, ...] = ()
    """Lines for the log."""


@dataclass(frozen=True)
class Stage:
    """What one kind of training brings to a session."""

    dataset: Callable[[Mixture], VideoDataset[Any]]
    attention_shapes: Callable[[RunPlan], tuple[AttentionShape, ...]]
    """Shapes of attention in a micro step, in the order of the model's `use_attention`: encoder, decoder."""
    forward_macs: int
    """Multiply-accumulates of one clip's forward pass, without recomputation."""
    about_clip: str
    """How a clip's cubes are used, for the log."""
    has_draws: bool
    """Whether the model draws in its forward pass: stochastic depth, dropout."""
    encoder_macs: int = 0
    """What of `forward_macs` is an encoder's that is frozen at first; 0 where none is."""
    spared_macs: int = 0
    """Multiply-accumulates of one clip's backward pass that are left out because a part of the model does not learn."""
    needs_init: bool = True
    """Whether a run that starts from random weights is warned of."""
    ema_decay: float = 0.0
    """Decay per step of the running mean of the weights; 0: none."""
    normaliser: Normaliser | None = None
    """What the objective's sums are divided by, where that runs on from step to step."""
    validation: Callable[[Inputs, Ranks], Validate | None] | None = None
    """What is done with the validation videos; it gives None where a run has none."""
    validates_first: bool = False
    """Whether a validation stands before the first step, too."""
    validates_mean: bool = False
    """Whether it is done with the running mean of the weights, where there is one."""
    extras: Callable[[Mixture, Ranks], Extras] = lambda mixture, ranks: Extras()


class LossWords(NamedTuple):
    """What a report calls a run's loss."""

    parts: str
    """What it is made of."""
    flat: str
    """The name of `flat_loss` in the curve's legend."""
    know_nothing: str
    """What a model that knows nothing predicts, in a sentence: "... would give 0.99"."""


@dataclass(frozen=True)
class Training(Generic[Config]):
    """What `StageEntry.training` names: everything about a stage that needs torch, by the config of a run."""

    stage: Callable[[Config], Stage]
    make_objective: Callable[[Config], nn.Module]
    """On `objective.model`, a SeededModel whose weights are not drawn yet; called with a micro batch, it returns LossOutput."""
    groups: Callable[[nn.Module, Config], list[dict[str, Any]]]
    """Parameter groups for the optimizer, as `optim.parameter_groups`."""
    loss_words: Callable[[Config], LossWords]


def training_of(config: RunConfig) -> Training[Any]:
    """What the run's stage does."""
    found: Training[Any] = pkgutil.resolve_name(STAGES[config.stage].training)
    return found
