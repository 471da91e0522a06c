"""The synthetic set: reproducible, balanced, and a class that is in the motion and in nothing else."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tests.data.frames import read_frames
from vmae2_ds.data.sources.manifest import read_manifest
from vmae2_ds.data.tools.synthetic import (
    CLASS_NAMES,
    COLOUR_STEP,
    DIRECTIONS,
    Look,
    SynthArguments,
    SyntheticSet,
    draw_clip,
    write_synthetic_set,
)


def test_files_and_labels(synthetic_set: SyntheticSet) -> None:
    train, val = read_manifest(synthetic_set.train), read_manifest(synthetic_set.val)
    assert [entry.label for entry in train] == list(range(12))
    assert len(val) == 2
    assert train.sources == ("synthetic",)
    assert synthetic_set.labels.read_text().splitlines() == list(CLASS_NAMES)
    frames = read_frames(train[0].path, np.arange(24))
    assert frames.shape == (24, 64, 64, 3)
    # H.264 at crf 20 changes each pixel by a few levels
    drawn = draw_clip(0, np.random.default_rng((0, 0, 0)), size=64, frames=24)
    assert np.abs(frames.astype(int) - drawn).mean() < 6


def test_pixels_follow_from_the_seed(tmp_path: Path) -> None:
    def first_video(name: str, seed: int) -> bytes:
        made = write_synthetic_set(
            SynthArguments(folder=tmp_path / name, train_videos=1, val_videos=0, seed=seed, size=32, frames=8)
        )
        return read_frames(read_manifest(made.train)[0].path, np.arange(8)).tobytes()

    assert first_video("one", 0) == first_video("again", 0)
    assert first_video("one more", 0) != first_video("other", 1)


@pytest.mark.skipif(sys.platform != "linux", reason="needs glibc's MALLOC_PERTURB_")
def test_files_follow_from_the_seed_whatever_memory_held_before(tmp_path: Path) -> None:
    """glibc fills what it hands out with a byte; with libx264's macroblock tree that byte decided what was written."""

    def written(fill: int) -> bytes:
        folder = tmp_path / str(fill)
        command = [sys.executable, "-m", "vmae2_ds", "data", "synth", str(folder)]
        command += ["--train-videos", "1", "--val-videos", "0", "--size", "32", "--frames", "8"]
        subprocess.run(command, check=True, env={**os.environ, "MALLOC_PERTURB_": str(fill)}, capture_output=True)
        return (folder / "train" / "00000.mp4").read_bytes()

    assert written(1) == written(90)


def test_the_textured_look_is_as_it_was() -> None:
    """Rows on committed pages are about these very pixels: drawn by commit 8508f78."""
    digest = hashlib.sha256()
    for row in range(36):
        digest.update(draw_clip(row % 12, np.random.default_rng((3, row)), 64, 6).tobytes())
    assert digest.hexdigest().startswith("1a84241455c3672f")


def test_the_look_asked_for_is_what_is_written(tmp_path: Path) -> None:
    asked = SynthArguments(folder=tmp_path, train_videos=1, val_videos=0, size=64, frames=8, look="plain")
    frames = read_frames(read_manifest(write_synthetic_set(asked).train)[0].path, np.arange(8))
    drawn = draw_clip(0, np.random.default_rng((0, 0, 0)), 64, 8, "plain")
    assert np.abs(frames.astype(int) - drawn).mean() < 6


def test_the_plain_look_is_one_large_shape_of_two_colours() -> None:
    for row in range(60):
        clip_THWC = draw_clip(row % 12, np.random.default_rng((4, row)), 64, 3, "plain")
        for frame_HWC in clip_THWC:
            colours, counts = np.unique(frame_HWC.reshape(-1, 3), axis=0, return_counts=True)
            first, *others = colours[np.argsort(-counts)][:3] / 255  # what else there is, are soft edges
            assert all(abs(other - first).max() > COLOUR_STEP - 0.01 for other in others)
            assert abs(others[0] - others[1]).max() > COLOUR_STEP - 0.01
            assert 0.05 < 1 - counts.max() / counts.sum() < 0.45, "background is most of it, and the shape is no dot"


