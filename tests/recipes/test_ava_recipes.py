"""Recipes of spatial action detection have the published settings (docs/PAPER.md#spatial-detection-recipes)."""

from __future__ import annotations

import pytest

from vmae2_ds.config.ava import AvaConfig
from vmae2_ds.config.run_plan import plan_run
from vmae2_ds.recipes import describe_recipe
from vmae2_ds.recipes.ava import AVA_RECIPES

PUBLISHED = {
    # GPUs, clips on each, peak rate and its end, layer decay, epochs, width, tokens of a training clip, score
    "ava_s": (16, 8, 2.5e-4, 5e-7, 0.6, 30, 384, 1568, "28.4"),
    "ava_b": (32, 4, 2.5e-4, 5e-7, 0.75, 30, 768, 1568, "31.8"),
    "ava_l": (32, 4, 2.5e-4, 5e-7, 0.8, 20, 1024, 1568, "37.0"),
    "ava_h": (64, 2, 2.5e-4, 5e-7, 0.8, 20, 1280, 1568, "39.5"),
    "ava_g": (32, 4, 2.5e-4, 5e-7, 0.9, 20, 1408, 2048, "42.6"),
    "ava_kinetics_b": (8, 8, 1.25e-4, 0, 0.75, 20, 768, 2048, "33.6"),
    "ava_kinetics_l": (8, 8, 2.5e-4, 0, 0.8, 20, 1024, 2048, "38.7"),
}


def made(name: str) -> AvaConfig:
    config = AVA_RECIPES[name]()
    assert isinstance(config, AvaConfig)
    return config


@pytest.mark.parametrize("name", sorted(PUBLISHED))
def test_a_recipe_has_the_published_batch_rate_length_and_score(name: str) -> None:
    gpus, clips, rate, last_rate, decay, epochs, width, tokens, score = PUBLISHED[name]
    config = made(name)
    plan = plan_run(config, 100 * gpus * clips, gpus)
    assert (plan.accumulation, plan.micro_batch) == (1, clips)
    assert (plan.peak_lr, plan.min_lr) == pytest.approx((rate, last_rate))
    assert (plan.num_steps, plan.warmup_steps) == (100 * epochs, 500)
    assert (config.optim.layer_decay, config.optim.weight_decay, config.model.drop_path) == (decay, 0.05, 0.2)
    assert (config.model.encoder.width, config.geometry.num_cubes) == (width, tokens)
    assert config.data.num_frames * config.data.stride == 64
    assert config.train.keep_best == "val_frame_map"
    told = describe_recipe(AVA_RECIPES[name])
    assert f"vmae2_ds ava {name} " in told
    assert f"Score:    {score}" in told
    assert "No GPU has run it here" in told


def test_both_ways_to_train_have_the_head_and_the_loss_of_their_authors() -> None:
    """VideoMAE-AD: truth alone, 7x7, sums by clip. mmaction2: proposals too, 8x8 aligned, dropout, the mean over boxes."""
    alone, both = made("ava_b"), made("ava_kinetics_b")
    assert (alone.data.train_on, both.data.train_on) == ("truth", "truth_and_proposals")
    assert (alone.data.box_threshold, both.data.box_threshold, both.data.proposal_overlap) == (0.8, 0.9, 0.9)
    assert (alone.data.most_boxes, both.data.most_boxes) == (100, 32)
    assert (alone.data.val_protocol, both.data.val_protocol) == ("legacy", "mmaction2")
    assert (alone.data.person_score, both.data.person_score) == (True, False)
    assert (alone.data.box_jitter, both.data.box_jitter) == ((0.2, 0.1, 0.1, 0.05), (0, 0, 0, 0))
    heads = [
        (head.size, head.aligned, head.box_extension, head.dropout) for head in (alone.model.head, both.model.head)
    ]
    assert heads == [(7, False, (0.1, 0.05), 0), (8, True, (0, 0), 0.5)]
    assert (alone.loss.mean_over, both.loss.mean_over) == ("clips", "boxes")
    assert (both.data.short_side, both.data.size, both.model.positions_from) == ((256, 320), 256, (16, 224))
    assert (alone.optim.clip_grad, both.optim.clip_grad) == (0, 40)


def test_the_recipe_of_g_says_that_the_paper_s_code_is_not_known_and_looks_up_boxes_by_14_pixels() -> None:
    assert made("ava_g").model.patch == 14
    told = describe_recipe(AVA_RECIPES["ava_g"])
    assert "43.9 trained on AVA-Kinetics (paper); the code behind both was never published" in told
