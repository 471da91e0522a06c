"""Four steps of spatial detection on made-up clips, with every draw, under an engine and in plain PyTorch.

As a module it is one rank that runs a list of ZeRO policies, one after another, in one process: once for each way to divide.
"""

from __future__ import annotations

import gc
import sys
from pathlib import Path

import torch
import torch.nn.functional as F

from tests.distributed.ranks import answer
from vmae2_ds.config.ava import AvaConfig, AvaDataConfig, AvaModelConfig, AvaOptimConfig, AvaTrainConfig
from vmae2_ds.config.ava_head import BoxLossConfig, RoiHeadConfig
from vmae2_ds.config.ds_config import resolve_ds_config
from vmae2_ds.config.model import TowerConfig
from vmae2_ds.config.run_plan import plan_run
from vmae2_ds.contracts import AvaBatch, LoadedBatch
from vmae2_ds.dist import Ranks
from vmae2_ds.downstream.ava.objective import ava_objective
from vmae2_ds.train.loop import seed_of
from vmae2_ds.train.optim import learning_rate, set_learning_rate
from vmae2_ds.weights.layouts import StateDict

NUM_STEPS, MICRO_BATCH, RANKS, ACCUMULATION, SIZE, ACTIONS, DECAY = 4, 2, 2, 2, 32, 5, 0.6
GLOBAL_BATCH = MICRO_BATCH * RANKS * ACCUMULATION
MEANS = ("clips", "boxes")


def make_config(mean_over: str, ds_config: str = "zero1") -> AvaConfig:
    """A small model with stochastic depth, dropout, layer decay and clipping."""
    return AvaConfig(
        model=AvaModelConfig(
            encoder=TowerConfig(width=24, depth=2, heads=2, mlp=48), patch=8, num_classes=ACTIONS, drop_path=0.2,
            head=RoiHeadConfig(dropout=0.2, init_scale=1.0), attention="math",
        ),
        data=AvaDataConfig(num_frames=4, size=SIZE),
        loss=BoxLossConfig.model_validate({"mean_over": mean_over}),
        optim=AvaOptimConfig(base_lr=3e-3, lr_batch=GLOBAL_BATCH, warmup_epochs=1, clip_grad=1, layer_decay=DECAY),
        train=AvaTrainConfig(
            global_batch=GLOBAL_BATCH, micro_batch=MICRO_BATCH, max_steps=NUM_STEPS, precision="fp32", ds_config=ds_config
        ),
    )  # fmt: skip


def num_boxes(step: int, micro_step: int, rank: int, clip: int) -> int:
    """Boxes of a clip: the ranks have unlike numbers, and in some steps rank 1 has none at all."""
    return 0 if rank == 1 and step % 2 == 1 else (step + micro_step + rank * (2 + clip)) % 4


def make_batch(step: int, micro_step: int, rank: int) -> AvaBatch:
    """Clips and boxes that are a function of (step, micro step, rank) alone."""
    rng = torch.Generator().manual_seed(100 * step + 10 * micro_step + rank)
    first_BG2 = torch.rand(MICRO_BATCH, 3, 2, generator=rng) * SIZE / 2
    size_BG2 = 4 + torch.rand(MICRO_BATCH, 3, 2, generator=rng) * SIZE / 3
    counts = torch.tensor([[num_boxes(step, micro_step, rank, clip)] for clip in range(MICRO_BATCH)])
    is_box_BG = torch.arange(3) < counts
    box_BG4 = torch.cat([first_BG2, first_BG2 + size_BG2], dim=-1) * is_box_BG[..., None]
    target_BGC = (torch.rand(MICRO_BATCH, 3, ACTIONS, generator=rng) < 0.3).float() * is_box_BG[..., None]
    clip_BTHWC = torch.randint(256, (MICRO_BATCH, 4, SIZE, SIZE, 3), generator=rng, dtype=torch.uint8)
    return AvaBatch(clip_BTHWC, box_BG4, is_box_BG, target_BGC)


