"""Which frames a window has, in training and in a test, where its actions lie, and that no frame is decoded twice."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.downstream.tad.made_up_videos import FPS, end_to_end_config, write_pictures
from vmae2_ds.config.tad import TadConfig
from vmae2_ds.data.feed.shared_memory import loader_bytes, tensor_bytes
from vmae2_ds.data.sources.order import SampleKey
from vmae2_ds.downstream.tad.annotations import read_annotations
from vmae2_ds.downstream.tad.video_data import FramesDataset, VideoFiles
from vmae2_ds.downstream.tad.videos import open_videos
from vmae2_ds.errors import ConfigError, DataError, VideoError

STEP = 3
"""Grey levels between two frames: which one it is can be read off after encoding."""


def grey_set(folder: Path, frames: int, segments: list[tuple[int, int]], **data: Any) -> TadConfig:
    """One video whose frame k is grey level 20 + 3 k, to train on and to validate on; segments in frames."""
    (folder / "videos").mkdir(parents=True)
    pictures = np.broadcast_to(
        (20 + STEP * np.arange(frames, dtype=np.uint8))[:, None, None, None], (frames, 16, 32, 3)
    )
    database = {}
    for name, subset in (("seen", "training"), ("unseen", "validation")):
        write_pictures(folder / "videos" / f"{name}.mp4", pictures)
        said = [{"segment": [start / FPS, end / FPS], "label": "Left"} for start, end in segments]
        database[name] = {"subset": subset, "duration": frames / FPS, "annotations": said}
    database["named"] = {"subset": "other", "duration": 9, "annotations": [{"segment": [0, 1], "label": "Right"}]}
    file = folder / "annotations.json"
    file.write_text(json.dumps({"database": database}))
    return end_to_end_config(folder, (file, folder / "videos")).changed(data={"crop": None, "flip": 0.0, **data})


def dataset_of(config: TadConfig) -> FramesDataset:
    return FramesDataset(config, open_videos(config)[0])


def frames_in(window_FSSC: torch.Tensor) -> list[int]:
    """The numbers of these frames."""
    return ((window_FSSC.float().mean(dim=(1, 2, 3)) - 20) / STEP).round().int().tolist()


def test_a_window_has_the_frames_of_its_positions_and_its_actions_lie_there(tmp_path: Path) -> None:
    """60 frames every 2nd are 30 positions, 16 are shown: where a stretch begins can be read off its first frame."""
    dataset = dataset_of(grey_set(tmp_path, 60, [(10, 20), (44, 56)]))
    starts = set()
    for epoch in range(12):
        sample = dataset[SampleKey(epoch, 0)]
        shown = frames_in(sample.frame_FSSC)
        start = shown[0] // 2
        starts.add(start)
        assert shown == list(range(2 * start, 2 * start + 32, 2))
        assert sample.num_real == 16
        inside = [(max(a, start), min(b, start + 16)) for a, b in ((5, 10), (22, 28))]
        lengths = (5, 6)
        kept = [pair for pair, length in zip(inside, lengths, strict=True) if pair[1] - pair[0] >= 0.75 * length]
        assert kept, "a stretch has an action"
        assert sample.segment_G2 + start == pytest.approx(np.array(kept))
        assert torch.equal(dataset[SampleKey(epoch, 0)].frame_FSSC, sample.frame_FSSC), "a function of seed and key"
    assert len(starts) > 4


def test_two_frames_a_position_are_both_there_and_a_position_is_their_middle(tmp_path: Path) -> None:
    config = grey_set(tmp_path, 30, [(9, 21)], stride=3, frames_per_position=2, length=6)
    sample = dataset_of(config)[SampleKey(0, 0)]
    assert frames_in(sample.frame_FSSC) == [0, 3, 6, 9, 12, 15, 18, 21, 24, 27, 27, 27]
    assert sample.num_real == 5
    # frames 0 and 3 are position 0, whose middle is frame 1.5; frame 9 is (9 - 1.5) / 6
    assert sample.segment_G2 == pytest.approx(np.array([[1.25, 3.25]]))


def test_a_window_is_cropped_and_mirrored_as_one(tmp_path: Path) -> None:
    """Where a frame's left half is darker: in a mirrored window it is so in none of its frames, else in all."""
    config = grey_set(tmp_path, 40, [(4, 30)], flip=0.5, crop_area=(0.3, 0.9))
    pictures = np.full((40, 16, 32, 3), 60, np.uint8)
    pictures[:, :, 16:] = 180
    write_pictures(tmp_path / "videos" / "seen.mp4", pictures)
    dataset = dataset_of(config)
    seen = set()
    for epoch in range(16):
        window = dataset[SampleKey(epoch, 0)].frame_FSSC.float()
        left, right = window[:, :, 0].mean(dim=(1, 2)), window[:, :, -1].mean(dim=(1, 2))
        spread = (window - window.mean(dim=0)).abs().max()
        assert spread < 12, "one box for all frames"
        seen.add(torch.sign((right - left).round()).unique().tolist()[0] if (right - left).abs().min() > 30 else 0)
    assert {-1.0, 1.0} <= seen


