"""Which random stream each draw comes from, and which frames are asked for: by streams and numbers written out.

Nothing is read: a stand-in for the reader gives frames that tell where each of their pixels lies.
"""

from __future__ import annotations

from collections.abc import Callable
from hashlib import blake2b
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.data.stand_in import StandInReader, listed
from vmae2_ds.config.finetune import AugmentConfig, FinetuneConfig, FinetuneTrainConfig, LabelledDataConfig
from vmae2_ds.config.model import ClassifierConfig
from vmae2_ds.config.pretrain import PretrainConfig
from vmae2_ds.data.clips.augment import draw_mixing, erase, paste_boxes, rand_augment
from vmae2_ds.data.clips.crops import CropBox, crop_resize, draw_crop, draw_resized_crop
from vmae2_ds.data.clips.sampling import dense_indices, sample_stride
from vmae2_ds.data.feed.dataset import VideoDataset
from vmae2_ds.data.feed.labelled import LabelledDataset
from vmae2_ds.data.feed.loader import make_loader
from vmae2_ds.data.feed.pretrain import MiddleClips, PretrainDataset
from vmae2_ds.data.seeding import Purpose, generator
from vmae2_ds.data.sources.manifest import read_manifest
from vmae2_ds.data.sources.mixture import Mixture, open_mixture
from vmae2_ds.data.sources.order import SampleKey, SampleOrder, Shuffle
from vmae2_ds.errors import ConfigError
from vmae2_ds.masking import make_masks

MakeConfig = Callable[..., PretrainConfig]

ORDER, FRAMES, CROP, MASK, REPLACEMENT, AUGMENT, ERASE, MIX = range(1, 9)
SEED = 7
LENGTH, HEIGHT, WIDTH = 120, 40, 48


def stream(purpose: int, view: int = 0, attempt: int = 0, *, key: SampleKey) -> np.random.Generator:
    """The numbers of a run's identity in their order."""
    return np.random.default_rng((purpose, SEED, key.epoch, key.row, view, attempt, key.source))


def picture(index_T: np.ndarray, width: int = WIDTH) -> np.ndarray:
    """(T, H, W, 3) uint8: number of the frame, line and column of every pixel."""
    frame, line, column = np.meshgrid(index_T, np.arange(HEIGHT), np.arange(width), indexing="ij")
    return np.stack([frame, line, column], axis=-1).astype(np.uint8)


def told(dataset: VideoDataset[Any], length: int = LENGTH, fps: float = 24.0, width: int = WIDTH) -> StandInReader:
    reader = StandInReader(lambda entry, index_T: picture(index_T, width), length, fps)
    dataset._reader = reader  # type: ignore[assignment]
    return reader


@pytest.fixture
def ten(tmp_path: Path) -> Path:
    """Row 2 is bad; labels are ten times the row."""
    return listed(tmp_path, [f"{'bad' if row == 2 else 'good'}{row}.mp4,{10 * row}" for row in range(10)])


def one_source(path: Path) -> Mixture:
    return Mixture.of_manifest(read_manifest(path), "pyav")


def twice(path: Path) -> Mixture:
    """Two sources of the same videos."""
    mixture = one_source(path)
    return mixture._replace(sources=mixture.sources * 2)


def test_streams_have_the_numbers_that_runs_were_made_with() -> None:
    assert {purpose.name: int(purpose) for purpose in Purpose} == {
        "ORDER": 1, "FRAMES": 2, "CROP": 3, "MASK": 4, "REPLACEMENT": 5, "AUGMENT": 6, "ERASE": 7, "MIX": 8,
        "STRETCH": 9, "BOXES": 10, "HELD_BACK": 11,
    }  # fmt: skip
    found = generator(Purpose.CROP, 7, epoch=3, row=2, view=1, attempt=4, source=5)
    assert found.random() == np.random.default_rng((3, 7, 3, 2, 1, 4, 5)).random()


