"""Where this rank's float32 master weights lie: read whole, filled from whole tensors, named piece by piece."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, NamedTuple

import torch

if TYPE_CHECKING:
    from deepspeed import DeepSpeedEngine

StateReader = Callable[[str, str], torch.Tensor | None]
"""(parameter name, state) -> that state of the whole parameter, flattened; None where it was never saved."""


class Piece(NamedTuple):
    """A run of elements of one parameter, in this rank's master shards."""

    name: str
    """Name of the parameter."""
    shard: int
    """Index into `MasterShards.masters`."""
    offset: int
    """First element, in the flattened shard."""
    start: int
    """First element, in the flattened parameter."""
    numel: int


class MasterShards:
    """This rank's part of the float32 weights and of Adam's states, whatever the ZeRO stage cut them into.

    Args:
        deepspeed: the engine that cut them.
        optimizer: the torch optimizer inside it.
        stage: its ZeRO stage.
    """

    def __init__(self, deepspeed: DeepSpeedEngine, optimizer: torch.optim.Optimizer, stage: int) -> None:
        self._deepspeed, self._optimizer, self._stage = deepspeed, optimizer, stage

    @property
    def masters(self) -> list[torch.Tensor]:
        """This rank's part of the float32 weights that the optimizer updates, in an order that does not change."""
        if self._stage == 3:
            return list(self._deepspeed.optimizer.fp32_partitioned_groups_flat)
        return [shard for group in self._optimizer.param_groups for shard in group["params"]]

    def pieces(self) -> Iterator[Piece]:
        """Places of each trained parameter's elements in this rank's master shards."""
        if self._stage == 3:
            rank = torch.distributed.get_rank()
            for shard, group in enumerate(self._deepspeed.optimizer.fp16_groups):
                offset = 0
                for parameter in group:
                    part = parameter.partition_numel()
                    numel = max(0, min(part, parameter.ds_numel - rank * part))  # the rest of the last parts is padding
                    yield Piece(self._deepspeed.param_names[parameter], shard, offset, rank * part, numel)
                    offset += part
        elif self._stage > 0:
            for name, parameter in self._deepspeed.module.named_parameters():
                found = getattr(parameter, "_hp_mapping", None)  # None where all of it is other ranks'
                if found is not None:
                    mine, whole = found.hp_fragment_address, found.lp_fragment_address
                    yield Piece(name, found.param_group_index, mine.start, whole.start, whole.numel)
        else:
            names = {id(parameter): name for name, parameter in self._deepspeed.module.named_parameters()}
            for shard, parameter in enumerate(self.masters):
                yield Piece(names[id(parameter)], shard, 0, 0, parameter.numel())

    @torch.no_grad()
    def take_over(self, weights: StateReader, moments: tuple[str, ...]) -> None:
        """Fill master weights, Adam's moments and its step counters from whole tensors by parameter name, on all ranks.

        Hyper-parameters stay those of this engine, group by group, and every shard gets a counter of its own: DeepSpeed's
        load_universal gives all groups those of the first, and all shards one counter, which then runs ahead.
        """
        masters = self.masters
        for master in masters:
            if self._stage > 0:
                master.zero_()
            self._optimizer.state.pop(master, None)
        for piece in self.pieces():
            master = masters[piece.shard]
            state = self._optimizer.state[master]
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
        self.refresh_working_weights()
        self.forget_second_copies()

    def whole_weights(self) -> Iterator[tuple[str, torch.Tensor]]:
        """Each parameter's name and float32 master weight, put together from all ranks, which must ask for it together."""
        import deepspeed
        from deepspeed.utils import safe_get_full_fp32_param

        for name, parameter in self._deepspeed.module.named_parameters():
            if self._stage > 0 and parameter.requires_grad:
                yield name, safe_get_full_fp32_param(parameter)
            else:
                with deepspeed.zero.GatheredParameters([parameter], enabled=self._stage == 3):
                    yield name, parameter.detach().float()

    def _take_over_frozen(self, weights: StateReader) -> None:
        parameter: Any  # DeepSpeed hangs its own things on it
        for name, parameter in self._deepspeed.module.named_parameters():
            saved = None if parameter.requires_grad else weights(name, "fp32")
            if saved is not None and self._stage == 3:
                part = parameter.partition_numel()
                mine = saved[torch.distributed.get_rank() * part :][:part]
                parameter.ds_tensor.data[: mine.numel()].copy_(mine)
            elif saved is not None:
                parameter.copy_(saved.view_as(parameter))

    def refresh_working_weights(self) -> None:
        """From the master weights, as after an update."""
        optimizer = self._deepspeed.optimizer
        if self._stage == 3:
            optimizer.checkpoint_event_prologue()
            for shard in range(len(self.masters)):
                optimizer._reassign_or_swap_out_partitioned_parameters(shard)
            optimizer.checkpoint_event_epilogue()
        elif self._stage > 0:
            optimizer.update_lp_params()

    def forget_second_copies(self) -> None:
        """Call it once weights are loaded: with `zero_hpz_partition_size` frozen ones would go on as they were before.

        Each node then keeps a second copy of what its ranks hold, and passes are gathered from that. DeepSpeed throws it away
        after an update and after loading, but for the parameters that it trains alone (0.19.8: zero/stage3.py:755-759), and
        loads the frozen ones into the first copy (runtime/engine.py:4314-4315). Without a second copy the next pass makes one.
        """
        parameters: list[Any] = list(self._deepspeed.module.parameters())
        if self._stage == 3 and any(parameter.ds_secondary_tensor is not None for parameter in parameters):
            optimizer = self._deepspeed.optimizer
            optimizer.checkpoint_event_prologue()
            for parameter in parameters:
                parameter.ds_secondary_tensor = None
            optimizer.checkpoint_event_epilogue()