@pytest.mark.parametrize(("frames", "starts"), [(60, [0, 8, 14]), (20, [0]), (64, [0, 8, 16])], ids=str)
def test_windows_of_a_test_cover_the_video_and_each_frame_is_decoded_once(
    tmp_path: Path, frames: int, starts: list[int]
) -> None:
    config = grey_set(tmp_path, frames, [(4, 10)])
    files = VideoFiles(config.data, read_annotations(config.data.annotations).videos)  # type: ignore[arg-type]
    assert files.num_windows("unseen") == len(starts)
    assert files.count.decoded == 0, "nothing is decoded to count windows"
    windows = files.windows("unseen")
    seen = [(start, frames_in(window)) for start, window in windows]
    positions = frames // 2
    assert seen == [(s, list(range(2 * s, 2 * min(s + 16, positions), 2))) for s in starts]
    assert files.count.decoded <= frames
    assert (windows.grid.stride, windows.grid.offset_frames, windows.grid.fps) == (2, 0, FPS)
    window_BFHWC, is_real_BT = files.batch([torch.zeros(len(seen[0][1]), 16, 16, 3, dtype=torch.uint8)])
    assert window_BFHWC.shape == (1, 16, 16, 16, 3)
    assert is_real_BT.sum() == len(seen[0][1])


def test_a_middle_crop_is_shown_in_a_test(tmp_path: Path) -> None:
    config = grey_set(tmp_path, 40, [(4, 30)])
    pictures = np.full((40, 16, 32, 3), 200, np.uint8)
    pictures[:, :, 8:24] = 40
    write_pictures(tmp_path / "videos" / "unseen.mp4", pictures)
    files = VideoFiles(config.data, {})
    _, window = next(iter(files.windows("unseen")))
    assert window.shape == (16, 16, 16, 3)
    assert window[:, :, 2:-2].max() < 60


def test_bad_videos_are_named_and_others_taken(tmp_path: Path) -> None:
    config = grey_set(tmp_path, 40, [(4, 30)])
    for name in ("cut", "gone", "good", "other"):
        write_pictures(tmp_path / "videos" / f"{name}.mp4", np.full((40, 16, 32, 3), 90, np.uint8))
    said = json.loads((tmp_path / "annotations.json").read_text())
    said["database"] |= dict.fromkeys(("cut", "gone", "good"), said["database"]["seen"])
    said["database"]["other"] = {**said["database"]["seen"], "duration": 5.0}
    (tmp_path / "annotations.json").write_text(json.dumps(said))
    whole = (tmp_path / "videos" / "cut.mp4").read_bytes()
    (tmp_path / "videos" / "cut.mp4").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "videos" / "gone.mp4").unlink()
    dataset = dataset_of(config)
    found = {}
    for row in range(5):
        for failure in dataset[SampleKey(0, row)].failures:
            found[Path(failure.path).stem] = failure.reason
    assert set(found) == {"cut", "gone", "other"}
    assert "annotations say that it has 5 s, and it has 4 s" in found["other"]
    assert found["gone"] == "cannot be opened: No such file or directory"
    files = VideoFiles(config.data, {})
    assert files.num_windows("gone") == 0
    with pytest.raises(VideoError, match="no such video in"):
        next(iter(files.windows("gone")))


def test_what_a_worker_sends_is_what_the_closed_form_says(tmp_path: Path) -> None:
    config = grey_set(tmp_path, 40, [(4, 30)]).changed(data={"workers": 2}, train={"micro_batch": 3, "global_batch": 3})
    dataset = dataset_of(config)
    batch = dataset.collate([dataset[SampleKey(epoch, 0)] for epoch in range(3)])
    said = tensor_bytes(config)
    assert [tensor.nbytes for tensor in batch[:2]] == said[:2]
    assert all(tensor.nbytes <= size for tensor, size in zip(batch[2:], said[2:], strict=True))
    assert loader_bytes(config) > 5 * sum(said)


def test_what_does_not_go_together_is_refused_in_one_line(tmp_path: Path) -> None:
    config = grey_set(tmp_path, 40, [(4, 30)])
    (tmp_path / "videos" / "seen.avi").write_bytes(b"")
    with pytest.raises(DataError, match=r"seen\.avi and seen\.mp4, both of video 'seen'"):
        open_videos(config)
    (tmp_path / "videos" / "seen.avi").unlink()
    (tmp_path / "videos" / "seen.srt").write_text("subtitles")
    (tmp_path / "videos" / "below").mkdir()
    (tmp_path / "videos" / "seen.mp4").rename(tmp_path / "videos" / "below" / "seen.mp4")
    (entry,) = open_videos(config)[0].sources[0].manifest
    assert Path(entry.path) == tmp_path / "videos" / "below" / "seen.mp4"
    (tmp_path / "empty").mkdir()
    with pytest.raises((ConfigError, DataError), match="empty"):
        open_videos(config.changed(data={"videos": tmp_path / "empty"}))
    for changes, said in (
        ({"length": 18, "num_frames": 4}, "18 frames is not a multiple of num_frames=4"),
        ({"features": tmp_path}, "keep one"),
        ({"reader": "decord"}, "read by pyav"),
    ):
        with pytest.raises(ValueError, match=said):
            type(config.data).model_validate({**config.data.model_dump(), **changes})
