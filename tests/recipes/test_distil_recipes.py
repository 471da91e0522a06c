"""Distillation recipes keep the published run that they say they follow, and say what is ours."""

from __future__ import annotations

from pathlib import Path

import pytest

from vmae2_ds.cli.parse import recipe
from vmae2_ds.cli.usage import usage_of
from vmae2_ds.config.distil import DistilConfig
from vmae2_ds.errors import ConfigError
from vmae2_ds.recipes import describe_recipe
from vmae2_ds.recipes.distil import DISTIL_RECIPES
from vmae2_ds.recipes.finetune import FINETUNE_RECIPES


@pytest.mark.parametrize("name", sorted(DISTIL_RECIPES))
def test_a_recipe_says_how_to_start_it_and_whose_it_is(name: str) -> None:
    config, told = DISTIL_RECIPES[name](), describe_recipe(DISTIL_RECIPES[name])
    assert config.recipe == name
    assert f"vmae2_ds distil {name} " in told
    assert "--teacher" in told
    assert "--train.init" in told
    assert "ours" in told


@pytest.mark.parametrize(
    ("name", "width", "score"), [("vit_s_distil_k710", 384, "77.6"), ("vit_b_distil_k710", 768, "81.5")]
)
def test_k710_students_follow_the_vit_b_script(name: str, width: int, score: str) -> None:
    """Scores are those of the published students (docs/PAPER.md#distillation)."""
    config, script = DISTIL_RECIPES[name](), FINETUNE_RECIPES["vit_b_posttrain_k710"]()
    assert (config.data, config.augment, config.optim) == (script.data, script.augment, script.optim)
    assert config.train.global_batch == script.train.global_batch == 1024
    assert (config.model.encoder.width, config.model.num_classes) == (width, 710)
    assert (config.distil.alpha, config.distil.temperature) == (1.0, 1.0)
    assert f"K710 {score} %" in describe_recipe(DISTIL_RECIPES[name])


@pytest.mark.parametrize(("letter", "width"), [("s", 384), ("b", 768)])
@pytest.mark.parametrize("dataset", ["k400", "k600"])
def test_what_follows_distillation_takes_the_student_and_the_short_schedule(
    letter: str, width: int, dataset: str
) -> None:
    name = f"vit_{letter}_finetune_{dataset}_distilled"
    config, long, short = (
        FINETUNE_RECIPES[recipe]() for recipe in (name, "vit_b_posttrain_k710", f"vit_g_finetune_{dataset}")
    )
    student = DISTIL_RECIPES[f"vit_{letter}_distil_k710"]()
    assert config.model.encoder == student.model.encoder
    assert (config.model.encoder.width, config.model.num_classes) == (width, int(dataset[1:]))
    assert (config.data, config.optim.layer_decay) == (long.data, 0.75)
    assert (config.train.epochs, config.optim.base_lr, config.optim.warmup_epochs) == (3, 1e-5, 1)
    assert config.train.epochs == short.train.epochs
    assert (config.test.clips, config.test.crops) == (7, 3)
    told = describe_recipe(FINETUNE_RECIPES[name])
    assert f"--train.init runs/vit_{letter}_distil_k710 --train.head-map MAP" in told
    assert "The recipe is ours" in told


def test_vit_s_is_post_pre_trained_as_vit_b() -> None:
    small, base = (FINETUNE_RECIPES[f"vit_{letter}_posttrain_k710"]() for letter in "sb")
    assert small.model.encoder == DISTIL_RECIPES["vit_s_distil_k710"]().model.encoder
    assert (small.data, small.augment, small.optim, small.train) == (base.data, base.augment, base.optim, base.train)


@pytest.mark.parametrize("name", sorted(DISTIL_RECIPES))
def test_the_usage_of_distil_cache_is_a_line_that_starts(name: str) -> None:
    (line,) = usage_of("distil-cache")
    words = line.partition(" [")[0].replace("RECIPE", name).split()[2:]
    _, config = recipe("vmae2 distil-cache", words, ["distil"])
    assert isinstance(config, DistilConfig)
    assert config.distil.cache == Path("FOLDER")
    with pytest.raises(ConfigError, match="a mixed clip depends on its micro batch; set"):
        recipe("vmae2 distil-cache", words[: words.index("--augment.mixup")], ["distil"])
