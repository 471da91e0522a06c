"""Batch identity, learning rate and parameter groups against the published code's numbers."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.golden_data import golden_json
from tests.official_names import official_name
from vmae2_ds.config.model import ClassifierConfig, ModelConfig, TowerConfig
from vmae2_ds.config.run_plan import RunPlan, plan_run
from vmae2_ds.contracts import ClipGeometry
from vmae2_ds.errors import ConfigError
from vmae2_ds.model.classifier import Classifier
from vmae2_ds.model.mae import MaskedAutoencoder
from vmae2_ds.recipes import get_recipe
from vmae2_ds.recipes.finetune import FINETUNE_RECIPES
from vmae2_ds.recipes.pretrain import RECIPES
from vmae2_ds.train.optim import learning_rate, make_optimizer, parameter_groups, set_learning_rate

NUM_VIDEOS = 1_348_000


@pytest.mark.parametrize(
    # docs/PAPER.md#pre-training-recipes: script, GPUs, effective batch, actual peak learning rate
    ("name", "gpus", "global_batch", "peak_lr"),
    [
        ("vit_b_pretrain_hybrid", 32, 4096, 4e-3),
        ("vit_l_pretrain_hybrid", 48, 6144, 6e-3),
        ("vit_h_pretrain_hybrid", 64, 8192, 8e-3),
        ("vit_g_pretrain_hybrid", 64, 8192, 4.8e-3),
    ],
)
def test_published_batch_and_peak(name: str, gpus: int, global_batch: int, peak_lr: float) -> None:
    plan = plan_run(get_recipe("pretrain", name), NUM_VIDEOS, gpus)
    assert (plan.global_batch, plan.accumulation) == (global_batch, 1)
    assert plan.peak_lr == pytest.approx(peak_lr, rel=1e-12)
    assert plan.epochs == pytest.approx(
        get_recipe("pretrain", name).train.epochs, rel=1e-3
    )  # less by the rest of each pass


@pytest.mark.parametrize(
    # the scripts' epochs and warm-up x (1,348,000 // videos per step): 1316, 877, 658, 658 steps
    ("name", "gpus", "num_steps", "warmup_steps"),
    [
        ("vit_b_pretrain_hybrid", 32, 263_200, 26_320),
        ("vit_l_pretrain_hybrid", 48, 263_100, 26_310),
        ("vit_h_pretrain_hybrid", 64, 197_400, 19_740),
        ("vit_g_pretrain_hybrid", 64, 197_400, 19_740),
    ],
)
def test_published_recipes_count_whole_steps_in_a_pass(name: str, gpus: int, num_steps: int, warmup_steps: int) -> None:
    plan = plan_run(get_recipe("pretrain", name), NUM_VIDEOS, gpus)
    assert (plan.num_steps, plan.warmup_steps) == (num_steps, warmup_steps)


def test_every_published_script_counts_whole_steps_and_our_own_recipes_do_not() -> None:
    counts = {name: recipe().train.epoch_steps for name, recipe in {**RECIPES, **FINETUNE_RECIPES}.items()}
    ours = {name for name in counts if name.endswith(("_continue", "_desk", "_quickstart"))}
    assert {name for name, how in counts.items() if how == "exact"} == ours
    fine_tuned = plan_run(FINETUNE_RECIPES["vit_g_finetune_k400"](), 240_436, 32)  # 240,436 // 96 = 2504
    assert (fine_tuned.num_steps, fine_tuned.warmup_steps) == (3 * 2504, 2504)


def test_exact_steps_keep_the_fraction_of_a_pass_as_does_a_list_smaller_than_a_step() -> None:
    recipe = get_recipe("pretrain", "vit_g_pretrain_hybrid")
    exact = plan_run(recipe.changed(train={"epoch_steps": "exact"}), NUM_VIDEOS, 64)
    assert (exact.num_steps, exact.warmup_steps) == (197_461, 19_746)  # 300 and 30 x 658.203
    small = plan_run(recipe, 398, 64)  # 300 and 30 x 398 / 2048
    assert (small.num_steps, small.warmup_steps) == (58, 6)


def test_a_plan_warns_of_a_step_larger_than_the_list() -> None:
    recipe = get_recipe("pretrain", "vit_g_pretrain_hybrid")
    (warning,) = plan_run(recipe, 398, 64).warnings()
    assert "a step of 2048 videos is larger than the list of 398: it has each video 5.15 times" in warning
    assert plan_run(recipe, 2048, 64).warnings() == plan_run(recipe, NUM_VIDEOS, 64).warnings() == []


@pytest.mark.parametrize(("max_steps", "warns"), [(60, True), (285, True), (286, False), (1530, False)])
def test_a_plan_warns_where_most_steps_are_warm_up(max_steps: int, warns: bool) -> None:
    """1523 videos, 8 a step: 0.75 epochs of warm-up are 143 steps, in a shorter run all of it."""
    recipe = get_recipe("pretrain", "vit_ti_pretrain_desk").changed(
        optim={"warmup_epochs": 0.75}, train={"max_steps": max_steps}
    )
    plan = plan_run(recipe, 1523, 2)
    assert plan.warmup_steps == min(max_steps, 143)
    assert len(plan.warnings()) == warns
    if max_steps == 60:
        assert "60 of 60 steps are warm-up" in plan.warnings()[0]
        assert plan.lines()[-1] == f"warning: {plan.warnings()[0]}"
        advised = float(plan.warnings()[0].rpartition(" ")[2])
        assert plan_run(recipe.changed(optim={"warmup_epochs": advised}), 1523, 2).warmup_steps == 6


def test_one_pass_is_singular() -> None:
    plan = plan_run(get_recipe("pretrain", "vit_ti_pretrain_desk").changed(train={"epochs": 1}), 800, 2)
    assert "= 1 pass over 800 videos" in plan.describe()[-1]


@pytest.mark.parametrize(
    # docs/PAPER.md#fine-tuning-recipes: script, GPUs, videos per step, actual peak learning rate = lr x videos / 256
    ("name", "gpus", "videos", "peak_lr"),
    [
        ("vit_b_finetune_k400", 32, 512, 1.4e-3),
        ("vit_b_finetune_ssv2", 16, 256, 2e-3),
        ("vit_h_finetune_k400", 32, 128, 5e-4),
        ("vit_g_posttrain_k710", 32, 96, 3.75e-4),
        ("vit_g_finetune_k400", 32, 96, 3.75e-6),
        ("vit_g_finetune_hmdb51", 8, 24, 4.6875e-5),
    ],
)
def test_published_fine_tuning_batch_and_peak(name: str, gpus: int, videos: int, peak_lr: float) -> None:
    plan = plan_run(FINETUNE_RECIPES[name](), 240_436, gpus)
    assert (plan.videos_per_step, plan.accumulation) == (videos, 1)
    assert plan.peak_lr == pytest.approx(peak_lr, rel=1e-12)


@pytest.mark.parametrize(
    # Every rate is the flag x videos a step / 256, the last one too: 1e-5 x 1024 / 256 of 1e-3 x 1024 / 256
    # (docs/PAPER.md#learning-rate).
    ("name", "gpus", "base_lr", "min_lr", "scale"),
    [
        ("vit_b_pretrain_hybrid", 32, 1e-3, 1e-5, 4),
        ("vit_h_pretrain_hybrid", 64, 1e-3, 1e-5, 8),
        ("vit_g_finetune_k400", 32, 1e-5, 1e-6, 0.375),
        ("vit_b_finetune_k400", 32, 7e-4, 1e-6, 2),
    ],
)
def test_both_ends_of_the_schedule_scale_with_the_batch(
    name: str, gpus: int, base_lr: float, min_lr: float, scale: float
) -> None:
    config = {**RECIPES, **FINETUNE_RECIPES}[name]()
    plan = plan_run(config, NUM_VIDEOS, gpus)
    assert (config.optim.base_lr, config.optim.min_lr) == (base_lr, min_lr)
    assert plan.peak_lr == pytest.approx(scale * base_lr, rel=1e-12)
    assert plan.min_lr == pytest.approx(scale * min_lr, rel=1e-12)
    assert learning_rate(plan.num_steps, plan) == pytest.approx(scale * min_lr, rel=1e-9)
    assert max(learning_rate(step, plan) for step in range(0, plan.num_steps, 10)) <= plan.peak_lr


@pytest.mark.parametrize(
    # videos, 32 a step, epochs, epochs of warm-up -> steps and steps of warm-up, both to the nearest
    ("videos", "epochs", "warmup", "num_steps", "warmup_steps"),
    [
        (1000, 3.0, 1.0, 94, 31),
        (1000, 0.5, 0.25, 16, 8),
        (56, 10.0, 1.5, 18, 3),
        (24, 10.0, 1.0, 8, 1),
        (33, 1.0, 0.0, 1, 0),
    ],
)
def test_steps_of_a_list_that_does_not_divide_are_the_nearest(
    videos: int, epochs: float, warmup: float, num_steps: int, warmup_steps: int
) -> None:
    """93.75 and 31.25; 15.625 and 7.8; 17.5 and 2.6; 7.5 and 0.75; 1.03 and none."""
    recipe = get_recipe("pretrain", "vit_ti_pretrain_desk")
    batch = {"global_batch": 64, "micro_batch": 16, "epochs": epochs, "epoch_steps": "exact", "max_steps": None}
    config = recipe.changed(train=batch, data={"views": 2}, optim={"warmup_epochs": warmup})
    plan = plan_run(config, videos, 2)
    assert (plan.videos_per_step, plan.clips_per_micro_step, plan.accumulation) == (32, 32, 1)
    assert (plan.num_steps, plan.warmup_steps) == (num_steps, warmup_steps)
    assert plan.epochs == pytest.approx(num_steps * 32 / videos)


def test_fewer_gpus_keep_the_global_batch() -> None:
    plans = [plan_run(get_recipe("pretrain", "vit_g_pretrain_hybrid"), NUM_VIDEOS, gpus) for gpus in (64, 8)]
    assert [plan.accumulation for plan in plans] == [1, 8]
    assert plans[0].peak_lr == plans[1].peak_lr
    assert plans[0].num_steps == plans[1].num_steps


def test_a_batch_that_does_not_divide_is_refused_with_two_that_do() -> None:
    config = get_recipe("pretrain", "vit_g_pretrain_hybrid")
    with pytest.raises(ConfigError, match=r"= 6144; try 6144 or 12288"):
        plan_run(config, NUM_VIDEOS, 48)


def test_the_plan_names_every_factor() -> None:
    text = "\n".join(plan_run(get_recipe("pretrain", "vit_b_pretrain_hybrid"), NUM_VIDEOS, 32).describe())
    for factor in ("4096 clips", "micro_batch 32", "accumulation 1", "32 rank", "4 view", "base_lr 0.001", "/ 256"):
        assert factor in text


def test_too_few_videos_for_one_step() -> None:
    config = get_recipe("pretrain", "vit_b_pretrain_hybrid")
    short = config.model_copy(update={"train": config.train.model_copy(update={"epochs": 0.1})})
    with pytest.raises(ConfigError, match="less than one step"):
        plan_run(short, 100, 32)


@pytest.fixture
def plan() -> RunPlan:
    drawn = plan_run(get_recipe("pretrain", "vit_b_pretrain_hybrid"), NUM_VIDEOS, 32)
    return replace(drawn, num_steps=70, warmup_steps=14, peak_lr=1.2e-3, min_lr=8e-5)


def test_no_warm_up(plan: RunPlan) -> None:
    assert learning_rate(0, replace(plan, warmup_steps=0)) == 1.2e-3


def test_groups_are_the_published_ones() -> None:
    """Two blocks a tower: vectors, biases and the mask token have no decay, nothing else."""
    tower = TowerConfig(width=24, depth=2, heads=3, mlp=48)
    config = ModelConfig(encoder=tower, decoder=tower, patch=8)
    model = MaskedAutoencoder(config, ClipGeometry(4, 16, 16, 2, 8), seed=None)
    decayed, free = parameter_groups(model, 0.05)
    assert (decayed["weight_decay"], free["weight_decay"]) == (0.05, 0.0)
    golden = golden_json("model.json")["pretrain_no_decay"]
    assert sorted(map(official_name, free["param_names"])) == sorted(golden)
    everything = {official_name(name) for name, _ in model.named_parameters()}
    assert {official_name(name) for name in decayed["param_names"]} == everything - set(golden)


def test_layer_decay_groups_are_the_published_ones() -> None:
    golden = golden_json("model.json")["layer_decay"]
    tower = TowerConfig(width=24, depth=golden["depth"], heads=3, mlp=48)
    model = Classifier(ClassifierConfig(encoder=tower, patch=8, num_classes=5), ClipGeometry(4, 16, 16, 2, 8))
    groups = parameter_groups(model, golden["weight_decay"], golden["layer_decay"], golden["depth"])

    def comparable(group: dict[str, Any], names: list[str]) -> tuple[float, float, list[str]]:
        return group["lr_scale"], group["weight_decay"], sorted(names)

    ours = [comparable(g, [official_name(name, classifier=True) for name in g["param_names"]]) for g in groups]
    assert sorted(ours) == sorted(comparable(g, g["params"]) for g in golden["groups"])


@pytest.mark.parametrize("schedule", golden_json("model.json")["cosine_scheduler"])
def test_the_whole_schedule_is_the_published_one(plan: RunPlan, schedule: dict[str, Any]) -> None:
    args, values = schedule["args"], schedule["values"]
    warmup = args.get("warmup_steps", args.get("warmup_epochs", 0) * args["niter_per_ep"])
    plan = replace(
        plan, num_steps=len(values), warmup_steps=warmup, peak_lr=args["base_value"], min_lr=args["final_value"]
    )
    assert [learning_rate(step, plan) for step in range(len(values))] == pytest.approx(values, rel=1e-12)


def falling(name: str, done: float) -> float:
    """What is left of the rate, from the words of --optim.decay-shape, in another form than the code's."""
    return {"linear": 1 - done, "sqrt": 1 - done**0.5, "cosine": math.cos(math.pi * done / 2) ** 2}[name]


