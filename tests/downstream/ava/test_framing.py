"""Pixels and boxes of a clip move alike: torchvision moves the boxes the same way, and a painted person is found in its box."""

from __future__ import annotations

import colorsys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torchvision import tv_tensors
from torchvision.transforms.v2 import functional

from tests.downstream.ava.made_up import ava_config
from vmae2_ds.config.ava import AvaDataConfig
from vmae2_ds.downstream.ava.framing import Framing, Shade, draw, is_left, jittered, shaded, whole

MEAN = (124, 116, 104)
"""The mean colour of ImageNet in grey levels (0.485, 0.456, 0.406 of 255)."""


def settings(**data: Any) -> AvaDataConfig:
    return ava_config(Path("somewhere"), **data).data


def framings(height: int, width: int, box_G4: np.ndarray, times: int = 12) -> list[Framing]:
    """Drawn ones, of which half are mirrored, and a test's."""
    rng = np.random.default_rng(0)
    data = settings(size=96, short_side=(100, 150), flip=0.5)
    return [draw(height, width, data, box_G4, rng) for _ in range(times)] + [whole(height, width, 112, 16)]


@pytest.mark.parametrize(("height", "width"), [(180, 320), (320, 180), (128, 128), (101, 163)])
def test_boxes_move_as_torchvision_moves_them(height: int, width: int) -> None:
    rng = np.random.default_rng(1)
    corner_G22 = np.sort(rng.random((6, 2, 2)), axis=1)
    box_G4 = corner_G22.reshape(6, 4)
    pixels = torch.from_numpy(box_G4 * [width, height, width, height]).float()
    seen = set()
    for framing in framings(height, width, box_G4):
        boxes = tv_tensors.BoundingBoxes(pixels, format="XYXY", canvas_size=(height, width))  # type: ignore[call-arg]
        boxes = functional.resize(boxes, [min(framing.resized)])
        assert boxes.canvas_size == framing.resized
        boxes = functional.crop(boxes, framing.top, framing.left, *framing.cut)
        boxes = functional.clamp_bounding_boxes(boxes)
        if framing.is_flipped:
            boxes = functional.horizontal_flip(boxes)
        np.testing.assert_allclose(framing.boxes(box_G4), boxes.numpy(), atol=1e-3)
        seen.add(framing.is_flipped)
    assert seen == {True, False}


@pytest.mark.parametrize(("height", "width"), [(180, 320), (320, 180), (101, 163)])
def test_a_painted_person_is_found_where_its_box_says_to_a_pixel(height: int, width: int) -> None:
    x1, y1, x2, y2 = width // 3, height // 5, width // 2, height // 2
    frames = torch.full((2, height, width, 3), 20, dtype=torch.uint8)
    frames[:, y1:y2, x1:x2] = torch.tensor([20, 220, 20], dtype=torch.uint8)
    box_G4 = np.array([[x1 / width, y1 / height, x2 / width, y2 / height]])
    for framing in framings(height, width, box_G4):
        clip = framing.clip(frames)
        assert clip.shape[1:3] == (framing.padded or framing.cut)
        assert clip.is_contiguous()
        is_green = (clip[1, ..., 1] > 120) & (clip[1, ..., 0] < 80)
        rows, columns = np.nonzero(is_green.any(1).numpy())[0], np.nonzero(is_green.any(0).numpy())[0]
        found = [columns[0], rows[0], columns[-1] + 1, rows[-1] + 1]
        np.testing.assert_allclose(framing.boxes(box_G4)[0], found, atol=1)


@pytest.mark.parametrize("patch", [14, 16])
def test_a_test_sees_the_whole_picture_filled_up_to_multiples_of_the_patch(patch: int) -> None:
    frames = torch.randint(0, 255, (1, 90, 160, 3), dtype=torch.uint8)
    framing = whole(90, 160, 90, patch)
    clip = framing.clip(frames)
    assert clip.shape[1] % patch == clip.shape[2] % patch == 0
    assert clip.shape[1] - 90 < patch
    assert torch.equal(clip[:, :90, :160], frames), "nothing to resize"
    filled = torch.cat([clip[:, 90:].reshape(-1, 3), clip[:, :, 160:].reshape(-1, 3)])
    assert {tuple(pixel) for pixel in filled.tolist()} == {MEAN}
    assert framing.boxes(np.array([[0.0, 0.0, 1.0, 1.0]])).tolist() == [[0, 0, 160, 90]]


