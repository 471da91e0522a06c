"""The DeepSpeed engine behind a small door: build or partition the objective, take steps, tell where its states lie."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from torch import nn

from vmae2_ds.config.ds_config import zero_stage
from vmae2_ds.contracts import LossOutput, Movable, StepResult
from vmae2_ds.dist import default_device

log = logging.getLogger(__name__)


StateReader = Callable[[str, str], torch.Tensor | None]
"""(parameter name, state) -> that state of the whole parameter, flattened; None where it was never saved."""

FillFn = Callable[[nn.Module, str, torch.Tensor], None]
"""(objective, parameter name, whole parameter): write its initial values."""


class Piece(NamedTuple):
    """A run of elements of one parameter, in this rank's master shards."""

    name: str
    """Of the parameter."""
    shard: int
    """Index into `Engine.master_shards`."""
    offset: int
    """First element, in the flattened shard."""
    start: int
    """First element, in the flattened parameter."""
    numel: int


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
        compile_backend: str = "none",
    ) -> None:
        import deepspeed

        self.stage = zero_stage(ds_config)
        self.zero_policy: dict[str, Any] = ds_config.get("zero_optimization", {})
        self.device = default_device()
        if zero_init:
            objective = _build_partitioned(build, fill, ds_config)
        else:
            objective = build()
            if ds_config.get("bf16", {}).get("enabled"):
                for parameter in objective.parameters():  # as initialize would, but half of it reaches the device
                    parameter.data = parameter.data.bfloat16()
            objective.to(self.device)
        use_deepspeed_checkpointing(objective, ds_config)
        optimizer = optimizer_of(objective)
        self.deepspeed, *_ = deepspeed.initialize(
            model=objective, optimizer=optimizer, config=ds_config, dist_init_required=False
        )
        self._basic_optimizer = optimizer
        self._grad_norm, self._largest_norm = math.nan, math.inf
        if self.stage > 0:
            self._watch_norm()
        if compile_backend != "none":
            self.deepspeed.compile(backend=compile_backend)

    @property
    def objective(self) -> nn.Module:
        """The objective, its parameters partitioned at stage 3."""
        return self.deepspeed.module

    @property
    def parameter_groups(self) -> list[dict]:
        """The optimizer's groups, to write learning rates into."""
        return self.deepspeed.optimizer.param_groups

    @property
    def master_shards(self) -> list[torch.Tensor]:
        """This rank's part of the float32 weights that the optimizer updates, in an order that does not change."""
        if self.stage == 3:
            return list(self.deepspeed.optimizer.fp32_partitioned_groups_flat)
        return [shard for group in self._basic_optimizer.param_groups for shard in group["params"]]

    def pieces(self) -> Iterator[Piece]:
        """Where each trained parameter's elements lie in this rank's master shards."""
        if self.stage == 3:
            rank = torch.distributed.get_rank()
            for shard, group in enumerate(self.deepspeed.optimizer.fp16_groups):
                offset = 0
                for parameter in group:
                    part = parameter.partition_numel()
                    numel = max(0, min(part, parameter.ds_numel - rank * part))  # the rest of the last parts is padding
                    yield Piece(self.deepspeed.param_names[parameter], shard, offset, rank * part, numel)
                    offset += part
        elif self.stage > 0:
            for name, parameter in self.objective.named_parameters():
                found = getattr(parameter, "_hp_mapping", None)  # None where all of it is other ranks'
                if found is not None:
                    mine, whole = found.hp_fragment_address, found.lp_fragment_address
                    yield Piece(name, found.param_group_index, mine.start, whole.start, whole.numel)
        else:
            names = {id(parameter): name for name, parameter in self.objective.named_parameters()}
            for shard, parameter in enumerate(self.master_shards):
                yield Piece(names[id(parameter)], shard, 0, 0, parameter.numel())

    @torch.no_grad()
    def take_over(self, weights: StateReader, moments: tuple[str, ...]) -> None:
        """Fill master weights, Adam's moments and its step counters from whole tensors by parameter name, on all ranks.

        Hyper-parameters stay those of this engine, group by group, and every shard gets a counter of its own: DeepSpeed's
        load_universal gives all groups those of the first, and all shards one counter, which then runs ahead.
        """
        masters = self.master_shards
        for master in masters:
            if self.stage > 0:
                master.zero_()
            self._basic_optimizer.state.pop(master, None)
        for piece in self.pieces():
            master = masters[piece.shard]
            state = self._basic_optimizer.state[master]
            for key in ("fp32", *moments):
                saved = weights(piece.name, key)
                if saved is None:
                    continue
                flat = master if key == "fp32" else state.setdefault(key, torch.zeros_like(master))
                flat.view(-1)[piece.offset : piece.offset + piece.numel].copy_(
                    saved[piece.start : piece.start + piece.numel]
                )
            step = weights(piece.name, "step")
            if step is not None and "step" not in state:
                state["step"] = step.to(master.device, torch.float32, copy=True)
        self._take_over_frozen(weights)
        self._refresh_working_weights()

    def whole_weights(self) -> Iterator[tuple[str, torch.Tensor]]:
        """Each parameter's name and float32 master weight, put together from all ranks, which must ask for it together."""
        import deepspeed
        from deepspeed.utils import safe_get_full_fp32_param

        for name, parameter in self.objective.named_parameters():
            if self.stage > 0 and parameter.requires_grad:
                yield name, safe_get_full_fp32_param(parameter)
            else:
                with deepspeed.zero.GatheredParameters([parameter], enabled=self.stage == 3):
                    yield name, parameter.detach().float()

    def _take_over_frozen(self, weights: StateReader) -> None:
        parameter: Any  # DeepSpeed hangs its own things on it
        for name, parameter in self.objective.named_parameters():
            saved = None if parameter.requires_grad else weights(name, "fp32")
            if saved is not None and self.stage == 3:
                part = parameter.partition_numel()
                mine = saved[torch.distributed.get_rank() * part :][:part]
                parameter.ds_tensor.data[: mine.numel()].copy_(mine)
            elif saved is not None:
                parameter.copy_(saved.view_as(parameter))

    def _refresh_working_weights(self) -> None:
        """From the master weights, as after an update."""
        optimizer = self.deepspeed.optimizer
        if self.stage == 3:
            optimizer.checkpoint_event_prologue()
            for shard in range(len(self.master_shards)):
                optimizer._reassign_or_swap_out_partitioned_parameters(shard)
            optimizer.checkpoint_event_epilogue()
        elif self.stage > 0:
            optimizer.update_lp_params()

    def micro_step(self, batch: Movable) -> LossOutput:
        """Forward and backward of one micro batch; gradients add up until `update`."""
        out = self.deepspeed(batch.to(self.device))
        self.deepspeed.backward(out.loss)
        if not self.deepspeed.is_gradient_accumulation_boundary():
            self.deepspeed.step()  # only counts the micro step
        return out

    def update(self, largest_norm: float = math.inf) -> StepResult:
        """Apply the accumulated gradient, or drop it on all ranks where it is not finite or its norm above `largest_norm`."""
        if self.stage == 0:
            return self._update_plain(largest_norm)
        self._grad_norm, self._largest_norm = math.nan, largest_norm
        self.deepspeed.step()
        return StepResult(bool(self.deepspeed.was_step_applied()), self._grad_norm)

    def _watch_norm(self) -> None:
        """Let DeepSpeed take a norm that is too large for one that is not finite.

        It takes the norm inside `step`, from sums over all ranks, and drops the gradient of an infinite one before anything
        has changed (0.19.8: zero/stage_1_and_2.py:3033-3066, zero/stage3.py:2884-2895). At stage 3 the norm comes in parts.
        """
        from deepspeed.runtime.utils import combine_grad_norm_groups

        zero = self.deepspeed.optimizer
        name = "_get_norm_groups" if self.stage == 3 else "scaled_global_norm"
        take = getattr(zero, name)

        def judged() -> Any:
            taken = take()
            self._grad_norm = float(combine_grad_norm_groups(taken) if self.stage == 3 else taken)
            if not self._grad_norm > self._largest_norm:
                return taken
            return [math.inf] if self.stage == 3 else torch.full_like(taken, math.inf)

        setattr(zero, name, judged)

    def _update_plain(self, largest_norm: float) -> StepResult:
        """Stage 0: DeepSpeed checks nothing there, so the norm of the (already averaged) gradients is taken here."""
        grads = [parameter.grad for parameter in self.objective.parameters() if parameter.grad is not None]
        norm = float(torch.nn.utils.get_total_norm(grads))
        applied = math.isfinite(norm) and norm <= largest_norm
        if not applied:
            torch._foreach_zero_(grads)  # DeepSpeed's clipping would only spread the NaN
            self._basic_optimizer.found_inf = torch.ones((), device=self.device)  # type: ignore[attr-defined]
        self.deepspeed.step()
        if not applied:
            del self._basic_optimizer.found_inf  # type: ignore[attr-defined]  # fused AdamW has left weights, moments and step count alone
        return StepResult(applied, norm)


def use_deepspeed_checkpointing(objective: nn.Module, ds_config: dict[str, Any]) -> None:
    """Hand DeepSpeed's activation checkpointing to a model that asks for it, configured from `ds_config`.

    The engine itself ignores the `activation_checkpointing` section (DEEPSPEED_CPU 3).
    """
    model = getattr(objective, "model", None)
    if model is not None and model.config.checkpointing == "deepspeed":
        import deepspeed

        deepspeed.checkpointing.configure(None, deepspeed_config=ds_config)
        model.use_checkpoint_function(deepspeed.checkpointing.checkpoint)


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
        self.module = _build_partitioned(build, fill, ds_config).requires_grad_(False).eval()
        self._engine, *_ = deepspeed.initialize(model=self.module, config=ds_config, dist_init_required=False)

    def close(self) -> None:
        """Take DeepSpeed's hooks off; the module cannot run after it."""
        self._engine.destroy()


def _build_partitioned(build: Callable[[], nn.Module], fill: FillFn | None, ds_config: dict[str, Any]) -> nn.Module:
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
