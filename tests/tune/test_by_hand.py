"""A few cells of the planner's tables worked out by hand, with round numbers assumed: memory, each part of a step's time."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from vmae2_ds.config.pretrain import PretrainConfig
from vmae2_ds.cost.assumptions import Assumptions, Range
from vmae2_ds.cost.cluster import Cluster, make_cluster
from vmae2_ds.cost.compute_time import Work, micro_step_work
from vmae2_ds.cost.hardware import Accelerator
from vmae2_ds.cost.states import StateBytes
from vmae2_ds.cost.zero import ZeroPolicy
from vmae2_ds.recipes import get_recipe
from vmae2_ds.tune import measure
from vmae2_ds.tune.arguments import TuneArguments
from vmae2_ds.tune.candidates import Candidate
from vmae2_ds.tune.setting_cost import GIB, GpuMemory, Setting, StepTime, add_up, predict_time
from vmae2_ds.tune.tuner import launch_command, workers_needed

GIANT = 1_026_306_560
"""Parameters of ViT-g with its decoder (tests/tune/test_forecast.py), bf16: 2 bytes each."""
CARD = Accelerator(
    name="round", memory_gb=100, bandwidth_gb_s=1000, link_gb_s=100, peak_tflops={"bf16": 100}, source="made up"
)
VIEWS, MICRO_BATCH, GLOBAL_BATCH = 4, 32, 8192


def assumed(**values: float) -> Assumptions:
    """Nothing but what is named takes time or memory, and every rate is reached."""
    nothing = dict.fromkeys(("context_gib", "workspace_gib", "fragmentation", "half_rate_tokens", "launch_s"), 0.0)
    nothing |= {
        "zero3_module_s": 0.0,
        "collective_s": 0.0,
        "decode_core_s": 0.0,
        "transform_core_s": 0.0,
        "overlap": 0.0,
    }
    whole = {"matmul_efficiency": 1.0, "memory_efficiency": 1.0, "link_efficiency": 1.0, "usable_memory": 1.0}
    found = {name: Range(low=value, value=value, high=value) for name, value in {**nothing, **whole, **values}.items()}
    return Assumptions().model_copy(update=found)


def cluster_of(gpus: int, nodes: int = 1) -> Cluster:
    return make_cluster(CARD, gpus, nodes, None, assumed().usable_memory)


def giant(**train: Any) -> PretrainConfig:
    return get_recipe("pretrain", "vit_g_pretrain_hybrid").changed(data={"workers": 10}, train=train)


def time_of(policy: ZeroPolicy, cluster: Cluster, config: PretrainConfig | None = None, **values: float) -> StepTime:
    return predict_time(Setting(config or giant(), policy), cluster, assumed(**values))


def states(**values: int) -> StateBytes:
    empty = dict.fromkeys(StateBytes.__dataclass_fields__, 0)
    return StateBytes(**{**empty, **values})


def test_fragmentation_is_a_share_of_what_the_allocator_holds() -> None:
    """12 GiB of tensors where a fifth of the allocator's memory is unused: it holds 15, and not 12 and a fifth of 12."""
    held = states(weights=2 * GIB, master=1 * GIB, moments=2 * GIB, gradients=3 * GIB)
    found = add_up(held, 4 * GIB, assumed(fragmentation=0.2, context_gib=0.75, workspace_gib=0.25))
    assert found.tensors == 12 * GIB
    assert found.parts["fragmentation"] == pytest.approx(3 * GIB)
    assert found.total_gib == pytest.approx(16)


def test_the_fuller_of_backward_pass_and_update_counts() -> None:
    """Backward 2 + 1 + 2 + 1 + 3 buckets + 1 gathered; the update has 2 of its own instead, and one buffer that is kept."""
    held = states(
        weights=2 * GIB, master=GIB, moments=2 * GIB, gradients=GIB, buckets=3 * GIB, live=GIB, kept=GIB, update=5 * GIB
    )
    assert (held.backward, held.step) == (10 * GIB, 11 * GIB)
    assert add_up(held, 0.5 * GIB, assumed()).total_gib == 11
    assert add_up(held, 1.5 * GIB, assumed()).total_gib == 11.5