@pytest.mark.parametrize("shape", ["linear", "sqrt", "cosine"])
@pytest.mark.parametrize(("epochs", "warmup", "decay"), [(10.0, 1.0, 2.5), (10.0, 0.0, 10.0), (4.0, 1.0, 0.0)])
def test_a_constant_rate_falls_at_the_end_alone(shape: Any, epochs: float, warmup: float, decay: float) -> None:
    """Of 1000 videos, 32 a step. The whole curve by numpy: a ramp with end point, the peak, and the fall without end point."""
    config = get_recipe("pretrain", "vit_ti_pretrain_desk").changed(
        optim={"schedule": "wsd", "warmup_epochs": warmup, "decay": decay, "decay_shape": shape, "base_lr": 1e-3},
        train={"global_batch": 64, "micro_batch": 16, "epochs": epochs, "epoch_steps": "whole", "max_steps": None},
        data={"views": 2},
    )
    plan = plan_run(config, 1000, 2)
    steps, up, down = (round(passes * 31) for passes in (epochs, warmup, decay))
    peak, end = 1e-3 * 32 / config.optim.lr_batch, config.optim.min_lr * 32 / config.optim.lr_batch
    fall = [end + (peak - end) * falling(shape, done) for done in np.linspace(0, 1, down, endpoint=False)]
    expected = [*np.linspace(0, peak, up), *[peak] * (steps - up - down), *fall]
    assert [learning_rate(step, plan) for step in range(plan.num_steps)] == pytest.approx(expected, rel=1e-12)
    said = "\n".join(plan.describe())
    assert (f"falls from step {steps - down} to {steps} ({shape})" if down else "no --optim.decay") in said


