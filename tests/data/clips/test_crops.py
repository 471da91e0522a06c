"""Multi-scale crop: where boxes may lie, and pixels against a float64 reference and against Pillow."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from vmae2_ds.data.clips.crops import FIXED_OFFSETS, CropBox, crop_resize, draw_crop

SCALES = (1.0, 0.875, 0.75, 0.66)


def triangle_weights(source: int, target: int) -> np.ndarray:
    """(target, source) float64: bilinear resampling with antialias, pixel centres at half integers."""
    scale = source / target
    reach = max(scale, 1.0)
    centres = (np.arange(target)[:, None] + 0.5) * scale
    weights = np.clip(1 - abs(np.arange(source)[None, :] + 0.5 - centres) / reach, 0, None)
    return weights / weights.sum(1, keepdims=True)


@pytest.mark.parametrize(
    ("box", "size"), [(CropBox(3, 5, 48, 40), 32), (CropBox(0, 0, 21, 21), 32), (CropBox(10, 8, 32, 32), 32)]
)
def test_pixels_against_float64_and_pillow(box: CropBox, size: int) -> None:
    rng = np.random.default_rng(0)
    frames = rng.integers(0, 256, (3, 60, 50, 3), dtype=np.uint8)
    found = crop_resize(torch.from_numpy(frames), box, size)
    assert found.dtype == torch.uint8
    assert found.shape == (3, size, size, 3)
    assert found.is_contiguous()
    cut = frames[:, box.top : box.top + box.height, box.left : box.left + box.width]
    exact = np.einsum(
        "yh,thwc,xw->tyxc",
        triangle_weights(box.height, size),
        cut.astype(np.float64),
        triangle_weights(box.width, size),
    )
    # two passes, each rounded to a whole level: half a level each
    assert np.abs(found.numpy() - exact).max() <= 1.0 + 1e-6
    pillow = [np.asarray(Image.fromarray(image).resize((size, size), Image.Resampling.BILINEAR)) for image in cut]
    assert np.abs(found.numpy().astype(int) - np.stack(pillow).astype(int)).max() <= 1


def test_a_crop_of_the_clips_own_size_is_not_resampled() -> None:
    frames = np.random.default_rng(0).integers(0, 256, (2, 40, 40, 3), dtype=np.uint8)
    assert np.array_equal(
        crop_resize(torch.from_numpy(frames), CropBox(4, 8, 32, 32), 32).numpy(), frames[:, 4:36, 8:40]
    )


def test_boxes_are_the_published_ones() -> None:
    """Edges from neighbouring scales, and the 13 fixed offsets in quarters of the room left."""
    height, width, rng = 256, 340, np.random.default_rng(0)
    boxes = {draw_crop(height, width, 200, SCALES, rng) for _ in range(4000)}
    edges = [256, 224, 192, 168]
    pairs = {(box.height, box.width) for box in boxes}
    assert pairs == {(h, w) for i, h in enumerate(edges) for j, w in enumerate(edges) if abs(i - j) <= 1}
    assert len(FIXED_OFFSETS) == len(set(FIXED_OFFSETS)) == 13
    for box in boxes:
        quarters = ((box.top, (height - box.height) // 4), (box.left, (width - box.width) // 4))
        assert all(at % step == 0 and at // step <= 4 if step else at == 0 for at, step in quarters)
    smallest = {(box.top // 22, box.left // 43) for box in boxes if (box.height, box.width) == (168, 168)}
    assert smallest == set(FIXED_OFFSETS)


def test_an_edge_near_the_clips_edge_becomes_it_only_inside_the_video() -> None:
    rng = np.random.default_rng(0)
    assert {draw_crop(226, 300, 224, (1.0,), rng)[2:4] for _ in range(50)} == {(224, 224)}
    assert {draw_crop(222, 300, 224, (1.0,), rng)[2:4] for _ in range(50)} == {(222, 222)}


@pytest.mark.parametrize("shape", [(24, 32), (1, 1), (2, 500), (121, 161), (1280, 720)])
def test_boxes_stay_inside(shape: tuple[int, int]) -> None:
    rng = np.random.default_rng(0)
    for _ in range(200):
        box = draw_crop(*shape, 224, SCALES, rng)
        assert min(box.height, box.width) >= 1
        assert min(box.top, box.left) >= 0
        assert box.top + box.height <= shape[0]
        assert box.left + box.width <= shape[1]


def test_a_flip_mirrors_and_leaves_boxes_alone() -> None:
    frames = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (2, 40, 60, 3), dtype=np.uint8))
    plain = [draw_crop(40, 60, 32, SCALES, np.random.default_rng(seed)) for seed in range(400)]
    mirrored = [draw_crop(40, 60, 32, SCALES, np.random.default_rng(seed), flip=0.5) for seed in range(400)]
    assert [box[:4] for box in mirrored] == [box[:4] for box in plain]
    assert not any(box.is_flipped for box in plain)
    assert 150 < sum(box.is_flipped for box in mirrored) < 250
    box = CropBox(2, 3, 36, 36)
    assert torch.equal(crop_resize(frames, box._replace(is_flipped=True), 32), crop_resize(frames, box, 32).flip(2))


def test_jitter_shades_a_whole_clip_alike_and_leaves_boxes_alone() -> None:
    rng = np.random.default_rng(0)
    frames = torch.from_numpy(rng.integers(60, 160, (2, 40, 60, 3), dtype=np.uint8))
    plain, shaded = (
        [draw_crop(40, 60, 32, SCALES, np.random.default_rng(seed), 0.5, jitter) for seed in range(400)]
        for jitter in (0.0, 0.25)
    )
    assert [box[:5] for box in shaded] == [box[:5] for box in plain]
    factors = np.array([box[5:] for box in shaded])
    assert 0.75 <= factors.min() < 0.78
    assert 1.22 < factors.max() <= 1.25
    assert abs(np.corrcoef(factors.T)[0, 1]) < 0.2, "brightness and contrast are drawn apart"
    box = CropBox(2, 3, 36, 36)
    cut = crop_resize(frames, box, 32).double()
    brighter = crop_resize(frames, box._replace(brightness=1.2), 32).double()
    assert (brighter - 1.2 * cut).abs().max() <= 1
    grey = (cut @ torch.tensor([0.299, 0.587, 0.114], dtype=torch.float64)).mean(dim=(1, 2))[
        :, None, None, None
    ]  # ITU-R 601
    contrasted = crop_resize(frames, box._replace(contrast=1.2), 32).double()
    assert (contrasted - (grey + 1.2 * (cut - grey))).abs().max() <= 1.01


def test_float_pixels_are_within_a_level_of_uint8_ones() -> None:
    """What torchvision does on a GPU, where it has no uint8 kernel: float32, then rounded."""
    frames = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (2, 61, 47, 3), dtype=np.uint8))
    for box in (CropBox(3, 5, 48, 40), CropBox(0, 0, 21, 21, True)):
        as_float = crop_resize(frames.float(), box, 32).round().clamp(0, 255)
        assert (as_float - crop_resize(frames, box, 32).float()).abs().max() <= 1
