"""What a model says of boxes as rows: the values that a reader of the file gets, in the order of key frames, boxes, actions."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from vmae2_ds.downstream.ava.found_rows import found_rows
from vmae2_ds.downstream.ava.key_frames import KeyFrames, make_key_frames
from vmae2_ds.downstream.ava.label_map import LabelMap
from vmae2_ds.downstream.ava.rows import read_detections, write_detections
from vmae2_ds.errors import DataError

LABEL_MAP = LabelMap(Path("actions.txt"), (3, 11, 4), ("sit", "talk", "walk"))


@pytest.fixture
def frames() -> KeyFrames:
    rng = np.random.default_rng(0)
    first = rng.random((40, 2)) / 2
    box_N5 = np.concatenate([first, first + 0.1 + first, 0.5 + rng.random((40, 1)) / 2], axis=1)
    boxes = {(f"video {place % 3}", 500 * place): box_N5[4 * place : 4 * place + 4] for place in range(10)}
    return make_key_frames([], LABEL_MAP, boxes=boxes, use="boxes")


@pytest.fixture
def answers(frames: KeyFrames) -> list[np.ndarray | None]:
    rng = np.random.default_rng(1)
    found = [rng.random((len(frame.box_G4), 3)).astype(np.float32) for frame in frames]
    return [None if number == 4 else answer for number, answer in enumerate(found)]


@pytest.mark.parametrize("person_score", [True, False])
def test_the_file_has_the_very_values(
    person_score: bool, frames: KeyFrames, answers: list[np.ndarray | None], tmp_path: Path
) -> None:
    rows = found_rows(frames, answers, person_score=person_score)
    write_detections(rows, tmp_path / "found.csv")
    read = read_detections(tmp_path / "found.csv")
    assert [read.keys[frame] for frame in read.frame_N] == [rows.keys[frame] for frame in rows.frame_N]
    for column in ("box_N4", "label_N", "score_N"):
        np.testing.assert_array_equal(getattr(read, column), getattr(rows, column))
    expected = [
        (frame.key, action, box, score * (person if person_score else 1.0))
        for frame, answer in zip(frames, answers, strict=True)
        if answer is not None
        for box, person, scores in zip(frame.box_G4.tolist(), frame.score_G.tolist(), answer.tolist(), strict=True)
        for action, score in zip(LABEL_MAP.ids, scores, strict=True)
    ]
    assert [(read.keys[frame], label) for frame, label in zip(read.frame_N, read.label_N, strict=True)] == [
        (key, action) for key, action, *_ in expected
    ]
    np.testing.assert_allclose(read.box_N4, [box for *_, box, _ in expected], rtol=0, atol=0.51e-6)
    np.testing.assert_allclose(read.score_N, [score for *_, score in expected], rtol=0, atol=0.51e-6)


def test_rows_below_a_threshold_are_left_out_by_what_is_written(
    frames: KeyFrames, answers: list[np.ndarray | None]
) -> None:
    """A score of 0.4999997 is 0.5 in the file."""
    some = [None if answer is None else np.full_like(answer, 0.4999997) for answer in answers]
    assert len(found_rows(frames, some, person_score=False, threshold=0.5)) == 3 * 4 * 9
    assert len(found_rows(frames, some, person_score=False, threshold=0.500001)) == 0
    assert len(found_rows(frames, [None] * 10, person_score=True)) == 0


def test_an_answer_that_is_no_number_is_refused_and_not_left_out(
    frames: KeyFrames, answers: list[np.ndarray | None]
) -> None:
    some = [None if answer is None else answer.copy() for answer in answers]
    assert some[5] is not None
    some[5][1, 2] = np.nan
    with pytest.raises(DataError, match=r"says of video 'video 1' at 0002 s is no number: .* --precision fp32"):
        found_rows(frames, some, person_score=True)
