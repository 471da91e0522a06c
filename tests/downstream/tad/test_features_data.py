"""What the head is shown of a video's features, and where that says the actions are."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.downstream.tad.made_up import FPS, INFO, LABELS, made_up_config, write_set
from vmae2_ds.config.tad import TadConfig
from vmae2_ds.data.sources.order import SampleKey
from vmae2_ds.downstream.features.sidecar import VideoFeatures, claim_folder, write_features
from vmae2_ds.downstream.tad.features_data import FeaturesDataset, FeatureWindows, Track, fitted, window_starts
from vmae2_ds.downstream.tad.videos import open_videos
from vmae2_ds.errors import ConfigError, DataError

ROWS = 40


def one_video(folder: Path, segments: list[tuple[float, float, str]], rows: int = ROWS, **data: Any) -> TadConfig:
    """A set of one video whose feature i is i in every place, twice: to train on and to validate on."""
    features = folder / "features"
    features.mkdir()
    claim_folder(features, INFO)
    array = np.repeat(np.arange(rows, dtype=np.float32)[:, None], INFO.width, axis=1)
    frames = INFO.window + (rows - 1) * INFO.stride
    said = [{"segment": segment[:2], "label": segment[2]} for segment in segments]
    database = {}
    for name, subset in (("seen", "training"), ("unseen", "validation")):
        write_features(features, name, array, VideoFeatures(frames=frames, fps=FPS, rows=rows))
        database[name] = {"subset": subset, "duration": frames / FPS, "annotations": said}
    database["named"] = {
        "subset": "other",
        "duration": 9,
        "annotations": [{"segment": [0, 1], "label": x} for x in LABELS],
    }
    (folder / "annotations.json").write_text(json.dumps({"database": database}))
    config = made_up_config(folder, (folder / "annotations.json", features))
    return config.changed(data={"crop": None, **data})


def dataset_of(config: TadConfig) -> FeaturesDataset:
    return FeaturesDataset(config, open_videos(config)[0])


def test_a_segment_lies_where_its_features_are(tmp_path: Path) -> None:
    """Frame 8 is the middle of the first window, 4 frames on that of the second: second 10/30 is position 0.5."""
    sample = dataset_of(one_video(tmp_path, [(10 / 30, 38 / 30, "Throw")]))[SampleKey(0, 0)]
    assert sample.segment_G2.tolist() == [pytest.approx([0.5, 7.5])]
    assert sample.label_G.tolist() == [LABELS.index("Throw")]


def test_features_of_a_part_of_a_file_are_later_by_its_first_frame(tmp_path: Path) -> None:
    config = one_video(tmp_path, [(70 / 30, 98 / 30, "Throw")])
    assert config.data.features is not None
    file = config.data.features / "seen.json"
    about = VideoFeatures.model_validate_json(file.read_text())
    assert about.frames is not None
    file.write_text(about.model_copy(update={"start": 60, "frames": about.frames - 60}).model_dump_json())
    assert dataset_of(config)[SampleKey(0, 0)].segment_G2.tolist() == [pytest.approx([0.5, 7.5])]


def test_resized_features_and_segments_stay_together(tmp_path: Path) -> None:
    """Feature i says i: a segment from feature 8 to feature 24 begins and ends where features say 8 and 24."""
    ends = [(8 + 4 * row) / 30 for row in (8, 24)]
    for length in (16, 100):
        folder = tmp_path / str(length)
        folder.mkdir()
        config = one_video(folder, [(*ends, "Wave")], fit="resize", length=length)
        sample = dataset_of(config)[SampleKey(0, 0)]
        says = np.interp(sample.segment_G2[0], np.arange(length), sample.feature_TD[:, 0].numpy())
        assert len(sample.feature_TD) == length
        assert says == pytest.approx([8, 24], abs=1e-4)


def test_a_stretch_has_the_segments_that_lie_in_it_and_their_place(tmp_path: Path) -> None:
    """Of a video of 40 features 12 are shown: feature i says i, so that a segment's end can be read off."""
    segments = [((8 + 4 * row) / 30, (8 + 4 * (row + 6)) / 30, LABELS[row % 3]) for row in (2, 12, 22, 32)]
    dataset = dataset_of(one_video(tmp_path, segments, length=12, keep_share=0.5))
    starts = set()
    for epoch in range(40):
        sample = dataset[SampleKey(epoch, 0)]
        first = int(sample.feature_TD[0, 0])
        starts.add(first)
        # half a window, 2 positions, is seen on either side
        inside = [(max(row, first - 2), min(row + 6, first + 12 + 2)) for row in (2, 12, 22, 32)]
        kept = [(a, b, row % 3) for (a, b), row in zip(inside, (2, 12, 22, 32), strict=True) if b - a >= 3]
        assert kept, "a stretch has an action"
        assert sample.segment_G2 + first == pytest.approx(np.array([pair[:2] for pair in kept]))
        assert sample.label_G.tolist() == [label for _, _, label in kept]
        again = dataset[SampleKey(epoch, 0)]
        assert np.array_equal(again.feature_TD, sample.feature_TD), "a function of seed and key"
    assert len(starts) > 10


