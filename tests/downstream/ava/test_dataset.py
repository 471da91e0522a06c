"""Clips from video files: whoever stands at the key frame is found in its box, in training and in a test, on any workers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from tests.downstream.ava.made_up import ava_config, grey, numbers_in, write_label_map, write_video
from vmae2_ds.config.ava import AvaConfig
from vmae2_ds.contracts import AvaBatch
from vmae2_ds.data.feed.loader import load_samples
from vmae2_ds.data.feed.shared_memory import key_frames_bytes, tensor_bytes
from vmae2_ds.data.sources.mixture import Mixture
from vmae2_ds.data.sources.order import SampleKey
from vmae2_ds.downstream.ava.clip_files import ClipFiles, KeyFrameList, list_of
from vmae2_ds.downstream.ava.dataset import KeyFrameClips, KeyFrameDataset
from vmae2_ds.downstream.ava.key_frames import KeyFrames, read_key_frames
from vmae2_ds.downstream.ava.label_map import read_label_map

HEIGHT, WIDTH, FPS = 48, 80, 10


def walking(frames: int) -> np.ndarray:
    """A green person of 12 x 24 pixels who walks 2 pixels a frame, on grey that tells the frame's number."""
    pictures = grey(range(frames), HEIGHT, WIDTH).copy()
    for number, picture in enumerate(pictures):
        x1 = left_of(number)
        picture[12:36, x1 : x1 + 12] = (20, 230, 20)
    return pictures


def left_of(frame: int) -> int:
    return 2 * (frame % 30)


def key_frames_of(config: AvaConfig) -> KeyFrames:
    assert config.data.label_map is not None
    return read_key_frames(config.data.truth, read_label_map(config.data.label_map))


def listed_in(config: AvaConfig) -> KeyFrameList:
    assert config.data.videos is not None
    return list_of(key_frames_of(config), ClipFiles.of(config.data, config.data.videos))


def dataset_of(config: AvaConfig) -> KeyFrameDataset:
    return KeyFrameDataset(config, Mixture.of_manifest(listed_in(config), "pyav"))


