"""The search space: the global batch is kept to the clip, and what cannot be is refused with a way out."""

from __future__ import annotations

import pytest

from vmae2_ds.config.run_plan import plan_run
from vmae2_ds.cost.assumptions import Assumptions
from vmae2_ds.cost.cluster import Cluster, make_cluster
from vmae2_ds.cost.hardware import get_accelerator
from vmae2_ds.errors import ConfigError
from vmae2_ds.recipes import get_recipe
from vmae2_ds.tune.search_space import all_settings


def cluster_of(gpus: int, nodes: int | None = None, gpu: str = "a100-80g") -> Cluster:
    return make_cluster(get_accelerator(gpu), gpus, nodes, None, Assumptions().usable_memory)


@pytest.mark.parametrize("gpus", [1, 8, 64, 1024])
def test_every_setting_makes_exactly_the_global_batch(gpus: int) -> None:
    recipe = get_recipe("pretrain", "vit_g_pretrain_hybrid")
    settings = list(all_settings(recipe, cluster_of(gpus), quantized=True, offload=True))
    assert len(settings) > 100
    for setting in settings:
        plan = plan_run(setting.config, 1_000_000, gpus)  # refuses a batch that does not come out
        assert plan.global_batch == recipe.train.global_batch
        assert plan.peak_lr == plan_run(recipe, 1_000_000, 64).peak_lr
    assert {setting.policy.stage for setting in settings} == {1, 2, 3}, "bf16 at stage 0 starts wrong"


def test_what_is_learned_does_not_vary() -> None:
    recipe = get_recipe("pretrain", "vit_b_pretrain_hybrid")
    for setting in all_settings(recipe, cluster_of(8), quantized=False, offload=True):
        changed = setting.config
        assert (changed.mask, changed.objective, changed.data, changed.optim) == (
            recipe.mask,
            recipe.objective,
            recipe.data,
            recipe.optim,
        )
        assert not setting.policy.quantized_weights
        assert not setting.policy.quantized_gradients


def test_zeropp_needs_several_nodes() -> None:
    recipe = get_recipe("pretrain", "vit_g_pretrain_hybrid")
    one = all_settings(recipe, cluster_of(8, 1), quantized=True, offload=True)
    assert {setting.policy.hpz for setting in one} == {1}
    two = list(all_settings(recipe, cluster_of(16, 2), quantized=True, offload=True))
    assert {setting.policy.hpz for setting in two} == {1, 8}
    assert any(setting.policy.quantized_gradients for setting in two)


def test_large_models_are_built_partitioned() -> None:
    for recipe, built in (("vit_6b_pretrain_plan", True), ("vit_g_pretrain_hybrid", False)):
        settings = list(all_settings(get_recipe("pretrain", recipe), cluster_of(64), quantized=False, offload=False))
        assert {s.config.train.ds_zero_init for s in settings if s.policy.stage == 3} == {built}
        assert {s.config.train.ds_zero_init for s in settings if s.policy.stage < 3} == {False}


@pytest.mark.parametrize(
    ("recipe", "gpus", "message"),
    [
        (
            "vit_b_pretrain_hybrid",
            7,
            r"4096 cannot be shared by 7 GPUs .* multiple of 28; try .* 4088 or 4116, or --gpus 4",
        ),
        ("vit_b_pretrain_hybrid", 2048, r"multiple of 8192; try --train.global-batch 8192, or --gpus 1024"),
        ("vit_ti_pretrain_desk", 16, r"try --train.global-batch 64, or --gpus 8"),
    ],
)
def test_impossible_batches_name_a_way_out(recipe: str, gpus: int, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        list(all_settings(get_recipe("pretrain", recipe), cluster_of(gpus, 1), quantized=False, offload=True))
