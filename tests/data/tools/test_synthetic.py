"""The synthetic set: reproducible, balanced, and a class that is in the motion and in nothing else."""

from __future__ import annotations

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
    DIRECTIONS,
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


@pytest.fixture(scope="module")
def drawn() -> tuple[np.ndarray, np.ndarray]:
    """360 clips (T=12, 48 x 48) in grey, zero mean: (n, T, H, W) and labels."""
    labels = np.arange(360) % len(CLASS_NAMES)
    clips = [draw_clip(label, np.random.default_rng((7, row)), size=48, frames=12) for row, label in enumerate(labels)]
    return np.stack(clips).mean(-1), labels


def ridge_accuracy(features: np.ndarray, labels: np.ndarray, penalty: float = 0.3) -> float:
    """Held-out share right of ridge regression onto one-hot labels; the first two thirds train."""
    num_train = len(labels) * 2 // 3
    flat = features.reshape(len(features), -1)
    flat = (flat - flat[:num_train].mean(0)) / (flat[:num_train].std(0) + 1e-9)
    kernel = flat @ flat.T / flat.shape[1]
    targets = np.eye(len(CLASS_NAMES))[labels] - 1 / len(CLASS_NAMES)
    weights = np.linalg.solve(kernel[:num_train, :num_train] + penalty * np.eye(num_train), targets[:num_train])
    return float((np.argmax(kernel[num_train:, :num_train] @ weights, axis=1) == labels[num_train:]).mean())


def test_pixels_do_not_tell_the_class_but_motion_does(drawn: tuple[np.ndarray, np.ndarray]) -> None:
    grey_nTHW, labels = drawn
    chance = 1 / len(CLASS_NAMES)
    three_sigma = 3 * np.sqrt(chance * (1 - chance) / 120)  # of the share right among the 120 held out
    assert ridge_accuracy(grey_nTHW[:, 0], labels) < chance + three_sigma
    assert ridge_accuracy(grey_nTHW[:, -1], labels) < chance + three_sigma
    assert ridge_accuracy(grey_nTHW[:, ::3], labels) < chance + three_sigma
    # change over time, correlated with change over space: the mean direction of motion, two numbers a clip
    change = np.diff(grey_nTHW, axis=1)
    down, right = np.gradient(grey_nTHW[:, :-1], axis=(2, 3))
    flow = np.stack([-(change * right).mean((1, 2, 3)), -(change * down).mean((1, 2, 3))], axis=1)
    assert ridge_accuracy(flow, labels) > chance + 3 * three_sigma
    for label, name in enumerate(DIRECTIONS):  # and the classes are what they are called
        heading = np.rad2deg(np.arctan2(*flow[labels == label].sum(0)[::-1]))
        assert abs((heading - 45 * label + 180) % 360 - 180) < 22.5, name
