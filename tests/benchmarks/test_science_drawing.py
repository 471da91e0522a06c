"""The grid's clips: what moves moves as its class says, and what a single frame shows says nothing of the class."""

from __future__ import annotations

import numpy as np
import pytest

from benchmarks.cases.science.drawing import draw
from vmae2_ds.data.tools.synthetic import CLASS_NAMES, DIRECTIONS
from vmae2_ds.downstream.probe.fit import ridge
from vmae2_ds.downstream.probe.folds import Features

SIZE, FRAMES = 48, 8
TWELVE = range(len(CLASS_NAMES))


def clip_of(label: int, seed: int) -> np.ndarray:
    return draw(label, np.random.default_rng((seed, label)), SIZE, FRAMES)


def shape_of(frame_HWC: np.ndarray) -> np.ndarray:
    """(H, W) bool: pixels that do not have the background's colour, the most frequent one."""
    colours, counts = np.unique(frame_HWC.reshape(-1, 3), axis=0, return_counts=True)
    return (frame_HWC != colours[counts.argmax()]).any(axis=-1)


def middle_of(frame_HWC: np.ndarray) -> np.ndarray:
    """Angles (down, right) of the shape's middle on a frame that wraps around."""
    down_K, right_K = np.nonzero(shape_of(frame_HWC))
    return np.array([np.angle(np.exp(2j * np.pi * at_K / SIZE).sum()) for at_K in (down_K, right_K)])


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("label", range(len(DIRECTIONS)))
def test_shapes_go_where_their_class_says(label: int, seed: int) -> None:
    middles = [middle_of(frame) for frame in clip_of(label, seed)]
    down, right = np.angle(np.exp(1j * np.diff(middles, axis=0))).sum(axis=0)  # the nearer way around
    heading = np.arctan2(down, right)
    apart = np.angle(np.exp(1j * (heading - label * np.pi / 4)))
    assert abs(apart) < np.pi / 8
    assert 0.3 < np.hypot(down, right) / (2 * np.pi) < 0.7


@pytest.mark.parametrize("label", [8, 9])
def test_what_spins_stays_where_it_is(label: int) -> None:
    clip = clip_of(label, 1)
    middles = np.array([middle_of(frame) for frame in clip])
    assert np.abs(np.angle(np.exp(1j * (middles - middles[0])))).max() < 2 * np.pi * 1.5 / SIZE, "to a pixel and a half"
    assert (clip[0] != clip[4]).mean() > 0.02


def test_orbits_turn_their_way() -> None:
    for label, sign in ((10, 1), (11, -1)):
        middles = np.array([middle_of(frame) for frame in clip_of(label, 2)])
        steps = np.angle(np.exp(1j * np.diff(middles, axis=0)))  # down, right
        turns = steps[:-1, 1] * steps[1:, 0] - steps[:-1, 0] * steps[1:, 1]
        assert np.sign(turns.sum()) == sign, "rows grow downwards, so clockwise is positive"


def test_a_clip_is_a_function_of_its_arguments() -> None:
    assert (clip_of(3, 5) == clip_of(3, 5)).all()
    assert (clip_of(3, 5) != clip_of(3, 6)).any()


def test_a_frame_says_nothing() -> None:
    """Ridge on the pixels of one frame is at chance; of 240 guesses at 1 of 12 a share deviates by 1.8 points."""
    label = np.arange(720) % 12
    clips = np.stack([clip_of(number % 12, 100 + number) for number in range(720)])
    grey_NP = clips[:, 4, ::6, ::6].mean(axis=-1).reshape(720, -1)
    none = np.array([""] * 480)
    named = ridge(Features(grey_NP[:480], label[:480], none, none), grey_NP[480:], 12)
    assert abs((named == label[480:]).mean() - 1 / 12) < 4 * 0.018
