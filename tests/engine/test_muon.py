"""Muon beside AdamW: which weights it takes, its updates on any number of ranks against torch's own, and what is refused."""

from __future__ import annotations

import threading
from typing import Any

import pytest
import torch
from torch import Tensor

from vmae2_ds.config.ds_config import resolve_ds_config
from vmae2_ds.config.finetune import ClassifierConfig
from vmae2_ds.config.model import ModelConfig, TowerConfig
from vmae2_ds.config.run import MuonScale, OptimConfig
from vmae2_ds.config.run_plan import plan_run
from vmae2_ds.contracts import ClipGeometry
from vmae2_ds.cost.muon import matrices_of
from vmae2_ds.engine.muon import SHAPES, MuonAndAdamW, check_muon
from vmae2_ds.errors import ConfigError
from vmae2_ds.model.classifier import Classifier
from vmae2_ds.model.mae import MaskedAutoencoder
from vmae2_ds.recipes import get_recipe
from vmae2_ds.train.optim import make_optimizer, parameter_groups

needs_muon = pytest.mark.skipif(not hasattr(torch.optim, "Muon"), reason="torch has no Muon")
TOWER = TowerConfig(width=24, depth=1, heads=3, mlp=48)
MODEL = ModelConfig(encoder=TOWER, decoder=TowerConfig(width=16, depth=1, heads=2, mlp=32), patch=8)
GEOMETRY = ClipGeometry(4, 16, 16, 2, 8)
OF_MUON = {
    "encoder.blocks.0.attn.qkv.weight": [(24, 24)] * 3,
    "encoder.blocks.0.attn.proj.weight": [(24, 24)],
    "encoder.blocks.0.mlp.fc1.weight": [(48, 24)],
    "encoder.blocks.0.mlp.fc2.weight": [(24, 48)],
    "decoder.blocks.0.attn.qkv.weight": [(16, 16)] * 3,
    "decoder.blocks.0.attn.proj.weight": [(16, 16)],
    "decoder.blocks.0.mlp.fc1.weight": [(32, 16)],
    "decoder.blocks.0.mlp.fc2.weight": [(16, 32)],
}
VECTORS_OF_A_BLOCK = [
    *["norm1.weight", "norm1.bias", "norm2.weight", "norm2.bias"],
    *["attn.qkv.q_bias", "attn.qkv.v_bias", "attn.proj.bias", "mlp.fc1.bias", "mlp.fc2.bias"],
]
OF_ADAMW = [
    *[
        "encoder.embed.proj.weight",
        "encoder.embed.proj.bias",
        "encoder.norm.weight",
        "encoder.norm.bias",
        "bridge.weight",
    ],
    *["decoder.mask_token", "decoder.norm.weight", "decoder.norm.bias", "decoder.head.weight", "decoder.head.bias"],
    *(f"{tower}.blocks.0.{name}" for tower in ("encoder", "decoder") for name in VECTORS_OF_A_BLOCK),
]


def test_muon_takes_the_blocks_matrices_and_adamw_all_else_by_name() -> None:
    """Queries, keys and values apart. The embedding, the head, the bridge and the mask token are matrices of AdamW."""
    found = {
        name: matrices_of(name, p.shape) for name, p in MaskedAutoencoder(MODEL, GEOMETRY, seed=None).named_parameters()
    }
    assert {name: shapes for name, shapes in found.items() if shapes} == OF_MUON
    assert sorted(name for name, shapes in found.items() if not shapes) == sorted(OF_ADAMW)


def test_a_classifiers_head_and_learnt_positions_stay_with_adamw() -> None:
    model = Classifier(ClassifierConfig(encoder=TOWER, patch=8, num_classes=5), GEOMETRY)
    of_muon = {name for name, p in model.named_parameters() if matrices_of(name, p.shape)}
    assert of_muon == {name for name in OF_MUON if name.startswith("encoder.")}
    assert not matrices_of("encoder.embed.positions", torch.Size((144, 24)))
    assert not matrices_of("encoder.blocks.0.attn.qkv.lora.q.down.weight", torch.Size((8, 24)))


