"""`vmae2 ava boxes`: conversion, a detector's results, detectors on videos, and the recall that is told of each."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.cli.lines import answer, refusal
from vmae2_ds.data.tools.encode import write_frames
from vmae2_ds.downstream.ava.box_arguments import AvaBoxesArguments
from vmae2_ds.downstream.ava.boxes import ava_boxes
from vmae2_ds.downstream.ava.person_boxes import make_person_boxes, read_person_boxes
from vmae2_ds.downstream.ava.person_detector import load_detector
from vmae2_ds.downstream.ava.recall import IOUS, THRESHOLDS, recall_of, recalls_of
from vmae2_ds.downstream.ava.rows import make_rows
from vmae2_ds.errors import CheckpointError, ConfigError, DataError, TooManyBadFiles

FPS, HEIGHT, WIDTH = 10, 48, 64


def overlap(a: Any, b: Any) -> float:
    width, height = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    both = max(width, 0) * max(height, 0)
    return both / ((a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - both) if both else 0.0


def slow_recall(truth: dict[Any, list[list[float]]], boxes: Any, threshold: float, iou: float) -> tuple[int, int]:
    """Persons found and persons, a frame at a time: the largest overlap of what is left, over and over."""
    found = total = 0
    for key, persons in truth.items():
        left = [list(person) for person in {tuple(person) for person in persons}]
        total += len(left)
        free = [list(box[:4]) for box in boxes.get(key, []) if box[4] >= threshold]
        while left and free:
            best, i, j = max((overlap(a, b), -i, -j) for i, a in enumerate(left) for j, b in enumerate(free))
            if best < iou:
                break
            found += 1
            del left[-i], free[-j]
    return found, total


def made(rng: np.random.Generator) -> tuple[dict[Any, list[list[float]]], dict[Any, np.ndarray]]:
    truth: dict[Any, list[list[float]]] = {}
    boxes: dict[Any, np.ndarray] = {}
    for frame in range(60):
        key = (f"v{frame % 4}", 1000 * frame)
        corners = np.sort(rng.random((rng.integers(1, 6), 2, 2)), axis=1).reshape(-1, 4).round(3)
        corners[:, 2:] += 0.01  # none without an area
        truth[key] = corners.tolist()
        if frame % 7:
            moved = np.repeat(corners, 2, axis=0) + rng.normal(0, 0.03, (2 * len(corners), 4))
            moved = np.concatenate([np.sort(moved.reshape(-1, 2, 2), axis=1).reshape(-1, 4).clip(0, 1), corners[:1]])
            boxes[key] = np.column_stack([moved, rng.random(len(moved))])
    boxes["elsewhere", 0] = np.array([[0, 0, 1, 1, 1.0]])
    return truth, boxes


def test_recall_is_that_of_a_slow_count_one_box_for_one_person(tmp_path: Path) -> None:
    truth, boxes = made(np.random.default_rng(0))
    keys = [key for key, rows in truth.items() for _ in rows] * 2  # each person with two actions
    rows = make_rows(
        keys, [row for rows in truth.values() for row in rows] * 2, [1] * (len(keys) // 2) + [2] * (len(keys) // 2)
    )
    told = recalls_of(rows, make_person_boxes(boxes, tmp_path / "x"))
    assert [one.threshold for one in told] == list(THRESHOLDS)
    for one in told:
        for iou in IOUS:
            found, total = slow_recall(truth, boxes, one.threshold, iou)
            assert (round(one.at(iou) * len(one.iou_T)), len(one.iou_T)) == (found, total)
            assert 0.1 * total < found < total
    kept = {key: array[array[:, 4] >= 0.8] for key, array in boxes.items()}
    assert told[2].boxes == sum(len(kept[key]) for key in truth if key in kept)
    assert told[2].empty == sum(not len(kept.get(key, ())) for key in truth)
    assert (told[2].frames, told[2].elsewhere) == (60, 1)


def test_one_box_finds_one_of_two_persons_that_share_it(tmp_path: Path) -> None:
    rows = make_rows([("v", 0)] * 2, [[0, 0, 0.5, 1], [0, 0, 0.6, 1]], [1, 1])
    one = recall_of(rows, make_person_boxes({("v", 0): [[0, 0, 0.55, 1, 1]]}, tmp_path / "x"))
    assert one.at(0.5) == 0.5
    np.testing.assert_allclose(sorted(one.iou_T), [0, 0.55 / 0.6])
    assert recall_of(make_rows([], [], []), make_person_boxes({}, tmp_path / "x")).at(0.5) is None


def test_truth_as_boxes_is_found_whole(tmp_path: Path) -> None:
    truth, _ = made(np.random.default_rng(1))
    keys = [key for key, rows in truth.items() for _ in rows]
    rows = make_rows(keys, [row for rows in truth.values() for row in rows], [3] * len(keys))
    own = {key: np.column_stack([boxes, np.ones(len(boxes))]) for key, boxes in truth.items()}
    assert [one.at(0.75) for one in recalls_of(rows, make_person_boxes(own, tmp_path / "x"))] == [1.0] * len(THRESHOLDS)


# ---- the verb on files

CSV = "v,0902,0.100000,0.200000,0.500000,0.900000,,0.995000\nv,0903,0.300000,0.200000,0.600000,1.000000,,0.040000\n"


def test_a_file_goes_from_form_to_form_and_what_is_there_stays(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "a.csv").write_text(CSV)
    chain = ["a.csv", "b.pkl", "c.json", "d.csv"]
    for before, after in pairwise(chain):
        line = ["ava", "boxes", "--convert", str(tmp_path / before), str(tmp_path / after)]
        code, out, _ = answer([*line, *(["--size", "1920x800"] if after == "c.json" else [])], capsys)
        assert code == 0
        assert f"2 boxes at 2 key frames, {read_person_boxes(tmp_path / after).format}: wrote {tmp_path / after}" in out
    assert (tmp_path / "d.csv").read_text() == CSV
    said = refusal(["ava", "boxes", "--convert", str(tmp_path / "b.pkl"), str(tmp_path / "a.csv")], capsys)
    assert "a.csv" in said
    assert (tmp_path / "a.csv").read_text() == CSV
    said = refusal(["ava", "boxes", "--convert", str(tmp_path / "b.pkl"), str(tmp_path / "e.txt")], capsys)
    assert "its ending tells no form; give --to" in said
    said = refusal(["ava", "boxes", "--convert", str(tmp_path / "b.pkl"), str(tmp_path / "e.json")], capsys)
    assert "2 of 2 key frames have no size" in said
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(chain)


def test_a_detectors_results_become_boxes_at_the_key_frames_with_their_recall(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    images = [{"id": n, "file_name": f"v/{902 + n}.jpg", "width": 100, "height": 100} for n in range(3)]
    rows = [
        {"image_id": 0, "category_id": 1, "bbox": [10, 10, 40, 40], "score": 0.9},
        {"image_id": 0, "category_id": 1, "bbox": [10, 10, 41, 40], "score": 0.01},
        {"image_id": 0, "category_id": 3, "bbox": [0, 0, 9, 9], "score": 0.9},
        {"image_id": 2, "category_id": 1, "bbox": [10, 10, 40, 40], "score": 0.9},
    ]
    (tmp_path / "found.json").write_text(json.dumps(rows))
    (tmp_path / "images.json").write_text(json.dumps({"images": images}))
    (tmp_path / "gt.csv").write_text(
        "v,902,0.1,0.1,0.5,0.6,1,0\nv,902,0.1,0.1,0.5,0.6,2,0\nv,903,0.1,0.1,0.5,0.5,1,0\n"
    )
    line = ["ava", "boxes", "--from-coco", str(tmp_path / "found.json"), "--images", str(tmp_path / "images.json")]
    line += ["--truth", str(tmp_path / "gt.csv"), "--out", str(tmp_path / "out.csv"), "--json"]
    code, out, _ = answer(line, capsys)
    assert code == 0
    told = json.loads(out)
    assert (tmp_path / "out.csv").read_text() == "v,0902,0.100000,0.100000,0.500000,0.500000,,0.900000\n"
    assert told["by_threshold"][0] == {
        "threshold": 0.0, "persons": 2, "recall": {"0.5": 0.5, "0.75": 0.5}, "boxes": 1, "boxes_elsewhere": 0,
        "key_frames": 2, "key_frames_without_boxes": 1,
    }  # fmt: skip
    assert told["notes"] == [f"{tmp_path / 'found.json'}: 1 of 4 boxes are of other categories than 1: left out"]
    (tmp_path / "gt.csv").write_text("w,902,0.1,0.1,0.5,0.6,1,0\n")
    said = refusal([*line[:-2], str(tmp_path / "two.csv")], capsys)
    assert (
        "have no key frame in common (video 'v' at 0902 s, ... and 'w' at 0902 s, ...): the boxes are of another set"
        in said
    )


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "give one of --convert IN OUT, --from-coco FILE and --videos FOLDER"),
        (["--videos", "x", "--from-coco", "y"], "give one of"),
        (["--videos", "x", "--out", "y.csv"], "--videos needs --out FILE, and --truth FILE for the key frames"),
        (
            ["--videos", "x", "--out", "y.csv", "--truth", "z"],
            "--videos needs --weights FILE, a file of the detector's weights",
        ),
        (["--convert", "x", "y.csv", "--out", "z.csv"], "leave --out away"),
        (
            ["--convert", "x", "y.json", "--size", "0x9"],
            "--size: '0x9' is no width and height in pixels, such as 1920x1080",
        ),
    ],
)
def test_what_does_not_fit_together_is_refused(words: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert said in refusal(["ava", "boxes", *words], capsys)


# ---- the verb on videos


def boxed(video: int, second: float) -> tuple[int, int, int, int]:
    """Where a picture is bright: x1, y1, x2, y2 in pixels, another place each second."""
    x, y = 8 + 4 * round(second), 8 + 8 * video
    return x, y, x + 16, y + 24


@pytest.fixture(scope="module")
def filmed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two films of 5 s, whose key frames are the seconds; the third film that the truth names is no film."""
    import av

    folder = tmp_path_factory.mktemp("filmed")
    (folder / "videos").mkdir()
    lines = []
    for video in range(2):
        frames = np.full((5 * FPS, HEIGHT, WIDTH, 3), 40, np.uint8)
        for number in range(5 * FPS):
            x1, y1, x2, y2 = boxed(video, number // FPS)
            frames[number, y1:y2, x1:x2] = 240
        pictures = [av.VideoFrame.from_ndarray(one, format="rgb24") for one in frames]
        write_frames(folder / "videos" / f"film{video}.mp4", pictures, FPS, 25, crf=4)
        for second in (0, 1.5, 3, 4, 9):
            x1, y1, x2, y2 = boxed(video, int(second))
            box = f"{x1 / WIDTH:.6f},{y1 / HEIGHT:.6f},{x2 / WIDTH:.6f},{y2 / HEIGHT:.6f}"
            lines += [f"film{video},{second},{box},1,0", f"film{video},{second},{box},2,0"]
    (folder / "videos" / "torn.mp4").write_bytes(b"no film")
    lines.append("torn,1,0.1,0.1,0.5,0.5,1,0")
    (folder / "gt.csv").write_text("\n".join(lines) + "\n")
    (folder / "weights.json").write_text('{"score": 0.75}')
    return folder


def asked(folder: Path, out: Path, **more: Any) -> AvaBoxesArguments:
    options: dict[str, Any] = {
        "videos": folder / "videos", "truth": folder / "gt.csv", "weights": folder / "weights.json", "out": out,
        "detector": "tests.downstream.ava.made_up_detector:bright", "batch": 3, "max_bad_share": 0.5, **more,
    }  # fmt: skip
    return AvaBoxesArguments(**options)


def test_a_detector_sees_the_pictures_at_the_key_times_and_bad_ones_are_named(filmed: Path, tmp_path: Path) -> None:
    result = ava_boxes(asked(filmed, tmp_path / "boxes.csv"))
    boxes = read_person_boxes(tmp_path / "boxes.csv")
    assert list(boxes) == [(f"film{video}", time) for video in range(2) for time in (0, 1500, 3000, 4000)]
    for (video, time), found in boxes.items():
        x1, y1, x2, y2 = boxed(int(video[-1]), time // 1000)
        wanted = [[x1 / WIDTH, y1 / HEIGHT, x2 / WIDTH, y2 / HEIGHT, 0.75], [0, 0, 8 / WIDTH, 6 / HEIGHT, 0.3]]
        np.testing.assert_allclose(found, wanted, atol=1.01 / HEIGHT if time else 1e-6)  # a pixel of the codec's
        np.testing.assert_allclose(found[:, 4], [0.75, 0.3])
    assert [recall.at(0.5) for recall in result.recalls] == [8 / 11, 8 / 11, 0, 0]
    assert any(
        note.startswith("film0: 1 key frame could not be read: it has no frame at the key time 0009 s")
        for note in result.notes
    )
    assert "torn: 1 key frame could not be read: text, not a video" in result.notes
    assert sorted(path.name for path in tmp_path.iterdir()) == ["boxes.csv"]
    starts = tmp_path / "starts.csv"
    starts.write_text("film1,-0.5\n")  # its frames are half a second further on at the same times
    ava_boxes(asked(filmed, tmp_path / "later.csv", video_starts=starts))
    later = read_person_boxes(tmp_path / "later.csv")
    assert later["film0", 1500].tolist() == boxes["film0", 1500].tolist()
    assert later["film1", 1500].tolist() != boxes["film1", 1500].tolist()
    with pytest.raises(
        TooManyBadFiles, match=r"3 of 11 key frames could not be read, more than --max-bad-share 0.1; the first"
    ):
        ava_boxes(asked(filmed, tmp_path / "again.json", max_bad_share=0.1))
    written = read_person_boxes(tmp_path / "again.json")  # in pixels, with the sizes of the videos
    for key in boxes:
        np.testing.assert_allclose(written[key], boxes[key], atol=1e-8)


def test_a_job_that_stopped_goes_on_with_the_rest_and_gives_the_same_file(filmed: Path, tmp_path: Path) -> None:
    ava_boxes(asked(filmed, tmp_path / "whole.csv"))
    weights = tmp_path / "weights.json"
    weights.write_text('{"score": 0.75, "dies_after": 2}')
    with pytest.raises(OSError, match="the lights went out"):
        ava_boxes(asked(filmed, tmp_path / "boxes.csv", weights=weights))
    assert not (tmp_path / "boxes.csv").exists()
    assert sorted(path.suffix for path in tmp_path.glob(".*")) == [".jsonl"]  # what was found; no lock
    weights.write_text('{"score": 0.75}')
    with pytest.raises(ConfigError, match="what a job with another threshold found; give the same options"):
        ava_boxes(asked(filmed, tmp_path / "boxes.csv", weights=weights, threshold=0.2))
    ava_boxes(asked(filmed, tmp_path / "boxes.csv", weights=weights))
    assert (tmp_path / "boxes.csv").read_bytes() == (tmp_path / "whole.csv").read_bytes()
    seen = [int(number) for number in weights.with_suffix(".log").read_text().split()]
    assert sum(seen) == 8  # each picture once
    assert {path.name for path in tmp_path.iterdir()} == {"whole.csv", "boxes.csv", "weights.json", "weights.log"}


def test_torchvisions_detector_is_loaded_from_a_file_and_finds_what_it_finds_by_itself(
    filmed: Path, tmp_path: Path
) -> None:
    from torchvision.models.detection import fasterrcnn_mobilenet_v3_large_320_fpn as make

    torch.manual_seed(3)
    model = make(weights=None, weights_backbone=None, num_classes=3, min_size=64, box_score_thresh=0.2).eval()
    torch.save(model.state_dict(), tmp_path / "detector.pth")
    picture = np.random.default_rng(0).integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8)
    with torch.inference_mode():
        (alone,) = model([torch.from_numpy(picture.transpose(2, 0, 1) / np.float32(255))])
    wanted = torch.cat([alone["boxes"], alone["scores"][:, None]], 1)[alone["labels"] == 2].numpy()
    assert 0 < len(wanted) < len(alone["labels"])
    name, device = "fasterrcnn_mobilenet_v3_large_320_fpn", torch.device("cpu")
    detect = load_detector(name, tmp_path / "detector.pth", device, label=2, threshold=0.2, short_side=64)
    np.testing.assert_allclose(detect([picture])[0], wanted, rtol=1e-5, atol=1e-4)
    assert [found.shape[1] for found in detect([picture, picture[:24]])] == [5, 5]  # of two sizes
    result = ava_boxes(
        asked(filmed, tmp_path / "boxes.csv", detector=name, weights=tmp_path / "detector.pth", label=2, short_side=64)
    )
    assert result.boxes > 0

    with pytest.raises(
        ConfigError, match="unknown detector 'fasterrcnn'; choose one of fasterrcnn_mobilenet_v3_large_320_fpn"
    ):
        load_detector("fasterrcnn", tmp_path / "detector.pth", device)
    with pytest.raises(
        CheckpointError, match=r"has no weights of retinanet_resnet50_fpn: .* are missing, such as \S+; .* --detector"
    ):
        load_detector("retinanet_resnet50_fpn", tmp_path / "detector.pth", device)
    with pytest.raises(ConfigError, match="--detector none:f: No module named 'none'"):
        load_detector("none:f", tmp_path / "detector.pth", device)
    with pytest.raises(DataError, match=r"gave an array \(1, 4\), where finite \(n, 5\) is looked for"):
        ava_boxes(asked(filmed, tmp_path / "b.csv", detector="tests.downstream.ava.made_up_detector:wrong"))


def test_a_folder_without_the_videos_is_refused_before_the_detector_is_loaded(filmed: Path, tmp_path: Path) -> None:
    (tmp_path / "videos").mkdir()
    with pytest.raises(DataError, match=r"has none of the 3 videos that .*gt\.csv names, film0\.mp4 for example"):
        ava_boxes(asked(filmed, tmp_path / "b.csv", videos=tmp_path / "videos"))
