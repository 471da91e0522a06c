"""Muon for the matrices of transformer blocks, AdamW for all else, on whole weights and on the flat shards of ZeRO 1 and 2.

Momentum is element by element, so a shard keeps its own. Newton-Schulz needs a whole matrix: those that lie across the end of
a shard are put together on each rank that holds a part of one, in one exchange, and the rank keeps its own elements of the
answer. DeepSpeed's own Muon (0.19.8: zero/stage_1_and_2.py:2752-2760) changes gradients before it takes their norm and clips
them, keeps momentum in the gradients' format, and does not split q, k and v.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from math import prod, sqrt
from typing import Any

import torch
from torch import Tensor

from vmae2_ds.config.run import MuonScale
from vmae2_ds.cost.muon import Exchange, MatrixShape, exchange_of, matrices_inside
from vmae2_ds.errors import ConfigError

SHAPES = "muon_shapes"
"""Key of a group of the optimizer: shapes of its matrices, end to end; empty where the group is AdamW's."""
SCALES: dict[MuonScale, Callable[[int, int], float]] = {
    "match_rms_adamw": lambda rows, columns: 0.2 * sqrt(max(rows, columns)),
    "original": lambda rows, columns: sqrt(max(1, rows / columns)),
}
"""What an orthogonal matrix of so many rows (outputs) and columns (inputs) is multiplied by, as torch.optim.Muon has it."""


def check_muon() -> None:
    """Raises ConfigError where torch has no Muon."""
    if not hasattr(torch.optim, "Muon"):
        raise ConfigError(
            f"--optim.optimizer muon needs torch 2.9 or newer, and this is {torch.__version__}; "
            "install one, or leave it at adamw"
        )


class MuonAndAdamW(torch.optim.AdamW):
    """torch's fused AdamW, and torch's Muon for groups that name matrices.

    Args:
        groups: with `muon_shapes` and `params`: matrices whose rows are those shapes' one below the other, or at ZeRO 1 and 2
            this rank's equal part of all of them end to end, with padding behind the last.
        momentum: Muon's; Nesterov's, as torch has it.
        scale: one of SCALES.
    """

    def __init__(
        self, groups: list[dict[str, Any]], *, betas: tuple[float, float], eps: float, momentum: float, scale: MuonScale
    ) -> None:
        super().__init__(groups, lr=0.0, betas=betas, eps=eps, fused=True)
        self._momentum, self._scale = momentum, SCALES[scale]

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> None:  # type: ignore[override]
        """One update of all groups; none at all where `found_inf` is set, as fused AdamW has it."""
        assert closure is None, "gradients are there"
        groups = self.param_groups
        self.param_groups = [group for group in groups if not group[SHAPES]]
        try:
            super().step()
        finally:
            self.param_groups = groups
        if getattr(self, "found_inf", None) is None:
            for group in groups:
                if group[SHAPES]:
                    self._step_matrices(group)

    def _step_matrices(self, group: dict[str, Any]) -> None:
        rate, left = group["lr"], list(group[SHAPES])
        for parameter in group["params"]:
            is_shard = parameter.ndim == 1
            shapes = tuple(left) if is_shard else _first_of(left, parameter.numel())
            if parameter.grad is None:
                continue
            rank, size = (torch.distributed.get_rank(), torch.distributed.get_world_size()) if is_shard else (0, 1)
            direction = self._direction(parameter).flatten()
            parameter.mul_(1 - rate * group["weight_decay"])
            for shape, offset, values in orthogonal_pieces(direction, shapes, rank, size):
                parameter.view(-1)[offset : offset + len(values)].add_(values, alpha=-rate * self._scale(*shape))

    def _direction(self, parameter: Tensor) -> Tensor:
        """Nesterov's look ahead, as torch's Muon has it."""
        state, grad = self.state[parameter], parameter.grad
        assert grad is not None
        if not state:
            state["step"] = torch.zeros((), dtype=torch.float32, device=parameter.device)
            state["momentum_buffer"] = torch.zeros_like(grad)
        state["step"] += 1
        state["momentum_buffer"].lerp_(grad, 1 - self._momentum)
        return grad.lerp(state["momentum_buffer"], self._momentum)


def _first_of(shapes: list[MatrixShape], numel: int) -> tuple[MatrixShape, ...]:
    """Take those that fill so many elements off the front."""
    taken = []
    while numel > 0:
        taken.append(shapes.pop(0))
        numel -= prod(taken[-1])
    assert numel == 0, f"{taken} are not the matrices of a parameter"
    return tuple(taken)


def orthogonal_pieces(
    part: Tensor, shapes: tuple[MatrixShape, ...], rank: int, size: int
) -> Iterator[tuple[MatrixShape, int, Tensor]]:
    """The matrices of which this rank has elements, made orthogonal: shape, offset in `part`, this rank's elements flat.

    Args:
        part: (n,) this rank's part of all matrices end to end; what is behind the last one is padding.
        shapes: of all matrices, in order.
        rank, size: this rank, and how many have such a part. All of them call it together.
    """
    mine = rank * len(part)
    exchange = exchange_of(shapes, len(part), rank, size)
    whole = _put_together(part, exchange, rank)
    for shape, first, last in matrices_inside(shapes, exchange.start, exchange.stop):
        matrix = whole[first - exchange.start : last - exchange.start].view(shape)
        start, stop = max(first, mine), min(last, mine + len(part))
        yield shape, start - mine, _orthogonal(matrix).flatten()[start - first : stop - first]


def _put_together(part: Tensor, exchange: Exchange, rank: int) -> Tensor:
    """The elements between `exchange.start` and `exchange.stop`, of all ranks' parts."""
    mine = rank * len(part)
    own = part[: max(0, exchange.stop - mine)]
    if not exchange.is_needed:
        return own
    sent = torch.cat([part[:0], *(part[first - mine : last - mine] for first, last in exchange.asked if first < last)])
    received = part.new_empty(sum(exchange.comes))
    asked = [last - first for first, last in exchange.asked]
    torch.distributed.all_to_all_single(received, sent, list(exchange.comes), asked)
    before = sum(exchange.comes[:rank])
    return torch.cat([received[:before], own, received[before:]])


def _orthogonal(matrix: Tensor) -> Tensor:
    """What torch's Muon moves a matrix of zeros by at a rate of 1: its Newton-Schulz, in bfloat16, as float32 or what comes in.

    Its scale, which is 1 where there are no more rows than columns, is left out: so the wide form is what it gets.
    """
    is_tall = matrix.shape[0] > matrix.shape[1]
    wide = matrix.T if is_tall else matrix
    moved = torch.nn.Parameter(torch.zeros_like(wide))
    moved.grad = -wide
    torch.optim.Muon([moved], lr=1.0, weight_decay=0.0, momentum=0.0, nesterov=False).step()
    found = moved.detach()
    return found.T if is_tall else found
