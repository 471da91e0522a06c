"""How crops, erased boxes and mixing are distributed, against the published rules; and crop sizes with every remainder.

A distribution is held by Kolmogorov's bound: for n draws of the promised one, P(sup |F_n - F| > d) <= 2 exp(-2 n d^2)
(Massart 1990). d is such that a right draw would fail once in a million seeds; seeds are fixed, so a test that passes stays so.
"""

from __future__ import annotations

import math
import random
from collections import Counter
from collections.abc import Callable

import numpy as np
import pytest
import torch
from timm.data.mixup import Mixup, cutmix_bbox_and_lam

from vmae2_ds.data.clips.augment import draw_mixing, erase
from vmae2_ds.data.clips.crops import CropBox, draw_crop, draw_resized_crop, view_crops

CHANCE = 1e-6
SCALES = (1.0, 0.875, 0.75, 0.66)


def distance(values: np.ndarray, distribution: Callable[[np.ndarray], np.ndarray]) -> float:
    """Largest gap between the draws' own distribution and the promised one."""
    values = np.sort(values)
    promised, count = distribution(values), len(values)
    return float(np.maximum(np.arange(1, count + 1) / count - promised, promised - np.arange(count) / count).max())


def bound(count: int) -> float:
    return math.sqrt(math.log(2 / CHANCE) / (2 * count))


def uniform(low: float, high: float) -> Callable[[np.ndarray], np.ndarray]:
    return lambda x: np.clip((x - low) / (high - low), 0, 1)


@pytest.fixture(scope="module")
def boxes() -> list[CropBox]:
    """Of 2000 x 3000 pixels: areas of 10 to 30 % always fit, so that no draw is tried again."""
    rng = np.random.default_rng(1)
    return [draw_resized_crop(2000, 3000, (0.1, 0.3), (0.5, 2.5), 0.3, rng) for _ in range(6000)]


def test_a_random_resized_crop_s_area_is_uniform_and_its_aspect_log_uniform(boxes: list[CropBox]) -> None:
    """An aspect drawn uniformly would be 0.1 away, three times the bound. Rounding to pixels moves 1 part in 500."""
    height, width = (np.array([getattr(box, side) for box in boxes]) for side in ("height", "width"))
    area, aspect = height * width / 6e6, np.log(width / height)
    assert distance(area, uniform(0.1, 0.3)) < bound(6000) + 0.002
    assert distance(aspect, uniform(math.log(0.5), math.log(2.5))) < bound(6000) + 0.002
    assert abs(np.corrcoef(area, aspect)[0, 1]) < 5 / math.sqrt(6000), "drawn apart"


def test_a_random_resized_crop_lies_anywhere_and_is_mirrored_as_often_as_asked(boxes: list[CropBox]) -> None:
    """Places from 0 to the room left, both ends in; the share of mirrored ones within five deviations."""
    room = np.array([(2001 - box.height, 3001 - box.width) for box in boxes])
    places = (np.array([(box.top, box.left) for box in boxes]) + 0.5) / room
    for axis in (0, 1):
        assert distance(places[:, axis], uniform(0, 1)) < bound(6000) + 0.002
    assert abs(np.corrcoef(places.T)[0, 1]) < 5 / math.sqrt(6000)
    is_flipped = [box.is_flipped for box in boxes]
    assert np.mean(is_flipped) == pytest.approx(0.3, abs=5 * math.sqrt(0.3 * 0.7 / 6000))
    ends = {draw_resized_crop(5, 5, (0.6, 0.7), (1, 1), 0, np.random.default_rng(seed))[:4] for seed in range(60)}
    assert ends == {(top, left, 4, 4) for top in (0, 1) for left in (0, 1)}


@pytest.mark.parametrize(
    ("height", "width", "aspect", "expected"),
    [
        (10, 1000, (0.75, 1.7), (0, 491, 10, 17)),  # 10 x 1.7
        (1000, 10, (0.75, 1.7), (493, 0, 13, 10)),  # 10 / 0.75 = 13.3
        (30, 35, (0.75, 4 / 3), (0, 0, 30, 35)),  # whole: its own aspect is allowed
    ],
)
def test_the_tenth_box_that_does_not_fit_is_the_last(
    height: int, width: int, aspect: tuple[float, float], expected: tuple[int, int, int, int]
) -> None:
    """The middle is taken, as torchvision does: after two numbers a try, and then one more for the mirror."""
    for seed in range(20):
        box = draw_resized_crop(height, width, (1.3, 1.4), aspect, 0.5, np.random.default_rng(seed))
        assert box[:4] == expected
        assert box.is_flipped == (np.random.default_rng(seed).random(21)[20] < 0.5)


