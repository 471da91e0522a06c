"""Models whose parameters are partitioned over all ranks as they are made, so that no rank ever holds them whole."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from vmae2_ds.dist import default_device

FillFn = Callable[[nn.Module, str, torch.Tensor], None]
"""(objective, parameter name, whole parameter): write its initial values."""


def build_partitioned(build: Callable[[], nn.Module], fill: FillFn | None, ds_config: dict[str, Any]) -> nn.Module:
    import deepspeed

    with deepspeed.zero.Init(config_dict_or_path=ds_config):
        module = build()
    if fill is not None:
        _fill_partitioned(module, fill)
    for part in module.modules():  # DeepSpeed moves no buffers of a partitioned model
        for name, buffer in part.named_buffers(recurse=False):
            setattr(part, name, buffer.to(default_device()))
    return module


def _fill_partitioned(module: nn.Module, fill: FillFn) -> None:
    """Write initial values into partitioned parameters: rank 0 fills each one gathered, and it is scattered again."""
    import deepspeed

    for name, parameter in module.named_parameters():
        with deepspeed.zero.GatheredParameters([parameter], modifier_rank=0):
            if torch.distributed.get_rank() == 0:
                fill(module, name, parameter.data)


class FrozenShards:
    """A module partitioned over all ranks for inference alone: a layer's weights are gathered while it runs (ZeRO-3).

    All ranks have to run `module` together. `build` and `fill` are those of `Engine` under `zero_init`.
    """

    def __init__(self, build: Callable[[], nn.Module], fill: FillFn, *, bf16: bool) -> None:
        import deepspeed

        ds_config = {
            "train_micro_batch_size_per_gpu": 1,  # of no account, but DeepSpeed asks
            "zero_optimization": {"stage": 3, "stage3_param_persistence_threshold": 0},
            "bf16": {"enabled": bf16},
            "steps_per_print": 10**9,
        }
        self.module = build_partitioned(build, fill, ds_config).requires_grad_(False).eval()
        self._engine, *_ = deepspeed.initialize(model=self.module, config=ds_config, dist_init_required=False)

    def close(self) -> None:
        """Take DeepSpeed's hooks off; the module cannot run after it."""
        self._engine.destroy()
