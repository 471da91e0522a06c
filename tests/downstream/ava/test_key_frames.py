"""Truth, label map, exclusions and detected people become key frames: compared with a join written out by hand."""

from __future__ import annotations

import csv
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.downstream.ava.made_up import write_label_map
from vmae2_ds.downstream.ava.key_frames import KeyFrames, make_key_frames, read_key_frames
from vmae2_ds.downstream.ava.label_map import LabelMap, read_label_map
from vmae2_ds.downstream.ava.person_boxes import make_person_boxes, write_person_boxes
from vmae2_ds.downstream.ava.rows import make_rows, read_truth
from vmae2_ds.errors import DataError

MAP = LabelMap(Path("map.txt"), (2, 5, 9), ("sit", "talk", "wave"))
LEFT, RIGHT = (0.0, 0.0, 0.5, 1.0), (0.5, 0.0, 1.0, 1.0)


def truth_of(*rows: tuple[str, int, tuple[float, ...], int], frames: tuple[tuple[str, int], ...] = ()) -> list[Any]:
    """One file's rows: video, second, box, action."""
    keys = [(video, 1000 * second) for video, second, _, _ in rows]
    return [make_rows(keys, [box for *_, box, _ in rows], [label for *_, label in rows], frames=frames)]


def said(frames: KeyFrames) -> dict[tuple[str, int], list[tuple[tuple[float, ...], tuple[int, ...]]]]:
    """{key: [(box, action ids)]}."""
    return {frame.key: list(zip(map(tuple, frame.box_G4.tolist()), frame.action_ids, strict=True)) for frame in frames}


def test_a_file_is_joined_as_a_few_lines_by_hand_join_it(tmp_path: Path) -> None:
    """Random rows of few boxes, so that many people do several things; times written in three ways; ids beyond the map."""
    rng = np.random.default_rng(0)
    boxes = [f"{x:.3f},{y:.3f},{x + 0.3:.3f},{y + 0.4:.3f}" for x, y in rng.uniform(0, 0.6, (4, 2))]
    lines = []
    for _ in range(400):
        second = int(rng.integers(902, 912))
        time = (f"{second:04d}", f"{second}", f"{second}.0")[rng.integers(3)]
        lines.append(f"v{rng.integers(3)},{time},{boxes[rng.integers(4)]},{rng.integers(1, 7)},{rng.integers(3)}")
    truth, excluded = tmp_path / "truth.csv", tmp_path / "excluded.csv"
    truth.write_text("\n".join(lines))
    excluded.write_text("v0,0905\nv1,910\nv9,0902\n")
    label_map = read_label_map(write_label_map(tmp_path / "map.txt", (6, 2, 3)))

    expected: dict[tuple[str, int], dict[tuple[float, ...], set[int]]] = defaultdict(dict)
    for line in lines:
        video, time, *corners, action, _ = line.split(",")
        key = (video, int(float(time)) * 1000)
        if int(action) in (6, 2, 3) and key not in {("v0", 905000), ("v1", 910000)}:
            expected[key].setdefault(tuple(map(float, corners)), set()).add(int(action))
    frames = read_key_frames([truth], label_map, excluded=[excluded])
    assert list(said(frames)) == sorted(expected)
    assert said(frames) == {
        key: [(box, tuple(sorted(ids, key=(6, 2, 3).index))) for box, ids in people.items()]
        for key, people in expected.items()
    }
    assert frames.left_out.unknown == {
        action: sum(line.split(",")[6] == str(action) for line in lines) for action in (1, 4, 5)
    }
    assert frames.left_out.excluded == 2
    for row, frame in enumerate(frames):
        columns = [[label_map.ids[c] for c in np.flatnonzero(row_C)] for row_C in frames.targets(row)]
        assert [set(ids) for ids in columns] == [set(ids) for ids in frame.action_ids]


def test_a_box_without_area_is_left_out_and_one_beyond_the_edge_is_cut() -> None:
    rows = truth_of(
        *(("v", 1, (-0.2, 0.1, 0.4, 1.3), 2), ("v", 1, (0.6, 0.1, 0.5, 0.9), 5), ("v", 1, (1.2, 0, 1.4, 1), 5)),
        *(("v", 1, LEFT, 2**31 - 1), ("v", 1, LEFT, -1)),
    )
    frames = make_key_frames(rows, MAP)
    assert said(frames) == {("v", 1000): [((0.0, 0.1, 0.4, 1.0), (2,))]}
    assert frames.left_out.without_area == 2
    assert frames.left_out.unknown == {2**31 - 1: 1, -1: 1}
    assert any("2 rows whose box has no area" in line for line in frames.left_out.lines())


