"""AdamW with the published parameter groups, and the published learning rate as a function of the step."""

from __future__ import annotations

import logging
import math
import re
from collections.abc import Callable
from math import prod
from typing import Any

import torch
from torch import nn

from vmae2_ds.config.run import DecayShape, OptimConfig
from vmae2_ds.config.run_plan import RunPlan
from vmae2_ds.cost.muon import matrices_of
from vmae2_ds.engine.muon import SHAPES, MuonAndAdamW, check_muon
from vmae2_ds.errors import ConfigError

log = logging.getLogger(__name__)


def has_weight_decay(name: str, shape: torch.Size) -> bool:
    """Published rule: vectors, biases and the mask token have no weight decay (docs/PAPER.md#learning-rate)."""
    return len(shape) > 1 and not name.endswith(("bias", "mask_token"))


def layer_of(name: str, depth: int) -> int:
    """Published numbering for layer decay: 0 the embedding, i + 1 block i, depth + 1 what is behind the blocks."""
    if block := re.search(r"\bencoder\.blocks\.(\d+)\.", name):
        return int(block[1]) + 1
    return 0 if "encoder.embed." in name else depth + 1


def parameter_groups(
    model: nn.Module, weight_decay: float, layer_decay: float = 1.0, depth: int = 0
) -> list[dict[str, Any]]:
    """Groups with and without weight decay, with their parameters' names under `param_names`.

    With a `layer_decay` below 1 there are two for each layer of an encoder of `depth` blocks, whose `lr_scale` is
    layer_decay ** (depth + 1 - layer) (docs/PAPER.md#learning-rate).
    Works on normal and on ZeRO-partitioned parameters, whose full shape stands in `ds_shape`.
    """
    groups: dict[tuple[int, bool], dict[str, Any]] = {}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        layer = depth + 1 if layer_decay == 1 else layer_of(name, depth)
        is_decayed = has_weight_decay(name, getattr(parameter, "ds_shape", parameter.shape))
        group = groups.setdefault(
            (layer, is_decayed),
            {
                "params": [],
                "param_names": [],
                "weight_decay": weight_decay if is_decayed else 0.0,
                "lr_scale": layer_decay ** (depth + 1 - layer),
            },
        )
        group["params"].append(parameter)
        group["param_names"].append(name)
    return [groups[key] for key in sorted(groups, key=lambda key: (key[0], not key[1]))]


def make_optimizer(groups: list[dict], config: OptimConfig) -> torch.optim.Optimizer:
    """Fused AdamW, or Muon beside it, whose learning rate is set at every step.

    On a CPU it is 2.6 to 7.4 times faster than PyTorch's default (benchmarks/results/cpu/optimizer.jsonl).
    """
    if config.optimizer == "muon":
        check_muon()
        scale, momentum = config.muon_scale, config.muon_momentum
        found = with_matrices_apart(groups, config.muon_rate)
        sizes = [prod(shape) for group in found for shape in group[SHAPES]]
        log.info("Muon (experimental): %d matrices, %.3g M parameters; AdamW: all else", len(sizes), sum(sizes) / 1e6)
        return MuonAndAdamW(found, betas=config.betas, eps=config.eps, momentum=momentum, scale=scale)
    return torch.optim.AdamW(groups, lr=0.0, betas=config.betas, eps=config.eps, fused=True)


def with_matrices_apart(groups: list[dict], rate: float) -> list[dict]:
    """Each group as two, the matrices of Muon and all else. Raises ConfigError where no matrix is trained."""
    found = []
    for group in groups:
        pairs = list(zip(group["param_names"], group["params"], strict=True))
        for is_muon in (True, False):
            mine = [(name, p) for name, p in pairs if bool(matrices_of(name, p.shape)) is is_muon]
            if mine:
                shapes = [shape for name, p in mine for shape in matrices_of(name, p.shape)]
                names, parameters = [name for name, _ in mine], [p for _, p in mine]
                scale = group.get("lr_scale", 1.0) * (rate if is_muon else 1.0)
                found.append({**group, "params": parameters, "param_names": names, "lr_scale": scale, SHAPES: shapes})
    if not any(group[SHAPES] for group in found):
        raise ConfigError(
            "--optim.optimizer muon: no matrix of a transformer block learns here; use --optim.optimizer adamw"
        )
    return found


DECAYS: dict[DecayShape, Callable[[float], float]] = {
    "linear": lambda done: 1 - done,
    "sqrt": lambda done: 1 - math.sqrt(done),  # arXiv 2405.18392, "1-sqrt"
    "cosine": lambda done: 0.5 * (1 + math.cos(math.pi * done)),
}
"""What is left of a rate of 1 where so much of its decay is done, both from 0 to 1."""


def learning_rate(step: int, plan: RunPlan) -> float:
    """Rate of the optimizer step number `step`, counted from 0: linear warm-up from 0 to the peak, then half a cosine, or the
    peak up to the last `decay_steps`.

    The warm-up's last step is the peak itself and so is the first of what falls, as published (np.linspace with end point):
    a step with the number `num_steps` would have `min_lr`.
    """
    if step < plan.warmup_steps:
        return plan.peak_lr * step / max(1, plan.warmup_steps - 1)
    if plan.decay_steps is not None:
        done = step - (plan.num_steps - plan.decay_steps)
        if done <= 0:
            return plan.peak_lr
        left = DECAYS[plan.decay_shape](done / plan.decay_steps)
    else:
        last = plan.schedule_steps or plan.num_steps
        left = DECAYS["cosine"]((step - plan.warmup_steps) / max(1, last - plan.warmup_steps))
    return plan.min_lr + (plan.peak_lr - plan.min_lr) * left


def set_learning_rate(groups: list[dict], rate: float) -> None:
    """Write `rate` times each group's own `lr_scale` into the optimizer."""
    for group in groups:
        group["lr"] = rate * group.get("lr_scale", 1.0)
