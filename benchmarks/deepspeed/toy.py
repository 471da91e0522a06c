"""A model of five layers, its batches, and the plain PyTorch steps that every case is compared with."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import NamedTuple

import torch
from torch import Tensor, nn

SAMPLES, WIDTH, INPUT = 2, 12, 7
"""Samples of a micro batch; odd sizes, so that shards are padded."""
Weights = dict[str, Tensor]


class Batch(NamedTuple):
    """A micro batch of one rank."""

    x: Tensor
    y: Tensor
    switch: Tensor
    """Whether the side layer is used."""

    def to(self, device: torch.device | str) -> Batch:
        return Batch(*(tensor.to(device) for tensor in self))


class Loss(NamedTuple):
    """What a model returns."""

    loss: Tensor


class Toy(nn.Module):
    """Linear layers around a GELU; `tied`: two of them have one weight."""

    def __init__(self, *, tied: bool = False, frozen: str = "", seed: int = 0) -> None:
        super().__init__()
        self.embed, self.hidden = nn.Linear(INPUT, WIDTH), nn.Linear(WIDTH, WIDTH)
        self.again, self.side = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)
        self.head = nn.Linear(WIDTH, 3)
        if tied:
            self.again.weight = self.hidden.weight
        draw = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for parameter in self.parameters():  # values of bf16: both precisions start alike
                parameter.copy_(torch.randn(parameter.shape, generator=draw).mul(0.3).bfloat16())
        if frozen:
            self.get_submodule(frozen).requires_grad_(False)

    def forward(self, batch: Batch) -> Loss:
        """Mean square error of a micro batch."""
        hidden = self.embed(batch.x.to(self.embed.weight.dtype))
        hidden = self.again(torch.nn.functional.gelu(self.hidden(hidden)))
        if batch.switch.item():
            hidden = hidden + self.side(hidden)
        return Loss((self.head(hidden).float() - batch.y).square().mean())


class Dial(nn.Module):
    """A layer whose gradient is exactly what it is shown: its loss is the sum of weight x input."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(INPUT, 1, bias=False)
        with torch.no_grad():
            self.layer.weight.zero_()

    def forward(self, batch: Batch) -> Loss:
        """The sum of weight x input."""
        return Loss(self.layer(batch.x[:1].to(self.layer.weight.dtype)).float().sum())


def batch_of(step: int, micro_step: int, rank: int, *, switch: bool = True) -> Batch:
    """A function of its place alone, in values of bf16."""
    draw = torch.Generator().manual_seed(1000 * step + 10 * micro_step + rank + 1)
    x = torch.randn(SAMPLES, INPUT, generator=draw).bfloat16().float()
    return Batch(x, 2 * torch.randn(SAMPLES, 3, generator=draw), torch.tensor(switch))


def every_rank(step: int, count: int, ranks: int) -> list[list[Batch]]:
    """The micro batches of a step, of each rank."""
    return [[batch_of(step, micro_step, rank) for micro_step in range(count)] for rank in range(ranks)]


OptimizerOf = Callable[[Iterable[tuple[str, Tensor]]], torch.optim.Optimizer]
"""Named parameters -> the optimizer."""


def sgd(named: Iterable[tuple[str, Tensor]]) -> torch.optim.Optimizer:
    """Steps by the gradient itself: what it changes is what DeepSpeed has added up."""
    return torch.optim.SGD([parameter for _, parameter in named if parameter.requires_grad], lr=1.0, fused=True)


def adamw(named: Iterable[tuple[str, Tensor]]) -> torch.optim.Optimizer:
    """Two groups that differ in rate and in weight decay."""
    groups: list[dict] = [
        {"params": [], "lr": 1e-2, "weight_decay": 0.0},
        {"params": [], "lr": 3e-2, "weight_decay": 0.2},
    ]
    for name, parameter in named:
        if parameter.requires_grad:
            groups[name.endswith("weight")]["params"].append(parameter)
    return torch.optim.AdamW(groups, fused=True)


class Plain:
    """Plain PyTorch on one process: float32 masters, gradients added up in float32; in bf16 the model works in bf16."""

    def __init__(self, model: nn.Module, optimizer_of: OptimizerOf, precision: str) -> None:
        self.masters = {name: nn.Parameter(p.detach().clone(), p.requires_grad) for name, p in model.named_parameters()}
        self.model = model.bfloat16() if precision == "bf16" else model
        self.optimizer = optimizer_of(self.masters.items())

    def gradient(self, by_rank: list[list[Batch]], shares: float) -> Weights:
        """The sum over all micro batches, divided by `shares`."""
        total: Weights = {}
        for batch in (batch for batches in by_rank for batch in batches):
            self.model.zero_grad()
            self.model(batch).loss.backward()
            for name, parameter in self.model.named_parameters():
                if parameter.grad is not None:
                    total[name] = total.get(name, 0) + parameter.grad.float() / shares
        return total

    def step(self, by_rank: list[list[Batch]], *, clip: float = 0.0, shares: float | None = None) -> float:
        """One update by the mean over micro batches and ranks. Returns the gradient's norm before it is clipped."""
        found = self.gradient(by_rank, shares or sum(map(len, by_rank)))
        for name, gradient in found.items():
            self.masters[name].grad = gradient
        norm = torch.nn.utils.clip_grad_norm_(self.masters.values(), clip or float("inf"))
        self.optimizer.step()
        self.optimizer.zero_grad()
        with torch.no_grad():
            for name, parameter in self.model.named_parameters():
                parameter.copy_(self.masters[name])
        return float(norm)

    def weights(self) -> Weights:
        """The masters by name."""
        return {name: master.detach().clone() for name, master in self.masters.items()}


def flat(weights: Weights) -> Tensor:
    """All of them as one vector, by name."""
    return torch.cat([weights[name].float().flatten() for name in sorted(weights)])


def moved(before: Weights, after: Weights) -> Tensor:
    """What changed, as one vector: with `sgd` the gradient."""
    return flat(before) - flat(after)
