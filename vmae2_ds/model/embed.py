"""From pixels to tokens: gathering cubes, normalising pixels, positions, and the cube embedding."""

from __future__ import annotations

import math
from functools import partial

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vmae2_ds.config.model import ClassifierConfig, EncoderConfig
from vmae2_ds.contracts import ClipGeometry
from vmae2_ds.errors import ConfigError
from vmae2_ds.model.kept import once_per_device

# B clips, T frames, H x W pixels, C = 3 colours, N cubes, V of them chosen, D width.
# P = tubelet * patch * patch * 3 values in a cube, always in the order t, h, w, c, as they lie in the clip.

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


def gather_cubes(clip_BTHWC: Tensor, index_BV: Tensor, geometry: ClipGeometry) -> Tensor:
    """Cut out the cubes named by `index_BV`, in the clip's dtype: (B, V, P).

    Only the wanted cubes are read. A cube is tubelet * patch runs of patch * 3 neighbouring values, and copying whole
    runs is about 4x faster on a CPU than indexing a 7-D view (0.12 against 0.53 ms for 2 x 160 cubes of 16 x 224 x 224;
    `python -m benchmarks run embed`, group gather).
    """
    num_clips, num_chosen = index_BV.shape
    first_BV = _first_runs(geometry, like=index_BV).take(index_BV)
    run_BVL = first_BV[..., None] + _further_runs(geometry, num_clips, like=index_BV)
    runs = clip_BTHWC.reshape(-1, geometry.patch * 3)
    return runs.index_select(0, run_BVL.flatten()).view(num_clips, num_chosen, geometry.cube_values)


# Runs are numbered as a clip lies in memory: (clip, step, frame in step, row, line in row, column).


@once_per_device
def _first_runs(geometry: ClipGeometry, device: torch.device) -> Tensor:
    """The first run of each cube, in the first clip: (N,) int64."""
    steps, rows, columns = geometry.grid
    step_first = torch.arange(steps, device=device)[:, None, None] * (
        geometry.tubelet * rows * geometry.patch * columns
    )
    row_first = torch.arange(rows, device=device)[:, None] * (geometry.patch * columns)
    return (step_first + row_first + torch.arange(columns, device=device)).flatten()


@once_per_device
def _further_runs(geometry: ClipGeometry, num_clips: int, device: torch.device) -> Tensor:
    """What to add to a cube's first run for all of its L runs, and for its clip: (B, 1, L) int64."""
    steps, rows, columns = geometry.grid
    per_frame = rows * geometry.patch * columns
    clip_first = torch.arange(num_clips, device=device)[:, None, None] * (steps * geometry.tubelet * per_frame)
    frame_first = torch.arange(geometry.tubelet, device=device)[:, None] * per_frame
    line_first = torch.arange(geometry.patch, device=device) * columns
    return clip_first + (frame_first + line_first).flatten()


def every_cube(clip_BTHWC: Tensor, geometry: ClipGeometry) -> Tensor:
    """All cubes in order, in the clip's dtype: (B, N, P)."""
    steps, rows, columns = geometry.grid
    split = (len(clip_BTHWC), steps, geometry.tubelet, rows, geometry.patch, columns, geometry.patch, 3)
    return (
        clip_BTHWC.reshape(split).permute(0, 1, 3, 5, 2, 4, 6, 7).reshape(-1, geometry.num_cubes, geometry.cube_values)
    )


def unit_pixels(cubes_BVP: Tensor) -> Tensor:
    """uint8, or floats already in [0, 1], as float32 in [0, 1]."""
    return cubes_BVP.float() / 255 if cubes_BVP.dtype == torch.uint8 else cubes_BVP.float()


def normalise_pixels(cubes_BVP: Tensor) -> Tensor:
    """Subtract ImageNet's mean and divide by its deviation per colour: uint8 or [0, 1] in, float32 out."""
    if cubes_BVP.dtype != torch.uint8:
        cubes_BVP = cubes_BVP.float()
    one = 255 if cubes_BVP.dtype == torch.uint8 else 1
    scale = tuple(1 / (one * std) for std in IMAGENET_STD)
    shift = tuple(-mean / std for mean, std in zip(IMAGENET_MEAN, IMAGENET_STD, strict=True))
    num_pixels = cubes_BVP.shape[-1] // 3
    scale_P, shift_P = (_by_colour(value, num_pixels, like=cubes_BVP) for value in (scale, shift))
    return torch.addcmul(shift_P, cubes_BVP, scale_P)  # one pass, from uint8 too


