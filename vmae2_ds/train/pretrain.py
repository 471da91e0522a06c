"""Masked pre-training."""

from __future__ import annotations

from pathlib import Path

from vmae2_ds.config.pretrain import PretrainConfig
from vmae2_ds.cost.flops import mae_macs
from vmae2_ds.data.feed.pretrain import PretrainDataset
from vmae2_ds.masking import count_masks
from vmae2_ds.train.build import resolve_attention
from vmae2_ds.train.session import train_stage
from vmae2_ds.train.stage import Stage


def pretrain(config: PretrainConfig) -> Path:
    """Pre-train `config` and return the run folder; errors as `train_stage`."""
    counts = count_masks(config.mask, config.geometry)
    stage = Stage(
        dataset=lambda mixture: PretrainDataset(config, mixture),
        attention=lambda plan, device: resolve_attention(config, counts, plan, device),
        forward_macs=mae_macs(config.model, config.geometry, counts.visible, counts.decode).total,
        about_clip=f"the encoder sees {counts.visible}, the decoder fills {counts.decode}",
        has_draws=config.model.drop_path > 0,
    )
    return train_stage(config, stage)