def test_a_cooldown_has_the_rates_of_a_run_planned_so_from_the_start() -> None:
    recipe = get_recipe("pretrain", "vit_ti_pretrain_desk")
    optim = {"schedule": "wsd", "warmup_epochs": 1.0, "decay": 2.0}
    planned = plan_run(recipe.changed(optim=optim, train={"max_steps": 500}), 800, 2)
    assert planned.decay_steps == round(2 * planned.steps_per_epoch)
    first = 500 - planned.decay_steps
    branch = {"branch": Path(f"runs/r/x/ckpt/step{first:08d}"), "max_steps": None, "epochs": 1.0}
    cooled = plan_run(recipe.changed(optim=optim, train=branch), 800, 2)
    assert (cooled.first_step, cooled.num_steps, cooled.own_steps) == (first, 500, planned.decay_steps)
    assert [learning_rate(at, cooled) for at in range(500)] == [learning_rate(at, planned) for at in range(500)]
    assert learning_rate(first, cooled) == cooled.peak_lr > learning_rate(first + 1, cooled)
    assert f"a cooldown from step {first} of another run: the rate falls from step {first} to 500" in cooled.lines()[2]


@pytest.mark.parametrize(
    ("optim", "train", "says"),
    [
        ({"decay": 2.0}, {}, "--optim.decay 2 is the end of a constant rate, .* add --optim.schedule wsd"),
        ({"schedule": "wsd", "schedule_epochs": 9.0}, {}, "--optim.schedule-epochs 9 is the length of a cosine"),
        (
            {"schedule": "wsd", "decay": 40.0},
            {"max_steps": 100},
            r"--optim.decay 40 is \d+ steps, and \d+ of the run's 100",
        ),
        ({}, {"branch": Path("r/ckpt/step00000040")}, "needs --optim.decay, .* 0 of them are no step"),
        ({"decay": 1.0}, {"branch": Path("r/ckpt")}, "--train.branch r/ckpt is no checkpoint of a run: give .*stepN"),
    ],
)
def test_schedules_that_cannot_be_are_refused(optim: dict[str, Any], train: dict[str, Any], says: str) -> None:
    config = get_recipe("pretrain", "vit_ti_pretrain_desk").changed(optim=optim, train=train)
    with pytest.raises(ConfigError, match=says) as error:
        plan_run(config, 800, 2)
    assert "\n" not in str(error.value)


def test_layer_scales_are_kept_when_the_rate_is_set() -> None:
    groups = [{"lr_scale": 0.5}, {}]
    set_learning_rate(groups, 2e-3)
    assert [group["lr"] for group in groups] == [1e-3, 2e-3]


def test_every_recipe_builds_and_says_where_it_comes_from() -> None:
    for name, recipe in {**RECIPES, **FINETUNE_RECIPES}.items():
        config = recipe()
        assert config.recipe == name
        assert type(config).model_validate_json(config.model_dump_json()) == config
        for promise in ("Command:", "Hardware:", "Source:"):
            assert promise in (recipe.__doc__ or "")


def test_optimizer_is_fused_adamw_with_the_recipe_s_numbers() -> None:
    config = get_recipe("pretrain", "vit_g_pretrain_hybrid")
    model = MaskedAutoencoder(ModelConfig.of_size("tiny"), ClipGeometry(16, 32, 32, 2, 16), seed=None)
    defaults = make_optimizer(parameter_groups(model, 0.05), config.optim).defaults
    assert (defaults["betas"], defaults["eps"], defaults["fused"]) == ((0.9, 0.95), 1e-8, True)
