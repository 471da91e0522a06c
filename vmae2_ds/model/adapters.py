"""Temporal adapters after some blocks of a frozen encoder, which let the clips of a long window learn of each other.

A window of frames is cut into clips; each goes through the frozen blocks by itself, and the adapters alone reach over the
borders between them (AdaTAD, arXiv 2311.17241, docs/PAPER.md#temporal-adapters). Nothing here knows of detection.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from itertools import islice
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from vmae2_ds.config.adapters import AdapterConfig
from vmae2_ds.config.model import EncoderConfig
from vmae2_ds.contracts import ClipGeometry
from vmae2_ds.model.attention import get_attention
from vmae2_ds.model.block import CheckpointFn
from vmae2_ds.model.embed import Linear, every_cube, normalise_pixels
from vmae2_ds.model.encoder import Encoder
from vmae2_ds.model.seeded import SeededModel

# B windows of F frames and T steps (F / tubelet), C = B * F / num_frames clips of N = steps * S tokens, S cells of a step,
# D width of the encoder, H width of an adapter.

KERNEL = 3
"""Steps that the convolution over time sees."""
WEIGHT_STD = 0.02


class StepConv(nn.Module):
    """Depth-wise convolution over time, zeros beyond both ends. It owns its weights, as ZeRO-3's hooks need it."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(width, 1, KERNEL))
        self.bias = nn.Parameter(torch.empty(width))

    def forward(self, x_BTSH: Tensor) -> Tensor:
        """(B, T, S, H) -> (B, T, S, H)."""
        x_BHTS = x_BTSH.permute(0, 3, 1, 2)  # no copy: torch's channels last
        padding = (KERNEL // 2, 0)
        y_BHTS = F.conv2d(x_BHTS, self.weight[..., None], self.bias, padding=padding, groups=len(self.bias))
        return y_BHTS.permute(0, 2, 3, 1)


class AcrossSteps(nn.Module):
    """What an adapter does behind its first projection, over a whole window: gamma * up(h + conv(dwconv(h))), h = GELU."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.dwconv = StepConv(hidden)
        self.conv = Linear(hidden, hidden)
        self.up = Linear(hidden, width)
        self.gamma = nn.Parameter(torch.empty(1))

    def forward(self, down_BTSH: Tensor) -> Tensor:
        """(B, T, S, H) -> (B, T, S, D)."""
        h_BTSH = F.gelu(down_BTSH)
        return self.gamma * self.up(h_BTSH + self.conv(self.dwconv(h_BTSH)))


class TemporalAdapter(nn.Module):
    """x + gamma * up(h + conv(dwconv(h))), h = GELU(down(x)); the identity at first, since `up` starts at zero.

    In two parts, because the first can be computed clip by clip, and the second needs all clips of a window.
    """

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.down = Linear(width, hidden)
        self.across = AcrossSteps(width, hidden)

    def forward(self, x_BTSD: Tensor) -> Tensor:
        """(B, T, S, D) -> (B, T, S, D)."""
        return x_BTSD + self.across(self.down(x_BTSD))


def draw_adapter(name: str, values: Tensor, rng: torch.Generator) -> None:
    """Draw a parameter of an adapter, by the last parts of its name, into `values`, which are zeros; biases and `up` stay so.

    Published (docs/PAPER.md#temporal-adapters): down 0.02, cut at 2; dwconv sqrt(2 / 3), conv sqrt(2 / H); gamma 1.
    """
    layer, kind = name.rsplit(".", 2)[-2:]
    if kind == "gamma":
        values.fill_(1)
    elif kind == "weight" and layer == "down":
        nn.init.trunc_normal_(values, std=WEIGHT_STD, generator=rng)
    elif kind == "weight" and layer in ("dwconv", "conv"):
        values.normal_(std=math.sqrt(2 / values.shape[1:].numel()), generator=rng)


class AdaptedEncoder(SeededModel):
    """A frozen encoder with adapters that learn: windows of frames in, features over time out.

    Which parameters learn is settled here: `encoder` has no gradients. A subclass adds what is on top, and draws it.

    What is kept for the backward pass, in the weights' dtype, where `first` is the number of the first block with an adapter,
    for C clips of N tokens:

    - (C, N, D) once for each block from `first` on: what block `first` puts out, and what goes into each block behind it;
    - (C, N, H) once for each adapter: its first projection, in front of the GELU;
    - nothing of the embedding and of blocks 0 to `first`, which run without a graph.

    All else is computed again in the backward pass: a block on `clips_at_once` clips at a time, an adapter's second part on
    all of them. The kept projection saves what would be a third pass through the block: clips are computed again one after
    another, and the adapter's gradient needs all of them before the first.
    """

    def __init__(
        self, config: EncoderConfig, geometry: ClipGeometry, adapters: AdapterConfig, seed: int | None = 0
    ) -> None:
        """`geometry` is of a clip; `seed=None` leaves the weights undrawn."""
        super().__init__(geometry)
        width = config.encoder.width
        numbers = adapters.numbers(config.encoder.depth)
        self.clips_at_once = adapters.clips_at_once
        self.encoder = Encoder(config, geometry, final_norm=False).requires_grad_(False)
        self.adapters = nn.ModuleDict({str(i): TemporalAdapter(width, adapters.hidden(width)) for i in numbers})
        self.use_attention("sdpa" if config.attention == "auto" else config.attention)
        self.checkpoint: CheckpointFn = partial(checkpoint, use_reentrant=False)
        if seed is not None:
            self.init_weights(seed)

    def forward(self, window_BFHWC: Tensor, length: int | None = None) -> Tensor:
        """Windows of whole clips, uint8 or in [0, 1] -> the mean token of each step (B, T, D), or where `length` is given
        interpolated linearly to that many positions, with their middles aligned as published."""
        steps = self.geometry.grid[0]
        x_BTSD = self.tokens(window_BFHWC).unflatten(1, (steps, -1)).unflatten(0, (len(window_BFHWC), -1)).flatten(1, 2)
        x_BTD = x_BTSD.mean(dim=2)
        if length in (None, x_BTD.shape[1]):
            return x_BTD
        return F.interpolate(x_BTD.mT, size=length, mode="linear", align_corners=False).mT

    def tokens(self, window_BFHWC: Tensor) -> Tensor:
        """Windows of whole clips -> every token behind the last block and adapter, clip by clip (C, N, D)."""
        num_windows, blocks = len(window_BFHWC), self.encoder.blocks
        clip_CFHWC = window_BFHWC.reshape(-1, self.geometry.num_frames, *window_BFHWC.shape[2:])
        first = min(map(int, self.adapters), default=len(blocks) - 1)
        with torch.no_grad():
            x_CND = torch.cat([self._before(clips, first) for clips in clip_CFHWC.split(self.clips_at_once)])
        if (adapter := self.adapter_of(first)) is not None:
            x_CND = self._across(adapter, x_CND, adapter.down(x_CND), num_windows)
        for number in range(first + 1, len(blocks)):
            x_CND = self._block(number, x_CND, num_windows)
        return x_CND

    def adapter_of(self, number: int) -> TemporalAdapter | None:
        """What comes after a block; None where nothing does."""
        if str(number) not in self.adapters:
            return None
        adapter = self.adapters[str(number)]
        assert isinstance(adapter, TemporalAdapter), "all that is in adapters"
        return adapter

    def use_attention(self, encoder: str) -> None:
        """Name the kernel. ConfigError as `get_attention`."""
        self.encoder.blocks.use_attention(get_attention(encoder))

    def use_checkpoint_function(self, function: CheckpointFn) -> None:
        """Compute again through `function(f, x)`."""
        self.checkpoint = function

    def draw(self, name: str, values: Tensor, rng: torch.Generator) -> None:
        """Adapters as `draw_adapter`; the encoder's weights, where none are loaded, as published (std 0.02)."""
        if name.startswith("adapters."):
            draw_adapter(name, values, rng)
        elif name.endswith(".weight"):
            nn.init.trunc_normal_(values, std=WEIGHT_STD, generator=rng)

    def _before(self, clip_CFHWC: Tensor, last: int) -> Tensor:
        """Embedding and blocks 0 to `last` on some clips."""
        cubes_CNP = normalise_pixels(every_cube(clip_CFHWC, self.geometry))
        places_CN = torch.arange(self.geometry.num_cubes, device=cubes_CNP.device).expand(len(cubes_CNP), -1)
        x_CND = self.encoder.embed(cubes_CNP, places_CN)
        for block in islice(self.encoder.blocks, last + 1):
            x_CND = block(x_CND)
        return x_CND

    def _block(self, number: int, x_CND: Tensor, num_windows: int) -> Tensor:
        """A block, some clips at a time, and its adapter, if it has one, over the windows."""
        block, chunks = self.encoder.blocks[number], x_CND.split(self.clips_at_once)
        adapter = self.adapter_of(number)
        if adapter is None:
            return torch.cat([self._again(block, chunk) for chunk in chunks])

        def both(x_CND: Tensor) -> tuple[Tensor, Tensor]:
            y_CND = block(x_CND)
            return y_CND, adapter.down(y_CND)

        done = [self._again(both, chunk) for chunk in chunks]
        y_CND, down_CNH = (torch.cat(parts) for parts in zip(*done, strict=True))
        return self._across(adapter, y_CND, down_CNH, num_windows)

    def _across(self, adapter: TemporalAdapter, y_CND: Tensor, down_CNH: Tensor, num_windows: int) -> Tensor:
        """y + what the adapter makes of its first projection. Tokens lie in the order of time, so a window is a view."""
        cells = math.prod(self.geometry.grid[1:])
        z_BTSD = self._again(adapter.across, down_CNH.reshape(num_windows, -1, cells, down_CNH.shape[-1]))
        return y_CND + z_BTSD.view_as(y_CND)

    def _again(self, function: Callable[[Tensor], Any], x: Tensor) -> Any:
        """function(x), of which nothing but x is kept where there is a graph."""
        return self.checkpoint(function, x) if torch.is_grad_enabled() else function(x)
