"""Supervised training: post-pre-training on merged Kinetics, and fine-tuning."""

from __future__ import annotations

from itertools import islice
from typing import Any

from torch import nn

from vmae2_ds.config.finetune import FinetuneConfig
from vmae2_ds.cost.finetuning import tuned_macs, tuned_shape
from vmae2_ds.data.feed.labelled import LabelledDataset
from vmae2_ds.data.sources.inputs import Inputs
from vmae2_ds.dist import Ranks
from vmae2_ds.model.classifier import Classifier
from vmae2_ds.model.lora import MARK
from vmae2_ds.objectives import Classify
from vmae2_ds.train.build import tower_shape
from vmae2_ds.train.optim import parameter_groups
from vmae2_ds.train.stage import LossWords, Stage, Training
from vmae2_ds.train.validate import Validate, Validation


def supervised_stage(config: FinetuneConfig) -> Stage:
    """What training a classifier brings to a session."""

    def validation(inputs: Inputs, ranks: Ranks) -> Validate | None:
        return None if inputs.validation is None else Validation(config, inputs.validation, ranks).run

    macs = tuned_macs(tuned_shape(config))
    return Stage(
        dataset=lambda mixture: LabelledDataset(config, mixture),
        attention_shapes=lambda plan: (
            tower_shape(config.model.encoder, config.geometry.num_cubes, plan.clips_per_micro_step),
        ),
        forward_macs=macs.forward,
        about_clip=f"the encoder sees all, {config.model.num_classes} classes",
        spared_macs=0 if config.frozen_blocks is None else 2 * macs.forward - macs.backward,
        has_draws=config.model.drop_path > 0 or config.model.head_dropout > 0,
        ema_decay=config.optim.ema_decay,
        validation=validation,
    )


def classification(config: FinetuneConfig) -> Classify:
    """The objective on a classifier whose weights are not drawn yet."""
    classifier = Classifier(config.model, config.geometry, seed=None)
    freeze(classifier, config)
    return Classify(classifier, config.augment.label_smoothing, config.geometry)


def freeze(classifier: Classifier, config: FinetuneConfig) -> None:
    """Take the gradients from what does not learn: with adapters all else of the encoder, else what lies before the first block
    that learns. The norm behind the pooling and the head always do.

    Autograd keeps nothing of a layer whose input and weights need no gradient: all before the first that learns has no graph.
    """
    encoder, frozen = classifier.encoder, config.frozen_blocks
    if frozen is None:
        return
    for part in (encoder.embed, *islice(encoder.blocks, frozen)):
        for name, parameter in part.named_parameters():
            parameter.requires_grad_(MARK in name)


def groups(objective: nn.Module, config: FinetuneConfig) -> list[dict[str, Any]]:
    """Parameter groups by layer, with and without weight decay."""
    return parameter_groups(objective, config.optim.weight_decay, config.optim.layer_decay, config.model.encoder.depth)


def loss_words(config: FinetuneConfig) -> LossWords:
    """What a report calls the loss."""
    del config
    return LossWords("cross-entropy", "equal chances", "equal chances")


FINETUNING = Training(supervised_stage, classification, groups, loss_words)