def test_a_box_as_large_as_the_picture_fits() -> None:
    rng = np.random.default_rng(0)
    assert draw_resized_crop(32, 32, (1, 1), (1, 1), 0, rng)[:4] == (0, 0, 32, 32)
    assert rng.random() == np.random.default_rng(0).random(3)[2], "the first try: two numbers, and its place is given"


# --- the published multi-scale crop ----------------------------------------------------------------------------------


def published_edge(short: int, scale: float, size: int) -> int:
    """MultiScaleCrop: int(short x scale), or the clip's edge where that is less than 3 pixels away and in the video."""
    edge = int(short * scale)
    return size if size - 3 < edge < size + 3 and short >= size else edge


def test_edges_snap_within_two_pixels_and_not_at_three() -> None:
    found = {short: draw_crop(short, 400, 224, (1.0,), np.random.default_rng(0)).height for short in range(219, 231)}
    assert found == {
        219: 219, 220: 220, 221: 221, 222: 222, 223: 223,  # the video is smaller than the clip
        224: 224, 225: 224, 226: 224, 227: 227, 228: 228, 229: 229, 230: 230,
    }  # fmt: skip
    below = {
        short: draw_crop(short, 400, 224, (0.875,), np.random.default_rng(0)).height
        for short in (251, 252, 253, 254, 255, 256, 257, 258, 259, 260)
    }
    # 0.875 x short, rounded down: 219, 220, 221, 222, 223, 224, 224, 225, 226, 227
    assert below == {
        251: 219, 252: 220, 253: 221, 254: 224, 255: 224, 256: 224, 257: 224, 258: 224, 259: 224, 260: 227,
    }  # fmt: skip


@pytest.mark.parametrize("size", [8, 32, 224])
def test_every_size_has_the_published_edges(size: int) -> None:
    """All shorter sides around and above the clip's, so that every edge meets every distance to it."""
    for short in (*range(max(2, size - 8), size + 9), *range(size + 9, 2 * size, 3)):
        edges = [published_edge(short, scale, size) for scale in SCALES]
        allowed = {(edges[i], edges[j]) for i in range(4) for j in range(4) if -1 <= i - j <= 1}
        rng = np.random.default_rng(short)
        found = {draw_crop(short, short + 7, size, SCALES, rng)[2:4] for _ in range(60)}
        assert found <= allowed
        assert len(found) > len(allowed) / 2


# TSN's fix_crop with more_fix_crop: (steps to the right, steps down), a step a whole quarter of the room
PUBLISHED_OFFSETS = [
    (0, 0), (4, 0), (0, 4), (4, 4), (2, 2),
    (0, 2), (4, 2), (2, 4), (2, 0),
    (1, 1), (3, 1), (1, 3), (3, 3),
]  # fmt: skip