def test_a_validation_clip_is_the_middle_and_its_masks_are_a_function_of_its_name_alone(
    tmp_path: Path, make_config: MakeConfig
) -> None:
    """Of frames 100 to 120 the middle 16, 8 frames from the first to the last of them; a square of 40 in 48 columns."""
    middle = [102, 104, 106, 108, 111, 113, 115, 117]
    ten = listed(tmp_path, ["bad0.mp4,,", "good1.mp4,100,20"], "path,start,frames")
    found = []
    for seed, videos in ((SEED, one_source(ten)), (SEED + 1, twice(ten))):
        config = make_config(seed=seed, views=3, flip=1.0, jitter=0.2, crop_on="device")
        dataset = MiddleClips(config, videos)
        reader = told(dataset)
        key = SampleKey(epoch=seed, row=1, source=len(videos.sources) - 1)
        batch = dataset[key]
        assert batch is not None
        assert reader.chosen == [middle]
        found.append(batch)
        assert dataset[key._replace(row=0)] is None, "no other video is taken for it"
    assert all(one.equal(two) for one, two in zip(*found, strict=True))
    name = blake2b(b"good1.mp4 100", digest_size=8).digest()
    rng = np.random.default_rng((11, 0, 0, int.from_bytes(name, "big"), 0, 0, 0))
    masks = make_masks(config.mask, config.geometry, rng)
    assert found[0].visible_BV.tolist() == [masks.visible_V.tolist()]
    assert found[0].decode_BM.tolist() == [masks.decode_M.tolist()]
    expected = crop_resize(torch.from_numpy(picture(np.array(middle))), CropBox(0, 4, 40, 40), 32)
    assert found[0].clip_BTHWC.equal(expected[None])


def test_a_stride_of_a_source_of_which_none_is_validated_is_not_taken_for_a_misspelt_one(
    ten: Path, make_config: MakeConfig
) -> None:
    """Of k400 and k600 only the one has videos that are held back: its own stride counts all the same."""
    mixture = one_source(ten)
    held = mixture._replace(sources=(mixture.sources[0]._replace(name="k400"),))
    config = make_config(source_strides={"k400": 3, "k600": 2})
    with pytest.raises(ConfigError, match="did you mean 'k400'"):
        PretrainDataset(config, held)
    clips = MiddleClips(config, held)
    reader = told(clips)
    assert clips[SampleKey(0, 0)] is not None
    assert reader.chosen[0][-1] - reader.chosen[0][0] > 3 * 6


