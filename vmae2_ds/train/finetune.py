"""Supervised training: post-pre-training on merged Kinetics, and fine-tuning."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from vmae2_ds.config.finetune import FinetuneConfig
from vmae2_ds.config.run_plan import RunPlan
from vmae2_ds.cost.flops import classifier_macs
from vmae2_ds.data.feed.labelled import LabelledDataset
from vmae2_ds.dist import Ranks
from vmae2_ds.engine.device_peak import DTYPES
from vmae2_ds.engine.step import Engine
from vmae2_ds.train.build import fastest_kernel
from vmae2_ds.train.session import train_stage
from vmae2_ds.train.stage import Stage
from vmae2_ds.train.validate import Validation


def finetune(config: FinetuneConfig) -> Path:
    """Fine-tune `config` and return the run folder; errors as `train_stage`, ConfigError for labels without a class."""
    return train_stage(config, supervised_stage(config))


def supervised_stage(config: FinetuneConfig) -> Stage:
    """What training a classifier brings to a session."""

    def attention(plan: RunPlan, device: torch.device) -> tuple[str, ...]:
        model, clips = config.model, plan.clips_per_micro_step
        if model.attention != "auto":
            return (model.attention,)
        dtype = DTYPES[config.train.precision]
        return (fastest_kernel("encoder", model.encoder, config.geometry.num_cubes, clips, dtype, device),)

    def validation(ranks: Ranks) -> Callable[[Engine], dict[str, Any]]:
        return Validation(config, ranks).run

    return Stage(
        dataset=lambda mixture: LabelledDataset(config, mixture),
        attention=attention,
        forward_macs=classifier_macs(config.model, config.geometry),
        about_clip=f"the encoder sees all, {config.model.num_classes} classes",
        has_draws=config.model.drop_path > 0 or config.model.head_dropout > 0,
        ema_decay=config.optim.ema_decay,
        validation=None if config.data.val_manifest is None else validation,
        validate_every=config.train.validate_every,
    )