@needs_muon
def test_groups_keep_their_decay_and_their_layers_rate() -> None:
    model = MaskedAutoencoder(MODEL, GEOMETRY, seed=None)
    groups = parameter_groups(model, 0.05, 0.5, 1)
    config = OptimConfig(optimizer="muon", muon_rate=3)
    found = make_optimizer(groups, config).param_groups
    said = [(g["lr_scale"], g["weight_decay"], bool(g[SHAPES]), len(g["params"])) for g in found]
    assert said == [
        *[(0.25, 0.05, False, 1), (0.25, 0.0, False, 1)],  # layer 0: the embedding
        *[(1.5, 0.05, True, 4), (0.5, 0.0, False, 9)],  # layer 1: the block, in which all but matrices are vectors
        *[(3.0, 0.05, True, 4), (1.0, 0.05, False, 2), (1.0, 0.0, False, 15)],  # layer 2: what is behind it
    ]
    names = [name for group in found for name in group["param_names"]]
    assert sorted(names) == sorted([*OF_MUON, *OF_ADAMW])


SHAPES_OF: list[tuple[int, int]] = [(24, 24)] * 3 + [(24, 24), (48, 24), (24, 48), (8, 40), (56, 16)]
NUMEL = sum(rows * columns for rows, columns in SHAPES_OF)
RATE, DECAY, MOMENTUM = 3e-3, 0.1, 0.9


def torchs_own(weights: Tensor, grads: list[Tensor], scale: MuonScale) -> Tensor:
    """Each matrix a parameter of torch.optim.Muon."""
    sizes = [rows * columns for rows, columns in SHAPES_OF]
    matrices = [
        torch.nn.Parameter(part.reshape(shape).clone())
        for part, shape in zip(weights[:NUMEL].split(sizes), SHAPES_OF, strict=True)
    ]
    muon = torch.optim.Muon(matrices, lr=RATE, weight_decay=DECAY, momentum=MOMENTUM, adjust_lr_fn=scale)
    for grad in grads:
        for matrix, part in zip(matrices, grad[:NUMEL].split(sizes), strict=True):
            matrix.grad = part.reshape(matrix.shape).clone()
        muon.step()
    return torch.cat([matrix.detach().flatten() for matrix in matrices])


