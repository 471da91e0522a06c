"""Recipes of detection end to end against what is published of AdaTAD (docs/PAPER.md#temporal-adapters)."""

from __future__ import annotations

import pytest

from tests.cost.parameter_counts import adapter_parameters
from vmae2_ds.config.run_plan import plan_run
from vmae2_ds.recipes.tad_adapters import TAD_ADAPTER_RECIPES

PUBLISHED = {
    # clips of a window, tokens of a clip, millions of parameters of all adapters, their learning rate, epochs, score
    "thumos14_adatad_s": (48, 8 * 10 * 10, 1.01, 2e-4, 60, "69.03"),
    "thumos14_adatad_b": (48, 8 * 10 * 10, 4.00, 1e-4, 60, "71.14"),
    "thumos14_adatad_l": (48, 8 * 10 * 10, 14.22, 1e-4, 60, "73.51"),
    "thumos14_adatad_g": (48, 968, 44.75, 1e-4, 60, "75.06"),
    "thumos14_adatad_g_1536": (96, 2048, 22.37, 2e-4, 50, "77.07"),
}


@pytest.mark.parametrize("name", sorted(PUBLISHED))
def test_a_recipe_has_the_published_settings_and_names_its_score(name: str) -> None:
    recipe = TAD_ADAPTER_RECIPES[name]
    config = recipe()
    clips, tokens, millions, rate, epochs, score = PUBLISHED[name]
    width, depth = config.model.encoder.width, config.model.encoder.depth
    numbers = config.model.adapters.numbers(depth)
    assert config.data.window_frames // config.data.num_frames == clips
    assert config.geometry.num_cubes == tokens
    hidden = config.model.adapters.hidden(width)
    assert len(numbers) * adapter_parameters(width, hidden) / 1e6 == pytest.approx(millions, abs=0.005)
    # two videos a step on two GPUs; 200 training videos
    plan = plan_run(config, 200, 2)
    assert plan.peak_lr == pytest.approx(1e-4)
    assert plan.peak_lr * config.model.adapters.lr_scale == pytest.approx(rate)
    assert (plan.num_steps, plan.warmup_steps, plan.schedule_steps) == (100 * epochs, 500, 10_000)
    # a window spans 3072 frames of the video, 768 positions of 4
    assert config.data.window_frames * config.data.stride == 768 * 4
    assert recipe.__doc__ is not None
    assert f"{score} average mAP" in recipe.__doc__
    assert "No GPU has run it" in recipe.__doc__
    assert config.detect.sigma == 0.7
    assert "sigma 0.7, lowers scores less" in recipe.__doc__


def test_adapters_of_the_largest_recipe_lie_behind_its_last_half() -> None:
    config = TAD_ADAPTER_RECIPES["thumos14_adatad_g_1536"]()
    assert config.model.adapters.numbers(config.model.encoder.depth) == tuple(range(20, 40))
