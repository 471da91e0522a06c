"""Boxes of single frames linked into tubes: against the published linker's tubes, plain loops, and cases worked out by hand."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from tests.downstream.ava.made_tubes import Tube, as_list, found_boxes, golden_set, iou_by_hand
from vmae2_ds.downstream.ava.linking import LinkConfig, link, trimmed
from vmae2_ds.downstream.ava.tubes import Floats
from vmae2_ds.errors import DataError

ENDS = np.array([0.0, 0, 0, 0, 0, 0, 1, 1])
"""Boxes of MOC's files end with their last pixel."""
SHORT = LinkConfig(min_length=1, min_score=0, nms=1)
Row = tuple[int, int, int, float, float, float, float, float]


def person(frames: range, x: float, step: float = 0.0, score: float = 0.5, klass: int = 0) -> list[Row]:
    """A person of 20 x 40 who moves by `step` a frame."""
    return [
        (0, frame, klass, score, x + step * place, 0.0, x + step * place + 20, 40.0)
        for place, frame in enumerate(frames)
    ]


def linked(rows: list[Row], how: LinkConfig = SHORT) -> list[Tube]:
    """Tubes in the order by class and score."""
    tubes = link(found_boxes(rows), how).tubes
    return as_list(tubes.some(tubes.by_score()))


@pytest.mark.parametrize(("iou", "golden"), [(0.5, "linked"), (0.2, "linked_at_0.2")])
def test_tubes_are_those_of_the_published_linker(iou: float, golden: str) -> None:
    """MOC's, for detections of one frame: start, length, mean score after suppression, mean box."""
    annotations, boxes, expected = golden_set()
    videos = annotations["test_videos"][0]
    found = as_list(link(found_boxes(boxes + ENDS, videos), LinkConfig(iou=iou)).tubes)
    mine = sorted([videos[v], k, first, len(b), score, (b - ENDS[4:]).mean(axis=0)] for v, k, score, first, b in found)
    theirs = sorted(expected[golden])
    assert [row[:4] for row in mine] == [row[:4] for row in theirs]
    for one, other in zip(mine, theirs, strict=True):
        assert one[4] == pytest.approx(other[4], abs=1e-11)
        np.testing.assert_allclose(one[5], other[5], atol=1e-8)


def by_hand(rows: list[Row], how: LinkConfig) -> list[tuple[int, int, list[int], float]]:
    """(video, class, frames, mean score) of each tube: one video and class after the other, frame after frame."""
    tubes: list[list[Row]] = []
    for group in sorted({row[0:3:2] for row in rows}):
        live: list[list[Row]] = []
        for frame in range(1, 1 + max(row[1] for row in rows)):
            boxes = [row for row in rows if row[0:3:2] == group and row[1] == frame]
            boxes = sorted(boxes, key=lambda row: (-row[3], row[4:]))[: how.most]
            for tube in sorted(live, key=lambda tube: -sum(row[3] for row in tube) / len(tube)):
                if frame - tube[-1][1] > how.gap + 1:
                    continue
                near = [(iou_by_hand(box[4:], tube[-1][4:]), box) for box in boxes]
                worth = [(box[3] + how.overlap_weight * iou, box) for iou, box in near if iou >= how.iou]
                if worth:
                    best = max(worth, key=lambda pair: pair[0])[1]
                    tube.append(best)
                    boxes.remove(best)
            live += [[box] for box in boxes]
        tubes += live
    return sorted(
        (*tube[0][0:3:2], [row[1] for row in tube], sum(row[3] for row in tube) / len(tube)) for tube in tubes
    )