def test_a_square_always_shows_somebody_and_lies_anywhere() -> None:
    rng = np.random.default_rng(0)
    data = settings(size=96, short_side=(100, 100), flip=0.5)
    corner = np.array([[0.97, 0.97, 1.0, 1.0]])
    for _ in range(100):
        assert is_left(draw(100, 400, data, corner, rng).boxes(corner)).any()
    whole_picture = np.array([[0.0, 0.0, 1.0, 1.0]])
    drawn = [draw(100, 400, data, whole_picture, rng) for _ in range(400)]
    assert {framing.top for framing in drawn} == set(range(5))
    lefts = [framing.left for framing in drawn]
    assert min(lefts) <= 6
    assert max(lefts) >= 298
    assert abs(np.mean([framing.is_flipped for framing in drawn]) - 0.5) < 0.1


def test_what_is_cut_off_lies_on_the_edge_and_less_than_a_pixel_is_nobody() -> None:
    framing = Framing((100, 200), 10, 50, (80, 80))
    box_G4 = np.array([[0.0, 0.0, 0.3, 0.5], [0.0, 0.0, 0.25, 0.5], [0.0, 0.0, 0.253, 0.5], [0.4, 0.95, 0.5, 1.0]])
    boxes = framing.boxes(box_G4)
    np.testing.assert_allclose(boxes[:3], [[0, 0, 10, 40], [0, 0, 0, 40], [0, 0, 0.6, 40]])
    assert is_left(boxes).tolist() == [True, False, False, False]


def test_edges_are_moved_by_no_more_than_the_published_parts_and_never_out_of_the_clip() -> None:
    rng = np.random.default_rng(0)
    box_G4 = np.tile([[40.0, 30.0, 60.0, 70.0]], (4000, 1))
    moved = jittered(box_G4, (0.2, 0.1, 0.1, 0.05), (100, 100), rng) - box_G4
    # 20 wide and 40 high: left edge 4 out and 2 in, upper edge 4 out and 2 in, and the same on the other sides
    np.testing.assert_allclose(moved.min(axis=0), [-4, -4, -2, -2], atol=0.05)
    np.testing.assert_allclose(moved.max(axis=0), [2, 2, 4, 4], atol=0.05)
    assert np.abs(np.corrcoef(moved.T) - np.eye(4)).max() < 0.1, "each edge by itself"
    at_the_edge = jittered(np.tile([[0.0, 0.0, 2.0, 100.0]], (500, 1)), (0.2, 0.9, 0.1, 0.9), (100, 100), rng)
    assert at_the_edge.min() >= 0
    assert at_the_edge.max() <= 100
    assert (at_the_edge[:, 2:] - at_the_edge[:, :2]).min() >= 1 - 1e-9


def test_hue_saturation_and_value_are_moved_as_colorsys_counts_them() -> None:
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (300, 3), dtype=np.uint8)
    pixels[:40] = pixels[:40, :1]  # greys have no hue
    pixels[40:44] = [[0, 0, 0], [255, 255, 255], [255, 0, 0], [255, 0, 255]]
    frames = torch.from_numpy(pixels.reshape(1, 20, 15, 3)).permute(0, 3, 1, 2)
    for shade in (Shade(20 / 360, 0.1, -0.1), Shade(-1 / 18, -0.1, 0.1), Shade(0.5, 0, 0), Shade(0, 0, 0.2)):
        found = shaded(frames, shade).permute(0, 2, 3, 1).reshape(-1, 3).numpy()
        for before, after in zip(pixels.tolist(), found.tolist(), strict=True):
            hue, saturation, value = colorsys.rgb_to_hsv(*(part / 255 for part in before))
            moved = (
                (hue + shade.hue) % 1,
                np.clip(saturation + shade.saturation, 0, 1),
                np.clip(value + shade.value, 0, 1),
            )
            np.testing.assert_allclose(after, 255 * np.array(colorsys.hsv_to_rgb(*moved)), atol=0.51)


def test_drawn_shades_reach_what_was_asked_for() -> None:
    rng = np.random.default_rng(0)
    data = settings(hue_turn=20.0, saturation=0.1, brightness=0.2)
    shades = [draw(32, 48, data, np.array([[0.0, 0.0, 1.0, 1.0]]), rng).shade for _ in range(500)]
    values = np.array([[360 * shade.hue, shade.saturation, shade.value] for shade in shades])
    np.testing.assert_allclose(values.max(axis=0), [20, 0.1, 0.2], rtol=0.02)
    np.testing.assert_allclose(values.min(axis=0), [-20, -0.1, -0.2], rtol=0.02)