def test_every_plain_shape_shows_its_spin() -> None:
    for row in range(30):
        clip_THWC = draw_clip(CLASS_NAMES.index("spin clockwise"), np.random.default_rng((5, row)), 64, 4, "plain")
        change = np.abs(np.diff(clip_THWC.astype(int), axis=0)).max(axis=-1) > 50
        assert (change.mean(axis=(1, 2)) > 0.01).all()


@pytest.fixture(scope="module", params=["textured", "plain"])
def drawn(request: pytest.FixtureRequest) -> tuple[Look, np.ndarray, np.ndarray]:
    """A look, 360 clips of it (T=12, 48 x 48) in grey, (n, T, H, W), and their labels."""
    look: Look = request.param
    labels = np.arange(360) % len(CLASS_NAMES)
    clips = [draw_clip(label, np.random.default_rng((7, row)), 48, 12, look) for row, label in enumerate(labels)]
    return look, np.stack(clips).mean(-1), labels


def ridge_accuracy(features: np.ndarray, labels: np.ndarray, penalty: float = 0.3) -> float:
    """Held-out share right of ridge regression onto one-hot labels; the first two thirds train."""
    num_train = len(labels) * 2 // 3
    flat = features.reshape(len(features), -1)
    flat = (flat - flat[:num_train].mean(0)) / (flat[:num_train].std(0) + 1e-9)
    kernel = flat @ flat.T / flat.shape[1]
    targets = np.eye(len(CLASS_NAMES))[labels] - 1 / len(CLASS_NAMES)
    weights = np.linalg.solve(kernel[:num_train, :num_train] + penalty * np.eye(num_train), targets[:num_train])
    return float((np.argmax(kernel[num_train:, :num_train] @ weights, axis=1) == labels[num_train:]).mean())


def test_pixels_do_not_tell_the_class_but_motion_does(drawn: tuple[Look, np.ndarray, np.ndarray]) -> None:
    look, grey_nTHW, labels = drawn
    chance = 1 / len(CLASS_NAMES)
    three_sigma = 3 * np.sqrt(chance * (1 - chance) / 120)  # of the share right among the 120 held out
    assert ridge_accuracy(grey_nTHW[:, 0], labels) < chance + three_sigma
    assert ridge_accuracy(grey_nTHW[:, -1], labels) < chance + three_sigma
    if look == "textured":
        assert ridge_accuracy(grey_nTHW[:, ::3], labels) < chance + three_sigma
    # change over time, correlated with change over space: the mean direction of motion, two numbers a clip
    change = np.diff(grey_nTHW, axis=1)
    down, right = np.gradient(grey_nTHW[:, :-1], axis=(2, 3))
    flow = np.stack([-(change * right).mean((1, 2, 3)), -(change * down).mean((1, 2, 3))], axis=1)
    assert ridge_accuracy(flow, labels) > chance + 3 * three_sigma
    for label, name in enumerate(DIRECTIONS):  # and the classes are what they are called
        heading = np.rad2deg(np.arctan2(*flow[labels == label].sum(0)[::-1]))
        assert abs((heading - 45 * label + 180) % 360 - 180) < 22.5, name


@pytest.mark.parametrize("look", ["textured", "plain"])
def test_frames_that_look_alike_are_of_any_class(look: Look) -> None:
    """Nearest neighbours find in a single frame what no linear classifier does."""
    labels = np.arange(3600) % len(CLASS_NAMES)
    clips = [draw_clip(label, np.random.default_rng((8, row)), 16, 3, look) for row, label in enumerate(labels)]
    for moment in range(3):
        frames = np.stack([clip[moment] for clip in clips]).mean(-1).reshape(len(clips), -1)
        known, asked = frames[:2400], frames[2400:]
        distance = (asked**2).sum(1)[:, None] + (known**2).sum(1) - 2 * asked @ known.T
        right = (labels[:2400][distance.argmin(axis=1)] == labels[2400:]).mean()
        assert right < 1 / 12 + 4 * np.sqrt(11 / 144 / 1200), moment
