"""The DeepSpeed engine behind a small door: start the ranks, build or partition the objective, take steps.

Nothing else in the package imports deepspeed, but checkpoint.py, which reads and writes what this engine holds.
"""

from __future__ import annotations

import atexit
import functools
import logging
import math
import os
import platform
import warnings
from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import Any, NamedTuple

import torch
from torch import nn

from vmae2_ds.contracts import LossOutput, Movable
from vmae2_ds.dist import World, default_device, map_rank_variables
from vmae2_ds.errors import RankLost
from vmae2_ds.train.ds_config import zero_stage

log = logging.getLogger(__name__)


TIMEOUT_S = 1800.0
"""Seconds that ranks wait for each other where nothing else is set: PyTorch's under gloo."""

StateReader = Callable[[str, str], torch.Tensor | None]
"""(parameter name, state) -> that state of the whole parameter, flattened; None where it was never saved."""

FillFn = Callable[[nn.Module, str, torch.Tensor], None]
"""(objective, parameter name, whole parameter): write its initial values."""


class StepResult(NamedTuple):
    """What an optimizer step did."""

    applied: bool
    """False where the gradient was not finite or too large: all ranks left the update out."""
    grad_norm: float
    """Global gradient norm before clipping; inf or nan where it was not finite."""


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


class Meeting(NamedTuple):
    """Ranks that have found each other and not formed a process group yet."""

    world: World
    store: torch.distributed.Store | None
    """What they can write into for each other; None for one process, and where a group was there before."""
    timeout_s: float


def meet_ranks(timeout_s: float = TIMEOUT_S) -> Meeting:
    """Map the launcher's variables, take the device, and wait for the other ranks at the address of rank 0.

    Raises ConfigError for variables that make no world, RankLost where not all ranks come within `timeout_s` seconds.
    """
    world = map_rank_variables()
    device = default_device()
    if device.type == "cpu":
        os.environ["DS_ACCELERATOR"] = "cpu"
    else:
        torch.cuda.set_device(device)
    if world.size == 1 or torch.distributed.is_initialized():
        return Meeting(world, None, timeout_s)
    try:
        store, *_ = next(torch.distributed.rendezvous("env://", timeout=timedelta(seconds=timeout_s)))
    except (torch.distributed.DistError, OSError) as error:
        raise RankLost(
            f"rank {world.rank} of {world.size} on {platform.node()} did not meet all others at "
            f"{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']} within {timeout_s:g} s ({str(error).splitlines()[0]}); "
            "is every host up, is the port open, and do all have the same MASTER_ADDR, MASTER_PORT and WORLD_SIZE?"
        ) from None
    return Meeting(world, store, timeout_s)


def start_ranks(meeting: Meeting | None = None) -> World:
    """Join the process group; without a `meeting`, meet first. One process needs no launcher and no free port."""
    world, store, timeout_s = meeting or meet_ranks()
    timeout = timedelta(seconds=timeout_s)
    device = default_device()
    import deepspeed.comm.comm
    import deepspeed.ops
    from deepspeed.utils import logger

    logger.setLevel(logging.WARNING)
    logger.addFilter(lambda record: "OVERFLOW!" not in record.getMessage())  # the loop says which step, and why
    # DeepSpeed still calls torch's old names, once per parameter and step
    warnings.filterwarnings("ignore", r"`torch.distributed.\w+_tensor` is deprecated", FutureWarning)
    if device.type == "cpu":
        # init_distributed would compile shm_comm with a C++ compiler; only inference_all_reduce uses it.
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
        if "OMP_NUM_THREADS" not in os.environ:
            torch.set_num_threads(max(1, (os.cpu_count() or 1) // int(os.environ.get("LOCAL_WORLD_SIZE", world.size))))
        if world.rank == 0:
            log.info("on the CPU: DeepSpeed's shm_comm op (inference only) is left out, so no C++ compiler is needed")
    if not torch.distributed.is_initialized():
        torch.distributed.init_process_group(
            "nccl" if device.type == "cuda" else "gloo",
            store=store or torch.distributed.HashStore(),  # one process: several may share a machine, and need no port
            rank=world.rank,
            world_size=world.size,
            timeout=timeout,
        )
        deepspeed.init_distributed(auto_mpi_discovery=False, verbose=False, timeout=timeout)
        if world.size == 1:
            atexit.register(
                _leave_group
            )  # a busy machine aborts at exit, now and then, where gloo's threads still live
    # ZeRO talks in groups of its own, which DeepSpeed 0.19 makes with torch's time-out (gloo: 30 min), whatever the world has
    deepspeed.comm.comm.cdb.new_group = functools.partial(torch.distributed.new_group, timeout=timeout)
    return world


def _leave_group() -> None:
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


def stop_ranks(world: World) -> None:
    """Leave the process group where all ranks end together. One process keeps its own: DeepSpeed cannot join another."""
    if world.size > 1:
        torch.distributed.destroy_process_group()


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
