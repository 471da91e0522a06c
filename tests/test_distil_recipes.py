"""Distillation recipes keep the published run that they say they follow, and say what is ours."""

from __future__ import annotations

import pytest

from vmae2_ds.distil_recipes import DISTIL_RECIPES
from vmae2_ds.finetune_recipes import FINETUNE_RECIPES
from vmae2_ds.recipes import describe_recipe


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
    """Scores are those of the published students (PAPER A5)."""
    config, script = DISTIL_RECIPES[name](), FINETUNE_RECIPES["vit_b_posttrain_k710"]()
    assert (config.data, config.augment, config.optim) == (script.data, script.augment, script.optim)
    assert config.train.global_batch == script.train.global_batch == 1024
    assert (config.model.encoder.width, config.model.num_classes) == (width, 710)
    assert (config.distil.alpha, config.distil.temperature) == (1.0, 1.0)
    assert f"K710 {score} %" in describe_recipe(DISTIL_RECIPES[name])
