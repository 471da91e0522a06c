"""Which of several settings is taken where they tie in one figure and not in another: made candidates, in every order."""

from __future__ import annotations

from itertools import permutations
from typing import Any

import pytest

from tests.tune.test_by_hand import GIB, cluster_of, giant
from vmae2_ds.cost.zero import ZeroPolicy
from vmae2_ds.tune.candidates import Candidate, Search, checkpointing_name, layout_name
from vmae2_ds.tune.explain import candidate_json
from vmae2_ds.tune.setting_cost import GpuMemory, Setting, StepTime

PLAIN, OWNERS, STAGE2, STAGE3 = (
    ZeroPolicy(stage=1),
    ZeroPolicy(stage=1, multi_rank_allreduce=False),
    ZeroPolicy(stage=2),
    ZeroPolicy(stage=3),
)
OFFLOAD = ZeroPolicy(stage=1, offload_optimizer=True)


def made(
    policy: ZeroPolicy = PLAIN, device_s: float = 1.0, data_s: float = 0.1, gib: float = 50.0, **more: Any
) -> Candidate:
    config = giant().changed(model={"checkpointing": more.pop("checkpointing", "none")})
    worst = more.pop("worst_gib", gib)
    return Candidate(
        setting=Setting(config, policy),
        cluster=cluster_of(8),
        memory=GpuMemory({"weights": gib * GIB}, 0),
        worst_memory=GpuMemory({"weights": worst * GIB}, 0),
        time=StepTime(compute_s=device_s, network_s=0, hidden_s=0, optimizer_s=0, data_s=data_s),
        host_memory_gib=64,
        worst_host_memory_gib=64,
    )


def in_any_order(*candidates: Candidate) -> list[Search]:
    return [Search(giant(), cluster_of(8), list(order)) for order in permutations(candidates)]


def test_where_the_data_binds_the_less_busy_gpu_comes_first_and_then_the_smaller_memory() -> None:
    """All take the 9 s that the videos take."""
    idle, small, large = (
        made(device_s=2, data_s=9, gib=80),
        made(device_s=3, data_s=9, gib=40),
        made(device_s=3, data_s=9, gib=60),
    )
    for found in in_any_order(large, small, idle):
        assert found.fitting == [idle, small, large]


def test_the_simplest_of_those_within_two_percent_is_taken() -> None:
    fastest, simple, slow = made(STAGE3, 1.0), made(STAGE2, 1.0199), made(PLAIN, 1.0201)
    for found in in_any_order(fastest, simple, slow):
        assert found.chosen is simple


def test_the_smaller_memory_breaks_a_tie_of_simplicity() -> None:
    fastest, small = made(STAGE2, 1.0, gib=60), made(STAGE2, 1.01, gib=40)
    for found in in_any_order(fastest, small):
        assert found.chosen is small


@pytest.mark.parametrize(
    ("simple", "less_simple"),
    [
        (made(PLAIN), made(OWNERS)),
        (made(PLAIN), made(STAGE2)),
        (made(STAGE3), made(OFFLOAD)),  # whatever the stage: what lives on the host can go wrong in more ways
        (made(PLAIN), made(PLAIN, checkpointing="all")),
        (made(PLAIN, checkpointing="all"), made(STAGE2)),
        (made(STAGE3), made(ZeroPolicy(stage=3, hpz=8))),
    ],
)
def test_what_counts_as_simpler(simple: Candidate, less_simple: Candidate) -> None:
    assert simple.complexity < less_simple.complexity
    for found in in_any_order(simple, less_simple):
        assert found.chosen is simple


def test_a_setting_that_hides_behind_the_data_is_not_as_fast() -> None:
    """Both steps take 9 s of reading, but one needs twice the GPU: simpler or not, it is not within two percent."""
    lean, busy = made(STAGE3, device_s=4, data_s=9), made(PLAIN, device_s=8, data_s=9)
    for found in in_any_order(busy, lean):
        assert found.chosen is lean


def test_what_fits_at_worst_comes_before_what_is_faster() -> None:
    quick, safe = made(PLAIN, 1.0, gib=90, worst_gib=101), made(STAGE2, 2.0)
    for found in in_any_order(quick, safe):
        assert found.chosen is safe
        assert found.ranked == [safe, quick]
        assert found.fitting == [quick, safe]
    for found in in_any_order(quick, made(STAGE2, 2.0, gib=90, worst_gib=101)):
        assert found.chosen is quick, "where none is safe, the fastest of those that are expected to fit"


def test_the_front_drops_what_is_slower_and_hardly_smaller() -> None:
    """Half a percent of the memory is not worth a line."""
    candidates = made(gib=60), made(device_s=2, gib=59.8), made(device_s=3, gib=40), made(device_s=4, gib=50)
    for found in in_any_order(*candidates):
        assert found.front == [candidates[0], candidates[2]]


def test_of_each_family_the_one_that_fits_then_the_fastest_then_the_smallest_is_shown() -> None:
    quick, slow, too_large, larger = (
        made(device_s=2, gib=90),
        made(device_s=3, gib=30),
        made(gib=101),
        made(device_s=0.5, gib=102),
    )
    for found in in_any_order(too_large, slow, quick):
        assert found.families(layout_name) == {"stage 1": quick}
    large, small = made(device_s=2, data_s=9, gib=60), made(device_s=2, data_s=9, gib=40)
    for found in in_any_order(large, small):
        assert found.families(layout_name) == {"stage 1": small}, "as fast as each other"
    taken = made(PLAIN, device_s=1.01)
    for found in in_any_order(made(OWNERS, device_s=1.0), taken):
        assert found.families(layout_name) == {"stage 1": taken}, "what is taken stands for its kind"
    for found in in_any_order(larger, too_large):
        assert found.families(checkpointing_name) == {"recompute none": too_large}
        assert found.chosen is None
    assert candidate_json(too_large)["fits"] is False
