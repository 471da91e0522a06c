"""AdamW with the published parameter groups, and the published learning rate as a function of the step."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import nn

from vmae2_ds.config import OptimConfig
from vmae2_ds.train.plan import RunPlan


def has_weight_decay(name: str, shape: torch.Size) -> bool:
    """Published rule: vectors, biases and the mask token have no weight decay (golden misc.json pretrain_no_decay)."""
    return len(shape) > 1 and not name.endswith(("bias", "mask_token"))


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict]:
    """Two groups, with and without weight decay, with their parameters' names under `param_names`.

    Works on normal and on ZeRO-partitioned parameters, whose full shape stands in `ds_shape`.
    """
    groups: dict[bool, dict[str, Any]] = {
        decayed: {"params": [], "param_names": [], "weight_decay": weight_decay if decayed else 0.0, "lr_scale": 1.0}
        for decayed in (True, False)
    }
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            group = groups[has_weight_decay(name, getattr(parameter, "ds_shape", parameter.shape))]
            group["params"].append(parameter)
            group["param_names"].append(name)
    return list(groups.values())


def make_optimizer(groups: list[dict], config: OptimConfig) -> torch.optim.Optimizer:
    """Fused AdamW (3.7 times faster than the default on a CPU, COST 3e). The learning rate is set at every step."""
    return torch.optim.AdamW(groups, lr=0.0, betas=config.betas, eps=config.eps, fused=True)


def learning_rate(step: int, plan: RunPlan) -> float:
    """Rate of the optimizer step number `step`, counted from 0: linear warm-up from 0 to the peak, then half a cosine.

    The warm-up's last step is the peak itself and so is the cosine's first, as published (np.linspace with end point).
    """
    if step < plan.warmup_steps:
        return plan.peak_lr * step / max(1, plan.warmup_steps - 1)
    progress = (step - plan.warmup_steps) / max(1, plan.num_steps - plan.warmup_steps)
    return plan.min_lr + 0.5 * (plan.peak_lr - plan.min_lr) * (1 + math.cos(math.pi * progress))


def set_learning_rate(groups: list[dict], rate: float) -> None:
    """Write `rate` times each group's own `lr_scale` into the optimizer."""
    for group in groups:
        group["lr"] = rate * group.get("lr_scale", 1.0)