def test_a_detected_person_has_the_actions_of_the_true_one_it_overlaps_enough() -> None:
    """Of two boxes of one height that begin together the IoU is the ratio of their widths: 0.9 is 0.45 of 0.5."""
    rows = truth_of(("v", 1, LEFT, 2), ("v", 1, LEFT, 9), ("v", 1, RIGHT, 5), ("v", 2, LEFT, 5))
    found = {
        ("v", 1000): np.array(
            [[0, 0, 0.451, 1, 0.95], [0, 0, 0.449, 1, 0.95], [0.5, 0, 0.99, 1, 0.85], [0.52, 0, 1, 1, 0.91]]
        ),
        ("v", 7000): np.array([[0, 0, 1, 1, 0.99]]),
    }
    frames = make_key_frames(rows, MAP, boxes=found, box_threshold=0.9, use="truth_and_proposals", overlap=0.9)
    of_truth = [(LEFT, (2, 9)), (RIGHT, (5,))]
    taken = [((0.0, 0.0, 0.451, 1.0), (2, 9)), ((0.52, 0.0, 1.0, 1.0), (5,))]
    assert said(frames) == {("v", 1000): of_truth + taken, ("v", 2000): [(LEFT, (5,))]}
    assert frames[0].score_G.tolist() == [1, 1, 0.95, 0.91]
    kept = make_key_frames(
        rows, MAP, boxes=found, box_threshold=0.9, use="truth_and_proposals", overlap=0.9, keeps_unmatched=True
    )
    assert said(kept)["v", 1000] == [*of_truth, taken[0], ((0.0, 0.0, 0.449, 1.0), ()), taken[1]]


def test_a_test_on_detected_people_has_the_key_frames_of_the_truth_and_nobody_else() -> None:
    rows = truth_of(("v", 1, LEFT, 2), ("v", 3, LEFT, 2), ("v", 4, LEFT, 2), frames=(("v", 2000),))
    found = {
        ("v", second * 1000): np.array([[*RIGHT, 0.5], [*LEFT, score]])
        for second, score in ((1, 0.8), (2, 0.9), (4, 0.7))
    }
    found["v", 9000] = np.array([[*LEFT, 0.9]])
    frames = make_key_frames(rows, MAP, boxes=found, box_threshold=0.8, use="boxes")
    assert said(frames) == {("v", 1000): [(LEFT, ())], ("v", 2000): [(LEFT, ())]}
    assert frames.left_out.empty == 2
    always = make_key_frames(rows, MAP, boxes=found, box_threshold=0.8, use="boxes", keeps_best=True)
    assert said(always) == {
        **said(frames),
        ("v", 3000): [((0.0, 0.0, 1.0, 1.0), ())],
        ("v", 4000): [(LEFT, ())],
    }
    assert [frame.score_G.tolist() for frame in always] == [[0.8], [0.9], [1.0], [0.7]]
    alone = make_key_frames([], MAP, boxes=found, box_threshold=0.8, use="boxes")
    assert list(said(alone)) == [("v", 1000), ("v", 2000), ("v", 9000)]


def test_files_of_boxes_are_read_and_joined(tmp_path: Path) -> None:
    (tmp_path / "truth.csv").write_text("v,1,0,0,0.5,1,2\nw,12.5,0,0,0.5,1,2\n")
    for name, key in (("a", ("v", 1000)), ("b", ("w", 12500))):
        found = make_person_boxes({key: np.array([[*LEFT, 0.9]])}, tmp_path / name)
        write_person_boxes(found, tmp_path / f"{name}.csv", "pyslowfast")
    boxes = [tmp_path / "a.csv", tmp_path / "b.csv"]
    frames = read_key_frames([tmp_path / "truth.csv"], MAP, boxes=boxes, use="boxes", box_threshold=0.8)
    assert list(said(frames)) == [("v", 1000), ("w", 12500)]


