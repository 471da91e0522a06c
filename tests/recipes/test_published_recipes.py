"""Every published recipe against a table of its own, copied from the scripts by hand (PAPER A8), not from the code."""

from __future__ import annotations

import pytest

from vmae2_ds.recipes.finetune import FINETUNE_RECIPES
from vmae2_ds.recipes.pretrain import RECIPES

PRETRAIN = """
recipe                 gpus batch views effective epochs warmup lr   peak   clip recomputed
vit_b_pretrain_hybrid  32   32    4     4096      200    20     1e-3 4e-3   0    none
vit_l_pretrain_hybrid  48   32    4     6144      300    30     1e-3 6e-3   0    none
vit_h_pretrain_hybrid  64   32    4     8192      300    30     1e-3 8e-3   0    all
vit_g_pretrain_hybrid  64   32    4     8192      300    30     1.5e-4x4 4.8e-3 0.02 all
"""
"""Effective epochs are four times as many: every video gives four clips a pass."""

FINETUNE = """
recipe                      classes gpus batch lr   layer drop head wd   epochs warmup clips stride clip
vit_b_finetune_k400         400     32   16    7e-4 .75   .1   0    .05  90     5      5     4      0
vit_b_posttrain_k710        710     32   16    7e-4 .75   .1   0    .05  90     5      5     4      0
vit_b_finetune_ssv2         174     16   16    2e-3 .65   .1   0    .05  25     5      2     4      0
vit_l_finetune_k400         400     32   6     2e-3 .75   .2   0    .05  35     5      5     4      0
vit_l_finetune_ssv2         174     32   6     5e-4 .75   .2   0    .05  20     5      2     4      0
vit_h_finetune_k400         400     32   4     1e-3 .8    .2   .5   .05  40     5      5     4      0
vit_h_finetune_k600         600     32   4     1e-3 .8    .2   .5   .05  40     5      5     4      0
vit_h_posttrain_k710        710     32   4     1e-3 .8    .2   .5   .05  40     5      5     4      0
vit_h_finetune_ssv2         174     32   4     5e-4 .8    .2   0    .05  20     5      2     4      0
vit_g_posttrain_k710        710     32   3     1e-3 .9    .3   0    .1   35     5      5     4      5
vit_g_finetune_k400_direct  400     64   3     1e-3 .9    .2   0    .1   30     5      5     4      0
vit_g_finetune_k400         400     32   3     1e-5 .9    .25  0    .1   3      1      5     4      0
vit_g_finetune_k600         600     32   3     1e-5 .9    .25  0    .1   3      1      5     4      0
vit_g_finetune_ssv2         174     32   3     3e-4 .9    .25  0    .05  20     5      2     4      0
vit_g_finetune_ucf101       101     8    3     1e-3 .9    .35  .5   .05  50     5      5     4      0
vit_g_finetune_hmdb51       51      8    3     5e-4 .9    .35  .5   .05  15     5      5     2      0
"""
"""Head dropout of ViT-H on SSv2 is 0. Three crops everywhere; two views of each video in training."""

SIZES = {"b": (768, 12, 12, 16), "l": (1024, 24, 16, 16), "h": (1280, 32, 16, 16), "g": (1408, 40, 16, 14)}
"""Width, depth, heads and patch (PAPER A7)."""


def rows(table: str) -> dict[str, dict[str, str]]:
    header, *lines = (line.split() for line in table.strip().splitlines())
    return {line[0]: dict(zip(header, line, strict=True)) for line in lines}


def product(text: str) -> float:
    first, _, second = text.partition("x")
    return float(first) * float(second or 1)


def test_the_tables_name_every_published_recipe() -> None:
    ours = {name for name in {**RECIPES, **FINETUNE_RECIPES} if not name.startswith("vit_ti_")}
    # no script of that size was published
    extra = {"vit_s_pretrain_hybrid", "vit_s_posttrain_k710", "vit_6b_pretrain_plan"}
    extra |= {name for name in ours if name.endswith("_distilled")}  # nor how students were fine-tuned
    assert ours - extra == set(rows(PRETRAIN)) | set(rows(FINETUNE))


@pytest.mark.parametrize("name", sorted(rows(PRETRAIN)))
def test_pre_training(name: str) -> None:
    row, config = rows(PRETRAIN)[name], RECIPES[name]()
    tower = config.model.encoder
    assert (tower.width, tower.depth, tower.heads, config.model.patch) == SIZES[name[4]]
    data, optim, train = config.data, config.optim, config.train
    assert (data.views, data.num_frames, data.size, data.stride, data.source_strides) == (4, 16, 224, 4, {"ssv2": 2})
    assert train.micro_batch == int(row["batch"])
    assert train.global_batch == int(row["effective"]) == int(row["gpus"]) * int(row["batch"]) * int(row["views"])
    assert (train.epochs, optim.warmup_epochs) == (float(row["epochs"]), float(row["warmup"]))
    assert optim.base_lr == pytest.approx(product(row["lr"]))
    assert optim.base_lr * train.global_batch / data.views / optim.lr_batch == pytest.approx(float(row["peak"]))
    assert (optim.betas, optim.weight_decay, optim.eps) == ((0.9, 0.95), 0.05, 1e-8)
    assert (optim.clip_grad, config.model.checkpointing) == (float(row["clip"]), row["recomputed"])
    assert (config.mask.encoder, config.mask.encoder_ratio) == ("tube", 0.9)
    assert (config.mask.decoder, config.mask.decoder_ratio) == ("running_cell", 0.5)
    assert (config.model.drop_path, data.flip, config.objective.target) == (0, 0, "normalised")


@pytest.mark.parametrize("name", sorted(rows(FINETUNE)))
def test_fine_tuning(name: str) -> None:
    row, config = rows(FINETUNE)[name], FINETUNE_RECIPES[name]()
    model, data, optim, train = config.model, config.data, config.optim, config.train
    tower = model.encoder
    assert (tower.width, tower.depth, tower.heads, model.patch) == SIZES[name[4]]
    assert model.num_classes == int(row["classes"])
    assert train.micro_batch == int(row["batch"])
    assert (data.views, data.num_frames, data.size, data.stride) == (2, 16, 224, int(row["stride"]))
    assert train.global_batch == 2 * int(row["gpus"]) * int(row["batch"])
    # the published rule counts videos, not views
    peak = optim.base_lr * train.global_batch / data.views / optim.lr_batch
    assert peak == pytest.approx(float(row["lr"]) * int(row["gpus"]) * int(row["batch"]) / 256)
    assert (optim.layer_decay, optim.weight_decay) == (float(row["layer"]), float(row["wd"]))
    assert (model.drop_path, model.head_dropout) == (float(row["drop"]), float(row["head"]))
    assert (train.epochs, optim.warmup_epochs) == (float(row["epochs"]), float(row["warmup"]))
    assert (optim.betas, optim.min_lr, optim.clip_grad) == ((0.9, 0.999), 1e-6, float(row["clip"]))
    by_segments = "ssv2" in name
    assert (config.test.clips, config.test.crops) == (int(row["clips"]), 3)
    assert config.test.sampling == ("segments" if by_segments else "dense")
    assert (data.sampling, data.flip) == (("segments", 0.0) if by_segments else ("dense", 0.5))
    augment = config.augment
    assert augment.rand_augment == "rand-m7-n4-mstd0.5-inc1"
    assert (augment.label_smoothing, augment.erase, augment.mixup, augment.cutmix) == (0.1, 0.25, 0.8, 1.0)
    assert (model.head_init_scale, optim.ema_decay) == (1e-3, 0)