def test_the_order_of_each_epoch_of_each_source_is_a_stream_of_its_own() -> None:
    order = SampleOrder([5, 9], SEED, shares=[0.5, 0.5])
    keys = [order.key_at(at) for at in range(60)]
    for source, size in enumerate((5, 9)):
        found = [key for key in keys if key.source == source]
        for place, key in enumerate(found):
            drawn = np.random.default_rng((ORDER, SEED, place // size, 0, 0, 0, source))
            assert key == (place // size, Shuffle(size, drawn)[place % size], source)


@pytest.mark.parametrize("crop_on", ["workers", "device"])
def test_pre_training_draws_frames_crops_and_masks_each_from_its_own_stream(
    ten: Path, make_config: MakeConfig, crop_on: str
) -> None:
    config = make_config(seed=SEED, views=3, flip=0.5, jitter=0.2, crop_on=crop_on)
    dataset = PretrainDataset(config, twice(ten))
    reader = told(dataset)
    key = SampleKey(epoch=3, row=5, source=1)
    sample = dataset[key]
    frames_T = sample_stride(LENGTH, 8, 2, stream(FRAMES, key=key))
    assert reader.chosen == [frames_T.tolist()]
    scales = config.data.crop_scales
    boxes = [draw_crop(HEIGHT, WIDTH, 32, scales, stream(CROP, view, key=key), 0.5, 0.2) for view in range(3)]
    assert sample.boxes_K == boxes
    assert len(set(boxes)) == 3
    masks = [make_masks(config.mask, config.geometry, stream(MASK, view, key=key)) for view in range(3)]
    assert np.array_equal(sample.visible_KV, np.stack([mask.visible_V for mask in masks]))
    assert np.array_equal(sample.decode_KM, np.stack([mask.decode_M for mask in masks]))
    clips = torch.from_numpy(picture(frames_T))
    expected = torch.stack([crop_resize(clips, box, 32) for box in boxes] if crop_on == "workers" else [clips])
    assert torch.equal(sample.clip_KTHWC, expected)


def labelled(path: Path, size: int = 32, data: dict[str, Any] | None = None, **augment: object) -> FinetuneConfig:
    usual = {"manifest": path, "num_frames": 8, "size": size, "stride": 2, "views": 2, "workers": 0}
    return FinetuneConfig(
        model=ClassifierConfig.of_size("tiny", num_classes=100),
        data=LabelledDataConfig.model_validate(usual | (data or {})),
        augment=AugmentConfig.model_validate(augment),
        train=FinetuneTrainConfig(micro_batch=3, seed=SEED),
    )


@pytest.mark.parametrize("policy", [None, "rand-m7-n4-mstd0.5-inc1"])
@pytest.mark.parametrize("share", [0.0, 1.0])
def test_fine_tuning_augments_crops_and_erases_in_this_order_from_streams_of_their_own(
    ten: Path, policy: str | None, share: float
) -> None:
    config = labelled(ten, rand_augment=policy, erase=share)
    dataset = LabelledDataset(config, twice(ten))
    reader = told(dataset)
    key = SampleKey(epoch=1, row=7, source=1)
    sample = dataset[key]
    frames_T = dense_indices(LENGTH, 8, 2, stream(FRAMES, key=key))
    assert reader.chosen == [frames_T.tolist()]
    for view in range(2):
        frames = picture(frames_T)
        if policy is not None:
            frames = rand_augment(frames, policy, 32, stream(AUGMENT, view, key=key))
        box = draw_resized_crop(*frames.shape[1:3], (0.08, 1.0), (0.75, 4 / 3), 0.5, stream(CROP, view, key=key))
        expected = crop_resize(torch.from_numpy(frames.copy()), box, 32)
        erase(expected, share, stream(ERASE, view, key=key))
        assert torch.equal(sample.clip_KTHWC[view], expected)
    assert sample.label == 70


def test_what_a_view_erases_is_in_no_other_and_not_in_the_reader_s_frames(ten: Path) -> None:
    """Square frames of the clip's own size, used whole: nothing has to be copied for cutting or resizing."""
    whole = {"size": HEIGHT, "crop_area": (1, 1), "crop_aspect": (1, 1), "flip": 0, "views": 4}
    dataset = LabelledDataset(labelled(ten, data=whole, rand_augment=None, erase=1), one_source(ten))
    reader = told(dataset, width=HEIGHT)
    sample = dataset[SampleKey(0, 1)]
    untouched = picture(np.array(reader.chosen[0]), HEIGHT)
    assert np.array_equal(reader.given, untouched)
    for view, clip in enumerate(sample.clip_KTHWC):
        expected = torch.from_numpy(untouched.copy())
        erase(expected, 1, stream(ERASE, view, key=SampleKey(0, 1)))
        assert torch.equal(clip, expected)


def test_a_batch_is_mixed_by_the_stream_of_its_first_sample(ten: Path) -> None:
    dataset = LabelledDataset(labelled(ten), one_source(ten))
    told(dataset)
    boxes = 0
    for row in range(3, 9):
        samples = [dataset[SampleKey(0, at)] for at in (row, 0, 1)]
        batch = dataset.collate(samples)
        mixing = draw_mixing(32, 0.8, 1.0, 1.0, 0.5, stream(MIX, key=SampleKey(0, row)))
        assert float(batch.keep_pixels) == pytest.approx(mixing.keep_pixels)
        assert float(batch.keep_label) == pytest.approx(mixing.keep_label)
        clips = torch.cat([sample.clip_KTHWC for sample in samples])
        assert torch.equal(batch.clip_BTHWC, clips if mixing.box is None else paste_boxes(clips, mixing.box))
        assert batch.label_B.tolist() == [10 * row, 10 * row, 0, 0, 10, 10]
        boxes += mixing.box is not None
    assert 0 < boxes < 6


def test_a_replacement_brings_its_own_label_frames_and_source(tmp_path: Path) -> None:
    """Row 2 is unreadable: the clip is of a row drawn from the whole list, and so are its label and its name in the counts."""
    rows = [f"{'bad' if row == 2 else 'good'}{row}.mp4,{10 * row},from{row}" for row in range(10)]
    path = listed(tmp_path, rows, "path,label,source")
    dataset = LabelledDataset(labelled(path, rand_augment=None, erase=0), one_source(path))
    reader = told(dataset)
    seen = set()
    for epoch in range(20):
        key, attempt = SampleKey(epoch, 2), 1
        while (row := int(stream(REPLACEMENT, attempt=attempt, key=key).integers(10))) == 2:
            attempt += 1
        sample = dataset[key]
        assert (sample.label, sample.source, sample.key) == (10 * row, f"from{row}", key)
        assert [Path(failure.path).name for failure in sample.failures] == ["bad2.mp4"] * attempt
        assert reader.chosen[-1] == dense_indices(LENGTH, 8, 2, stream(FRAMES, attempt=attempt, key=key)).tolist()
        box = draw_resized_crop(HEIGHT, WIDTH, (0.08, 1.0), (0.75, 4 / 3), 0.5, stream(CROP, key=key))
        assert torch.equal(sample.clip_KTHWC[0], crop_resize(torch.from_numpy(reader.given), box, 32))
        seen.add(row)
    assert len(seen) > 5
    batch = dataset.collate([dataset[SampleKey(0, 2)], dataset[SampleKey(0, 4)]])
    assert batch.label_B.tolist() == [dataset[SampleKey(0, 2)].label] * 2 + [40, 40]
    assert 20 not in batch.label_B.tolist()


def test_eight_videos_are_tried(tmp_path: Path, make_config: MakeConfig) -> None:
    path = listed(tmp_path, ["bad0.mp4", "bad1.mp4"], "path")
    dataset = PretrainDataset(make_config(), one_source(path))
    told(dataset)
    with pytest.raises(Exception, match="none of 8 videos drawn for epoch 0, row 1 could be used"):
        dataset[SampleKey(0, 1)]


@pytest.mark.parametrize(
    ("length", "start", "frames", "is_used"),
    [
        (4, 0, "", True),
        (3, 0, "", False),
        (20, 16, "", True),
        (20, 17, "", False),
        (20, 16, 9, True),  # four of its nine are there
        (20, 17, 9, False),
        (20, 0, 4, True),
        (20, 0, 3, False),
        (20, 20, "", False),
        (20, 25, 5, False),
    ],
)
def test_a_part_with_min_frames_frames_is_used_and_one_with_fewer_is_not(
    tmp_path: Path, make_config: MakeConfig, length: int, start: int, frames: int | str, is_used: bool
) -> None:
    path = listed(tmp_path, [f"a.mp4,{start},{frames}"], "path,start,frames")
    dataset = PretrainDataset(make_config(min_frames=4, stride=1), one_source(path))
    reader = told(dataset, length=length)
    if is_used:
        dataset[SampleKey(0, 0)]
        part = range(start, min(length, start + int(frames or length)))
        assert len(part) == 4
        assert set(reader.chosen[0]) <= set(part)
    else:
        with pytest.raises(Exception, match=r"too short: [0-3] frames?"):
            dataset[SampleKey(0, 0)]


def test_the_frames_of_a_part_lie_in_it(tmp_path: Path, make_config: MakeConfig) -> None:
    """Ten frames from frame 50 on: starts 0, 1 and 2 of an eight-frame clip, all of which are drawn."""
    path = listed(tmp_path, ["a.mp4,50,10"], "path,start,frames")
    dataset = PretrainDataset(make_config(stride=1), one_source(path))
    reader = told(dataset)
    for epoch in range(40):
        dataset[SampleKey(epoch, 0)]
    assert {chosen[0] for chosen in reader.chosen} == {50, 51, 52}
    assert {frame for chosen in reader.chosen for frame in chosen} <= set(range(50, 60))


STEPS = [
    # table of the source, rate of the video, step
    ("stride = 3", 24, 3),  # the mixture's own before data.source_strides
    ("", 24, 5),  # data.source_strides before data.stride
    ("fps = 8", 24, 3),  # a rate before both
    ("fps = 8", 30, 4),  # 3.75
    ("fps = 8", 25, 3),  # 3.125
    ("fps = 16", 23.976, 1),  # 1.4985
    ("fps = 16", 25, 2),  # 1.5625
    ("fps = 8", 3, 1),  # never 0
    ("fps = 30", 24, 1),
]


@pytest.mark.parametrize(("table", "fps", "step"), STEPS)
def test_the_step_is_the_source_s_then_source_strides_and_the_nearest_to_a_rate(
    tmp_path: Path, make_config: MakeConfig, table: str, fps: float, step: int
) -> None:
    listed(tmp_path, ["a.mp4", "b.mp4"], "path")
    (tmp_path / "mix.toml").write_text(f'[[source]]\nname = "one"\nmanifest = "list.csv"\n{table}\n')
    config = make_config(stride=2, source_strides={"one": 5}, mixture=str(tmp_path / "mix.toml"))
    dataset = PretrainDataset(config, open_mixture(config.data))
    reader = told(dataset, fps=fps)
    dataset[SampleKey(0, 1)]
    assert set(np.diff(reader.chosen[0]).tolist()) == {step}


def test_the_plain_stride_is_that_of_sources_without_one(tmp_path: Path, make_config: MakeConfig) -> None:
    path = listed(tmp_path, ["a.mp4,one", "b.mp4,two", "c.mp4,"], "path,source")
    dataset = PretrainDataset(make_config(stride=2, source_strides={"two": 5}), one_source(path))
    reader = told(dataset)
    for row in range(3):
        dataset[SampleKey(0, row)]
    assert [set(np.diff(chosen).tolist()) for chosen in reader.chosen] == [{2}, {5}, {2}]


@pytest.mark.parametrize(("max_epochs", "samples"), [(2.5, 17), (1, 7), (0.99, 6), (2.9, 20)])
def test_a_source_is_used_up_after_its_passes(tmp_path: Path, max_epochs: float, samples: int) -> None:
    """Of seven videos; the last pass is cut where it would be longer."""
    listed(tmp_path, [f"{row}.mp4" for row in range(7)], "path")
    (tmp_path / "mix.toml").write_text(f'[[source]]\nname = "one"\nmanifest = "list.csv"\nmax_epochs = {max_epochs}\n')
    data = LabelledDataConfig(mixture=str(tmp_path / "mix.toml"))
    assert open_mixture(data).order(0).length == samples


@pytest.mark.parametrize(("rank", "world_size", "accumulation"), [(0, 1, 1), (1, 2, 2)])
def test_windows_that_are_left_out_are_read_by_no_step(
    ten: Path, make_config: MakeConfig, rank: int, world_size: int, accumulation: int
) -> None:
    """With windows 1 and 3 left out the steps 0, 1, 2, 3 read what 0, 2, 4, 5 would; also where a run starts at step 2."""
    config = make_config(views=1, micro_batch=2, seed=SEED)

    def batches(first: int, last: int, skipped: tuple[int, ...]) -> list[bytes]:
        dataset = PretrainDataset(config, one_source(ten))
        told(dataset)
        split = {"rank": rank, "world_size": world_size, "accumulation": accumulation}
        found = make_loader(config, dataset, first_step=first, num_steps=last, skipped_windows=skipped, **split)
        clips = [loaded.batch.clip_BTHWC.numpy().tobytes() for loaded in found]  # type: ignore[attr-defined]
        assert len(clips) == (last - first) * accumulation
        return [b"".join(clips[at : at + accumulation]) for at in range(0, len(clips), accumulation)]

    whole = batches(0, 6, ())
    assert len(set(whole)) == 6
    assert batches(0, 4, (3, 1)) == [whole[window] for window in (0, 2, 4, 5)]
    assert batches(2, 4, (1, 3)) == [whole[window] for window in (4, 5)]


def test_a_mixture_has_to_last_for_the_windows_that_are_left_out_too(tmp_path: Path, make_config: MakeConfig) -> None:
    listed(tmp_path, [f"{row}.mp4" for row in range(8)], "path")
    (tmp_path / "mix.toml").write_text('[[source]]\nname = "one"\nmanifest = "list.csv"\nmax_epochs = 2\n')
    config = make_config(micro_batch=2, mixture=str(tmp_path / "mix.toml"))
    dataset = PretrainDataset(config, open_mixture(config.data))
    split = {"rank": 0, "world_size": 1, "accumulation": 1, "first_step": 0}
    make_loader(config, dataset, num_steps=6, skipped_windows=(1, 3), **split)
    with pytest.raises(ConfigError, match=r"used up after 16 samples .* wants 18"):
        make_loader(config, dataset, num_steps=7, skipped_windows=(1, 3), **split)


def test_a_box_tells_the_pixels_that_are_cut() -> None:
    """The stand-in itself: line and column of the cut's corners."""
    clip = crop_resize(torch.from_numpy(picture(np.array([4, 9]))), CropBox(3, 5, 32, 32), 32)
    assert clip[:, 0, 0].tolist() == [[4, 3, 5], [9, 3, 5]]
    assert clip[0, 31, 31].tolist() == [4, 34, 36]
