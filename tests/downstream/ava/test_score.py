"""Frame mAP: the published scorers' numbers, plain loops, and AVA's real rows."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.downstream.ava.slow_scorer import Row, average_precision, slow_score, trapezoids
from tests.golden_data import GOLDEN, golden_json
from vmae2_ds.downstream.ava import counted_rows
from vmae2_ds.downstream.ava.label_map import LabelMap, read_label_map
from vmae2_ds.downstream.ava.protocols import FRAME_PROTOCOLS, FrameProtocolName
from vmae2_ds.downstream.ava.rows import BoxRows, make_rows, read_detections, read_excluded, read_truth
from vmae2_ds.downstream.ava.score import FrameScores, score_frames
from vmae2_ds.downstream.detection_map import all_points, all_points_of_ranks, trapezoids_of_ranks
from vmae2_ds.errors import ConfigError, DataError

REAL = Path(__file__).parents[4] / "shared/data/annotations/ava"
needs_real = pytest.mark.skipif(not REAL.is_dir(), reason="the real rows of AVA are not here (../shared)")
EXPECTED = golden_json("ava/protocols_expected.json")


def a_set(name: str, found: str = "det") -> tuple[BoxRows, BoxRows, LabelMap, frozenset[tuple[str, int]]]:
    """A set of tests/golden/ava: truth, detections, label map, excluded key frames."""
    at = GOLDEN / "ava"
    return (
        read_truth(at / f"{name}_gt.csv"),
        read_detections(at / f"{name}_{found}.csv"),
        read_label_map(at / f"{name}_labelmap.pbtxt"),
        read_excluded(at / f"{name}_excluded.csv"),
    )


def not_inside_out(rows: BoxRows) -> BoxRows:
    return rows.of((rows.box_N4[:, :2] <= rows.box_N4[:, 2:]).all(axis=1))


def about(value: float | None) -> Any:
    return None if value is None else pytest.approx(value, abs=1e-12)


def a_map(*ids: int) -> LabelMap:
    return LabelMap(Path("actions.pbtxt"), ids, tuple(f"do {number}" for number in ids))


@pytest.mark.parametrize("protocol", EXPECTED["protocols"])
def test_each_protocol_gives_its_published_scorers_numbers(protocol: FrameProtocolName) -> None:
    truth, found, label_map, excluded = a_set("protocols")
    found = not_inside_out(found) if protocol == "mmaction2" else found
    scores = score_frames(truth, found, label_map, excluded=excluded, protocol=protocol)
    expected = EXPECTED["protocols"][protocol]
    assert scores.frame_map == pytest.approx(expected["mAP"], abs=1e-9)
    ap_of = {str(action): ap for action, ap in scores.ap_of.items()}
    for action, ap in expected["ap"].items():
        assert ap_of.pop(action) == (None if ap is None else pytest.approx(ap, abs=1e-9))
    assert set(ap_of.values()) <= {None}  # left out by the protocol
    assert scores.interval == pytest.approx((expected["mAP"], expected["mAP"]), abs=1e-9)
    assert scores.tied_rows == 0
    for group, value in expected.get("groups", {}).items():
        assert scores.map_of_group[group] == pytest.approx(value, abs=1e-9)


def test_videomae_action_detections_numbers_are_the_legacy_protocols() -> None:
    truth, found, label_map, excluded = a_set("map")
    scores = score_frames(truth, found, label_map, excluded=excluded, protocol="legacy")
    expected = golden_json("ava/map_expected.json")["result"]
    assert scores.frame_map == pytest.approx(expected.pop("PascalBoxes_Precision/mAP@0.5IOU"), abs=1e-9)
    for name, ap in expected.items():
        assert scores.ap_of[int(name.split()[-1])] == (None if ap is None else pytest.approx(ap, abs=1e-9))


@pytest.mark.parametrize("protocol", ["activitynet", "legacy", "mmaction2"])
def test_the_order_of_equal_scores_leaves_the_published_interval_open(protocol: FrameProtocolName) -> None:
    truth, found, label_map, excluded = a_set("protocols", "det_tied")
    scores = score_frames(truth, found, label_map, excluded=excluded, protocol=protocol)
    expected = EXPECTED["tied"][protocol]
    assert scores.interval == pytest.approx((expected["lowest"], expected["highest"]), abs=1e-9)
    assert scores.frame_map == pytest.approx(expected["file_order"], abs=1e-9)
    assert scores.interval[0] < scores.frame_map < scores.interval[1]


def test_tied_rows_are_those_that_share_a_score_with_another_of_their_class() -> None:
    keys = [("v", 0)] * 6
    found = make_rows(keys, [[0, 0, 1, 1]] * 6, [1, 1, 1, 2, 2, 2], [0.5, 0.5, 0.7, 0.5, 0.6, 0.8])
    scores = score_frames(make_rows(keys[:1], [[0, 0, 1, 1]], [1]), found, a_map(1, 2))
    assert scores.tied_rows == 2
    truth, found, label_map, excluded = a_set("protocols", "det_tied")
    every = LabelMap(Path("all"), tuple(range(1, 81)), tuple(map(str, range(1, 81))))
    everywhere = make_rows([(found.videos[0], 0)], [[0, 0, 1, 1]], [1], frames=found.keys)
    alike = EXPECTED["tied"]["rows_sharing_a_score_with_another_of_their_class"]
    assert score_frames(everywhere, found, every, protocol="legacy").tied_rows == alike == 812
    assert score_frames(truth, found, label_map, excluded=excluded, protocol="legacy").tied_rows < alike


def test_without_exclusions_and_rows_of_two_columns_the_numbers_are_those_of_such_files() -> None:
    truth, found, label_map, _ = a_set("protocols")
    with_boxes = make_rows([truth.keys[frame] for frame in truth.frame_N], truth.box_N4, truth.label_N)
    scores = score_frames(with_boxes, found, label_map)
    assert scores.frame_map == pytest.approx(
        EXPECTED["other_inputs"]["activitynet without the 2-column rows"]["mAP"], abs=1e-9
    )


def test_mmaction2_stops_at_boxes_inside_out() -> None:
    truth, found, label_map, excluded = a_set("protocols")
    with pytest.raises(
        DataError, match=r"protocols_det\.csv: \d+ boxes are inside out .*first in video .* stops at them"
    ):
        score_frames(truth, found, label_map, excluded=excluded, protocol="mmaction2")


def random_set(seed: int) -> tuple[list[Row], list[tuple[str, int]], list[Row], list[int], set[tuple[str, int]]]:
    """A small set where everything that protocols differ in happens often: few places, few scores, boxes inside out."""
    draw = random.Random(seed)
    frames = [(video, 1000 * second) for video in ("a", "é,b") for second in range(3)]
    ids = draw.sample([1, 2, 14, 15, 70], 3)
    digits = draw.choice([1, 2, 6])

    def box(*, wrong: bool) -> tuple[float, float, float, float]:
        x1, y1 = draw.choice([0, 0.1, 0.25]), draw.choice([0, 0.1, 0.25])
        x2, y2 = x1 + draw.choice([0.2, 0.25, 0.5]), y1 + draw.choice([0.2, 0.25, 0.5])
        if wrong and draw.random() < 0.15:
            x1, x2 = draw.choice([(x2, x1), (x1, x1)])
        return x1, y1, x2, y2

    truth: list[Row] = [
        (*draw.choice(frames[:4]), box(wrong=False), draw.choice([*ids[:2], 99]), 1.0)
        for _ in range(draw.randrange(2, 12))
    ]
    truth.append((*frames[0], box(wrong=False), ids[0], 1.0))
    near = [(*draw.choice(truth)[:4], round(draw.random(), digits)) for _ in range(draw.randrange(0, 12))]
    found: list[Row] = [
        (*draw.choice(frames), box(wrong=True), draw.choice([*ids, 99]), round(draw.random(), digits))
        for _ in range(draw.randrange(0, 60))
    ]
    return (
        truth,
        draw.sample(frames, 2),
        draw.sample(near + found, len(near + found)),
        ids,
        {frames[1], draw.choice(frames)},
    )


def as_rows(rows: list[Row], frames: list[tuple[str, int]] | None = None) -> BoxRows:
    columns: Any = [list(column) for column in zip(*rows, strict=True)] or [[], [], [], [], []]
    return make_rows([row[:2] for row in rows], columns[2], columns[3], columns[4], frames=frames or [])


@pytest.mark.parametrize("protocol", FRAME_PROTOCOLS)
def test_random_sets_are_scored_as_plain_loops_do(protocol: FrameProtocolName, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(counted_rows, "ROWS_AT_ONCE", 7)  # so that small sets come in many pieces
    capped = FRAME_PROTOCOLS[protocol].__dict__ | ({"most_a_frame": 4} if protocol == "activitynet" else {})
    monkeypatch.setitem(FRAME_PROTOCOLS, protocol, type(FRAME_PROTOCOLS[protocol])(**capped))
    seen = set()
    for seed in range(150):
        truth, bare, found, ids, excluded = random_set(seed)
        if protocol == "mmaction2":
            found = [row for row in found if row[2][0] <= row[2][2]]
        iou = random.Random(seed).choice([0.5, 0.25, 0.75, 1.0])
        if not any(
            row[3] in ids and (row[:2] not in excluded or protocol in ("activitynet", "mmaction2", "act"))
            for row in truth
        ):
            continue
        expected, ap_of, bounds = slow_score(truth, bare, found, ids, excluded, protocol, iou, cap=4)
        scores = score_frames(
            as_rows(truth, bare), as_rows(found), a_map(*ids), excluded=frozenset(excluded), protocol=protocol, iou=iou
        )
        assert scores.frame_map == pytest.approx(expected, abs=1e-12), seed
        assert scores.ap_of == {action: about(ap) for action, ap in ap_of.items()}
        assert scores.interval == pytest.approx(bounds, abs=1e-12)
        seen.add(round(expected, 3))
    assert len(seen) > 50


def test_the_area_from_ranks_is_the_area_from_flags() -> None:
    draw = np.random.default_rng(0)
    for count in (1, 2, 30):
        flags = draw.random(count) < 0.4
        ranks = np.flatnonzero(flags) + 1
        for truths in (max(int(flags.sum()), 1), 40):
            expected = average_precision(flags.tolist(), truths)
            assert all_points_of_ranks(ranks, truths) == pytest.approx(expected, abs=1e-12)
            assert all_points(flags[None], truths)[0] == pytest.approx(expected, abs=1e-12)
            expected = trapezoids(flags.tolist(), truths)
            assert trapezoids_of_ranks(ranks, truths) == pytest.approx(expected, abs=1e-12)
    assert all_points_of_ranks(np.zeros(0, np.int64), 3) == 0


def real() -> tuple[BoxRows, LabelMap]:
    return (
        read_truth(REAL / "ava_val_excerpt.csv"),
        read_label_map(REAL / "ava_action_list_v2.1_for_activitynet_2018.pbtxt.txt"),
    )


@needs_real
@pytest.mark.parametrize("protocol", FRAME_PROTOCOLS)
def test_avas_truth_as_detections_is_perfect_on_every_class_present(protocol: FrameProtocolName) -> None:
    truth, label_map = real()
    scores = score_frames(truth, truth, label_map, protocol=protocol)
    present = set(truth.label_N.tolist()) & set(label_map.ids)
    assert len(present) == 52
    assert scores.ap_of == {action: 1.0 if action in present else None for action in label_map.ids}
    assert scores.frame_map == 1
    assert scores.counted.dropped["outside_label_map"] == scores.counted.dropped["truth_outside_label_map"] > 0


def jittered(truth: BoxRows, seed: int) -> BoxRows:
    """The truth moved by up to a third of each box, with other actions beside the true ones, and scores without two alike."""
    draw = np.random.default_rng(seed)
    size = np.tile(truth.box_N4[:, 2:] - truth.box_N4[:, :2], 2)
    moved = truth.of(np.repeat(np.arange(len(truth)), 3))
    box = moved.box_N4 + np.repeat(size, 3, axis=0) * draw.uniform(-0.3, 0.3, (len(moved), 4))
    label = np.where(draw.random(len(moved)) < 0.5, moved.label_N, draw.permutation(moved.label_N))
    keys = [truth.keys[frame] for frame in moved.frame_N]
    return make_rows(keys, box, label, draw.permutation(len(moved)) / len(moved))


@needs_real
@pytest.mark.parametrize("protocol", ["activitynet", "legacy", "mmaction2"])
def test_avas_rows_jittered_agree_with_plain_loops_and_shuffled_give_the_same(protocol: FrameProtocolName) -> None:
    truth, label_map = real()
    first = truth.of(np.flatnonzero(truth.video_N < 1)[:300])  # loops take their time
    keys = first.keys
    frames = sorted({keys[frame] for frame in first.frame_N})
    found = not_inside_out(jittered(first, 1))
    excluded = frozenset(frames[5:9])
    true_rows: list[Row] = [
        (*keys[frame], tuple(box), label, 1.0)
        for frame, box, label in zip(first.frame_N, first.box_N4.tolist(), first.label_N.tolist(), strict=True)
    ]
    found_rows: list[Row] = [
        (*found.keys[frame], tuple(box), label, score)
        for frame, box, label, score in zip(
            *(column.tolist() for column in (found.frame_N, found.box_N4, found.label_N, found.score_N)), strict=True
        )
    ]
    truth = as_rows(true_rows)
    expected, ap_of, _ = slow_score(true_rows, [], found_rows, label_map.ids, excluded, protocol)
    scores = score_frames(truth, found, label_map, excluded=excluded, protocol=protocol)
    assert scores.frame_map == pytest.approx(expected, abs=1e-12)
    assert {a: ap for a, ap in scores.ap_of.items() if ap} == pytest.approx(
        {a: ap for a, ap in ap_of.items() if ap}, abs=1e-12
    )
    assert 0.2 < expected < 0.9
    order = np.random.default_rng(2).permutation(len(found))
    shuffled = score_frames(truth, found.of(order), label_map, excluded=excluded, protocol=protocol)
    assert shuffled.ap_of == scores.ap_of
    assert shuffled.interval == scores.interval


def test_sizes_are_counted_as_coco_does() -> None:
    small, large = [0, 0, 0.2, 0.2], [0, 0, 0.6, 0.6]  # 4 and 36 % of the frame
    keys = [("v", second) for second in range(4)]
    truth = make_rows(keys, [small, large, large, small], [1, 1, 1, 2])
    found = make_rows(
        [("v", 0), ("v", 1), ("v", 2), ("v", 3), ("v", 3)],
        [[0, 0, 0.2, 0.26], large, small, small, large],  # the first is of medium size, and finds a small one
        [1, 1, 1, 1, 2],
        [0.9, 0.8, 0.95, 0.7, 0.6],
    )
    scores = score_frames(truth, found, a_map(1, 2))
    of_class_1 = scores.classes[1].ap_of_size
    # small: the miss of 0.95, then the hit; large: one of two found, no miss is large
    assert of_class_1 == (pytest.approx(1 / 2), None, pytest.approx(1 / 2))
    assert scores.classes[2].ap_of_size == (0.0, None, None)
    assert scores.map_of_size == {"small": pytest.approx(1 / 4), "medium": None, "large": pytest.approx(1 / 2)}


def test_what_is_left_out_is_counted_once_each() -> None:
    truth, found, label_map, excluded = a_set("protocols")
    for protocol in ("activitynet", "legacy", "legacy_pyslowfast"):
        counted = score_frames(truth, found, label_map, excluded=excluded, protocol=protocol).counted
        lost = sum(number for reason, number in counted.dropped.items() if not reason.startswith("truth"))
        assert lost + len(counted.found) == len(found) == EXPECTED["rows"]["det"]
        assert len(counted.truth) + counted.dropped["truth_outside_label_map"] + counted.dropped[
            "truth_in_excluded_frames"
        ] == len(truth)


def test_nothing_detected_is_a_documented_zero() -> None:
    truth = make_rows([("v", 0)], [[0, 0, 1, 1]], [1])
    nothing = make_rows([], np.zeros((0, 4)), [], [])
    for protocol in FRAME_PROTOCOLS:
        scores = score_frames(truth, nothing, a_map(1, 2), protocol=protocol)
        assert (scores.frame_map, scores.interval, scores.tied_rows) == (0.0, (0.0, 0.0), 0)
        assert scores.ap_of == {1: None if protocol == "mmaction2" else 0.0, 2: None}


def test_what_cannot_be_scored_is_refused_in_a_line() -> None:
    box = [[0, 0, 1, 1]]
    truth, found = (
        make_rows([("v", 0)], box, [1], source="gt.csv"),
        make_rows([("v", 0)], box, [1], [np.nan], source="det.csv"),
    )
    with pytest.raises(DataError, match=r"det\.csv: a score or a box is no finite number"):
        score_frames(truth, found, a_map(1))
    with pytest.raises(
        DataError, match=r"gt\.csv: no true box is left to score: of 1, 1 have an action id that actions\.pbtxt"
    ):
        score_frames(truth, truth, a_map(2))
    with pytest.raises(DataError, match=r"0 have an action id .*, and 1 are in excluded key frames"):
        score_frames(truth, truth, a_map(1), excluded=frozenset({("v", 0)}), protocol="legacy")
    with pytest.raises(DataError, match="these rows has no true box to score"):
        score_frames(make_rows([], [], [], frames=[("v", 0)]), truth, a_map(1))
    with pytest.raises(ConfigError, match="there is no protocol 'ava'"):
        score_frames(truth, truth, a_map(1), protocol="ava")  # type: ignore[arg-type]
    for iou in (0, 1.5, float("nan")):
        with pytest.raises(ConfigError, match="must lie above 0"):
            score_frames(truth, truth, a_map(1), iou=iou)


def scored(found: BoxRows, truth: BoxRows, *ids: int, protocol: FrameProtocolName = "legacy") -> FrameScores:
    return score_frames(truth, found, a_map(*ids), protocol=protocol)


def test_hostile_sets() -> None:
    box = [0.1, 0.1, 0.5, 0.5]
    one = make_rows([("видео 1", 5)], [box], [7])
    many = make_rows([("видео 1", 5)] * 1000, [box] * 1000, [7] * 1000, [0.5] * 1000)
    scores = scored(many, one, 7)
    assert (scores.frame_map, scores.interval, scores.tied_rows) == (1.0, (1 / 1000, 1.0), 1000)
    official = scored(many, one, 7, protocol="activitynet")
    assert (len(official.counted.found), official.counted.cut_among_equals) == (50, 950)
    crowd = make_rows([("v", 0)] * 1000, [[i / 1000, 0, (i + 1) / 1000, 1] for i in range(1000)], [7] * 1000)
    assert scored(crowd, crowd, 7).frame_map == 1
    ids = range(5, 2**15 + 100)
    some = [*ids[-100:], *ids[:100]]
    wide = make_rows([("v", 0)] * 200, [box] * 200, some)
    half = make_rows([("v", 0)] * 200, [box] * 100 + [[0.8, 0.8, 0.9, 0.9]] * 100, some)
    ap_of = scored(half, wide, *ids).ap_of
    assert [ap_of[action] for action in some] == [1] * 100 + [0] * 100
    turned = make_rows([("v", 0)], [[0.5, 0.5, 0.1, 0.1]], [7])
    assert scored(turned, turned, 7).frame_map == 0


def test_avas_groups_are_given_for_avas_actions_alone() -> None:
    assert set(read_label_map(GOLDEN / "ava/protocols_labelmap.pbtxt").groups) == {
        *("person_movement", "object_manipulation", "person_interaction")
    }
    some = LabelMap(Path("some"), (12, 80), ("stand", "watch (a person)"))
    assert [14 in ids for ids in some.groups.values()] == [True, False, False]
    for ids, names in (
        ((12, 80), ("stand", "jump")),
        ((1, 2, 70), ("run", "jump", "fall")),
        ((1, 2, 3), ("action1", "action2", "action3")),
        ((12, 81), ("stand", "fly")),
        (tuple(range(1, 67)), tuple(f"sport {chr(65 + number)}" for number in range(66))),
    ):
        assert LabelMap(Path("other"), ids, names).groups == {}
