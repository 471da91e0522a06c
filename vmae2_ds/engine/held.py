"""Parameter groups that an optimizer leaves as they are for some steps, at every ZeRO stage.

DeepSpeed gives each group a gradient, zeros where a backward pass left none; AdamW would then decay its weights and moments and
count a step. Frozen by `requires_grad` instead, parameters would be in no group, and could not join one later.
"""

from __future__ import annotations

from typing import Any

import torch

HELD = "held"
"""Key of a parameter group that may be held: whether it is, in the next step."""


def leave_held_alone(optimizer: torch.optim.Optimizer) -> None:
    """Let steps of `optimizer`, an AdamW, leave parameters alone that are held; no step is changed where no group may be held.

    They get their moments, zeros, and a counter of 0 at once: a checkpoint then has the same states for all groups, and what
    fits in memory while they are held fits later.
    """
    if not any(HELD in group for group in optimizer.param_groups):
        return
    step = optimizer.step

    def step_of_the_others(*args: Any, **kwargs: Any) -> Any:
        held = [parameter for group in optimizer.param_groups if group.get(HELD) for parameter in group["params"]]
        grads = [parameter.grad for parameter in held]
        for parameter in held:
            parameter.grad = None
            if not optimizer.state[parameter]:
                optimizer.state[parameter] = {
                    "step": torch.zeros((), dtype=torch.float32, device=parameter.device),
                    "exp_avg": torch.zeros_like(parameter),
                    "exp_avg_sq": torch.zeros_like(parameter),
                }
        done = step(*args, **kwargs)
        for parameter, grad in zip(held, grads, strict=True):
            parameter.grad = grad  # under offload it is where the next one is written
        return done

    optimizer.step = step_of_the_others  # type: ignore[method-assign]
