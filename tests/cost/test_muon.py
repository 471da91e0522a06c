"""Closed forms of what Muon costs: torch's count of FLOPs and of bytes alive, groups, and what ranks send, counted singly."""

from __future__ import annotations

from math import prod
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.fake_memory import LiveBytes
from vmae2_ds.config.model import ModelConfig
from vmae2_ds.contracts import ClipGeometry
from vmae2_ds.cost.assumptions import Assumptions
from vmae2_ds.cost.cluster import Cluster
from vmae2_ds.cost.hardware import get_accelerator
from vmae2_ds.cost.muon import (
    KERNELS,
    MatrixShape,
    exchange_of,
    exchanged_elements,
    most_work,
    newton_schulz_flops,
    update_bytes,
)
from vmae2_ds.cost.parameters import group_sizes, muon_matrices, with_muon
from vmae2_ds.cost.states import state_bytes
from vmae2_ds.cost.zero import ZeroPolicy
from vmae2_ds.engine.muon import SHAPES, MuonAndAdamW
from vmae2_ds.model.mae import MaskedAutoencoder
from vmae2_ds.recipes import get_recipe
from vmae2_ds.train.optim import parameter_groups, with_matrices_apart
from vmae2_ds.tune.search_space import all_settings
from vmae2_ds.tune.setting_cost import Setting, notes_on, predict_memory, predict_time, traffic_of

needs_muon = pytest.mark.skipif(not hasattr(torch.optim, "Muon"), reason="torch has no Muon")
GIANT = with_muon(ModelConfig.of_size("giant"))
FEW: tuple[MatrixShape, ...] = ((24, 24), (24, 24), (48, 24), (24, 48), (8, 40))
NUMEL = sum(map(prod, FEW))


@needs_muon
@pytest.mark.parametrize("shape", [(48, 24), (24, 48), (32, 32)])
def test_flops_of_newton_schulz_are_those_that_torch_counts(shape: MatrixShape) -> None:
    matrix = torch.nn.Parameter(torch.randn(shape))
    matrix.grad = torch.randn(shape)
    with FlopCounterMode(display=False) as counter:
        torch.optim.Muon([matrix]).step()
    assert counter.get_total_flops() == newton_schulz_flops(shape)


class Operations(TorchDispatchMode):
    """Counts operations that compute: views and marks of the profiler are none."""

    VIEWS = ("view", "t", "slice", "detach", "alias", "transpose", "permute", "as_strided", "_unsafe_view")

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        namespace, _, name = func._schema.name.partition("::")
        self.count += namespace == "aten" and name not in self.VIEWS
        return func(*args, **(kwargs or {}))


@needs_muon
def test_an_update_starts_so_many_operations_for_a_matrix(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.distributed, "get_rank", lambda: 0)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 1)
    counts = []
    for matrices in (1, 4):
        shard = torch.nn.Parameter(torch.randn(matrices * 48 * 24))
        group: dict[str, Any] = {"params": [shard], SHAPES: [(48, 24)] * matrices}
        optimizer = MuonAndAdamW([group], betas=(0.9, 0.95), eps=1e-8, momentum=0.9, scale="original")
        shard.grad = torch.randn_like(shard)
        optimizer.step()  # makes the momentum
        with Operations() as operations:
            optimizer.step()
        counts.append(operations.count)
    assert counts[1] - counts[0] == 3 * KERNELS


def test_groups_are_those_of_the_real_optimizer() -> None:
    model = ModelConfig.of_size("small")
    with torch.device("meta"):
        real = MaskedAutoencoder(model, ClipGeometry(16, 224, 224, model.tubelet, model.patch), seed=None)
    groups = with_matrices_apart(parameter_groups(real, 0.05), 1.0)
    assert [list(sizes) for sizes in group_sizes(with_muon(model))] == [
        [p.numel() for p in group["params"]] for group in groups
    ]
    assert dict(muon_matrices(with_muon(model))) == {0: tuple(groups[0][SHAPES])}


