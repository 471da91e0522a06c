"""A DeepSpeed engine around an objective: micro steps, and updates that are applied or dropped on all ranks."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from vmae2_ds.config.ds_config import zero_stage
from vmae2_ds.contracts import LossOutput, Movable, StepResult
from vmae2_ds.dist import default_device
from vmae2_ds.engine.device import allocator_advice
from vmae2_ds.engine.held import HELD, leave_held_alone
from vmae2_ds.engine.partitioned import FillFn, build_partitioned
from vmae2_ds.engine.shards import MasterShards

LargestNorm = Callable[[list[float]], float]
"""What the device tells before an update -> the largest gradient norm whose update is applied."""


def any_norm(told: list[float]) -> float:
    """No norm is too large."""
    return math.inf


class Engine:
    """A DeepSpeed engine around an objective.

    Args:
        build: makes the objective, with its initial weights. Under `zero_init` it is called inside `zero.Init` and
            its parameters are partitioned as they are made.
        fill: called under `zero_init` only, with the objective and its partitioned parameters, gathered one by one.
        optimizer_of: the objective -> a torch optimizer over its parameters.
        ds_config: resolved, without "auto".
    """

    def __init__(
        self,
        build: Callable[[], nn.Module],
        optimizer_of: Callable[[nn.Module], torch.optim.Optimizer],
        ds_config: dict[str, Any],
        *,
        zero_init: bool = False,
        fill: FillFn | None = None,
    ) -> None:
        import deepspeed

        self.stage = zero_stage(ds_config)
        self.zero_policy: dict[str, Any] = ds_config.get("zero_optimization", {})
        self.device = default_device()
        if zero_init:
            objective = build_partitioned(build, fill, ds_config)
        else:
            objective = build()
            if ds_config.get("bf16", {}).get("enabled"):
                for parameter in objective.parameters():  # as initialize would, but half of it reaches the device
                    parameter.data = parameter.data.bfloat16()
            objective.to(self.device)
        use_deepspeed_checkpointing(objective, ds_config)
        optimizer = optimizer_of(objective)
        leave_held_alone(optimizer)
        self.deepspeed, *_ = deepspeed.initialize(
            model=objective, optimizer=optimizer, config=ds_config, dist_init_required=False
        )
        self._basic_optimizer = optimizer
        self.shards = MasterShards(self.deepspeed, optimizer, self.stage)
        self._holds = False
        self._largest_norm: LargestNorm = any_norm
        self._told, self._grad_norm = torch.zeros(0, device=self.device), math.nan
        self._norm_is_taken = self.stage in (0, 3) or self.zero_policy.get("compute_grad_norm", True)
        if self.stage > 0 and self._norm_is_taken:
            self._watch_norm()

    @property
    def objective(self) -> nn.Module:
        """The objective, its parameters partitioned at stage 3."""
        return self.deepspeed.module

    @property
    def parameter_groups(self) -> list[dict]:
        """The optimizer's groups, to write learning rates into."""
        return self.deepspeed.optimizer.param_groups

    @property
    def memory_advice(self) -> str | None:
        """What to set in the environment for this model's memory; None where there is nothing to say."""
        model = self.objective.model
        return allocator_advice(self.device, stage=self.stage, checkpointing=model.config.checkpointing)  # type: ignore[union-attr, arg-type]

    def hold(self, is_held: bool) -> None:
        """Keep the groups that have the key `held` from learning, or let them learn, from the next update on.

        Weights, moments, counters and weight decay of what is held stay as they are, and its gradients count in no norm: the
        caller sees to it that there are none.
        """
        if is_held and not self._holds and self.stage == 3:  # there those of the last step stay where no new ones come
            torch.zero_(self.deepspeed.optimizer.grad_partitions_flat_buffer)
        self._holds = is_held
        for group in self.parameter_groups:
            if HELD in group:
                group[HELD] = is_held

    def micro_step(self, batch: Movable) -> LossOutput:
        """Forward and backward of one micro batch; gradients add up until `update`."""
        out = self.deepspeed(batch.to(self.device))
        self.deepspeed.backward(out.loss)
        if not self.deepspeed.is_gradient_accumulation_boundary():
            self.deepspeed.step()  # only counts the micro step
        return out

    def update(self, largest_norm: LargestNorm = any_norm, told: torch.Tensor | None = None) -> StepResult:
        """Apply the accumulated gradient, or drop it on all ranks where it is not finite or its norm too large.

        Args:
            largest_norm: decides, the same on all ranks, once the device has told. What it raises leaves weights alone.
            told: (n,) float64 on the device, handed to `largest_norm`. It is read together with the gradient's norm: the one
                wait for the device in a step, with what DeepSpeed waits for itself (docs/SCALING.md).
        """
        self._told = torch.zeros(0, dtype=torch.float64, device=self.device) if told is None else told
        self._largest_norm, self._grad_norm = largest_norm, math.nan
        if self.stage == 0:
            return self._update_plain()
        if not self._norm_is_taken:
            largest_norm(self._told.tolist())
        self.deepspeed.step()
        return StepResult(bool(self.deepspeed.was_step_applied()), self._grad_norm)

    def _wait(self, norms: list[torch.Tensor]) -> tuple[float, list[float]]:
        """Read these norms and what is told in one go: (the largest norm that is applied, the norms)."""
        there = [norm.to(self.device, torch.float64, non_blocking=True).view(1) for norm in norms]
        numbers = torch.cat([self._told, *there]).tolist()
        split = len(numbers) - len(norms)
        return self._largest_norm(numbers[:split]), numbers[split:]

    def _watch_norm(self) -> None:
        """Let DeepSpeed take a norm that is too large for one that is not finite.

        It takes the norm inside `step`, from sums over all ranks, and drops the gradient of an infinite one before anything
        has changed (0.19.8: zero/stage_1_and_2.py:3033-3066, zero/stage3.py:2884-2895). At stage 3 the norm comes in parts.
        What it gets back lies on the host, so that its own looks at the norm (is_invalid_grad_norm, twice with clipping) need
        not wait. Its check of every gradient for what is not finite, which waits before that, is left out: such a gradient has
        no finite norm (zero/stage_1_and_2.py:3029-3030).
        """
        from deepspeed.runtime.utils import combine_grad_norm_groups

        zero = self.deepspeed.optimizer
        name = "_get_norm_groups" if self.stage == 3 else "scaled_global_norm"
        take = getattr(zero, name)

        def judged() -> Any:
            taken = take()
            largest, norms = self._wait(taken if self.stage == 3 else [taken])
            on_host = [torch.tensor(norm, dtype=torch.float32) for norm in norms]
            self._grad_norm = float(combine_grad_norm_groups(on_host)) if self.stage == 3 else norms[0]
            if self._grad_norm > largest:
                on_host = [torch.tensor(math.inf)]
            return on_host if self.stage == 3 else on_host[0]

        setattr(zero, name, judged)
        if self.stage < 3:
            zero.check_overflow = lambda partition_gradients=True: None

    def _update_plain(self) -> StepResult:
        """Stage 0: DeepSpeed checks nothing there, so the norm of the (already averaged) gradients is taken here."""
        grads = [parameter.grad for parameter in self.objective.parameters() if parameter.grad is not None]
        largest, (norm,) = self._wait([torch.nn.utils.get_total_norm(grads)])
        applied = math.isfinite(norm) and norm <= largest
        if not applied:
            torch._foreach_zero_(grads)  # DeepSpeed's clipping would only spread the NaN
            self._basic_optimizer.found_inf = torch.ones((), device=self.device)  # type: ignore[attr-defined]
        self.deepspeed.step()
        if not applied:
            del self._basic_optimizer.found_inf  # type: ignore[attr-defined]  # fused AdamW has left weights, moments and step count alone
        return StepResult(applied, norm)


def use_deepspeed_checkpointing(objective: nn.Module, ds_config: dict[str, Any]) -> None:
    """Hand DeepSpeed's activation checkpointing to a model that asks for it, configured from `ds_config`.

    The engine itself ignores the `activation_checkpointing` section (0.19.8:
    deepspeed/runtime/activation_checkpointing/checkpointing.py:1121-1130 alone reads it).
    """
    model = getattr(objective, "model", None)
    if model is not None and model.config.checkpointing == "deepspeed":
        import deepspeed

        deepspeed.checkpointing.configure(None, deepspeed_config=ds_config)
        model.use_checkpoint_function(deepspeed.checkpointing.checkpoint)