def test_reading_takes_a_decode_and_a_cut_for_each_view() -> None:
    """2048 videos over 64 GPUs: 32 each of 0.06 + 4 x 0.01 s, on 8 cores; on 10 where 20 are there and 10 workers read."""
    taken = {"decode_core_s": 0.06, "transform_core_s": 0.01}
    cluster = cluster_of(64, 8)
    assert time_of(ZeroPolicy(stage=1), cluster, cores_per_gpu=8, **taken).data_s == pytest.approx(32 * 0.1 / 8)
    assert time_of(ZeroPolicy(stage=1), cluster, cores_per_gpu=20, **taken).data_s == pytest.approx(32 * 0.1 / 10)
    small = giant().changed(data={"num_frames": 8, "size": 112})  # half the frames, a quarter of the pixels
    found = time_of(ZeroPolicy(stage=1), cluster, small, cores_per_gpu=8, **taken).data_s
    assert found == pytest.approx(32 * (0.03 + 4 * 0.01 / 8) / 8)


def test_the_optimizer_streams_forty_bytes_of_each_parameter() -> None:
    """bf16: 28 for Adam in float32, 6 to copy the gradient up and 6 to copy the weight back; at 500 of 1000 GB/s."""
    found = time_of(ZeroPolicy(stage=2), cluster_of(8), memory_efficiency=0.5).optimizer_s
    assert found == pytest.approx(math.ceil(GIANT / 8) * 40 / 500e9)


@pytest.mark.parametrize(
    # A share is an eighth. Once a step: its gradient down in float32 and its weights up in bf16. What adds up lives on the
    # host: in 8 micro steps at stage 2 the first gradient goes down, and at each other one what is there comes up and the sum
    # goes down; at stage 3 it comes and goes every time. Weights that live there come once for the forward and once for the
    # backward pass.
    ("policy", "bytes_of_share"),
    [
        (ZeroPolicy(stage=1, offload_optimizer=True), 4 + 2),
        (ZeroPolicy(stage=2, offload_optimizer=True), 4 + 2 + (1 + 7 * 2) * 2),
        (ZeroPolicy(stage=3, offload_optimizer=True), 4 + 2 + 8 * 2 * 2),
        (ZeroPolicy(stage=3, offload_optimizer=True, offload_param=True), 4 + 2 + 8 * 2 * 2 + 8 * 2 * 2),
    ],
)
def test_offload_moves_gradients_and_weights_over_the_host_s_link(policy: ZeroPolicy, bytes_of_share: int) -> None:
    share = math.ceil(GIANT / 8)
    found = time_of(policy, cluster_of(8), host_link_gb_s=20, host_adam_params_s=1e9, cores_per_gpu=5).optimizer_s
    assert found == pytest.approx(bytes_of_share * share / 20e9 + share / 5e9)


def test_one_micro_step_moves_nothing_that_adds_up() -> None:
    share = math.ceil(GIANT / 64)
    policy = ZeroPolicy(stage=2, offload_optimizer=True)
    found = time_of(policy, cluster_of(64, 8), host_link_gb_s=20, host_adam_params_s=1e9, cores_per_gpu=5).optimizer_s
    assert found == pytest.approx(6 * share / 20e9 + share / 5e9)


@pytest.mark.parametrize("efficiency", [1.0, 0.5])
def test_stage_1_sends_three_copies_of_the_weights_round_the_ring(efficiency: float) -> None:
    """An all-reduce is two, the gather of new weights one, 7/8 of each from every GPU. The gather cannot hide: a third."""
    policy = ZeroPolicy(stage=1)
    total_s = 3 * 7 / 8 * 2 * GIANT / (100e9 * efficiency)
    plain = time_of(policy, cluster_of(8), link_efficiency=efficiency, overlap=0.6)  # which is not switched on
    assert (plain.network_s, plain.hidden_s) == (pytest.approx(total_s, rel=1e-5), 0)
    config = giant(global_batch=MICRO_BATCH * VIEWS * 8)  # one micro step
    hidden = time_of(replace(policy, overlap_comm=True), cluster_of(8), config, link_efficiency=efficiency, overlap=0.6)
    assert hidden.hidden_s == pytest.approx(0.6 * 2 / 3 * total_s, rel=1e-5)
    assert hidden.network_s == pytest.approx(0.6 * total_s, rel=1e-5)