@pytest.mark.parametrize(("down", "right"), [(0, 1), (1, 2), (2, 3), (3, 0), (40, 41), (42, 43)])
def test_offsets_are_whole_steps_of_a_quarter_of_the_room(down: int, right: int) -> None:
    """With every remainder of the room by four: the published step is rounded down before it is multiplied."""
    rng = np.random.default_rng(0)
    found = Counter(draw_crop(64 + down, 64 + right, 64, (64.5 / (64 + min(down, right)),), rng) for _ in range(2600))
    assert {box[2:4] for box in found} == {(64, 64)}
    expected = Counter((down // 4 * lines, right // 4 * columns) for columns, lines in PUBLISHED_OFFSETS)
    assert {box[:2] for box in found} == set(expected)
    for box, count in found.items():
        share = expected[box[:2]] / 13
        assert count / 2600 == pytest.approx(share, abs=5 * math.sqrt(share * (1 - share) / 2600) + 1e-9)


def test_every_pair_of_scales_is_as_likely_as_another() -> None:
    """Ten pairs at most one place apart; each within five deviations of a tenth."""
    rng = np.random.default_rng(0)
    found = Counter(draw_crop(400, 400, 32, SCALES, rng)[2:4] for _ in range(3000))
    edges = [400, 350, 300, 264]
    assert set(found) == {(h, w) for i, h in enumerate(edges) for j, w in enumerate(edges) if abs(i - j) <= 1}
    assert all(abs(count / 3000 - 0.1) < 5 * math.sqrt(0.1 * 0.9 / 3000) for count in found.values())


@pytest.mark.parametrize(
    ("height", "width", "crops", "places"),
    [
        (64, 101, 1, [(0, 18)]),  # 37 left: the middle, rounded down
        (101, 64, 1, [(18, 0)]),
        (64, 101, 2, [(0, 0), (0, 37)]),
        (64, 101, 3, [(0, 0), (0, 18), (0, 37)]),
        (101, 64, 5, [(0, 0), (9, 0), (18, 0), (27, 0), (37, 0)]),  # 9.25 apart, rounded down
        (64, 64, 3, [(0, 0)] * 3),
    ],
)
def test_views_are_squares_at_even_distances(
    height: int, width: int, crops: int, places: list[tuple[int, int]]
) -> None:
    assert [box[:4] for box in view_crops(height, width, crops)] == [(*place, 64, 64) for place in places]
    assert all(box == CropBox(*box[:4]) for box in view_crops(height, width, crops)), "neither mirrored nor shaded"


# --- erasing and mixing ----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def erased() -> np.ndarray:
    """Top, left, height and width of boxes erased in 140 x 140 pixels."""
    found = []
    rng = np.random.default_rng(2)
    for _ in range(700):
        clip_TSSC = torch.full((1, 140, 140, 3), 7, dtype=torch.uint8)
        erase(clip_TSSC, 1.0, rng)
        changed = (clip_TSSC[0] != 7).any(dim=-1)
        rows, columns = (changed.any(dim=side).nonzero().flatten().tolist() for side in (1, 0))
        found.append((rows[0], columns[0], rows[-1] - rows[0] + 1, columns[-1] - columns[0] + 1))
    return np.array(found)


def test_erased_boxes_have_the_published_areas_and_aspects(erased: np.ndarray) -> None:
    """Area 2 % to a third, aspect log-uniform from 0.3 to 1 / 0.3; below a quarter every box fits and none is tried again.

    Whole pixels: the smallest box is 11 wide, so that a side is rounded by 1 part in 22 and an aspect by twice that, 0.04 of
    its range. An aspect drawn uniformly would be 0.3 away.
    """
    area = erased[:, 2] * erased[:, 3] / 140**2
    fits = area < 0.25
    aspect = np.log(erased[fits, 2] / erased[fits, 3])
    assert distance(aspect, uniform(math.log(0.3), -math.log(0.3))) < bound(int(fits.sum())) + 0.04
    assert distance(area[fits], uniform(0.02, 0.25)) < bound(int(fits.sum())) + 0.01
    assert 0.31 < area.max() < 0.345
    assert fits.mean() == pytest.approx(0.23 / (1 / 3 - 0.02), abs=0.05)


def test_erased_boxes_lie_anywhere(erased: np.ndarray) -> None:
    for axis in (0, 1):
        places = (erased[:, axis] + 0.5) / (141 - erased[:, 2 + axis])
        assert distance(places, uniform(0, 1)) < bound(len(places)) + 0.015
        assert (erased[:, axis] + erased[:, 2 + axis]).max() == 140


def test_clips_are_erased_as_often_as_asked() -> None:
    count = 0
    for seed in range(1000):
        clip_TSSC = torch.zeros((1, 8, 8, 3), dtype=torch.uint8)
        erase(clip_TSSC, 0.25, np.random.default_rng(seed))
        count += bool(clip_TSSC.any())
    assert count / 1000 == pytest.approx(0.25, abs=5 * math.sqrt(0.25 * 0.75 / 1000))


def test_mixing_is_distributed_as_timm_s() -> None:
    """Own shares of labels, of mixup and of cutmix apart, in two samples of 3000: P(gap > d) <= 2 exp(-n d^2) (two-sample)."""
    rng = np.random.default_rng(0)
    draws = [draw_mixing(64, 0.4, 1.5, 0.8, 0.3, rng) for _ in range(3000)]
    theirs = Mixup(mixup_alpha=0.4, cutmix_alpha=1.5, prob=0.8, switch_prob=0.3, label_smoothing=0, num_classes=2)
    random.seed(0)
    np.random.seed(0)
    params = [theirs._params_per_batch() for _ in range(3000)]
    shares = [cutmix_bbox_and_lam((1, 3, 64, 64), lam)[1] if is_cut else lam for lam, is_cut in params]
    for is_cut in (False, True):
        ours = np.sort([draw.keep_label for draw in draws if (draw.box is not None) == is_cut])
        expected = np.sort([share for share, (_, cut) in zip(shares, params, strict=True) if cut == is_cut])
        count = min(len(ours), len(expected))
        gaps = np.searchsorted(ours, ours, "right") / len(ours) - np.searchsorted(expected, ours, "right") / len(
            expected
        )
        assert np.abs(gaps).max() < math.sqrt(math.log(2 / CHANCE) / count)
    assert np.mean([draw.box is not None for draw in draws]) == pytest.approx(0.8 * 0.3, abs=5 * 0.43 / math.sqrt(3000))
    untouched = np.mean([draw.keep_label == 1 and draw.box is None for draw in draws])
    assert untouched == pytest.approx(0.2, abs=5 * 0.4 / math.sqrt(3000))