@pytest.mark.parametrize("seed", range(4))
def test_random_boxes_are_linked_as_by_plain_loops(seed: int) -> None:
    rng = np.random.default_rng(seed)
    how = LinkConfig(
        iou=0.3,
        overlap_weight=[0.0, 1.0][seed % 2],
        gap=seed % 3,
        most=[4, 10][seed // 2],
        nms=1,
        min_length=1,
        min_score=0,
    )
    rows: list[Row] = []
    for video, frame, klass in itertools.product(range(2), range(1, 12), range(2)):
        corners = rng.integers(0, 12, (int(rng.integers(0, 7)), 2))
        for x, y in corners.tolist():
            rows.append((video, frame, klass, float(rng.random()), float(x), float(y), x + 10.0, y + 10.0))
    found = as_list(link(found_boxes(rows, ("a", "b")), how).tubes)
    expected = by_hand(rows, how)
    mine = sorted((v, k, first, first + len(box) - 1, score) for v, k, score, first, box in found)
    theirs = sorted((v, k, frames[0], frames[-1], score) for v, k, frames, score in expected)
    assert [row[:4] for row in mine] == [row[:4] for row in theirs]
    assert [row[4] for row in mine] == pytest.approx([row[4] for row in theirs], abs=1e-12)


def test_persons_who_cross_keep_their_tubes_where_overlap_counts() -> None:
    """Two pass each other, one 15 higher; the lower scores less, but more from where they meet (overlap 25/55)."""
    lower = [(*row[:3], 0.5 if row[1] < 8 else 0.9, *row[4:]) for row in person(range(1, 16), 0, 2)]
    higher = [(*row[:5], row[5] - 15, row[6], row[7] - 15) for row in person(range(1, 16), 28, -2, 0.6)]
    ends = {}
    for weight in (0.0, 1.0):
        found = linked(lower + higher, SHORT.model_copy(update={"overlap_weight": weight, "iou": 0.3}))
        ends[weight] = sorted((tube[4][0, 0], tube[4][-1, 0]) for tube in found if len(tube[4]) == 15)
    assert ends[1.0] == [(0, 28), (28, 0)]
    assert ends[0.0] != ends[1.0]  # the best score alone: the better tube goes on with the other person


@pytest.mark.parametrize(("gap", "lengths"), [(0, [5, 4]), (1, [5, 4]), (2, [11])])
def test_a_tube_outlives_as_many_steps_without_a_box_as_asked(gap: int, lengths: list[int]) -> None:
    """Frames 1 to 5 and 8 to 11."""
    rows = person(range(1, 6), 0) + person(range(8, 12), 0)
    found = linked(rows, SHORT.model_copy(update={"gap": gap}))
    assert sorted((len(tube[4]) for tube in found), reverse=True) == lengths


def test_boxes_in_a_gap_lie_between_those_around_it() -> None:
    rows = [*person(range(1, 2), 0), *person(range(4, 5), 6)]
    (tube,) = linked(rows, SHORT.model_copy(update={"gap": 2}))
    np.testing.assert_allclose(tube[4], [[x, 0, x + 20, 40] for x in (0, 2, 4, 6)], atol=1e-12)
    assert tube[2] == pytest.approx(0.5)  # the score is of found boxes alone


def test_with_a_stride_frames_between_are_filled_and_no_step_is_a_gap() -> None:
    rows = person(range(1, 22, 5), 0, 5)
    (tube,) = linked(rows, SHORT.model_copy(update={"stride": 5}))
    np.testing.assert_allclose(tube[4][:, 0], np.arange(21), atol=1e-12)
    assert len(linked(rows)) == 5
    with pytest.raises(
        DataError, match=r"^v: boxes in frames 1 and 6, closer than the stride of 7 frames; give --link.stride"
    ):
        linked(rows, SHORT.model_copy(update={"stride": 7}))


def test_a_person_whose_class_changes_has_a_tube_of_each() -> None:
    rows = person(range(1, 6), 0) + person(range(6, 11), 0, klass=1)
    assert [(tube[1], tube[3], len(tube[4])) for tube in linked(rows)] == [(0, 1, 5), (1, 6, 5)]


def test_videos_do_not_mix() -> None:
    rows = [(frame % 2, *row[1:]) for row in person(range(1, 7), 0) for frame in [row[1]]]
    found = link(found_boxes(rows, ("a", "b")), SHORT.model_copy(update={"gap": 1})).tubes
    ends = zip(found.video_T.tolist(), found.first_T.tolist(), found.lasts().tolist(), strict=True)
    assert sorted(ends) == [(0, 2, 6), (1, 1, 5)]


@pytest.mark.parametrize("seed", range(3))
def test_shuffled_rows_and_equal_scores_give_the_same_tubes(seed: int) -> None:
    rng = np.random.default_rng(seed)
    corners = rng.integers(0, 8, (300, 2))
    rows = np.c_[
        rng.integers(0, 2, 300),
        rng.integers(1, 15, 300),
        rng.integers(0, 2, 300),
        rng.integers(1, 4, 300) / 4,
        corners,
        corners + 9,
    ]
    rows = np.concatenate((rows, rows[:20]))  # and some rows twice
    how = LinkConfig(min_length=2, min_score=0, gap=1, most=6)
    videos = ("b", "a")
    found = [as_list(link(found_boxes(some, videos), how).tubes) for some in (rows, rng.permutation(rows))]
    assert [tube[:4] for tube in found[0]] == [tube[:4] for tube in found[1]]
    for one, other in zip(*found, strict=True):
        np.testing.assert_array_equal(one[4], other[4])


def test_an_overlapping_box_counts_less_by_its_overlap() -> None:
    """IoU 0.6 / 1.4 = 3/7 stays; 0.8 / 1.2 = 2/3 leaves a third of its score."""
    rows = [(0, 1, 0, 0.9, 0, 0, 10, 10), (0, 1, 0, 0.8, 2, 0, 12, 10), (0, 1, 0, 0.7, 4, 0, 14, 10)]
    found = linked(rows, LinkConfig(min_length=1, min_score=0, iou=1))
    # the third overlaps the second by 2/3 as well, which has left by then
    assert [tube[2] for tube in found] == pytest.approx([0.9, 0.7, 0.8 / 3], abs=1e-12)


def test_only_the_best_boxes_of_a_class_and_frame_are_kept() -> None:
    rows = [row for place in range(5) for row in person(range(1, 2), 100 * place, score=place / 10)]
    assert [tube[2] for tube in linked(rows, SHORT.model_copy(update={"most": 2}))] == [0.4, 0.3]


def test_short_and_weak_tubes_are_left_out_and_counted() -> None:
    rows = person(range(1, 16), 0) + person(range(1, 15), 100) + person(range(1, 16), 200, score=0.004)
    found = link(found_boxes(rows), LinkConfig())
    assert (len(found.tubes), found.num_short, found.num_weak) == (1, 1, 1)


def test_no_boxes_are_no_tubes() -> None:
    for how in (LinkConfig(), LinkConfig(trim=1, stride=3)):
        assert len(link(found_boxes([]), how).tubes) == 0


@pytest.mark.parametrize("cost", [0.0, 0.3, 1.0, 5.0])
def test_trimming_is_the_best_of_all_labellings(cost: float) -> None:
    """Against every way to label 8 boxes, for 6 tubes at once."""
    rng = np.random.default_rng(int(cost * 10))
    scores = rng.random((6, 8))

    def worth(labels: tuple[int, ...], score_8: Floats) -> float:
        values = [score if is_action else 1 - score for is_action, score in zip(labels, score_8.tolist(), strict=True)]
        return sum(values) - cost * sum(a != b for a, b in itertools.pairwise(labels))

    kept, tube_of = trimmed(np.repeat(np.arange(6), 8), scores.ravel(), cost)
    is_action = np.zeros(48, bool)
    is_action[kept] = True
    stretches = 0
    for mine, score_8 in zip(is_action.reshape(6, 8), scores, strict=True):
        best = max(worth(labels, score_8) for labels in itertools.product((0, 1), repeat=8))
        assert worth(tuple(mine.astype(int).tolist()), score_8) == pytest.approx(best, abs=1e-12)
        stretches += int(mine[0]) + int((np.diff(mine.astype(int)) == 1).sum())
    assert len(np.unique(tube_of)) == stretches


def test_a_tube_is_cut_where_the_class_is_not_seen() -> None:
    rows = person(range(1, 9), 0, score=0.9) + person(range(9, 17), 0, score=0.1) + person(range(17, 25), 0, score=0.8)
    found = linked(rows, SHORT.model_copy(update={"trim": 1.0}))
    assert [(tube[3], len(tube[4])) for tube in found] == [(1, 8), (17, 8)]
    assert [tube[2] for tube in found] == pytest.approx([0.9, 0.8])
    assert len(linked(rows, SHORT.model_copy(update={"trim": 5.0}))) == 1
