"""People and contact sheets: who is who from key frame to key frame, and which words stand at whom."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from vmae2_ds.downstream.ava.compared import Compared, alone, compare
from vmae2_ds.downstream.ava.label_map import LabelMap
from vmae2_ds.downstream.ava.people import frames_of, letters
from vmae2_ds.downstream.ava.rows import make_rows
from vmae2_ds.downstream.ava.score import score_frames
from vmae2_ds.downstream.ava.sheets import (
    Look,
    choose_frames,
    key_frame_picture,
    picture_of,
    score_text,
    video_notes,
    video_sheet,
)
from vmae2_ds.draw.frames import sheet_of_frames

ACTIONS = LabelMap(Path("actions"), (3, 5, 8), ("sit", "eat", "walk"))
LEFT, RIGHT, AWAY = (0.1, 0.1, 0.3, 0.6), (0.6, 0.1, 0.8, 0.6), (0.4, 0.7, 0.5, 0.9)
GREY = np.full((24, 32, 3), 128, np.uint8)


def moved(box: tuple[float, ...], right: float) -> tuple[float, ...]:
    return box[0] + right, box[1], box[2] + right, box[3]


def hand_made() -> Compared:
    """At 1 s two people: one found but for a label, one with a wrong label; and a box on nobody. At 2 s all is right."""
    first, second = ("v", 1000), ("v", 2000)
    truth = make_rows([first, first, first, second], [LEFT, LEFT, RIGHT, LEFT], [3, 5, 8, 3])
    rows = [
        (first, moved(LEFT, 0.01), 3, 0.9), (first, moved(LEFT, 0.01), 8, 0.3), (first, RIGHT, 3, 0.6),
        (first, AWAY, 5, 0.5), (first, AWAY, 3, 0.05), (second, LEFT, 3, 0.8),
    ]  # fmt: skip
    found = make_rows(*zip(*rows, strict=True))
    return compare(truth, found, score_frames(truth, found, ACTIONS), 0.1)


def test_words_at_people_are_what_the_scorer_says_of_them() -> None:
    compared = hand_made()
    frame = frames_of(compared, "v")[0]
    picture = picture_of(compared, frame, GREY, Look(ACTIONS, 5))
    assert picture.title == "1 s: 5 mistakes"
    truth, found = picture.panels
    assert truth.title == "truth: 2 people, 3 labels, 2 missed"
    assert found.title == "predicted: 3 boxes, 4 labels, 3 wrong"
    said = {box.name: (box.kind, [(label.text, label.kind) for label in box.labels]) for box in truth.boxes}
    assert said == {
        "1": ("truth found", [("sit", "truth found"), ("eat", "truth missed")]),
        "2": ("truth missed", [("walk", "truth missed")]),
    }
    found_said = {box.name: (box.kind, box.note, [tuple(label) for label in box.labels]) for box in found.boxes}
    assert found_said == {
        "a": ("correct", "on 1", [("sit", "correct", "0.90"), ("walk", "wrong label", "0.30")]),
        "b": ("background", "", [("eat", "background", "0.50")]),
        "c": ("wrong label", "on 2", [("sit", "wrong label", "0.60")]),
    }
    assert [box.box for box in truth.boxes] == [LEFT, RIGHT]


def test_labels_beyond_the_best_are_counted_and_those_of_no_map_are_called_by_number() -> None:
    compared = hand_made()
    frame = frames_of(compared, "v")[0]
    (box, *_) = picture_of(compared, frame, GREY, Look(ACTIONS, 1)).panels[1].boxes
    assert [label.text for label in box.labels] == ["sit"]
    assert box.note == "on 1, +1"
    assert Look(None, 1).name(7) == "action 7"
    assert Look(ACTIONS, 1).name(7) == "action 7, not in the label map"


def test_truth_alone_and_detections_alone_have_one_panel() -> None:
    truth = make_rows([("v", 0)], [LEFT], [3])
    only = alone(truth, truth=True, threshold=None)
    (panel,) = picture_of(only, frames_of(only, "v")[0], None, Look(ACTIONS, 5)).panels
    assert panel.title == "truth: 1 person, 1 label"
    assert panel.boxes[0].kind == "truth"
    people = make_rows([("v", 0)], [LEFT], [-1], [0.75])
    other = alone(people, truth=False, threshold=None)
    (panel,) = picture_of(other, frames_of(other, "v")[0], None, Look(None, 5)).panels
    assert panel.boxes[0].note == "0.75"
    assert not panel.boxes[0].labels
    assert video_notes(other, frames_of(other, "v"), frames_of(other, "v")) == ["1 of 1 key frame; 1 predicted label."]


def test_people_keep_their_names_while_boxes_overlap_and_ids_of_the_file_come_first() -> None:
    keys = [("v", 1000 * second) for second in (1, 2, 3, 4, 9)]
    walking = [moved(LEFT, 0.05 * step) for step in range(4)]
    rows = [(key, box, 3) for key, box in zip(keys, walking, strict=False)]
    rows += [(keys[0], RIGHT, 3), (keys[2], RIGHT, 3), (keys[4], walking[3], 3)]
    truth = make_rows(*zip(*rows, strict=True))
    frames = frames_of(alone(truth, truth=True, threshold=None), "v")
    names = [{one.name: one.box for one in frame.truth} for frame in frames]
    assert [sorted(name) for name in names] == [["1", "2"], ["1"], ["1", "3"], ["1"], ["4"]]
    assert [name["1"] for name in names[:4]] == [pytest.approx(box) for box in walking]
    known = make_rows(*zip(*rows, strict=True), person_N=[7, 7, 7, 7, 9, 9, 7])
    frames = frames_of(alone(known, truth=True, threshold=None), "v")
    assert [[one.name for one in frame.truth] for frame in frames] == [["1", "2"], ["1"], ["1", "2"], ["1"], ["1"]]


def test_two_people_of_one_id_in_a_key_frame_have_two_names() -> None:
    truth = make_rows([("v", 0), ("v", 0)], [LEFT, RIGHT], [3, 3], person_N=[4, 4])
    (frame,) = frames_of(alone(truth, truth=True, threshold=None), "v")
    assert [one.name for one in frame.truth] == ["1", "2"]


def test_letters_go_on_behind_z() -> None:
    assert [letters(number) for number in (1, 26, 27, 52, 53, 702, 703)] == ["a", "z", "aa", "az", "ba", "zz", "aaa"]


def test_the_worst_key_frames_are_chosen_and_stand_in_the_order_of_time() -> None:
    keys = [("v", 1000 * second) for second in range(6)]
    truth = make_rows(keys, [LEFT] * 6, [3] * 6)
    found = make_rows([keys[0], keys[2], keys[3], keys[5]], [LEFT] * 4, [3, 3, 3, 3], [0.9] * 4)
    compared = compare(truth, found, score_frames(truth, found, ACTIONS), 0.0)
    frames = frames_of(compared, "v")
    assert [frame.time_s for frame in choose_frames(compared, frames, 2, worst=True)] == [1, 4]
    assert [frame.time_s for frame in choose_frames(compared, frames, 3, worst=False)] == [0, 2, 5]
    right = make_rows(keys, [LEFT] * 6, [3] * 6, [0.9] * 6)
    compared = compare(truth, right, score_frames(truth, right, ACTIONS), 0.0)
    assert [frame.time_s for frame in choose_frames(compared, frames_of(compared, "v"), 2, worst=True)] == [0, 5]


def test_a_sheet_says_what_is_drawn_and_what_its_words_mean() -> None:
    compared = hand_made()
    frames = frames_of(compared, "v")
    pictures = [picture_of(compared, frame, GREY, Look(ACTIONS, 5)) for frame in frames]
    sheet = video_sheet("v", video_notes(compared, frames, frames), compared, pictures, 1100, titled=True)
    texts = [text.text for text in sheet.texts]
    assert texts[0] == "v"
    assert (
        "2 of 2 key frames; 2 of 4 true labels missed; 5 predicted labels with a score of at least 0.10, 3 of them wrong."
        in texts
    )
    words = " ".join(texts)
    for said in (
        "wrong label: on a person who does other things",
        "background: on nobody",
        "truth missed 2",
        "correct 2",
    ):
        assert said in words


def test_one_key_frame_is_drawn_of_boxes_and_actions_alone() -> None:
    picture = key_frame_picture("v, 3 s", None, np.array([LEFT, RIGHT]), [(3, 5), ()], ACTIONS, "2 people")
    assert [(box.name, [label.text for label in box.labels]) for box in picture.panels[0].boxes] == [
        ("1", ["sit", "eat"]),
        ("2", []),
    ]
    texts = [text.text for text in sheet_of_frames("check", (), [picture]).texts]
    assert {"v, 3 s", "2 people", "no frame", "sit", "eat"} <= set(texts)


def test_scores_have_as_few_digits_as_tell_them() -> None:
    assert [score_text(score) for score in (0, 1, 0.987, 0.1, 0.0994, 0.00123)] == [
        "0.00",
        "1.00",
        "0.99",
        "0.10",
        "0.099",
        "0.0012",
    ]