def test_no_more_is_hidden_than_there_is_backward_pass_to_hide_behind() -> None:
    """Stage 1 reduces in the last of eight micro steps alone; stage 2 in all, whose backward passes are two thirds of them."""
    slow = {"link_efficiency": 1e-4, "overlap": 1.0}
    for stage, share in ((1, 1 / 8), (2, 1.0)):
        found = time_of(ZeroPolicy(stage=stage, overlap_comm=True), cluster_of(8), **slow)
        assert found.hidden_s == pytest.approx(2 / 3 * found.compute_s * share)
    quick = time_of(ZeroPolicy(stage=3, overlap_comm=True), cluster_of(8), overlap=0.6)
    assert quick.hidden_s == pytest.approx(0.6 * (quick.hidden_s + quick.network_s)), (
        "its gathers stand beside the work"
    )
    stage3 = time_of(ZeroPolicy(stage=3, overlap_comm=True), cluster_of(8), **slow)
    assert stage3.hidden_s == pytest.approx(stage3.compute_s), "it gathers in the forward pass too"


def test_the_slower_of_link_and_network_counts_and_starts_come_on_top() -> None:
    """Of 8 GPUs of a node one sends on: a network of a hundredth of the link's speed takes 100 / 8 times as long."""
    policy, cluster = ZeroPolicy(stage=1), cluster_of(16, 2)
    ring = 3 * 15 / 16 * 2 * GIANT
    quick = time_of(policy, cluster, network_gb_s=1000)
    assert quick.network_s == pytest.approx(ring * 7 / 8 / 100e9, rel=1e-5)
    slow = time_of(policy, cluster, network_gb_s=1)
    assert slow.network_s == pytest.approx(ring / 8 / 1e9, rel=1e-5)
    # buckets of 5e8 elements: three reductions, and one gather for each of the two parameter groups
    started = time_of(policy, cluster, network_gb_s=1, collective_s=1.0)
    assert started.network_s - slow.network_s == pytest.approx(3 + 2)


def work_of(config: PretrainConfig) -> Work:
    clips = config.train.micro_batch * VIEWS
    return micro_step_work(
        config.model, config.geometry, 208, 1024, clips, attention="flash", precision="bf16"
    )  # held against torch's own count in tests/cost


def test_compute_is_work_over_rates_for_each_micro_step() -> None:
    """At 50 of 100 TFLOP/s and 250 of 1000 GB/s, in 8 micro steps; products of few tokens are slower still."""
    config, work = giant(), work_of(giant())
    tokens = 208 * MICRO_BATCH * VIEWS
    found = time_of(
        ZeroPolicy(stage=1), cluster_of(8), matmul_efficiency=0.5, memory_efficiency=0.25, half_rate_tokens=tokens / 3
    )
    products_s = (work.linear_flops + work.attention_flops) / (
        50e12 * 0.75
    )  # 3 of 4 parts of the rate at thrice its tokens
    assert found.compute_s == pytest.approx(8 * (products_s + work.memory_bytes / 250e9), rel=1e-6)
    assert config.train.global_batch == GLOBAL_BATCH == 8 * MICRO_BATCH * VIEWS * 8