def test_key_frames_of_two_sets_with_other_clocks_are_read_as_one(tmp_path: Path) -> None:
    (tmp_path / "ava.csv").write_text("b,0902,0,0,0.5,1,2,0\n")
    (tmp_path / "kinetics.csv").write_text("a,4.504,0,0,0.5,1,5\nb,902.0,0,0,0.5,1,9\n")
    frames = read_key_frames([tmp_path / "ava.csv", tmp_path / "kinetics.csv"], MAP)
    assert said(frames) == {("a", 4504): [(LEFT, (5,))], ("b", 902000): [(LEFT, (2, 9))]}


def test_a_stride_is_in_seconds_of_the_clock_or_in_key_frames_of_a_video() -> None:
    rows = truth_of(
        *((video, second, LEFT, 2) for video in "ab" for second in range(902, 912) if (video, second) != ("b", 904))
    )
    frames = make_key_frames(rows, MAP, every_s=4)
    assert [frame.key for frame in frames] == [("a", 904000), ("a", 908000), ("b", 908000)]
    frames = make_key_frames(rows, MAP, every=4)
    assert [frame.time_ms // 1000 for frame in frames] == [902, 906, 910, 902, 907, 911]
    assert frames.left_out.between == 13


def test_the_digest_is_of_what_is_learnt_and_not_of_the_order_of_key_frames_in_a_file() -> None:
    rows = [("v", 1, LEFT, 2), ("v", 1, RIGHT, 5), ("w", 1, LEFT, 9)]
    digest = make_key_frames(truth_of(*rows), MAP).digest
    assert make_key_frames(truth_of(rows[2], *rows[:2]), MAP).digest == digest
    changed = [
        truth_of(*rows[:2], ("w", 1, LEFT, 5)),
        truth_of(*rows[:2], ("w", 1, (0.0, 0.0, 0.5, 0.999), 9)),
        truth_of(*rows[:2], ("w", 2, LEFT, 9)),
        truth_of(*rows[:2], ("x", 1, LEFT, 9)),
        truth_of(*rows[:2]),
    ]
    others = {make_key_frames(some, MAP).digest for some in changed}
    others.add(make_key_frames(truth_of(*rows), LabelMap(MAP.file, MAP.ids, ("sit", "talk", "run"))).digest)
    assert len(others - {digest}) == 6


def test_where_nothing_is_left_one_line_says_what_was_left_out(tmp_path: Path) -> None:
    (tmp_path / "truth.csv").write_text("v,1,0,0,0.5,1,77\nv,2,0,0,0.5,1,2\nv,3,0.5,0,0.5,1,2\n")
    with pytest.raises(DataError) as refused:
        make_key_frames([read_truth(tmp_path / "truth.csv")], MAP, excluded=frozenset({("v", 2000)}))
    text = str(refused.value)
    assert "\n" not in text
    unknown = "1 row with action ids that the label map lacks: 77"
    for part in (str(tmp_path / "truth.csv"), unknown, "1 row whose box", "1 key frame excluded"):
        assert part in text
    with pytest.raises(DataError, match="multiple of 4 s"):
        make_key_frames(truth_of(("v", 1, LEFT, 2)), MAP, every_s=4)


def test_real_rows_of_ava_are_joined_into_as_many_people_and_actions_as_there_are() -> None:
    folder = Path(__file__).parents[4] / "shared" / "data" / "annotations" / "ava"
    if not folder.is_dir():
        pytest.skip("../shared (rows of AVA) is not beside this checkout")
    label_map = read_label_map(folder / "ava_action_list_v2.1_for_activitynet_2018.pbtxt.txt")
    excluded = folder / "ava_val_excluded_timestamps_v2.1.csv"
    frames = read_key_frames([folder / "ava_val_excerpt.csv"], label_map, excluded=[excluded])
    out = {(video, int(second)) for video, second in csv.reader(excluded.open())}
    rows = [row for row in csv.reader((folder / "ava_val_excerpt.csv").open()) if (row[0], int(row[1])) not in out]
    known = [row for row in rows if int(row[6]) in label_map.ids]
    assert len(known) < len(rows)
    assert len(frames) == len({(row[0], row[1]) for row in known})
    assert len(frames.box_N4) == len({tuple(row[:6]) for row in known})
    assert len(frames.class_M) == len({tuple(row[:7]) for row in known})
    assert [frame.key for frame in frames] == sorted(frame.key for frame in frames)
