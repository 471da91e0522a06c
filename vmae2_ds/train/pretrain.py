"""Masked pre-training."""

from __future__ import annotations

from typing import Any

from torch import nn

from vmae2_ds.config.pretrain import PretrainConfig
from vmae2_ds.cost.flops import mae_macs
from vmae2_ds.data.feed.pretrain import PretrainDataset
from vmae2_ds.masking import count_masks
from vmae2_ds.model.mae import MaskedAutoencoder
from vmae2_ds.objectives import Reconstruct
from vmae2_ds.train.build import attention_shapes
from vmae2_ds.train.frozen import with_encoder_apart
from vmae2_ds.train.held_back import held_back_loss
from vmae2_ds.train.optim import parameter_groups
from vmae2_ds.train.stage import LossWords, Stage, Training


def pretrain_stage(config: PretrainConfig) -> Stage:
    """What masked pre-training brings to a session."""
    counts = count_masks(config.mask, config.geometry)
    macs = mae_macs(config.model, config.geometry, counts.visible, counts.decode)
    return Stage(
        dataset=lambda mixture: PretrainDataset(config, mixture),
        attention_shapes=lambda plan: attention_shapes(config.model, counts, plan.clips_per_micro_step),
        forward_macs=macs.total,
        encoder_macs=macs.embed + macs.encoder,
        about_clip=f"the encoder sees {counts.visible}, the decoder fills {counts.decode}",
        has_draws=config.model.drop_path > 0,
        validation=lambda inputs, ranks: held_back_loss(config, inputs, ranks),
        validates_first=True,
        needs_init=config.optim.layer_decay < 1 or config.frozen_steps > 0,
    )


def reconstruction(config: PretrainConfig) -> Reconstruct:
    """The objective on an autoencoder whose weights are not drawn yet."""
    autoencoder = MaskedAutoencoder(config.model, config.geometry, seed=None)
    return Reconstruct(autoencoder, config.objective, config.geometry)


def groups(objective: nn.Module, config: PretrainConfig) -> list[dict[str, Any]]:
    """With and without weight decay; by layer of the encoder where their rates differ; it apart where it is frozen at first."""
    optim = config.optim
    made = parameter_groups(objective, optim.weight_decay, optim.layer_decay, config.model.encoder.depth)
    return with_encoder_apart(made) if config.frozen_steps else made


def loss_words(config: PretrainConfig) -> LossWords:
    """What a report calls the loss."""
    nothing = (
        "predicting zeros"
        if config.target == "normalised"
        else "every cube's own mean colours (known only to who sees it)"
    )
    return LossWords("mean squared error", "flat cubes", nothing)


PRETRAINING = Training(pretrain_stage, reconstruction, groups, loss_words)
