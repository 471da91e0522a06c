"""Temporal scorers against what the published ones gave for the same files, and against their loops written out."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.golden_data import GOLDEN, golden_json
from vmae2_ds.downstream.tad.annotations import AnnotatedVideo, Annotations, Segment, read_annotations
from vmae2_ds.downstream.tad.detections import Detections, make_detections, read_detections
from vmae2_ds.downstream.tad.protocols import PROTOCOLS, ProtocolName
from vmae2_ds.downstream.tad.score import TadScores, score_detections
from vmae2_ds.errors import ConfigError, DataError

TAD = GOLDEN / "tad"
EXPECTED = golden_json("tad/protocols_expected.json")
THUMOS14 = (
    *("BaseballPitch", "BasketballDunk", "Billiards", "CleanAndJerk", "CliffDiving", "CricketBowling", "CricketShot"),
    *("Diving", "FrisbeeCatch", "GolfSwing", "HammerThrow", "HighJump", "JavelinThrow", "LongJump", "PoleVault"),
    *("Shotput", "SoccerPenalty", "TennisSwing", "ThrowDiscus", "VolleyballSpiking"),
)
TOLERANCE = {"rtol": 0, "atol": 1e-9}


@pytest.mark.parametrize("protocol", ["actionformer", "opentad"])
@pytest.mark.parametrize("name", ["thumos_0.3_0.7", "anet_0.5_0.95"])
def test_map_and_recall_are_actionformers(name: str, protocol: ProtocolName) -> None:
    annotations, detections = read_annotations(TAD / "map_gt.json"), read_detections(TAD / "map_pred.json")
    expected = golden_json("tad/map_expected.json")[name]
    found = score_detections(annotations, detections, subset="Test", tious=expected["tiou"], protocol=protocol)
    np.testing.assert_allclose(found.average_map, expected["average_mAP"], **TOLERANCE)
    np.testing.assert_allclose(list(found.map_of.values()), expected["mAP"], **TOLERANCE)
    recall_TK = np.array([list(recall.values()) for recall in found.recall_of.values()]).T
    np.testing.assert_allclose(recall_TK, expected["recall_1x_5x"], **TOLERANCE)
    ap_TC = np.array([list(ap.values()) for ap in found.ap_of.values()]).T
    np.testing.assert_allclose(ap_TC, expected["per_class_ap"], **TOLERANCE)


def published() -> list[Any]:
    """(protocol, how Ambiguous was treated, what came out) of the larger golden file."""
    named = {"2014": "thumos14", "2015": "thumos14_2015"}
    return [
        pytest.param(named.get(kind, name), kind, expected, id=f"{name}-{kind}")
        for name, kinds in EXPECTED["protocols"].items()
        for kind, expected in kinds.items()
        if "error" not in expected
    ]


@pytest.mark.parametrize(("protocol", "kind", "expected"), published())
def test_every_protocol_gives_what_the_published_scorer_gave(
    protocol: ProtocolName, kind: str, expected: dict[str, Any]
) -> None:
    found = score_detections(
        read_annotations(TAD / "protocols_gt.json"),
        read_detections(TAD / "protocols_pred.json"),
        subset=EXPECTED["subset"],
        tious=EXPECTED["tiou"],
        protocol=protocol,
        without=["Ambiguous"] if kind == "ambiguous_removed" else [],
        drop_unknown=True,
    )
    np.testing.assert_allclose(list(found.map_of.values()), expected["mAP"], **TOLERANCE)
    np.testing.assert_allclose(found.average_map, expected["average"], **TOLERANCE)
    assert set(found.ap_of) == set(expected["ap"])
    for label, ap in expected["ap"].items():
        np.testing.assert_allclose(list(found.ap_of[label].values()), ap, err_msg=label, **TOLERANCE)
    tables = found.matches.tables
    assert (len(tables.truths.row), tables.copies + tables.too_short) == (
        expected["truths_used"],
        expected["truths_dropped"],
    )
    assert tables.unknown == {"Juggling": 2}
    assert len(tables.regions.row) == expected.get("ambiguous_segments", 0)


def test_activitynets_scorer_stops_at_a_label_without_truth_and_so_does_ours_unless_told() -> None:
    asked: dict[str, Any] = {"subset": "Test", "tious": [0.5]}
    files = read_annotations(TAD / "protocols_gt.json"), read_detections(TAD / "protocols_pred.json")
    with pytest.raises(DataError, match=r"2 detections of 1 label without truth .*'Juggling'.*--drop-unknown"):
        score_detections(*files, **asked)
    assert score_detections(*files, **asked, drop_unknown=True).matches.tables.unknown == {"Juggling": 2}


def small_case(name: str, folder: Path, protocol: ProtocolName) -> TadScores:
    case = EXPECTED["small_cases"][name]
    truth = {
        video: {"subset": "Test", "annotations": [{"label": label, "segment": ends} for label, *ends in rows]}
        for video, rows in case["truth"].items()
    }
    results = {
        video: [{"label": label, "segment": [start, end], "score": score} for label, start, end, score in rows]
        for video, rows in case["predictions"].items()
    }
    (folder / "gt.json").write_text(json.dumps({"database": truth}))
    (folder / "pred.json").write_text(json.dumps({"results": results}))
    (folder / "classes.txt").write_text("\n".join(THUMOS14))
    annotations = read_annotations(folder / "gt.json", folder / "classes.txt")
    detections = read_detections(folder / "pred.json")
    return score_detections(annotations, detections, subset="Test", tious=case["tiou"], protocol=protocol)


@pytest.mark.parametrize("protocol", sorted(PROTOCOLS))
@pytest.mark.parametrize("name", sorted(EXPECTED["small_cases"]))
def test_where_the_published_scorers_part_ours_part_alike(name: str, protocol: ProtocolName, tmp_path: Path) -> None:
    expected = EXPECTED["small_cases"][name]["expected"][{"thumos14": "thumos14_2014"}.get(protocol, protocol)]
    if "error" in expected or expected["mAP"] == [None]:
        said = "no true segment to score" if name == "no_truth" else "without truth in"  # a KeyError or nan there
        with pytest.raises(DataError, match=said):
            small_case(name, tmp_path, protocol)
        return
    found = small_case(name, tmp_path, protocol)
    np.testing.assert_allclose(list(found.map_of.values()), expected["mAP"], **TOLERANCE)
    for label, ap in expected["ap"].items():
        np.testing.assert_allclose(list(found.ap_of[label].values()), ap, **TOLERANCE)
    assert len(found.matches.tables.truths.row) == expected["truths_used"]


def random_set(seed: int, *, videos: int = 6, tied: bool = False) -> tuple[Annotations, Detections]:
    """Crowded truth and detections of three classes, so that the greedy choice has chains; `tied`: scores of one digit."""
    rng = np.random.default_rng(seed)
    names = [f"v{i}" for i in range(videos)]
    starts = rng.uniform(0, 20, (videos, 12))
    ends = starts + rng.uniform(1, 10, (videos, 12))
    segments = [
        tuple(Segment(s, e, int(label)) for s, e, label in zip(starts[i], ends[i], rng.integers(0, 3, 12), strict=True))
        for i in range(videos)
    ]
    made = [AnnotatedVideo(name, "t", 30.0, None, None, rows) for name, rows in zip(names, segments, strict=True)]
    rows = []
    for _ in range(80 * videos):
        start = rng.uniform(0, 25)
        score = rng.uniform()
        rows.append(
            (*rng.integers(0, (videos, 3)), start, start + rng.uniform(0.5, 9), round(score, 1) if tied else score)
        )
    labels = ("a", "b", "c")
    annotations = Annotations(Path("made.json"), labels, (0, 1, 2), {video.name: video for video in made})
    return annotations, make_detections(names, labels, rows)


def loop_ap(annotations: Annotations, detections: Detections, label: int, tiou: float) -> float:
    """ActivityNet's way as a plain loop over detections, with all its points."""
    order = [i for i in np.argsort(-detections.score_N, kind="stable") if detections.label_N[i] == label]
    truths = [
        (video.name, segment.start_s, segment.end_s)
        for video in annotations.videos.values()
        for segment in video.segments
        if segment.label == label
    ]
    taken: set[int] = set()
    hits = []
    for i in order:
        start, end = detections.start_N[i], detections.end_N[i]
        best, best_tiou = -1, 0.0
        for g, (video, s, e) in enumerate(truths):
            overlap = max(0.0, min(end, e) - max(start, s))
            value = overlap / ((end - start) + (e - s) - overlap)
            if (
                video == detections.videos[detections.video_N[i]]
                and g not in taken
                and value >= tiou
                and value > best_tiou
            ):
                best, best_tiou = g, value
        if best >= 0:
            taken.add(best)
        hits.append(best >= 0)
    found = np.cumsum(hits)
    precision = found / np.arange(1, len(hits) + 1)
    return float(sum(precision[n:].max() for n in np.flatnonzero(hits)) / len(truths))


