"""What a case works with: a setting, and engines under it, DeepSpeed's own and ours, behind one interface."""

from __future__ import annotations

import gc
from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch import nn

from benchmarks.deepspeed.setting import MORE, Setting
from benchmarks.deepspeed.toy import SAMPLES, Batch, OptimizerOf, Plain, Toy, Weights, every_rank, sgd
from vmae2_ds.config.ds_config import fill_policy, read_policy
from vmae2_ds.config.model import ModelConfig, TowerConfig
from vmae2_ds.config.pretrain import PretrainConfig, PretrainDataConfig, PretrainOptimConfig
from vmae2_ds.config.run import TrainConfig
from vmae2_ds.config.run_plan import plan_run
from vmae2_ds.dist import Ranks

SMALL = {
    "reduce_bucket_size": 200,
    "allgather_bucket_size": 200,
    "stage3_prefetch_bucket_size": 200,
    "stage3_param_persistence_threshold": 20,
    "sub_group_size": 300,
}
"""A model of 600 weights is cut up as a large one is: several buckets and sub-groups, weights partitioned, biases not."""


def policy_of(setting: Setting) -> dict[str, Any]:
    """The policy in ds_configs/, cut to the toy's size, with what the setting adds."""
    policy = read_policy(setting.policy)
    zero = policy["zero_optimization"]
    zero |= {key: size for key, size in SMALL.items() if key in zero}
    for key, value in MORE[setting.more].items():
        (policy if key in ("data_types", "compile") else zero)[key] = value
    return policy | {"zero_allow_untested_optimizer": True, "zero_force_ds_cpu_optimizer": False}


def bare_config(setting: Setting, accumulation: int, clip: float) -> dict[str, Any]:
    """What somebody writes who reads DeepSpeed's documentation: nothing that DeepSpeed would have to be told."""
    config = policy_of(setting) | {
        "train_micro_batch_size_per_gpu": SAMPLES,
        "gradient_accumulation_steps": accumulation,
        "gradient_clipping": clip,
        "bf16": {"enabled": setting.precision == "bf16"},
        "steps_per_print": 10**9,
    }
    del config["train_batch_size"]
    for part in ("offload_optimizer", "offload_param"):
        if part in config["zero_optimization"]:
            config["zero_optimization"][part]["pin_memory"] = False
    return config


def our_config(setting: Setting, accumulation: int, clip: float, ranks: int) -> dict[str, Any]:
    """The same through config/ds_config.py. Raises ConfigError where it refuses."""
    tower = TowerConfig(width=64, depth=1, heads=2, mlp=64)
    config = PretrainConfig(
        model=ModelConfig(encoder=tower, decoder=tower, patch=8),
        data=PretrainDataConfig(num_frames=8, size=32, views=1),
        optim=PretrainOptimConfig(clip_grad=clip),
        train=TrainConfig(
            global_batch=SAMPLES * accumulation * ranks,
            micro_batch=SAMPLES,
            max_steps=8,
            precision=setting.precision,  # type: ignore[arg-type]
            ds_config=setting.policy,
        ),
    )
    return fill_policy(policy_of(setting), config, plan_run(config, 1000, ranks), on_cpu=True)


class Bare:
    """deepspeed.initialize, backward and step, as documented."""

    def __init__(self, model: nn.Module, optimizer_of: OptimizerOf, config: dict[str, Any]) -> None:
        import deepspeed

        self.stage = config["zero_optimization"]["stage"]
        self.engine, *_ = deepspeed.initialize(
            model=model, optimizer=optimizer_of(list(model.named_parameters())), config=config
        )
        if config.get("compile"):
            self.engine.compile()

    def micro_step(self, batch: Batch) -> None:
        """Forward and backward of one micro batch; the update comes where DeepSpeed counts that it is due."""
        self.engine.backward(self.engine(batch).loss)
        self.engine.step()

    def step(self, batches: list[Batch]) -> float:
        """All micro batches of a step; the norm that DeepSpeed tells."""
        for batch in batches:
            self.micro_step(batch)
        norm = self.engine.get_global_grad_norm()
        return float("nan") if norm is None else float(norm)

    def groups(self) -> list[dict[str, Any]]:
        """The optimizer's groups, to write rates into."""
        return self.engine.optimizer.param_groups

    def weights(self) -> Weights:
        """The whole float32 masters by name, on every rank."""
        import deepspeed
        from deepspeed.utils import safe_get_full_fp32_param

        found: Weights = {}
        unfused = getattr(self.engine.optimizer, "fp32_groups", None) if self.stage == 0 else None
        masters = {}
        if unfused is not None:  # bf16 at stage 0
            low = (p for group in self.engine.optimizer.fp16_groups for p in group)
            masters = {id(p): master for p, master in zip(low, (m for g in unfused for m in g), strict=True)}
        for name, parameter in self.engine.module.named_parameters():
            if self.stage > 0 and parameter.requires_grad:
                found[name] = safe_get_full_fp32_param(parameter).clone()
            else:
                with deepspeed.zero.GatheredParameters([parameter], enabled=self.stage == 3):
                    found[name] = masters.get(id(parameter), parameter).detach().float().clone()
        return found

    def save(self, folder: Path, step: int) -> None:
        """A checkpoint of its own layout."""
        # without it stages 1 and 2 convert nothing
        asks = {"universal_checkpoint_info": {"universal_checkpoint_version": 0.2}}
        self.engine.save_checkpoint(str(folder), tag=f"step{step}", client_state=asks)

    def load(self, folder: Path, step: int) -> None:
        """Load it, on the ranks and at the stage that wrote it."""
        self.engine.load_checkpoint(str(folder), tag=f"step{step}")


