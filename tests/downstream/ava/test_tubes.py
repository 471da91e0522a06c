"""Tubes as columns, how far they overlap, and greedy suppression, against closed forms and plain loops."""

from __future__ import annotations

import numpy as np
import pytest

from tests.downstream.ava.made_tubes import as_list, overlap_by_hand, random_tubes, tubes_of
from vmae2_ds.downstream.ava import tubes as module
from vmae2_ds.downstream.ava.tubes import box_iou, make_tubes, overlaps, suppress
from vmae2_ds.errors import DataError

ONE = np.array([[0.0, 0, 10, 10]])
RIGHT = np.array([1.0, 0, 1, 0])


@pytest.mark.parametrize(
    ("last_counts", "expected"),
    # frames 1 to 10 and 6 to 20, boxes moved by half their width: IoU 1/3, 5 of 20 frames, or 4 of 19 steps
    [(True, 5 / 20 / 3), (False, 4 / 19 / 3)],
)
def test_tubes_overlap_by_time_times_the_mean_over_common_frames(last_counts: bool, expected: float) -> None:
    tubes = tubes_of([(0, 0, 1.0, 1, ONE.repeat(10, 0)), (0, 0, 1.0, 6, ONE.repeat(15, 0) + 5 * RIGHT)], ["v"])
    zero, one = np.array([0]), np.array([1])
    assert overlaps(tubes, tubes, zero, one, last_counts=last_counts)[0] == pytest.approx(expected, abs=1e-15)
    assert overlaps(tubes, tubes, one, zero, last_counts=last_counts)[0] == pytest.approx(expected, abs=1e-15)


def test_only_common_frames_count_for_the_boxes() -> None:
    # the first moves away by its width after frame 3; the second ends there
    away = np.concatenate((ONE.repeat(3, 0), ONE.repeat(7, 0) + 10 * RIGHT))
    tubes = tubes_of([(0, 0, 1.0, 1, away), (0, 0, 1.0, 1, ONE.repeat(3, 0)), (0, 0, 1.0, 2, ONE.repeat(9, 0))], ["v"])
    found = overlaps(tubes, tubes, np.array([0, 0]), np.array([1, 2]), last_counts=True)
    assert found == pytest.approx([3 / 10, 9 / 10 * 2 / 9], abs=1e-15)


@pytest.mark.parametrize(
    ("last_counts", "expected"), [(True, [0, 1 / 5, 1, 1 / 3]), (False, [0, 0, 0, 0])], ids=["counted", "not counted"]
)
def test_tubes_that_only_touch(last_counts: bool, expected: list[float]) -> None:
    """Frames 1 to 3 with 4 to 6, 3 to 5, and a tube of one frame with itself and with the first."""
    tubes = tubes_of([(0, 0, 1.0, first, ONE.repeat(n, 0)) for first, n in ((1, 3), (4, 3), (3, 3), (2, 1))], ["v"])
    found = overlaps(tubes, tubes, np.array([0, 0, 3, 0]), np.array([1, 2, 3, 3]), last_counts=last_counts)
    assert found == pytest.approx(expected, abs=1e-15)


@pytest.mark.parametrize("at_once", [1, 7, 1 << 20])
@pytest.mark.parametrize("last_counts", [True, False])
def test_overlaps_are_those_of_plain_loops_in_pieces_of_any_size(
    at_once: int, last_counts: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "BOXES_AT_ONCE", at_once)
    listed = random_tubes(np.random.default_rng(at_once), 20, 1, 1, is_truth=False)
    tubes = tubes_of(listed, ["v"])
    one, other = (side.ravel() for side in np.mgrid[:20, :20])
    by_hand = [overlap_by_hand(listed[a], listed[b], last_counts) for a, b in zip(one, other, strict=True)]
    np.testing.assert_allclose(overlaps(tubes, tubes, one, other, last_counts=last_counts), by_hand, atol=1e-15)


def test_empty_boxes_overlap_nothing() -> None:
    assert box_iou(np.zeros((1, 4)), np.zeros((1, 4))).tolist() == [0]


def test_tubes_are_put_in_order_and_taken_out_again() -> None:
    listed = random_tubes(np.random.default_rng(0), 12, 3, 2, is_truth=False)
    tubes = tubes_of(listed, "abc")
    shuffled = np.random.default_rng(1).permutation(len(tubes.box_F4))
    frame_F = np.concatenate([first + np.arange(len(boxes)) for *_, first, boxes in listed])
    tube_F = np.repeat(np.arange(12), [len(boxes) for *_, boxes in listed])
    again = make_tubes(
        ("a", "b", "c"), tubes.video_T, tubes.class_T, tubes.score_T, tube_F[shuffled], frame_F[shuffled],
        tubes.box_F4[shuffled], "x",
    )  # fmt: skip
    np.testing.assert_array_equal(again.box_F4, tubes.box_F4)
    some = as_list(tubes.some(np.array([7, 2])))
    assert [tube[:4] for tube in some] == [listed[7][:4], listed[2][:4]]
    np.testing.assert_array_equal(some[0][4], listed[7][4])


@pytest.mark.parametrize(
    ("frames", "said"),
    [([3, 4, 4], "two boxes in frame 4"), ([3, 4, 6], "no box between frames 4 and 6")],
)
def test_a_tube_with_a_gap_or_a_frame_twice_is_named(frames: list[int], said: str) -> None:
    number = np.array([0])
    line = f"^f.pkl: the tube of class 0 in 'v' that begins at frame 3 has {said}; a tube has one box"
    with pytest.raises(DataError, match=line):
        make_tubes(
            ("v",), number, number, np.ones(1), np.zeros(3, np.int64), np.array(frames), ONE.repeat(3, 0), "f.pkl"
        )


def test_suppression_is_greedy_in_each_group() -> None:
    rng = np.random.default_rng(3)
    group = np.sort(rng.integers(0, 6, 60))
    overlap = rng.random((60, 60))
    overlap = np.maximum(overlap, overlap.T)
    by_N, overlap_N = suppress(group, lambda one, other: overlap[one, other], 0.8)
    for key in range(6):
        kept: list[int] = []
        for row in np.flatnonzero(group == key).tolist():
            first = next((head for head in kept if overlap[head, row] > 0.8), -1)
            assert by_N[row] == first
            assert overlap_N[row] == (overlap[first, row] if first >= 0 else 0)
            if first < 0:
                kept.append(row)