@pytest.mark.parametrize("tied", [False, True])
def test_matching_all_at_once_is_the_loop_over_detections(tied: bool) -> None:
    for seed in range(4):
        annotations, detections = random_set(seed, tied=tied)
        found = score_detections(annotations, detections, subset="t", tious=(0.2, 0.5))
        for label, name in enumerate(annotations.labels):
            for tiou in (0.2, 0.5):
                expected = loop_ap(annotations, detections, label, tiou)
                assert found.ap_of[name][tiou] == pytest.approx(expected, abs=1e-12)


def test_detections_in_pieces_are_matched_as_in_one(monkeypatch: pytest.MonkeyPatch) -> None:
    files = random_set(7)
    whole = score_detections(*files, subset="t", protocol="opentad")
    monkeypatch.setattr("vmae2_ds.downstream.tad.matching.PAIRS_AT_ONCE", 50)
    pieces = score_detections(*files, subset="t", protocol="opentad")
    assert pieces.ap_of == whole.ap_of
    assert pieces.recall_of == whole.recall_of


def test_a_truth_moved_by_frames_scores_what_the_published_scorers_gave_on_thumos14() -> None:
    folder = Path(__file__).parents[4] / "shared" / "data" / "annotations" / "thumos14"
    if not folder.is_dir():
        pytest.skip("../shared (THUMOS14's annotations) is not beside this checkout")
    with (folder / "test_Annotation_ours.csv").open() as file:
        rows = [(row["video"], row["type"], float(row["start"]), float(row["end"])) for row in csv.DictReader(file)]
    names, labels = sorted({row[0] for row in rows}), sorted({row[1] for row in rows})
    segments: dict[str, list[Segment]] = {name: [] for name in names}
    for video, label, start, end in rows:
        segments[video].append(Segment(start, end, labels.index(label)))
    videos = {name: AnnotatedVideo(name, "t", None, None, None, tuple(segments[name])) for name in names}
    annotations = Annotations(folder, tuple(labels), tuple(range(len(labels))), videos)
    assert [shift["frames"] for shift in golden_json("tad/shift.json")["shifts"]] == [0, 2, 4, 8, 16]
    for shift in golden_json("tad/shift.json")["shifts"]:
        by_s = shift["frames"] / 30
        moved = [
            (names.index(video), labels.index(label), start + by_s, end + by_s, 1 - i / len(rows))
            for i, (video, label, start, end) in enumerate(rows)
        ]
        found = score_detections(annotations, make_detections(names, labels, moved), subset="t", protocol="opentad")
        assert len(found.matches.tables.truths.row) == 3358
        low, high = np.array(shift["mAP_if_those_fail"]), np.array(shift["mAP_if_those_count"])
        maps = np.array(list(found.map_of.values()))
        assert ((maps >= low - 1e-9) & (maps <= high + 1e-9)).all()
        if shift["frames"] == 8:
            assert 0.8948 <= found.average_map <= 0.8993


