"""From a run config to an engine: objective, initial weights, optimizer groups, attention kernels."""

from __future__ import annotations

import logging
from typing import Any

import torch
from torch import nn

from vmae2_ds.config import ModelConfig, RunConfig
from vmae2_ds.masking import MaskCounts
from vmae2_ds.model.attention import choose_attention
from vmae2_ds.model.mae import MaskedAutoencoder
from vmae2_ds.model.official import read_weights_for
from vmae2_ds.objectives import Reconstruct
from vmae2_ds.train.engine import Engine
from vmae2_ds.train.optim import make_optimizer, parameter_groups
from vmae2_ds.train.peak import DTYPES
from vmae2_ds.train.plan import RunPlan

log = logging.getLogger(__name__)


def build_engine(config: RunConfig, ds_config: dict[str, Any], *, fresh: bool = True) -> Engine:
    """The engine on the reconstruction objective, weights drawn from the seed or, in a fresh run, read from `train.init`."""
    weights = read_weights_for(config.train.init, config.model) if config.train.init and fresh else None
    zero_init = config.train.ds_zero_init

    def build() -> Reconstruct:
        drawn_now = weights is None and not zero_init
        model = MaskedAutoencoder(config.model, config.geometry, seed=config.train.seed if drawn_now else None)
        if weights is not None and not zero_init:
            model.load_state_dict(weights)
        return Reconstruct(model, config.objective, config.geometry)

    def fill(objective: nn.Module, name: str, parameter: torch.Tensor) -> None:
        assert isinstance(objective, Reconstruct), "what build() makes"
        inner = name.removeprefix("model.")
        if weights is not None:
            parameter.copy_(weights[inner])
        else:
            objective.model.init_parameter(inner, parameter, config.train.seed)

    return Engine(
        build,
        lambda objective: make_optimizer(parameter_groups(objective, config.optim.weight_decay), config.optim),
        ds_config,
        zero_init=zero_init,
        fill=fill,
        compile_backend=config.train.compile,
    )


def resolve_attention(config: RunConfig, counts: MaskCounts, plan: RunPlan, device: torch.device) -> tuple[str, str]:
    """Kernel names for encoder and decoder; `auto` is measured for each tower's own shape."""
    if config.model.attention != "auto":
        return config.model.attention, config.model.attention
    return fastest_attention(config.model, counts, plan.clips_per_micro_step, DTYPES[config.train.precision], device)


def fastest_attention(
    model: ModelConfig, counts: MaskCounts, clips: int, dtype: torch.dtype, device: torch.device
) -> tuple[str, str]:
    """Measure the kernels for `clips` clips, on the encoder's and the decoder's tokens, and name the two fastest."""
    chosen = []
    for side, tower, tokens in (
        ("encoder", model.encoder, counts.visible),
        ("decoder", model.decoder, counts.visible + counts.decode),
    ):
        choice = choose_attention((clips, tokens, tower.heads, tower.width // tower.heads), dtype, device)
        log.info("%s, %d clips x %d tokens: %s", side, clips, tokens, choice)
        chosen.append(choice.name)
    return chosen[0], chosen[1]
