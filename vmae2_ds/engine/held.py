"""Parameter groups that an optimizer leaves as they are for some steps, at every ZeRO stage.

DeepSpeed gives each group a gradient, zeros where a backward pass left none; AdamW would then decay its weights and moments and
count a step. Frozen by `requires_grad` instead, parameters would be in no group, and could not join one later.
"""

from __future__ import annotations

from typing import Any

import torch

from vmae2_ds.engine.muon import SHAPES

HELD = "held"
"""Key of a parameter group that may be held: whether it is, in the next step."""


def leave_held_alone(optimizer: torch.optim.Optimizer) -> None:
    """Let steps of `optimizer` leave parameters alone that are held; no step is changed where no group may be held.

    They get their moments, zeros, and a counter of 0 at once: a step that lets them learn takes no more memory for states.
    """
    if not any(HELD in group for group in optimizer.param_groups):
        return
    step = optimizer.step

    def step_of_the_others(*args: Any, **kwargs: Any) -> Any:
        held, grads = [], []
        for group in optimizer.param_groups:
            moments = ("momentum_buffer",) if group.get(SHAPES) else ("exp_avg", "exp_avg_sq")
            for parameter in group["params"] if group.get(HELD) else ():
                held.append(parameter)
                grads.append(parameter.grad)
                parameter.grad = None
                if not optimizer.state[parameter]:
                    counter = torch.zeros((), dtype=torch.float32, device=parameter.device)
                    zeros = {moment: torch.zeros_like(parameter) for moment in moments}
                    optimizer.state[parameter] = {"step": counter, **zeros}
        done = step(*args, **kwargs)
        for parameter, grad in zip(held, grads, strict=True):
            parameter.grad = grad  # under offload it is where the next one is written
        return done

    optimizer.step = step_of_the_others  # type: ignore[method-assign]
