"""The desk experiment on temporal detection: pixels in the form of features, one class out of many, and its table."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from benchmarks.desk.pixel_windows import EDGE, STEPS, WIDTH, write_pixel_windows
from benchmarks.desk.temporal import as_one_class, markdown
from vmae2_ds.data.tools.synthetic import write_video
from vmae2_ds.downstream.features.sidecar import read_feature_info, read_features
from vmae2_ds.downstream.features.windows import WindowGrid
from vmae2_ds.downstream.tad.annotations import AnnotatedVideo, Annotations, Segment
from vmae2_ds.downstream.tad.detections import make_detections
from vmae2_ds.downstream.tad.score import score_detections


def test_a_window_of_pixels_has_the_brightness_of_its_frames_in_order(tmp_path: Path) -> None:
    """Grey frames that get brighter: frame f has about 5 f, so a mean over two neighbours of a window is known."""
    frames_THWC = np.broadcast_to((5 * np.arange(40, dtype=np.uint8))[:, None, None, None], (40, 32, 32, 3))
    write_video(tmp_path / "a.mp4", np.ascontiguousarray(frames_THWC), 20, 8, kind="mp4")
    grid = WindowGrid("opentad", window=8, stride=4, interval=2)
    write_pixel_windows([tmp_path / "a.mp4"], tmp_path / "out", grid)
    array, about = read_features(tmp_path / "out", "a")
    assert (about.frames, about.fps, array.shape) == (40, 20, (10, WIDTH))
    assert read_feature_info(tmp_path / "out").width == WIDTH
    level_S = (array[5].reshape(STEPS, EDGE * EDGE * 3).mean(axis=1) + 1) / 2 * 255
    # window 5 has frame 20 in its middle: 12, 14, ... 26, averaged by twos
    np.testing.assert_allclose(level_S, [5 * 13, 5 * 17, 5 * 21, 5 * 25], atol=4)


def test_the_same_segment_under_two_labels_is_one_of_a_single_class() -> None:
    """Two labels for each true segment: by name half of them are right and the other half background; as one class all are."""
    segments = (Segment(0, 4, 0), Segment(10, 14, 1))
    video = AnnotatedVideo("v", "validation", 20, 20, 400, segments)
    truth = Annotations(Path("truth.json"), ("a", "b"), (0, 1), {"v": video})
    rows = [(0, label, start, end, score) for start, end, _ in segments for label, score in ((0, 0.9), (1, 0.8))]
    found = make_detections(["v"], ["a", "b"], rows)
    named = score_detections(truth, found, subset=("validation",))
    one = score_detections(*as_one_class(truth, found), subset=("validation",))
    assert named.average_map < 1
    assert one.average_map == 1


def test_the_table_has_mean_and_range_over_seeds() -> None:
    rows = [
        {"model": "pixels", "seed": seed, "average_map": value, "average_map_one_class": 0.5}
        for seed, value in enumerate((0.1, 0.2))
    ]
    assert markdown(rows).splitlines()[-1] == "| pixels | 15.0 (10.0 to 20.0; 2) | 50.0 (50.0 to 50.0; 2) |"