def walkers(folder: Path, frames: int = 40, videos: int = 2, **data: Any) -> AvaConfig:
    """Videos of a walking person with a key frame a second, whose truth says where that one stands."""
    lines = []
    for number in range(videos):
        write_video(folder / "videos" / f"v{number}.mp4", walking(frames), FPS)
        for second in range(frames // FPS):
            x1 = left_of(second * FPS) / WIDTH
            box = f"{x1},{12 / HEIGHT},{x1 + 12 / WIDTH},{36 / HEIGHT}"
            lines += [f"v{number},{second},{box},{action},0" for action in (3, 7)[: 1 + second % 2]]
    (folder / "truth.csv").write_text("\n".join(lines))
    write_label_map(folder / "map.txt", (3, 5, 7))
    return ava_config(folder, clip_around="pyslowfast", **data)


def green_in(frame_HWC: torch.Tensor) -> list[int]:
    """x1 y1 x2 y2 of what is green."""
    is_green = (frame_HWC[..., 1] > 150) & (frame_HWC[..., 0] < 100)
    rows, columns = (np.nonzero(is_green.any(axis).numpy())[0] for axis in (1, 0))
    return [columns[0], rows[0], columns[-1] + 1, rows[-1] + 1]


def test_a_training_clip_has_the_person_in_its_box_at_the_key_frame(tmp_path: Path) -> None:
    """The fifth of 8 frames is the key frame; a frame earlier or later the person is 2 pixels off, and mirrored far off."""
    dataset = dataset_of(walkers(tmp_path, size=40, short_side=(48, 60), flip=0.5))
    flips = set()
    for epoch in range(8):
        for row in (1, 2, 5):
            sample = dataset[SampleKey(epoch, row)]
            assert sample.clip_TSSC.shape == (8, 40, 40, 3)
            found = green_in(sample.clip_TSSC[4])
            np.testing.assert_allclose(sample.box_G4[0], found, atol=1.3)
            before = green_in(sample.clip_TSSC[3])
            if 0 < min(before[0], found[0]) < max(before[2], found[2]) < 40:
                flips.add(bool(before[0] > found[0]))  # in a mirror, who walks to the right walks to the left
    assert flips == {True, False}


def test_targets_are_the_actions_of_the_map_in_its_order(tmp_path: Path) -> None:
    dataset = dataset_of(walkers(tmp_path))
    assert [dataset[SampleKey(0, row)].target_GC.tolist() for row in range(4)] == [
        *([[1, 0, 0]], [[1, 0, 1]], [[1, 0, 0]], [[1, 0, 1]]),
    ]


def test_a_sample_is_a_function_of_seed_and_key_on_any_workers(tmp_path: Path) -> None:
    draws = {"flip": 0.5, "hue_turn": 20.0, "box_jitter": (0.2, 0.1, 0.1, 0.05), "short_side": (32, 48)}
    config = walkers(tmp_path, **draws)
    keys = [[SampleKey(epoch, row) for row in rows] for epoch in range(2) for rows in ((0, 5), (3, 6))]

    def batches(workers: int) -> list[AvaBatch]:
        data = config.data.model_copy(update={"workers": workers})
        loaded = load_samples(data, dataset_of(config.model_copy(update={"data": data})), iter(keys))
        return [one.batch for one in loaded if isinstance(one.batch, AvaBatch)]

    here, there = batches(0), batches(2)
    assert len(here) == 4
    for one, other in zip(here, there, strict=True):
        assert all(torch.equal(x, y) for x, y in zip(one, other, strict=True))
    assert not torch.equal(here[0].clip_BTHWC, here[2].clip_BTHWC), "another epoch, another square"
    again = config.model_copy(update={"train": config.train.model_copy(update={"seed": 1})})
    key = SampleKey(0, 3)
    assert not torch.equal(dataset_of(again)[key].box_G4, dataset_of(config)[key].box_G4)


def test_a_video_that_cannot_be_used_is_named_and_another_key_frame_taken(tmp_path: Path) -> None:
    config = walkers(tmp_path, size=40, short_side=(48, 48))
    (tmp_path / "videos" / "v0.mp4").write_text("no video")
    with (tmp_path / "truth.csv").open("a") as file:
        file.write("\nv1,77,0,0,0.5,1,3,0")
    for row in range(4):
        sample = dataset_of(config)[SampleKey(0, row)]
        assert sample.failures
        assert {Path(failure.path).name for failure in sample.failures} <= {"v0.mp4", "v1.mp4"}
        assert sample.failures[0].reason == "text, not a video"
        np.testing.assert_allclose(sample.box_G4[0], green_in(sample.clip_TSSC[4]), atol=1.3)
    late = dataset_of(config)[SampleKey(0, 8)].failures[0]
    assert Path(late.path).name == "v1.mp4"
    assert "no frame at the key time 0077 s: that would be frame 770 of 40" in late.reason


def test_of_too_many_people_some_are_drawn_with_their_own_actions(tmp_path: Path) -> None:
    config = walkers(tmp_path, videos=1, most_boxes=5, size=32, short_side=(32, 32))
    boxes = [(place / 40, place / 40 + 0.02) for place in range(20)]
    (tmp_path / "truth.csv").write_text("\n".join(f"v0,1,{a},0,{b},1,{3 if a < 0.25 else 7}" for a, b in boxes))
    dataset = dataset_of(config)
    counts = set()
    for epoch in range(6):
        sample = dataset[SampleKey(epoch, 0)]
        assert len(sample.box_G4) == 5
        assert (sample.box_G4[1:, 0] > sample.box_G4[:-1, 0]).all()
        counts.add(int(sample.target_GC[:, 0].sum()))
        assert (sample.target_GC.sum(dim=1) == 1).all()
        assert (sample.target_GC[1:, 0] <= sample.target_GC[:-1, 0]).all(), "those at the left have the first action"
    assert len(counts) > 1


def test_a_batch_is_filled_up_with_boxes_that_are_none(tmp_path: Path) -> None:
    config = walkers(tmp_path, videos=1)
    (tmp_path / "truth.csv").write_text("v0,0,0,0,1,1,3\nv0,1,0,0,1,0.999,3\nv0,1,0,0,1,0.999,7\nv0,1,0,0,1,1,5\n")
    dataset = dataset_of(config)
    batch = dataset.collate([dataset[SampleKey(0, 0)], dataset[SampleKey(0, 1)]])
    assert batch.clip_BTHWC.dtype == torch.uint8
    assert batch.is_box_BG.tolist() == [[True, False], [True, True]]
    assert batch.target_BGC.tolist() == [[[1, 0, 0], [0, 0, 0]], [[1, 0, 1], [0, 1, 0]]]
    assert (batch.box_BG4[0, 1] == 0).all()
    assert batch.box_BG4[1, 1].tolist() == [0, 0, 24, 24]
    assert all(tensor.dtype == torch.float32 for tensor in (batch.box_BG4, batch.target_BGC))


def test_what_workers_hold_is_known_before(tmp_path: Path) -> None:
    config = walkers(tmp_path, workers=3, prefetch=2, num_frames=64, test_short_side=36)
    dataset = dataset_of(config)
    batch = dataset.collate([dataset[SampleKey(0, row)] for row in range(2)])
    said = tensor_bytes(config)
    assert said[0] == batch.clip_BTHWC.nbytes
    people = batch.is_box_BG.shape[1]
    assert [8 // people * tensor.nbytes for tensor in batch[1:]] == said[1:], "eight people are counted on"
    run = KeyFrameClips(config, listed_in(config))[[0]]
    assert run[0].clip_THWC is not None
    ahead = (
        8 * (3 * 2 + 1) * run[0].clip_THWC.nbytes
    )  # eight key frames in one go, six of them made ahead and one in use
    assert key_frames_bytes(config, (HEIGHT, WIDTH)) == pytest.approx(ahead, rel=0.02)


def test_a_test_sees_each_key_frame_whole_with_its_people_in_their_boxes(tmp_path: Path) -> None:
    config = walkers(tmp_path, frames=60, test_short_side=36)
    frames = key_frames_of(config)
    clips = KeyFrameClips(config, listed_in(config))
    rows = [3, 4, 5, 11, 0, 1, 2, 6]
    found = list(clips.iterate(rows))
    assert [clip.row for clip in found] == rows
    for clip in found:
        assert clip.clip_THWC is not None
        assert clip.clip_THWC.shape == (8, 40, 64, 3), "36 x 60, filled up to multiples of 8"
        assert clip.picture_2.tolist() == [36, 60]
        np.testing.assert_allclose(clip.box_G4[0], green_in(clip.clip_THWC[4]), atol=1)
        second = frames[clip.row].time_ms // 1000
        expected = np.clip(np.arange(10 * second - 8, 10 * second + 8, 2), 0, 59)
        assert numbers_in(clip.clip_THWC[:, :5, :60]) == expected.tolist()


def test_key_frames_read_together_are_those_read_alone_and_no_frame_is_decoded_twice(tmp_path: Path) -> None:
    """6 key frames a second apart: 6 clips of 8 frames, 16 apart from first to last, decoded in one go through 60 frames."""
    config = walkers(tmp_path, frames=60, videos=1)
    clips = KeyFrameClips(config, listed_in(config))
    together = clips[range(6)]
    assert clips.count.decoded <= 60
    assert [clip.row for clip in together] == list(range(6))
    for row, clip in enumerate(together):
        (alone,) = clips[[row]]
        assert clip.clip_THWC is not None
        assert alone.clip_THWC is not None
        assert torch.equal(clip.clip_THWC, alone.clip_THWC)
        assert torch.equal(clip.box_G4, alone.box_G4)


def test_training_and_tests_see_the_same_of_movies_seconds_and_pictures(tmp_path: Path) -> None:
    config = walkers(tmp_path, videos=1, size=40, short_side=(48, 48), test_short_side=48)
    (tmp_path / "frames" / "v0").mkdir(parents=True)
    for number, picture in enumerate(walking(40), 1):
        Image.fromarray(picture).save(tmp_path / "frames" / "v0" / f"{number:05}.png")
    for second in range(4):
        write_video(tmp_path / "clips" / "v0" / f"{second}.mp4", walking(40)[10 * second : 10 * second + 10], FPS)
    seen = {}
    for kind, folder in (("movies", "videos"), ("clips", "clips"), ("frames", "frames")):
        of = config.changed(data={"kind": kind, "videos": tmp_path / folder, "frames_fps": FPS})
        sample = dataset_of(of)[SampleKey(0, 2)]
        clips = KeyFrameClips(of, listed_in(of))
        tested = list(clips.iterate(range(4)))
        assert clips.count.decoded == {"movies": 37, "clips": 0, "frames": 19}[kind], "19 are in a clip"
        boxes = [sample.box_G4, *(clip.box_G4 for clip in tested)]
        shown = [sample.clip_TSSC, *(clip.clip_THWC for clip in tested if clip.clip_THWC is not None)]
        assert len(shown) == 5
        seen[kind] = [box_G4.tolist() for box_G4 in boxes], [numbers_in(clip[:, :3]) for clip in shown]
        for clip, box_G4 in zip(shown, boxes, strict=True):
            np.testing.assert_allclose(box_G4[0], green_in(clip[4]), atol=1.3)
    assert seen["movies"] == seen["clips"] == seen["frames"]


@pytest.mark.parametrize("workers", [0, 2])
def test_a_key_frame_that_cannot_be_read_says_why_and_its_neighbours_are_there(tmp_path: Path, workers: int) -> None:
    config = walkers(tmp_path, workers=workers)
    (tmp_path / "videos" / "v1.mp4").write_text("no video")
    with (tmp_path / "truth.csv").open("a") as file:
        file.write("\nv0,77,0,0,0.5,1,3,0")
    found = list(KeyFrameClips(config, listed_in(config)).iterate(range(9)))
    assert [clip.clip_THWC is None for clip in found] == [False] * 4 + [True] * 5
    assert found[4].reason is not None
    assert found[4].reason.startswith("v0.mp4: it has no frame at the key time 0077 s")
    assert [clip.reason for clip in found[5:]] == ["v1.mp4: text, not a video"] * 4
    assert found[4].box_G4.shape == (0, 4)
