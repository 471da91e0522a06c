"""From a run config to an engine: objective, initial weights, optimizer groups, attention kernels."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn

from vmae2_ds.config.model import ModelConfig, TowerConfig
from vmae2_ds.config.run import RunConfig
from vmae2_ds.dist import default_device
from vmae2_ds.engine.compiled import compile_parts
from vmae2_ds.engine.device import allow_tf32
from vmae2_ds.engine.step import Engine
from vmae2_ds.masking import MaskCounts
from vmae2_ds.model.attention import check_attention, choose_attention
from vmae2_ds.model.kernel_support import AttentionShape, why_not
from vmae2_ds.model.seeded import SeededModel
from vmae2_ds.runs.first_weights import initial_weights
from vmae2_ds.train.optim import make_optimizer
from vmae2_ds.train.stage import training_of

log = logging.getLogger(__name__)


def build_engine(
    config: RunConfig,
    ds_config: dict[str, Any],
    *,
    fresh: bool = True,
    make: Callable[[RunConfig], nn.Module] | None = None,
) -> Engine:
    """The engine on the objective of the run's stage, or on what `make` makes.

    What `--train.compile auto` stands for is measured and compiled later, once attention is chosen.

    Weights are read from `train.init` in a fresh run, else, and where that holds none, drawn from the seed.
    """
    if config.train.tf32:
        allow_tf32(default_device())
    weights, training = initial_weights(config) if fresh else {}, training_of(config)
    zero_init = config.train.ds_zero_init

    def build() -> nn.Module:
        objective = (make or training.make_objective)(config)
        if not zero_init:
            with torch.no_grad():
                for name, parameter in objective.named_parameters():
                    fill(objective, name, parameter)
        return objective

    def fill(objective: nn.Module, name: str, parameter: torch.Tensor) -> None:
        model = objective.model
        assert isinstance(model, SeededModel), "the model of an objective"
        name = name.removeprefix("model.")
        if name in weights:
            parameter.copy_(weights[name])
        else:  # what the objective has of its own is drawn by its model's rule
            model.init_parameter(name, parameter, config.train.seed)

    engine = Engine(
        build,
        lambda objective: make_optimizer(training.groups(objective, config), config.optim),
        ds_config,
        zero_init=zero_init,
        fill=fill,
    )
    if config.train.compile not in ("none", "auto"):
        compile_parts(engine.objective, config.train.compile)
    return engine


def attention_shapes(model: ModelConfig, counts: MaskCounts, clips: int) -> tuple[AttentionShape, AttentionShape]:
    """Shapes of the encoder's and the decoder's attention on `clips` clips."""
    encoder = tower_shape(model.encoder, counts.visible, clips)
    return encoder, tower_shape(model.decoder, counts.visible + counts.decode, clips)


def tower_shape(tower: TowerConfig, tokens: int, clips: int) -> AttentionShape:
    """Shape of a tower's attention on `clips` clips of `tokens` tokens."""
    return clips, tokens, tower.heads, tower.width // tower.heads


def resolve_attention(
    name: str,
    shapes_BNHK: Sequence[AttentionShape],
    dtype: torch.dtype,
    device: torch.device,
    kept: Sequence[str] | None = None,
) -> tuple[str, ...]:
    """A kernel for each tower, in the order of `shapes_BNHK`: encoder, decoder.

    `name` where it is that of a kernel. For `auto`, those that it chose before, `kept`, or where one of them cannot run any
    more, what is measured now for each tower's own shape.

    Raises:
        ConfigError: a kernel that cannot run, with the reason and those that can.
    """
    if name != "auto":
        for shape in shapes_BNHK:
            check_attention(name, dtype, shape[-1], device)
        return (name,) * len(shapes_BNHK)
    if kept is not None:
        reasons = [why_not(kernel, dtype, shape[-1], device) for kernel, shape in zip(kept, shapes_BNHK, strict=True)]
        if not any(reasons):
            return tuple(kept)
        for kernel, why in zip(kept, reasons, strict=True):
            if why is not None:
                log.warning("attention auto had chosen %s, which %s: measured again", kernel, why)
    chosen = []
    for side, shape in zip(("encoder", "decoder"), shapes_BNHK, strict=False):
        choice = choose_attention(shape, dtype, device)
        log.info("%s, %d clips x %d tokens: %s", side, *shape[:2], choice)
        chosen.append(choice.name)
    return tuple(chosen)