def test_what_cannot_be_scored_is_refused_in_one_line() -> None:
    annotations, detections = random_set(0)
    for protocol, tious, said in (
        ("voc", (0.5,), "there is no protocol 'voc'; choose one of activitynet, "),
        ("opentad", (), "thresholds must lie above 0 and at most at 1"),
        ("opentad", (0.0,), "thresholds must lie above 0 and at most at 1"),
    ):
        with pytest.raises(ConfigError, match=said):
            score_detections(annotations, detections, subset="t", tious=tious, protocol=protocol)  # type: ignore[arg-type]
    row = (0, 0, 1.0, 2.0, 0.5)
    with pytest.raises(
        DataError, match=r"the detections have no video in common .*: the annotations are of another set"
    ):
        score_detections(annotations, make_detections(["w"], ["a"], [row]), subset="t")
    with pytest.raises(
        DataError, match=r"have no label in common .*'a', 'b', 'c', ... and '7', ...\); a list of classes"
    ):
        score_detections(annotations, make_detections(["v0"], ["7"], [row]), subset="t")
    other = AnnotatedVideo("u", "val", None, None, None, (Segment(0, 1, 0),))
    more = Annotations(annotations.file, annotations.labels, annotations.label_ids, annotations.videos | {"u": other})
    with pytest.raises(
        DataError, match=r"subset 'val' of made.json and the detections have no video in common; .* of 't'"
    ):
        score_detections(more, detections, subset="val")
