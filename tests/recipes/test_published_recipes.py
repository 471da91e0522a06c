"""Every published recipe against the tables of docs/PAPER.md, which were copied from the scripts by hand, not from the code."""

from __future__ import annotations

import pytest

from tests.docs_figures import ROOT
from vmae2_ds.config.model import ModelConfig, TowerConfig
from vmae2_ds.config.pretrain import MaskConfig
from vmae2_ds.contracts import ClipGeometry
from vmae2_ds.cost.flops import count_parameters
from vmae2_ds.masking import count_masks
from vmae2_ds.recipes.finetune import FINETUNE_RECIPES
from vmae2_ds.recipes.pretrain import RECIPES


def table_of(heading: str) -> dict[str, dict[str, str]]:
    """The rows of the first table below a heading of docs/PAPER.md, by their first cell, each a dict by column."""
    section = (ROOT / "docs/PAPER.md").read_text().partition(f"\n## {heading}\n")[2].partition("\n## ")[0]
    header, _, *lines = (line.strip("| ").split(" | ") for line in section.splitlines() if line.startswith("|"))
    return {line[0]: dict(zip(header, line, strict=True)) for line in lines}


PRETRAIN, FINETUNE, SIZES = (table_of(heading) for heading in ("Pre-training recipes", "Fine-tuning recipes", "Sizes"))
SIZE_OF = {size[0]: ModelConfig.of_size(size) for size in ("base", "large", "huge", "giant")}
"""Models by the letter of a recipe's name."""


def product(text: str) -> float:
    first, _, second = text.partition("x")
    return float(first) * float(second or 1)


def test_the_tables_name_every_published_recipe() -> None:
    ours = {name for name in {**RECIPES, **FINETUNE_RECIPES} if not name.startswith("vit_ti_")}
    # no script of that size was published
    extra = {"vit_s_pretrain_hybrid", "vit_s_posttrain_k710", "vit_6b_pretrain_plan"}
    extra |= {name for name in ours if name.endswith("_distilled")}  # nor how students were fine-tuned
    extra |= {name for name in ours if name.endswith("_continue")}  # nor how to go on from what was published
    extra |= {name for name in ours if "_lora_" in name}  # nor adapters of low rank
    assert ours - extra == set(PRETRAIN) | set(FINETUNE)


def told(tower: TowerConfig) -> str:
    return f"{tower.width} x {tower.depth}, {tower.heads}, {tower.mlp}"


@pytest.mark.parametrize("size", sorted(SIZES))
def test_sizes(size: str) -> None:
    row, model = SIZES[size], ModelConfig.of_size(size)
    assert (row["encoder"], row["decoder"], row["patch"]) == (
        told(model.encoder),
        told(model.decoder),
        str(model.patch),
    )
    geometry = ClipGeometry(16, 224, 224, model.tubelet, model.patch)
    visible, _, _ = count_masks(MaskConfig(), geometry)
    counts = [int(row[column]) for column in ("cubes", "visible", "values a cube")]
    assert counts == [geometry.num_cubes, visible, geometry.cube_values]
    parts = [int(row[name].replace(",", "")) for name in ("of link and mask token", "in all")]
    towers = [int(number.replace(",", "")) for number in row["parameters of encoder, decoder"].split(" + ")]
    counted = count_parameters(model)
    assert sum(towers) + parts[0] == parts[1] == counted.total


@pytest.mark.parametrize("name", sorted(PRETRAIN))
def test_pre_training(name: str) -> None:
    row, config = PRETRAIN[name], RECIPES[name]()
    tower = config.model.encoder
    assert (tower, config.model.patch) == (SIZE_OF[name[4]].encoder, SIZE_OF[name[4]].patch)
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


@pytest.mark.parametrize("name", sorted(FINETUNE))
def test_fine_tuning(name: str) -> None:
    row, config = FINETUNE[name], FINETUNE_RECIPES[name]()
    model, data, optim, train = config.model, config.data, config.optim, config.train
    tower = model.encoder
    assert (tower, model.patch) == (SIZE_OF[name[4]].encoder, SIZE_OF[name[4]].patch)
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