def test_starting_operations_shows_where_the_gpu_is_idle_meanwhile() -> None:
    busy = time_of(ZeroPolicy(stage=1), cluster_of(8)).compute_s
    work = work_of(giant())
    assert time_of(ZeroPolicy(stage=1), cluster_of(8), launch_s=1e-9).compute_s == busy, "hidden behind the work"
    slow = time_of(ZeroPolicy(stage=1), cluster_of(8), launch_s=1.0).compute_s
    assert slow == pytest.approx(8 * work.kernels)
    on_cpu = replace(cluster_of(8), gpu=CARD.model_copy(update={"key": "cpu"}))
    config = giant().changed(model={"attention": "flash"})
    assert time_of(ZeroPolicy(stage=1), on_cpu, config, launch_s=1.0).compute_s == pytest.approx(
        busy + 8 * work.kernels
    ), "a CPU starts them itself"


def candidate(memory_gib: float = 50.0, worst_gib: float = 50.0, host_gib: float = 0.0, **more: Any) -> Candidate:
    time = StepTime(compute_s=4.0, network_s=0, hidden_s=0, optimizer_s=0, data_s=more.pop("data_s", 1.0))
    return Candidate(
        setting=Setting(more.pop("config", giant()), ZeroPolicy(stage=1)),
        cluster=more.pop("cluster", cluster_of(8)),
        memory=GpuMemory({"weights": memory_gib * GIB}, host_gib * GIB),
        worst_memory=GpuMemory({"weights": worst_gib * GIB}, host_gib * GIB),
        time=time,
        host_memory_gib=64.0,
        worst_host_memory_gib=32.0,
    )


@pytest.mark.parametrize(
    ("memory", "worst", "host", "fits", "is_safe"),
    [
        (100, 100, 32, True, True),  # to the last byte
        (100.001, 100.001, 0, False, False),
        (99, 100.001, 0, True, False),
        (99, 99, 64, True, False),
        (99, 99, 64.001, False, False),
    ],
)
def test_what_fills_the_memory_exactly_fits(
    memory: float, worst: float, host: float, fits: bool, is_safe: bool
) -> None:
    """100 GiB on the GPU, of the host 64 expected and 32 at worst."""
    found = candidate(memory, worst, host)
    assert (found.fits, found.is_safe) == (fits, is_safe)
    assert found.margin_gib == pytest.approx(100 - memory)
    driver = replace(found, cluster=replace(found.cluster, worst_memory_gib=worst - 1))
    assert (driver.fits, driver.is_safe) == (fits, False)


@pytest.mark.parametrize(
    # of 10 workers, beside 4 s of the GPU: twice as many as keep up, rounded up, at least one and no more than there were
    ("data_s", "workers"),
    [(0.0, 1), (0.2, 1), (0.21, 2), (1.0, 5), (1.05, 6), (2.0, 10), (8.0, 10)],
)
def test_twice_the_loader_workers_that_keep_up_are_asked_for(data_s: float, workers: int) -> None:
    assert workers_needed(candidate(data_s=data_s)) == workers


@pytest.mark.parametrize("gpus", [1, 4, 8])
def test_the_command_starts_as_many_ranks_as_were_asked_for(gpus: int) -> None:
    arguments = TuneArguments(gpus=gpus, gpu="a100-80g", out=Path("ds.json"))
    words = launch_command(candidate(cluster=cluster_of(gpus)), arguments, ["--train.seed", "3"]).split()
    assert words[:3] == ["deepspeed", "--num_accelerators", str(gpus)]
    several = launch_command(candidate(cluster=cluster_of(16, 2)), arguments, []).split()
    assert several[:3] == ["deepspeed", "--hostfile", "HOSTFILE"]


@pytest.mark.parametrize("ranks", [1, 3])
def test_a_trial_starts_as_many_ranks_as_are_at_hand(
    ranks: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    started: list[list[str]] = []

    def start(command: list[str], **_: Any) -> Any:
        started.append(command)
        return SimpleNamespace(wait=lambda timeout_s: 1, pid=0)

    monkeypatch.setattr(measure.subprocess, "Popen", start)
    setting = Setting(giant(), ZeroPolicy(stage=1))
    found = measure.measure(setting, tmp_path / "ds.json", ranks, tmp_path, hostfile=None, timeout_s=5)
    assert found.error is not None
    (command,) = started
    assert command[command.index("--num_accelerators") + 1] == str(ranks)
