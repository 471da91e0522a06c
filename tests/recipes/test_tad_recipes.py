"""Recipes of temporal detection have the published settings (docs/PAPER.md#detection-recipes), and a command that is one."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest

from vmae2_ds.cli.parse import recipe
from vmae2_ds.config.run_plan import RunPlan, plan_run
from vmae2_ds.recipes import describe_recipe
from vmae2_ds.recipes.tad import TAD_RECIPES
from vmae2_ds.train.optim import learning_rate


def plan_of(name: str, videos: int) -> RunPlan:
    return plan_run(TAD_RECIPES[name](), videos, 1)


@pytest.mark.parametrize("name", ["thumos14_v2g", "thumos14_v2g_opentad", "fineaction_v2g", "tad_desk"])
def test_a_recipe_says_how_to_start_it_and_what_has_run_it(name: str) -> None:
    told = describe_recipe(TAD_RECIPES[name])
    assert f"vmae2 tad {name} " in told
    assert all(word in told for word in ("Command:", "Hardware:", "Score:", "Source:"))
    assert "no GPU has run it" in told or "two CPU cores" in told
    _, config = recipe("vmae2 tad", [name, "--data.annotations", "a", "--data.features", "f"], ["tad"])
    assert config.recipe == name


def test_thumos14_has_the_published_rate_and_length() -> None:
    """200 videos, 2 a step: 35 epochs of 100 steps, 500 of them warm-up to 1e-4, then down to 1e-8."""
    plan = plan_of("thumos14_v2g", 200)
    assert (plan.num_steps, plan.warmup_steps) == (3500, 500)
    assert (plan.peak_lr, plan.min_lr) == pytest.approx((1e-4, 1e-8))
    assert learning_rate(500, plan) == pytest.approx(1e-4)
    assert learning_rate(3499, plan) < 1e-8 + 1e-4 * (math.pi / 2 / 3000) ** 2 * 1.01


def test_a_schedule_may_outlast_its_run() -> None:
    """45 of 60 epochs, 20 of them warm-up: the run ends with 25 of 40 epochs of the cosine behind it."""
    plan = plan_of("thumos14_v2g_opentad", 200)
    assert (plan.num_steps, plan.warmup_steps, plan.schedule_steps) == (4500, 2000, 6000)
    assert learning_rate(4500, plan) == pytest.approx(1e-8 + (1e-4 - 1e-8) * 0.5 * (1 + math.cos(math.pi * 25 / 40)))
    assert "at step 6000, behind the run's" in plan.describe()[1]
    assert learning_rate(4500, replace(plan, schedule_steps=None)) == pytest.approx(1e-8)


def test_fineaction_has_the_published_head() -> None:
    config = TAD_RECIPES["fineaction_v2g"]()
    assert plan_of("fineaction_v2g", 8440).peak_lr == pytest.approx(1e-3)
    head, loss, detect = config.model.head, config.loss, config.detect  # type: ignore[attr-defined]
    assert (head.width, head.level_windows, head.absolute_positions) == (256, (7, 7, 7, 7, 7, -1), True)
    assert (loss.label_smoothing, loss.regression_weight, loss.normaliser_start) == (0.1, 2, 200)
    assert (detect.sigma, detect.most, detect.by_class, detect.voting, detect.external_top_k) == (
        0.75,
        100,
        False,
        0.9,
        2,
    )
