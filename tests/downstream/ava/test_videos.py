"""What validation asks about and what it is scored by are the same key frames, those where nobody was detected among them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tests.downstream.ava.made_up_set import made_up_ava, write_made_up_set
from vmae2_ds.dist import Ranks
from vmae2_ds.downstream.ava.found_rows import found_rows
from vmae2_ds.downstream.ava.rows import read_excluded, read_truth
from vmae2_ds.downstream.ava.score import score_frames
from vmae2_ds.downstream.ava.stage import FrameMapValidation
from vmae2_ds.downstream.ava.videos import validation_list, validation_truth
from vmae2_ds.errors import DataError


def test_excluded_key_frames_and_those_between_are_neither_missed_nor_found(tmp_path: Path) -> None:
    """Of two videos with key frames 1, 2, 3 one key frame is excluded; of what is left each second one of a video is asked."""
    files = write_made_up_set(tmp_path, videos=1, validation=2)
    excluded, few = tmp_path / "excluded.csv", tmp_path / "few.csv"
    excluded.write_text("video_01,0001\n")
    few.write_text("".join(line for line in files.boxes.read_text().splitlines(True) if "video_02,0003" not in line))
    plain = made_up_ava(tmp_path, files)
    whole = validation_truth(plain.data, validation_list(plain).key_frames)
    assert len(whole) == len(read_truth(files.val_truth))
    asked = {("video_01", 2000), ("video_02", 1000), ("video_02", 3000)}
    for boxes, found in (((), asked), ((files.boxes,), asked), ((few,), asked - {("video_02", 3000)})):
        config = plain.changed(data={"val_excluded": (excluded,), "val_every": 2, "val_boxes": boxes})
        frames = validation_list(config).key_frames
        truth = validation_truth(config.data, frames)
        assert set(map(frames.key, range(len(frames)))) == found
        assert set(truth.keys) == asked
        perfect = [frames.targets(row) for row in range(len(frames))]
        if not boxes:
            rows = found_rows(frames, perfect, person_score=False, threshold=0.5)
            assert score_frames(truth, rows, frames.label_map).frame_map == pytest.approx(1)


@pytest.mark.parametrize("protocol", ["legacy", "legacy_pyslowfast", "mmaction2"])
def test_what_is_excluded_counts_as_in_a_score_of_the_file_with_the_same_exclusions(
    protocol: str, tmp_path: Path
) -> None:
    files, excluded = write_made_up_set(tmp_path, videos=1, validation=2), tmp_path / "excluded.csv"
    excluded.write_text("video_01,0001\nvideo_02,0003\n")
    for boxes in ((), (files.boxes,)):
        config = made_up_ava(tmp_path, files).changed(
            data={"val_excluded": (excluded,), "val_boxes": boxes, "val_protocol": protocol}
        )
        frames = validation_list(config).key_frames
        rng = np.random.default_rng(0)
        answers = [rng.random((len(frame.box_G4), 4), np.float32) for frame in frames]
        rows = found_rows(frames, answers, person_score=True)
        found, expected = (
            score_frames(truth, rows, frames.label_map, excluded=those, protocol=config.data.val_protocol).frame_map
            for truth, those in (
                (validation_truth(config.data, frames), frozenset()),
                (read_truth(files.val_truth), read_excluded(excluded)),
            )
        )
        assert 0 < found == expected


def test_key_frames_at_which_nobody_was_detected_are_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Boxes of another video's name, say, would be missed in silence."""
    files = write_made_up_set(tmp_path, videos=1, validation=2)
    some = tmp_path / "some.csv"
    some.write_text("".join(line for line in files.boxes.open() if "video_01" in line))
    with caplog.at_level("INFO", "vmae2_ds"):
        validation_list(made_up_ava(tmp_path, files).changed(data={"val_boxes": (some,)}))
    assert "not asked about: 3 key frames without a box" in caplog.text


def test_several_files_of_truth_are_read_as_one(tmp_path: Path) -> None:
    files = write_made_up_set(tmp_path, videos=1, validation=2)
    lines = files.val_truth.read_text().splitlines(keepends=True)
    halves = tmp_path / "one.csv", tmp_path / "two.csv"
    for place, half in enumerate(halves):
        half.write_text("".join(line for line in lines if f"video_0{place + 1}" in line))
    one, two = (made_up_ava(tmp_path, files).changed(data={"val_truth": some}) for some in ((files.val_truth,), halves))
    whole, joined = (validation_truth(config.data, validation_list(config).key_frames) for config in (one, two))
    assert joined.keys == whole.keys
    assert joined.label_N.tolist() == whole.label_N.tolist()
    assert joined.box_N4.tolist() == whole.box_N4.tolist()
    assert validation_list(one).key_frames.digest == validation_list(two).key_frames.digest


def test_truth_that_cannot_be_scored_is_refused_before_anything_is_learnt(tmp_path: Path) -> None:
    """Of other actions than those of the map, where key frames are asked about all the same; or at which a scorer stops."""
    files = write_made_up_set(tmp_path, videos=1, validation=2)
    other, turned = tmp_path / "other.csv", tmp_path / "turned.csv"
    other.write_text("".join(",".join([*line.split(",")[:6], "40\n"]) for line in files.val_truth.open()))
    turned.write_text(files.val_truth.read_text() + "video_01,0002,0.9,0.1,0.5,0.6,3,9\n")
    for truth, protocol, said in (
        (other, "activitynet", "no true box is left to score"),
        (turned, "mmaction2", "1 boxes are inside out"),
    ):
        config = made_up_ava(tmp_path, files).changed(
            data={"val_truth": (truth,), "val_boxes": (files.boxes,), "val_protocol": protocol}
        )
        with pytest.raises(DataError, match=said):
            FrameMapValidation(config, validation_list(config), Ranks())
