"""First weights as a function of a seed and of the parameters' names alone."""

from __future__ import annotations

import zlib
from abc import abstractmethod

import torch
from torch import Tensor, nn

from vmae2_ds.contracts import ClipGeometry


class SeededModel(nn.Module):
    """A model that draws each parameter from (seed, name); a subclass says how in `draw`."""

    def __init__(self, geometry: ClipGeometry) -> None:
        super().__init__()
        self.geometry = geometry

    @abstractmethod
    def draw(self, name: str, values: Tensor, rng: torch.Generator) -> None:
        """Draw what is neither a norm nor the embedding into `values`, which are zeros."""

    @torch.no_grad()
    def init_weights(self, seed: int) -> None:
        """Draw every parameter; the result depends on the seed and the parameters' names alone."""
        for name, parameter in self.named_parameters():
            self.init_parameter(name, parameter, seed)

    @torch.no_grad()
    def init_parameter(self, name: str, parameter: Tensor, seed: int) -> None:
        """Draw one parameter in place.

        Drawn in float32 on the CPU from (seed, name) and cast, so that neither the order, nor the device, the precision
        or the ZeRO stage matters. `parameter` must have its full shape: gather it first where it is partitioned.
        """
        layer, _, kind = name.rpartition(".")
        if "norm" in layer.rpartition(".")[2]:
            parameter.fill_(1.0 if kind == "weight" else 0.0)
            return
        values = torch.zeros(parameter.shape, dtype=torch.float32, device="cpu")
        rng = torch.Generator().manual_seed(zlib.crc32(f"{seed} {name}".encode()))
        if layer == "encoder.embed.proj":
            # the default of the published Conv3d, whose fan-in is a cube, for weight and bias
            bound = self.geometry.cube_values**-0.5
            values.uniform_(-bound, bound, generator=rng)
        else:
            self.draw(name, values, rng)
        parameter.copy_(values)
