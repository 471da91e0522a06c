"""Cubes, pixels and positions against naive versions and the published table."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from tests.golden_data import golden_json
from vmae2_ds.contracts import ClipGeometry
from vmae2_ds.model.embed import IMAGENET_MEAN, IMAGENET_STD, CubeEmbed, gather_cubes, normalise_pixels, sinusoid_table

GEOMETRY = ClipGeometry(6, 24, 40, 3, 8)  # no two edges alike


def all_cubes(clip_BTHWC: Tensor, geometry: ClipGeometry) -> Tensor:
    """Every cube with a reshape and a permute, (B, N, P)."""
    (t, h, w), p, dt = geometry.grid, geometry.patch, geometry.tubelet
    x = clip_BTHWC.reshape(len(clip_BTHWC), t, dt, h, p, w, p, 3).permute(0, 1, 3, 5, 2, 4, 6, 7)
    return x.reshape(len(clip_BTHWC), geometry.num_cubes, geometry.cube_values)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
def test_gather_cubes_equals_cutting_all_and_choosing(dtype: torch.dtype) -> None:
    clip = torch.randint(0, 256, (2, 6, 24, 40, 3)).to(dtype)
    index = torch.stack([torch.randperm(GEOMETRY.num_cubes)[:7].sort().values for _ in range(2)])
    chosen = gather_cubes(clip, index, GEOMETRY)
    assert chosen.dtype == dtype
    torch.testing.assert_close(chosen, all_cubes(clip, GEOMETRY).take_along_dim(index[..., None], 1), rtol=0, atol=0)


def test_gather_cubes_takes_a_clip_that_is_not_contiguous() -> None:
    clip = torch.randint(0, 256, (1, 3, 6, 24, 40), dtype=torch.uint8).permute(0, 2, 3, 4, 1)
    index = torch.tensor([[0, 3, 29]])
    expected = all_cubes(clip, GEOMETRY)[:, index[0]]
    torch.testing.assert_close(gather_cubes(clip, index, GEOMETRY), expected, rtol=0, atol=0)


def test_normalise_pixels_from_bytes_and_from_unit_floats() -> None:
    cubes = torch.randint(0, 256, (1, 2, GEOMETRY.cube_values), dtype=torch.uint8)
    expected = (cubes.view(1, 2, -1, 3) / 255 - torch.tensor(IMAGENET_MEAN)) / torch.tensor(IMAGENET_STD)
    torch.testing.assert_close(normalise_pixels(cubes), expected.flatten(2))
    torch.testing.assert_close(normalise_pixels(cubes / 255), expected.flatten(2))
    assert normalise_pixels(cubes).dtype == torch.float32


@pytest.mark.parametrize("name", sorted(golden_json("model.json")["sinusoid"]))
def test_sinusoid_table_is_the_published_one(name: str) -> None:
    expected: dict[str, Any] = golden_json("model.json")["sinusoid"][name]
    positions, width = map(int, name.split("x"))
    table = sinusoid_table(positions, width)
    assert table.dtype == torch.float32
    for row, column, value in expected["points"]:
        assert float(table[row, column]) == pytest.approx(value, abs=1e-7)
    assert float(table.double().sum()) == pytest.approx(expected["sum"], rel=1e-6)
    assert float(table.double().norm()) == pytest.approx(expected["l2"], rel=1e-6)


def test_embedding_chosen_cubes_equals_conv3d_then_choosing() -> None:
    embed = CubeEmbed(GEOMETRY, 16)
    torch.nn.init.normal_(embed.proj.weight, std=0.05)
    torch.nn.init.normal_(embed.proj.bias)
    clip = torch.randn(2, 6, 24, 40, 3)
    index = torch.tensor([[1, 4, 28], [0, 17, 29]])
    kernel = embed.proj.weight.view(16, 3, 8, 8, 3).permute(0, 4, 1, 2, 3)
    every = F.conv3d(clip.permute(0, 4, 1, 2, 3), kernel, embed.proj.bias, stride=(3, 8, 8)).flatten(2).mT
    every = every + sinusoid_table(GEOMETRY.num_cubes, 16)
    found = embed(gather_cubes(clip, index, GEOMETRY), index)
    torch.testing.assert_close(found, every.take_along_dim(index[..., None], 1), rtol=1e-4, atol=1e-5)


def test_positions_are_no_part_of_a_checkpoint_and_keep_float32_beside_16_bit_weights() -> None:
    embed = CubeEmbed(GEOMETRY, 16)
    assert set(embed.state_dict()) == {"proj.weight", "proj.bias"}
    for parameter in embed.parameters():  # as DeepSpeed does: parameters only
        parameter.data = torch.zeros_like(parameter, dtype=torch.bfloat16)
    out = embed(torch.zeros(1, 2, GEOMETRY.cube_values), torch.tensor([[3, 5]]))
    assert (embed.positions_ND.dtype, out.dtype) == (torch.float32, torch.bfloat16)
    np.testing.assert_array_equal(out[0].float().detach(), embed.positions_ND[[3, 5]].bfloat16().float())