def test_a_shorter_video_is_cropped_between_the_shares_and_padded(tmp_path: Path) -> None:
    dataset = dataset_of(one_video(tmp_path, [(1, 2, "Jump")], length=64, crop=(0.5, 0.75)))
    samples = [dataset[SampleKey(epoch, 0)] for epoch in range(60)]
    lengths = {len(sample.feature_TD) for sample in samples}
    assert (min(lengths), max(lengths)) == (20, 30)
    batch = dataset.collate(samples[:3])
    assert batch.feature_BTD.shape == (3, 64, INFO.width)
    for at, sample in enumerate(samples[:3]):
        count = len(sample.feature_TD)
        assert batch.is_real_BT[at].sum() == count
        assert not batch.feature_BTD[at, count:].any()


def test_a_head_without_classes_learns_all_of_them_as_one(tmp_path: Path) -> None:
    config = one_video(tmp_path, [(1, 2, "Wave"), (3, 4, "Jump")])
    sample = dataset_of(config.changed(model={"num_classes": 1}))[SampleKey(0, 0)]
    assert sample.label_G.tolist() == [0, 0]


def test_an_action_of_two_classes_keeps_both(tmp_path: Path) -> None:
    sample = dataset_of(one_video(tmp_path, [(1, 2, "Wave"), (1, 2, "Jump")]))[SampleKey(0, 0)]
    assert sample.label_G.tolist() == [2, 0]
    assert sample.segment_G2[0].tolist() == sample.segment_G2[1].tolist()


def test_short_segments_are_left_out_by_their_share_of_the_video(tmp_path: Path) -> None:
    config = one_video(tmp_path, [(1, 1.04, "Wave"), (3, 4, "Jump")], min_segment_share=0.01)
    assert dataset_of(config)[SampleKey(0, 0)].label_G.tolist() == [0]


@pytest.mark.parametrize(("rows", "starts"), [(12, [0]), (5, [0]), (13, [0, 1]), (40, [0, 6, 12, 18, 24, 28])], ids=str)
def test_windows_of_a_test_overlap_by_half_and_cover_the_video(tmp_path: Path, rows: int, starts: list[int]) -> None:
    data = one_video(tmp_path, [(1, 1.1, "Wave")], rows=rows, fit="windows", length=12).data
    assert window_starts(rows, data) == starts
    track = Track(np.arange(rows, dtype=np.float32)[:, None], None)  # type: ignore[arg-type]  # not asked when
    seen = [(start, window[:, 0].tolist()) for start, window in FeatureWindows(fitted(track, data), data)]
    assert seen == [(start, list(range(start, min(start + 12, rows)))) for start in starts]


