"""Four steps of temporal detection on made-up features, with every draw, under an engine and in plain PyTorch.

As a module it is one rank that runs a list of ZeRO policies, one after another, in one process.
"""

from __future__ import annotations

import gc
import sys
from pathlib import Path

import torch

from tests.distributed.ranks import answer
from vmae2_ds.config.ds_config import resolve_ds_config
from vmae2_ds.config.model import TowerConfig
from vmae2_ds.config.run_plan import plan_run
from vmae2_ds.config.tad import TadConfig, TadDataConfig, TadModelConfig, TadOptimConfig, TadTrainConfig
from vmae2_ds.config.tad_head import HeadConfig, HeadLossConfig
from vmae2_ds.contracts import LoadedBatch, TadBatch
from vmae2_ds.dist import Ranks
from vmae2_ds.downstream.tad.losses import loss_sums
from vmae2_ds.downstream.tad.objective import tad_objective
from vmae2_ds.train.loop import seed_of
from vmae2_ds.train.optim import learning_rate, parameter_groups, set_learning_rate
from vmae2_ds.weights.layouts import StateDict

NUM_STEPS, MICRO_BATCH, RANKS, ACCUMULATION, WIDTH, LENGTH = 4, 2, 2, 2, 12, 40
GLOBAL_BATCH = MICRO_BATCH * RANKS * ACCUMULATION


def make_config(ds_config: str = "zero1") -> TadConfig:
    """A small head with gains, stochastic depth, noise, smoothing and clipping, which starts from few positive points."""
    head = HeadConfig(
        width=16, heads=2, ranges=(4, 8), windows=(5, 5, -1), stem=1, layer_scale=0.1, drop_path=0.2, input_noise=0.1
    )
    tower = TowerConfig(width=WIDTH, depth=1, heads=1, mlp=16)
    return TadConfig(
        model=TadModelConfig(encoder=tower, num_classes=3, head=head),
        data=TadDataConfig(length=LENGTH),
        loss=HeadLossConfig(normaliser_start=3, label_smoothing=0.1, regression_weight=2),
        optim=TadOptimConfig(base_lr=3e-3, lr_batch=GLOBAL_BATCH, warmup_epochs=1, clip_grad=1),
        train=TadTrainConfig(
            global_batch=GLOBAL_BATCH,
            micro_batch=MICRO_BATCH,
            max_steps=NUM_STEPS,
            precision="fp32",
            ds_config=ds_config,
        ),
    )


def make_batch(step: int, micro_step: int, rank: int) -> TadBatch:
    """Features and actions that are a function of (step, micro step, rank) alone; some ranks have many, some none."""
    rng = torch.Generator().manual_seed(100 * step + 10 * micro_step + rank)
    lengths = torch.randint(LENGTH // 2, LENGTH + 1, (MICRO_BATCH, 1), generator=rng)
    start_BG1 = torch.rand(MICRO_BATCH, 4, 1, generator=rng) * LENGTH / 2
    length_BG1 = 1 + 12 * torch.rand(MICRO_BATCH, 4, 1, generator=rng)
    label_BG = torch.randint(3, (MICRO_BATCH, 4), generator=rng)
    label_BG[:, 4 - (step + 2 * micro_step + rank) % 5 :] = -1
    return TadBatch(
        torch.randn(MICRO_BATCH, LENGTH, WIDTH, generator=rng),
        torch.arange(LENGTH) < lengths,
        torch.cat([start_BG1, start_BG1 + length_BG1], dim=-1),
        label_BG,
    )


def plain_steps(config: TadConfig) -> tuple[list[float], StateDict]:
    """The reference, the whole batch's sums over one number, on one process: losses and last weights."""
    plan = plan_run(config, GLOBAL_BATCH, RANKS)
    model = tad_objective(config).model
    model.init_weights(config.train.seed)
    groups = parameter_groups(model, config.optim.weight_decay)
    optimizer = torch.optim.AdamW(groups, betas=config.optim.betas, eps=config.optim.eps)
    losses, normaliser = [], config.loss.normaliser_start
    for step in range(NUM_STEPS):
        set_learning_rate(optimizer.param_groups, learning_rate(step, plan))
        sums = []
        for micro_step in range(ACCUMULATION):
            for rank in range(RANKS):
                torch.manual_seed(seed_of(config.train.seed, step, micro_step, rank))
                batch = make_batch(step, micro_step, rank)
                output = model(batch.feature_BTD, batch.is_real_BT)
                sums.append(loss_sums(output, batch.segment_BG2, batch.label_BG, config.model.head, config.loss))
        normaliser = 0.9 * normaliser + 0.1 * max(1, sum(int(part.num_positive) for part in sums))
        loss = torch.stack([part.classes + 2 * part.ends for part in sums]).sum() / normaliser
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), config.optim.clip_grad)
        optimizer.step()
        losses.append(loss.item())
    return losses, {name: parameter.detach() for name, parameter in model.named_parameters()}


def engine_steps(config: TadConfig, ranks: Ranks) -> tuple[list[float], StateDict]:
    """The same under the engine; the weights are whole on rank 0."""
    from vmae2_ds.checkpoint.state import TrainState
    from vmae2_ds.downstream.tad.stage import tad_stage
    from vmae2_ds.train.build import build_engine

    plan = plan_run(config, GLOBAL_BATCH, RANKS)
    normaliser = tad_stage(config).normaliser
    assert normaliser is not None, "this stage has one"
    engine, state = build_engine(config, resolve_ds_config(config, plan, on_cpu=True)), TrainState()
    losses = []
    for step in range(NUM_STEPS):
        set_learning_rate(engine.parameter_groups, learning_rate(step, plan))
        batches = (LoadedBatch(make_batch(step, i, ranks.rank), [], {}) for i in range(ACCUMULATION))
        total = torch.zeros(2)
        for micro_step, loaded in enumerate(normaliser.counted(batches, engine, state, ranks)):
            torch.manual_seed(seed_of(config.train.seed, step, micro_step, ranks.rank))
            output = engine.micro_step(loaded.batch)
            total += torch.stack([output.loss.detach(), output.num_supervised.float()])
        assert engine.update().applied
        torch.distributed.all_reduce(total)
        normaliser.follow(state, float(total[1]))
        losses.append(total[0].item() / ACCUMULATION / RANKS)
    last = {name.removeprefix("model."): tensor.clone() for name, tensor in engine.shards.whole_weights()}
    engine.deepspeed.destroy()
    del engine
    gc.collect()
    return losses, last


def run_policies(policies: list[str], ranks: Ranks) -> dict[str, list[float]]:
    """Losses by policy; rank 0 writes weights to POLICY.pt beside them."""
    results = {}
    for policy in policies:
        results[policy], last = engine_steps(make_config(policy), ranks)
        if ranks.rank == 0:
            torch.save(last, Path(sys.argv[2]).with_name(f"{policy}.pt"))
    return results


if __name__ == "__main__":
    answer(run_policies)
