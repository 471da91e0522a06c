"""From a run config to an engine: objective, initial weights, optimizer groups, attention kernels."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from vmae2_ds.config.model import ModelConfig, TowerConfig
from vmae2_ds.config.pretrain import PretrainConfig
from vmae2_ds.config.run import RunConfig
from vmae2_ds.config.run_plan import RunPlan
from vmae2_ds.dist import default_device
from vmae2_ds.engine.device import allow_tf32
from vmae2_ds.engine.device_peak import DTYPES
from vmae2_ds.engine.step import Engine
from vmae2_ds.masking import MaskCounts
from vmae2_ds.model.attention import choose_attention
from vmae2_ds.model.seeded import SeededModel
from vmae2_ds.runs.open import initial_weights
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

    return Engine(
        build,
        lambda objective: make_optimizer(training.groups(objective, config), config.optim),
        ds_config,
        zero_init=zero_init,
        fill=fill,
        compile_backend=config.train.compile,
    )


def resolve_attention(
    config: PretrainConfig, counts: MaskCounts, plan: RunPlan, device: torch.device
) -> tuple[str, str]:
    """Kernel names for encoder and decoder; `auto` is measured for each tower's own shape."""
    if config.model.attention != "auto":
        return config.model.attention, config.model.attention
    return fastest_attention(config.model, counts, plan.clips_per_micro_step, DTYPES[config.train.precision], device)


def fastest_attention(
    model: ModelConfig, counts: MaskCounts, clips: int, dtype: torch.dtype, device: torch.device
) -> tuple[str, str]:
    """Measure the kernels for `clips` clips, on the encoder's and the decoder's tokens, and name the two fastest."""
    return (
        fastest_kernel("encoder", model.encoder, counts.visible, clips, dtype, device),
        fastest_kernel("decoder", model.decoder, counts.visible + counts.decode, clips, dtype, device),
    )


def fastest_kernel(
    side: str, tower: TowerConfig, tokens: int, clips: int, dtype: torch.dtype, device: torch.device
) -> str:
    """Measure the kernels on one tower's tokens of `clips` clips, and name the fastest."""
    choice = choose_attention((clips, tokens, tower.heads, tower.width // tower.heads), dtype, device)
    log.info("%s, %d clips x %d tokens: %s", side, clips, tokens, choice)
    return choice.name