@pytest.mark.parametrize("size", [1, 2, 3, 7, 64])
def test_what_ranks_send_and_compute_is_counted_element_by_element(size: int) -> None:
    part = -(-NUMEL // (2 * size)) * 2
    owner = [rank for rank in range(size) for _ in range(part)]
    matrix = [number for number, shape in enumerate(FEW) for _ in range(prod(shape))]
    has = [{matrix[i] for i in range(NUMEL) if owner[i] == rank} for rank in range(size)]
    needs = [[i for i in range(NUMEL) if matrix[i] in has[rank]] for rank in range(size)]
    for rank in range(size):
        exchange = exchange_of(FEW, part, rank, size)
        assert list(range(exchange.start, exchange.stop)) == needs[rank]
        expected = [sum(owner[i] == other != rank for i in needs[rank]) for other in range(size)]
        assert list(exchange.comes) == expected
    sent = sum(owner[i] != rank for rank in range(size) for i in needs[rank])
    assert exchanged_elements(FEW, part, size) == sent
    assert exchange_of(FEW, part, 0, size).is_needed == (sent > 0)
    flops = [sum(newton_schulz_flops(FEW[number]) for number in has[rank]) for rank in range(size)]
    assert most_work(FEW, part, size) == (max(flops), max(map(len, has)))


@needs_muon
@pytest.mark.parametrize("size", [1, 2])
def test_an_update_takes_the_bytes_that_are_alive_in_one(size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Matrices of ViT-S's block, the fullest of 2 ranks; what comes from the other does not matter."""
    shapes: tuple[MatrixShape, ...] = (*((384, 384),) * 4, (1536, 384), (384, 1536))
    part = sum(map(prod, shapes)) // size
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: size)
    monkeypatch.setattr(torch.distributed, "all_to_all_single", lambda *_: None)
    found = []
    for rank in range(size):
        monkeypatch.setattr(torch.distributed, "get_rank", lambda rank=rank: rank)
        shard = torch.nn.Parameter(torch.randn(part))
        group: dict[str, Any] = {"params": [shard], SHAPES: list(shapes)}
        optimizer = MuonAndAdamW([group], betas=(0.9, 0.95), eps=1e-8, momentum=0.9, scale="original")
        shard.grad = torch.randn(part)
        optimizer.step()  # makes the momentum
        with LiveBytes() as live:
            live.note(shard, shard.grad, *optimizer.state[shard].values())
            before = live.now
            optimizer.step()
        found.append(live.peak - before)
    assert update_bytes(shapes, part, size) == pytest.approx(max(found), rel=0.03)


@pytest.mark.parametrize("stage", [1, 2])
def test_matrices_have_one_moment_and_all_else_two(stage: int) -> None:
    policy = ZeroPolicy(stage=stage)
    ours, adams = (state_bytes(model, policy, 8, precision="bf16") for model in (GIANT, ModelConfig.of_size("giant")))
    matrices = sum(map(prod, muon_matrices(GIANT)[0]))
    assert ours.master == pytest.approx(adams.master, rel=1e-6)
    assert adams.moments - ours.moments == pytest.approx(4 * matrices / 8, rel=1e-6)


def test_a_plan_has_its_states_its_exchange_and_its_products() -> None:
    """ViT-g on 64 GPUs: each of 64 parts is less than a matrix of 1408 x 6144, which several make."""
    cluster = Cluster(get_accelerator("a100-80g"), 64, 8, 78, 78)
    config = get_recipe("pretrain", "vit_g_pretrain_hybrid").changed(train={"ds_config": "zero1"})
    policy = ZeroPolicy(stage=1)
    adamw, muon = (Setting(config.changed(optim={"optimizer": name}), policy) for name in ("adamw", "muon"))
    memory = [predict_memory(each, cluster, Assumptions()).parts["moments"] for each in (adamw, muon)]
    assert memory[1] < 0.6 * memory[0]
    assert [c.kind for c in traffic_of(muon, cluster).collectives] == ["all_reduce", "all_gather", "exchange"]
    times = [predict_time(each, cluster, Assumptions()) for each in (adamw, muon)]
    assert times[1].optimizer_s > 5 * times[0].optimizer_s
    assert times[1].network_s > times[0].network_s
    assert times[1].compute_s == times[0].compute_s
    assert any("Muon (experimental)" in note for note in notes_on(muon, cluster))
    assert not any("Muon" in note for note in notes_on(adamw, cluster))


def test_tuning_leaves_out_what_muon_cannot_run_on() -> None:
    cluster = Cluster(get_accelerator("a100-80g"), 8, 1, 78, 78)
    config = get_recipe("pretrain", "vit_b_pretrain_hybrid").changed(optim={"optimizer": "muon"})
    found = {each.policy.stage for each in all_settings(config, cluster, quantized=True, offload=True)}
    assert found == {1, 2}
    assert not any(s.policy.offload_optimizer for s in all_settings(config, cluster, quantized=True, offload=True))