@once_per_device
def _by_colour(values: tuple[float, float, float], num_pixels: int, device: torch.device) -> Tensor:
    """These values again and again: (P,) float32."""
    # Filled on the device: torch.tensor(values, device="cuda") would copy from the host and wait.
    return torch.cat([torch.full((1,), value, device=device) for value in values]).repeat(num_pixels)


def sinusoid_table(num_positions: int, width: int) -> Tensor:
    """Fixed positions (num_positions, width), float32 from float64: sine in even channels, cosine in odd, base 10000.

    One dimension over the flattened t, h, w index, as published (arXiv 1706.03762 section 3.5; docs/PAPER.md#numerics).
    """
    # numpy, because zero.Init turns the results of torch's constructors into 16 bit.
    rate = 10000.0 ** (-2 * (np.arange(width) // 2) / width)
    angle = np.arange(num_positions)[:, None] * rate
    angle[:, 0::2] = np.sin(angle[:, 0::2])
    angle[:, 1::2] = np.cos(angle[:, 1::2])
    table = torch.from_numpy(angle.astype(np.float32))
    # Onto the device of a `with torch.device(...)`, like the weights; but not onto meta, where its values would be lost.
    device = torch.get_default_device()
    return table if device.type == "meta" else table.to(device)


def position_table(geometry: ClipGeometry, width: int, built_for: ClipGeometry | None = None) -> Tensor:
    """The sinusoid table of this clip, or that of another clip interpolated to this one's grid: (N, D) float32.

    Interpolation is trilinear over (time, height, width) with the cells' middles aligned. Rebuilding is what the published
    code does, and numbers positions again: a row of a wider grid is longer, so place (t, h, w) gets another value than the
    weights learned. Interpolating keeps what they learned of each part of the picture.
    """
    if built_for is None or built_for.grid == geometry.grid:
        return sinusoid_table(geometry.num_cubes, width)
    learned_NDTHW = sinusoid_table(built_for.num_cubes, width).T.reshape(1, width, *built_for.grid)
    fitted_NDTHW = F.interpolate(learned_NDTHW, size=geometry.grid, mode="trilinear", align_corners=False)
    return fitted_NDTHW[0].flatten(1).T.contiguous()


TABLES_KEPT = 8
"""Positions of so many sizes of pictures stay on a device: for ViT-g each is some 30 MB, and a set such as Kinetics has a
hundred sizes."""


@partial(once_per_device, most=TABLES_KEPT)
def table_of_picture(built_for: ClipGeometry, geometry: ClipGeometry, width: int, device: torch.device) -> Tensor:
    """The sinusoid table of one clip, resized to the rows and columns of another of any height and width: (N, D) float32.

    Bicubic, each step in time by itself, as VideoMAE-AD does it (docs/PAPER.md#spatial-detection); where the number of steps
    differs too, linear in time, the cells' middles aligned.
    """
    steps, rows, columns = geometry.grid
    table_THWD = sinusoid_table(built_for.num_cubes, width).reshape(*built_for.grid, width)
    if built_for.grid[1:] != (rows, columns):
        table_THWD = _bicubic(table_THWD, rows, columns)
    table_TX = table_THWD.flatten(1)
    if built_for.grid[0] != steps:
        table_TX = F.interpolate(table_TX.T[None], size=steps, mode="linear", align_corners=False)[0].T
    return table_TX.reshape(-1, width).to(device)


def _bicubic(table_THWD: Tensor, rows: int, columns: int) -> Tensor:
    """(T, H, W, D) -> (T, rows, columns, D), step by step."""
    size = rows, columns
    resized_TDHW = F.interpolate(table_THWD.permute(0, 3, 1, 2), size=size, mode="bicubic", align_corners=False)
    return resized_TDHW.permute(0, 2, 3, 1)


PUBLISHED_FRAMES, PUBLISHED_SIZE = 16, 224
"""The clip that the published fine-tuning script takes every position table to be of."""


def is_resized(config: EncoderConfig) -> bool:
    """Whether a model has `published_resize` for its positions."""
    return isinstance(config, ClassifierConfig) and config.positions == "published_resize"


def published_resize(geometry: ClipGeometry, width: int) -> Tensor:
    """What the published fine-tuning script puts in place of this clip's sinusoid table: (N, D) float32.

    It resizes a table as if it were of 16 frames, but that table is already of the new clip (run_class_finetuning.py:634-674,
    docs/PAPER.md#what-we-do-otherwise). For 64 frames of 266 the 32 x 19 x 19 rows are read as 8 x 38 x 38, a view in which
    neighbours are none; shrunk to 8 x 19 x 19 (bicubic) and stretched to 32 x 19 x 19 (linear). For 16 frames nothing changes,
    at any size.

    Raises ConfigError for clips that the script fails on. It works for 16 frames, and at other sizes than 224 for 64 and 144.
    """
    steps, rows, columns = geometry.grid
    table_ND = sinusoid_table(geometry.num_cubes, width)
    thought = PUBLISHED_FRAMES // geometry.tubelet
    if geometry.height != PUBLISHED_SIZE:
        table_ND = _bicubic(_as_square(table_ND, thought, geometry), rows, columns).flatten(0, 2)
    if geometry.num_frames != PUBLISHED_FRAMES:
        view_XT = _as_square(table_ND, thought, geometry).flatten(1).T[None]
        table_ND = F.interpolate(view_XT, size=steps, mode="linear")[0].T.reshape(-1, width)
    if len(table_ND) != geometry.num_cubes:
        raise ConfigError(_not_published(geometry))
    return table_ND.contiguous()


def _as_square(table_ND: Tensor, steps: int, geometry: ClipGeometry) -> Tensor:
    """(N, D) -> (steps, edge, edge, D), whatever the rows are."""
    edge = math.isqrt(len(table_ND) // steps) if steps else 0
    if steps * edge * edge != len(table_ND):
        raise ConfigError(_not_published(geometry))
    return table_ND.reshape(steps, edge, edge, -1)


def _not_published(geometry: ClipGeometry) -> str:
    return (
        f"positions=published_resize: the published script fails on clips of {geometry.num_frames} frames of "
        f"{geometry.height}x{geometry.width}, so no weights of it have them; leave it out"
    )


def positions_at(table_ND: Tensor, index_BV: Tensor, dtype: torch.dtype) -> Tensor:
    """Rows of a position table, cast after the gather: (B, V, D)."""
    return F.embedding(index_BV, table_ND).to(dtype)


class CubeEmbed(nn.Module):
    """Linear projection of cubes plus fixed positions; a Conv3d with kernel = stride, on the chosen cubes only."""

    def __init__(
        self, geometry: ClipGeometry, width: int, positions_from: ClipGeometry | None = None, *, resized: bool = False
    ) -> None:
        super().__init__()
        self.proj = Linear(geometry.cube_values, width)  # weight (D, P): the published Conv3d's, in t, h, w, c order
        table_ND = published_resize(geometry, width) if resized else position_table(geometry, width, positions_from)
        self.register_buffer("positions_ND", table_ND, persistent=False)
        self.positions_ND: Tensor

    def forward(self, cubes_BVP: Tensor, index_BV: Tensor, positions_ND: Tensor | None = None) -> Tensor:
        """Normalised cubes (B, V, P) and their places (B, V) to tokens (B, V, D) in the weights' dtype.

        `positions_ND`: in place of its own table, for clips of another height and width.
        """
        x_BVD = self.proj(cubes_BVP.to(self.proj.weight.dtype))
        table_ND = self.positions_ND if positions_ND is None else positions_ND
        return x_BVD + positions_at(table_ND, index_BV, x_BVD.dtype)


class Linear(nn.Linear):
    """nn.Linear that leaves its weights undrawn: `init_weights` of the whole model draws them, not the global seed."""

    def reset_parameters(self) -> None:
        """Do nothing."""