def test_bad_files_are_named_and_others_taken(tmp_path: Path) -> None:
    annotations, features = write_set(tmp_path, videos=16, validation=1)
    whole = (features / "video_000.npy").read_bytes()
    (features / "video_000.npy").write_bytes(whole[: len(whole) // 2])
    (features / "video_001.npy").unlink()
    np.save(features / "video_002.npy", np.zeros((64, 3), np.float32))
    array = np.load(features / "video_003.npy")
    array[7, 2] = np.nan
    np.save(features / "video_003.npy", array)
    about = json.loads((features / "video_004.json").read_text())
    (features / "video_004.json").write_text(json.dumps({**about, "fps": about["fps"] * 1.25}))
    dataset = dataset_of(made_up_config(tmp_path, (annotations, features)))
    said = {}
    for row in range(5):
        sample = dataset[SampleKey(0, row)]
        for failure in sample.failures:
            said[Path(failure.path).stem] = failure.reason
    assert set(said) == {f"video_00{number}" for number in range(5)}
    assert "cut short" in said["video_000"]
    assert "no features of this video" in said["video_001"]
    assert "(64, 3)" in said["video_002"]
    assert "video_003.npy: row 7 is not finite" in said["video_003"]
    assert re.search(r"annotations say that it has 9 s, and it has 7\.2 s.*frame rate", said["video_004"])


def test_videos_that_are_named_as_missing_are_left_out_whole_lines_a_name(tmp_path: Path) -> None:
    annotations, features = write_set(tmp_path, videos=3, validation=1)
    text = annotations.read_text().replace("video_000", "my video_002")  # of which a part is another's name
    annotations.write_text(text)
    (features / "missing_files.txt").write_text("my video_002\n")
    train, _ = open_videos(made_up_config(tmp_path, (annotations, features)))
    assert [Path(entry.path).stem for entry in train.sources[0].manifest] == ["video_001", "video_002"]


def refused(config: TadConfig) -> str:
    with pytest.raises((ConfigError, DataError)) as error:
        open_videos(config)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_features_that_nobody_describes_are_refused_with_the_two_that_are_known(tmp_path: Path) -> None:
    config = one_video(tmp_path, [(1, 2, "Wave")])
    assert config.data.features is not None
    (config.data.features / "features.json").unlink()
    said = refused(config)
    assert "opengvlab_thumos (window i begins at frame 4i" in said
    assert "opentad_thumos (frame 4i is in its middle" in said


def test_what_does_not_go_together_is_refused_in_one_line(tmp_path: Path) -> None:
    config = one_video(tmp_path, [(1, 2, "Wave")])
    assert "--model.num-classes 7, and" in refused(config.changed(model={"num_classes": 7}))
    wide = config.model.encoder.model_copy(update={"width": 768})
    assert "width 16, and the recipe's encoder is 768 wide" in refused(config.changed(model={"encoder": wide}))
    assert "has no video of subset 'test'; it has 'other', " in refused(config.changed(data={"subset": ("test",)}))
    other = tmp_path / "other.json"
    other.write_text((tmp_path / "annotations.json").read_text().replace("seen", "foreign"))
    assert "the annotations are of another set" in refused(config.changed(data={"annotations": other}))
    assert "features of none of the 1 videos" in refused(config.changed(data={"subset": ("other",)}))
    assert "nowhere: there is no such folder of features" in refused(
        config.changed(data={"features": tmp_path / "nowhere"})
    )
    classes = tmp_path / "classes.txt"
    classes.write_text("Jump\nThrow\n")
    assert "'Wave'" in refused(config.changed(data={"classes": classes}))


def test_published_features_are_told_apart_by_name(tmp_path: Path) -> None:
    """The same rows, 6 frames apart: offset 8 or 2 (docs/PAPER.md#clip-features-of-long-videos)."""
    config = one_video(tmp_path, [(1, 2, "Wave")])
    folder = config.data.features
    assert folder is not None
    (folder / "features.json").unlink()
    np.save(folder / "seen.npy", np.zeros((40, 1408), np.float32))
    text = (tmp_path / "annotations.json").read_text().replace('"duration"', '"fps": 30, "duration"')
    (tmp_path / "annotations.json").write_text(text)
    encoder = config.model.encoder.model_copy(update={"width": 1408})
    found = {}
    for name in ("opengvlab_thumos", "opentad_thumos"):
        named = config.changed(data={"features_are": name}, model={"encoder": encoder})
        found[name] = dataset_of(named)[SampleKey(0, 0)].segment_G2[0, 0]
    assert found == {"opengvlab_thumos": pytest.approx(5.5), "opentad_thumos": pytest.approx(7.0)}