class Threads:
    """Ranks as threads of one process, in the place of torch.distributed."""

    def __init__(self, size: int) -> None:
        self.size, self._barrier, self._here = size, threading.Barrier(size, timeout=60), threading.local()
        self._sent: list[Any] = [None] * size
        self.exchanges = 0

    def all_to_all_single(self, received: Tensor, sent: Tensor, comes: list[int], goes: list[int]) -> None:
        rank = self._here.rank
        self._sent[rank] = sent.split(goes)
        self._barrier.wait()
        parts = [theirs[rank] for theirs in self._sent]
        assert [len(part) for part in parts] == comes
        received.copy_(torch.cat(parts))
        self.exchanges += rank == 0
        self._barrier.wait()

    def run(self, work: Any) -> list[Any]:
        found: list[Any] = [None] * self.size

        def one(rank: int) -> None:
            self._here.rank = rank
            found[rank] = work(rank)

        threads = [threading.Thread(target=one, args=(rank,)) for rank in range(self.size)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return found

    def get_rank(self) -> int:
        return self._here.rank


@needs_muon
@pytest.mark.parametrize("scale", ["match_rms_adamw", "original"])
@pytest.mark.parametrize("size", [1, 2, 3, 5, 16])
def test_equal_gradients_make_torchs_update_bit_for_bit_on_any_number_of_ranks(
    size: int, scale: MuonScale, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Shards that cut matrices anywhere, on 16 ranks one matrix in several; three steps, whose momentum stays in shards."""
    generator = torch.Generator().manual_seed(0)
    part = -(-NUMEL // (2 * size)) * 2  # as DeepSpeed pads
    weights = torch.randn(part * size, generator=generator)
    grads = [torch.randn(part * size, generator=generator) for _ in range(3)]
    ranks = Threads(size)
    for name in ("get_rank", "all_to_all_single"):
        monkeypatch.setattr(torch.distributed, name, getattr(ranks, name))
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: size)

    def work(rank: int) -> Tensor:
        mine = torch.nn.Parameter(weights[rank * part : (rank + 1) * part].clone())
        group = {"params": [mine], "weight_decay": DECAY, SHAPES: SHAPES_OF}
        optimizer = MuonAndAdamW([group], betas=(0.9, 0.95), eps=1e-8, momentum=MOMENTUM, scale=scale)
        optimizer.param_groups[0]["lr"] = RATE
        for grad in grads:
            mine.grad = grad[rank * part : (rank + 1) * part].clone()
            optimizer.step()
        return mine.detach()

    found = torch.cat(ranks.run(work))[:NUMEL]
    assert torch.equal(found, torchs_own(weights, grads, scale))
    assert ranks.exchanges == (3 if size > 1 else 0)


@needs_muon
def test_whole_weights_of_stage_0_are_moved_as_torchs_own_and_not_at_all_where_an_update_is_refused() -> None:
    generator = torch.Generator().manual_seed(0)
    weights, grads = (
        torch.randn(NUMEL, generator=generator),
        [torch.randn(NUMEL, generator=generator) for _ in range(3)],
    )
    rows = [(72, 24), *SHAPES_OF[3:]]  # q, k and v are one parameter
    sizes = [one * columns for one, columns in rows]
    parts = [
        torch.nn.Parameter(part.reshape(shape).clone()) for part, shape in zip(weights.split(sizes), rows, strict=True)
    ]
    vector = torch.nn.Parameter(torch.ones(4))
    groups = [{"params": parts, "weight_decay": DECAY, SHAPES: SHAPES_OF}, {"params": [vector], SHAPES: []}]
    optimizer: Any = MuonAndAdamW(groups, betas=(0.9, 0.95), eps=1e-8, momentum=MOMENTUM, scale="original")
    optimizer.param_groups[0]["lr"] = RATE
    for number, grad in enumerate(grads):
        for parameter, its in zip(parts, grad.split(sizes), strict=True):
            parameter.grad = its.reshape(parameter.shape).clone()
        vector.grad = torch.ones(4)
        if number == 1:  # engine/step.py does this at stage 0
            optimizer.found_inf = torch.ones(())
            optimizer.step()
            del optimizer.found_inf
        optimizer.step()
    found = torch.cat([parameter.detach().flatten() for parameter in parts])
    assert torch.equal(found, torchs_own(weights, grads, "original"))
    assert {float(state["step"]) for state in optimizer.state.values()} == {3}


@pytest.mark.parametrize(
    ("policy", "says"),
    [
        ("zero3", "and ZeRO stage 3 lays them out in another way"),
        ("zero3_offload", "and ZeRO stage 3 lays"),
        ("zero2_offload", "and zero_optimization.offload_optimizer lays"),
    ],
)
def test_policies_that_cut_or_move_matrices_are_refused_with_a_way_out(policy: str, says: str) -> None:
    config = get_recipe("pretrain", "vit_b_pretrain_hybrid").changed(
        optim={"optimizer": "muon"}, train={"ds_config": policy}
    )
    plan = plan_run(config, 1_000_000, 32)
    with pytest.raises(ConfigError, match=f"^--optim.optimizer muon .* {says}.* use --train.ds-config zero1") as error:
        resolve_ds_config(config, plan, on_cpu=True)
    assert "\n" not in str(error.value)
    for fits in ("zero1", "zero2"):
        chosen = resolve_ds_config(config.changed(train={"ds_config": fits}), plan, on_cpu=True)
        assert chosen["zero_allow_untested_optimizer"]


def test_a_torch_without_it_and_a_model_without_matrices_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    head = torch.nn.Linear(4, 4)
    if hasattr(torch.optim, "Muon"):
        with pytest.raises(
            ConfigError, match=r"no matrix of a transformer block learns here; use --optim.optimizer adamw"
        ):
            make_optimizer(parameter_groups(head, 0.05), OptimConfig(optimizer="muon"))
        monkeypatch.delattr(torch.optim, "Muon")
    with pytest.raises(ConfigError, match=rf"needs torch 2.9 or newer, and this is {torch.__version__.split('+')[0]}"):
        check_muon()
    make_optimizer(parameter_groups(head, 0.05), OptimConfig())
