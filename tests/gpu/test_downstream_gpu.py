"""Fine-tuning, distillation and what follows a run, on a device: each gives what it gives on a CPU from the same weights."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.gpu.commands import FINETUNE, PRETRAIN, rows_of, run, run_on_cpu
from vmae2_ds.data.tools.synthetic import SyntheticSet

LOSS = 2e-2
"""bfloat16, and weights that have gone four steps each on its own."""
SCORE = 1e-3
"""float32 on both sides: sums in another order, through two blocks and a softmax."""


DOWNSTREAM = "--clips 2 --crops 3 --precision fp32"


@pytest.fixture(scope="module")
def folders(device: torch.device, runs: Path, videos: SyntheticSet) -> tuple[Path, Path]:
    """Folders of what all commands made here, and of what they made on a CPU of the weights that were trained here."""
    here, there = runs / "here", runs / "there"
    run(f"{PRETRAIN} --data.manifest {videos.train} --train.run {runs / 'seen'} --train.precision fp32")
    for line in training(here, here / "tuned", videos):
        run(line)
    for line in after(here, here / "tuned", runs / "seen", videos):
        run(line)
    run(distilled("distil-cache", here / "unused", here / "tuned", videos, f"--distil.cache {here / 'answers'}"))
    run(distilled("distil", here / "kept", here / "tuned", videos, f"--distil.cache {here / 'answers'}"))
    lines = [*training(there, here / "tuned", videos), *after(there, here / "tuned", runs / "seen", videos)]
    run_on_cpu(lines, runs / "commands.json")
    return here, there


def training(out: Path, teacher: Path, videos: SyntheticSet) -> list[str]:
    data = f"--data.manifest {videos.train} --data.val-manifest {videos.val}"
    return [
        f"finetune {FINETUNE} {data} --train.run {out / 'tuned'}",
        distilled("distil", out / "asked", teacher, videos),
    ]


def distilled(verb: str, folder: Path, teacher: Path, videos: SyntheticSet, options: str = "") -> str:
    words = f"{verb} {FINETUNE.replace('finetune', 'distil')} --data.manifest {videos.train} --train.run {folder}"
    return f"{words} --teacher {teacher} --distil.feature-weight 0.5 --model.encoder.depth 1 {options}"


def after(out: Path, tuned: Path, seen: Path, videos: SyntheticSet) -> list[str]:
    return [
        f"evaluate {tuned} --manifest {videos.train} {DOWNSTREAM} --out {out / 'scores'}",
        f"predict {tuned} {videos.val} {DOWNSTREAM} --out {out / 'named'}",
        f"probe {seen} --manifest {videos.train} --val-manifest {videos.val} --cache {out / 'cache'}",
        f"extract {tuned} --manifest {videos.train} --grid opentad --precision fp32 --batch 3 --out {out / 'features'}",
        f"visualize {seen} --clips 2 --out {out / 'pictures'}",
    ]


def losses(folder: Path) -> list[float]:
    return [row["loss"] for row in rows_of(folder)]


def test_fine_tuning_learns_and_validates_what_it_does_on_a_cpu(folders: tuple[Path, Path]) -> None:
    here, there = (folder / "tuned" for folder in folders)
    assert losses(here) == pytest.approx(losses(there), rel=LOSS)
    rows, expected = (rows_of(folder, "validation.jsonl") for folder in (here, there))
    assert [row["step"] for row in rows] == [row["step"] for row in expected]
    assert [row["val_loss"] for row in rows] == pytest.approx([row["val_loss"] for row in expected], rel=LOSS)
    assert all(row["val_videos"] == 2 for row in rows)


def test_a_student_learns_from_a_teacher_asked_or_kept(folders: tuple[Path, Path]) -> None:
    here, there = folders
    assert losses(here / "asked") == pytest.approx(losses(there / "asked"), rel=LOSS)
    assert losses(here / "kept") == pytest.approx(losses(here / "asked"), rel=LOSS)


def test_scores_of_an_evaluation_are_those_of_a_cpu(folders: tuple[Path, Path]) -> None:
    scores, expected = (np.load(folder / "scores" / "scores.npz")["score"] for folder in folders)
    assert len(scores) == 8
    np.testing.assert_allclose(scores, expected, atol=SCORE)


def test_predictions_are_those_of_a_cpu(folders: tuple[Path, Path]) -> None:
    named, expected = (json.loads((folder / "named" / "predictions.json").read_text())["videos"] for folder in folders)
    for mine, theirs in zip(named, expected, strict=True):
        scores = [[one["score"] for one in video["classes"]] for video in (mine, theirs)]
        assert scores[0] == pytest.approx(scores[1], abs=SCORE)


def test_features_of_a_probe_are_those_of_a_cpu(folders: tuple[Path, Path]) -> None:
    """Of the run, of a random encoder and of the pixels; the random one's weights are drawn on the host."""
    here, there = ({path.name: np.load(path) for path in (folder / "cache").glob("*.npy")} for folder in folders)
    assert len(here) == 6  # three kinds of two lists
    assert here.keys() == there.keys()
    for name, features in here.items():
        np.testing.assert_allclose(features, there[name], atol=1e-2, rtol=1e-3)


def test_features_of_windows_are_those_of_a_cpu(folders: tuple[Path, Path]) -> None:
    """Frames out of pinned memory, answers one batch behind."""
    here, there = ({path.name: np.load(path) for path in (folder / "features").glob("*.npy")} for folder in folders)
    assert len(here) == 8
    assert here.keys() == there.keys()
    for name, features in here.items():
        np.testing.assert_allclose(features, there[name], atol=1e-2, rtol=1e-3)


def test_pictures_are_about_the_same_cubes_with_the_same_errors(folders: tuple[Path, Path]) -> None:
    drawn, expected = (json.loads((folder / "pictures" / "pictures.json").read_text())["clips"] for folder in folders)
    assert len(drawn) == 2
    for mine, theirs in zip(drawn, expected, strict=True):
        assert mine.keys() == theirs.keys()
        for name, value in mine.items():
            assert value == (pytest.approx(theirs[name], rel=1e-2) if isinstance(value, float) else theirs[name])