def layer_scale(name: str) -> float:
    """The share of the learning rate that a weight has: of two blocks, by hand."""
    if name.startswith("encoder.embed."):
        return DECAY**3
    if name.startswith("encoder.blocks."):
        return DECAY ** (2 - int(name.split(".")[2]))
    return 1.0


def plain_steps(config: AvaConfig) -> tuple[list[float], StateDict]:
    """The reference, the boxes of the whole batch over one number, on one process: losses and last weights."""
    plan = plan_run(config, GLOBAL_BATCH, RANKS)
    model = ava_objective(config).model
    model.init_weights(config.train.seed)
    named = dict(model.named_parameters())
    groups = [
        {"params": [p], "weight_decay": 0.0 if p.ndim == 1 else 0.05, "lr_scale": layer_scale(name)}
        for name, p in named.items()
    ]
    optimizer, losses = torch.optim.AdamW(groups, betas=(0.9, 0.999), eps=1e-8), []
    for step in range(NUM_STEPS):
        set_learning_rate(optimizer.param_groups, learning_rate(step, plan))
        each = []
        for micro_step in range(ACCUMULATION):
            for rank in range(RANKS):
                torch.manual_seed(seed_of(config.train.seed, step, micro_step * RANKS + rank))
                batch = make_batch(step, micro_step, rank)
                logits_BGC = model(batch.clip_BTHWC, batch.box_BG4)
                is_box = batch.is_box_BG
                each.append(
                    F.binary_cross_entropy_with_logits(
                        logits_BGC[is_box], batch.target_BGC[is_box], reduction="none"
                    ).mean(1)
                )
        box_N = torch.cat(each)
        loss = box_N.sum() / (GLOBAL_BATCH if config.loss.mean_over == "clips" else len(box_N))
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        losses.append(loss.item())
    return losses, {name: p.detach() for name, p in named.items()}


def engine_steps(config: AvaConfig, ranks: Ranks) -> tuple[list[float], StateDict]:
    """The same under the engine, on as many ranks as there are; the weights are whole on rank 0."""
    from vmae2_ds.checkpoint.state import TrainState
    from vmae2_ds.downstream.ava.stage import ava_stage
    from vmae2_ds.train.build import build_engine

    plan, normaliser = plan_run(config, GLOBAL_BATCH, ranks.size), ava_stage(config).normaliser
    engine, state = build_engine(config, resolve_ds_config(config, plan, on_cpu=True)), TrainState()
    losses = []
    for step in range(NUM_STEPS):
        set_learning_rate(engine.parameter_groups, learning_rate(step, plan))
        # one rank has the micro batches of all, in the order of the whole batch
        numbers = range(ranks.rank, ACCUMULATION * RANKS, ranks.size)
        batches = (LoadedBatch(make_batch(step, *divmod(number, RANKS)), [], {}) for number in numbers)
        counted = batches if normaliser is None else normaliser.counted(batches, engine, state, ranks)
        total = torch.zeros(())
        for number, loaded in zip(numbers, counted, strict=True):
            torch.manual_seed(seed_of(config.train.seed, step, number))
            total += engine.micro_step(loaded.batch).loss.detach()
        assert engine.update().applied
        losses.append(ranks.sum(float(total))[0] / len(numbers) / ranks.size)
    last = {name.removeprefix("model."): tensor.clone() for name, tensor in engine.shards.whole_weights()}
    engine.deepspeed.destroy()
    del engine
    gc.collect()
    return losses, last


def run_policies(policies: list[str], ranks: Ranks) -> dict[str, list[float]]:
    """Losses by "POLICY MEAN"; rank 0 writes weights to POLICY.MEAN.pt beside them."""
    results = {}
    for policy in policies:
        for mean_over in MEANS:
            results[f"{policy} {mean_over}"], last = engine_steps(make_config(mean_over, policy), ranks)
            if ranks.rank == 0:
                torch.save(last, Path(sys.argv[2]).with_name(f"{policy}.{mean_over}.pt"))
    return results


if __name__ == "__main__":
    answer(run_policies)
