"""One rank that saves checkpoints at many ZeRO policies; rank 0 also has DeepSpeed put each one's weights together."""

from __future__ import annotations

import gc
import json
import sys
from pathlib import Path

import torch

from tests.distributed.finetune_steps import RANKS, make_batch, make_config
from vmae2_ds.checkpoint.retention import RetentionRules
from vmae2_ds.checkpoint.save import save_checkpoint
from vmae2_ds.config.ds_config import resolve_ds_config
from vmae2_ds.config.finetune import FinetuneConfig
from vmae2_ds.config.run_plan import plan_run
from vmae2_ds.dist import Ranks
from vmae2_ds.engine.ranks import start_ranks, stop_ranks
from vmae2_ds.train.build import build_engine
from vmae2_ds.train.optim import set_learning_rate

REFERENCE = "reference.pt"


def config_of(policy: str) -> FinetuneConfig:
    """`zero3`, `zero3-bf16` or `zero3-head`: float32 masters of 16 bit weights, and an encoder without an optimizer."""
    ds_config, _, more = policy.partition("-")
    config = make_config(ds_config)
    changes = {"bf16": {"train": {"precision": "bf16"}}, "head": {"optim": {"train_only": "head"}}, "": {}}[more]
    return FinetuneConfig.model_validate(config.changed(**changes).model_dump())


def save(policy: str, folder: Path, ranks: Ranks) -> None:
    """One step away from the first weights, then a checkpoint in FOLDER/POLICY."""
    config = config_of(policy)
    plan = plan_run(config, 8, RANKS)
    engine = build_engine(config, resolve_ds_config(config, plan, on_cpu=True))
    set_learning_rate(engine.parameter_groups, 1e-2)
    for micro_step in range(plan.accumulation):
        engine.micro_step(make_batch(config, 0, micro_step, ranks.rank))
    assert engine.update().applied
    target = save_checkpoint(engine, folder / policy, 1, {"step": 1}, ranks, RetentionRules(1))
    if engine.stage > 0 and ranks.rank == 0:
        from deepspeed.utils.zero_to_fp32 import get_fp32_state_dict_from_zero_checkpoint

        torch.save(get_fp32_state_dict_from_zero_checkpoint(str(target.parent), tag=target.name), target / REFERENCE)
    engine.deepspeed.destroy()
    del engine
    gc.collect()


def main() -> None:
    """Save checkpoints of the policies of argv[1], a JSON list, in the folder argv[2]."""
    torch.set_num_threads(1)
    ranks = start_ranks()
    for policy in json.loads(sys.argv[1]):
        save(policy, Path(sys.argv[2]), ranks)
    stop_ranks(ranks)


if __name__ == "__main__":
    main()