class Ours(Bare):
    """vmae2_ds.engine.step.Engine, which has DeepSpeed's engine inside."""

    def __init__(self, model: nn.Module, optimizer_of: OptimizerOf, config: dict[str, Any], ranks: Ranks) -> None:
        from vmae2_ds.engine.step import Engine

        self.ours = Engine(lambda: model, lambda module: optimizer_of(list(module.named_parameters())), config)
        self.engine, self.stage, self.ranks = self.ours.deepspeed, self.ours.stage, ranks

    def step(self, batches: list[Batch]) -> float:
        """All micro batches of a step; the norm that our engine tells."""
        for batch in batches:
            self.ours.micro_step(batch)  # type: ignore[arg-type]
        return self.ours.update().grad_norm

    def groups(self) -> list[dict[str, Any]]:
        """As Bare."""
        return self.ours.parameter_groups

    def save(self, folder: Path, step: int) -> None:
        """As checkpoint/save.py does."""
        from vmae2_ds.checkpoint.retention import RetentionRules
        from vmae2_ds.checkpoint.save import save_checkpoint

        save_checkpoint(self.ours, folder, step, {}, self.ranks, RetentionRules())

    def load(self, folder: Path, step: int) -> None:
        """Load what fits, converted where ranks or stage differ."""
        from vmae2_ds.checkpoint.elastic import fitting
        from vmae2_ds.checkpoint.save import load_checkpoint
        from vmae2_ds.checkpoint.whole import tag_of

        load_checkpoint(self.ours, fitting(self.ours, folder / tag_of(step), self.ranks), self.ranks)


class Bench:
    """One case at one setting, by one way. `plant` may spoil a model's gradient, to see that a case tells."""

    plant: Callable[[nn.Module], None] | None = None

    def __init__(self, setting: Setting, way: str, ranks: Ranks, folder: Path) -> None:
        self.setting, self.way, self.ranks, self.folder = setting, way, ranks, folder
        self._made: list[Bare] = []

    def config(self, accumulation: int = 1, clip: float = 0.0) -> dict[str, Any]:
        """The ds_config of this way."""
        if self.way == "ours":
            return our_config(self.setting, accumulation, clip, self.ranks.size)
        return bare_config(self.setting, accumulation, clip)

    def engine(
        self,
        model: nn.Module | None = None,
        optimizer_of: OptimizerOf = sgd,
        accumulation: int = 1,
        clip: float = 0.0,
        more: dict[str, Any] | None = None,
    ) -> Bare:
        """An engine on a fresh model."""
        model = model or Toy()
        if Bench.plant is not None:
            Bench.plant(model)
        config = self.config(accumulation, clip) | (more or {})
        made = (
            Ours(model, optimizer_of, config, self.ranks) if self.way == "ours" else Bare(model, optimizer_of, config)
        )
        self._made.append(made)
        return made

    def plain(self, model: nn.Module | None = None, optimizer_of: OptimizerOf = sgd) -> Plain:
        """The reference on the same fresh model."""
        return Plain(model or Toy(), optimizer_of, self.setting.precision)

    def batches(self, step: int, count: int) -> list[list[Batch]]:
        """The micro batches of a step, of each rank."""
        return every_rank(step, count, self.ranks.size)

    def close(self) -> None:
        """Take DeepSpeed's hooks off, and forget the engines, and the group of hpZ that later ones would find and use."""
        from deepspeed.utils import groups

        for made in self._made:
            made.engine.destroy()
        self._made.clear()
        groups._ZERO_PARAM_INTRA_PARALLEL_GROUP = None
        gc.collect()
