"""Where a video's bytes lie: folders of frames, members of shards, URLs; and what is told when they are not there."""

from __future__ import annotations

import tarfile
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path

import fsspec
import numpy as np
import pytest
from PIL import Image

from vmae2_ds.config.pretrain import PretrainDataConfig
from vmae2_ds.data.entry import ReadAs, VideoEntry
from vmae2_ds.data.readers.common import Choose
from vmae2_ds.data.readers.storage import fetch, frame_names, read_entry, url_size
from vmae2_ds.data.sources.manifest import read_manifest
from vmae2_ds.data.sources.mixture import open_mixture
from vmae2_ds.data.tools.shards import IndexShardsArguments, index_shards
from vmae2_ds.data.tools.synthetic import SyntheticSet
from vmae2_ds.errors import Preempted, VideoError

FRAMES = ReadAs("frames", "img_{:05}.png")


def entry_at(path: object, start: int = 0, frames: int | None = None) -> VideoEntry:
    return VideoEntry(str(path), None, "", start, frames)


def picks(*indices: int) -> Choose:
    return lambda length, fps: np.array(indices)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Frames 1 to 6, each of its own grey, beside files that are no frames."""
    (tmp_path / "clip").mkdir()
    for number in range(1, 7):
        Image.fromarray(np.full((4, 6, 3), 10 * number, np.uint8)).save(tmp_path / f"clip/img_{number:05}.png")
    for name in ("img_00009.jpg", "img_.png", "x_img_00009.png", "notes.txt"):
        (tmp_path / "clip" / name).write_text("no frame")
    return tmp_path / "clip"


def grey_of(frames: np.ndarray) -> list[int]:
    assert frames.dtype == np.uint8
    assert frames.shape[1:] == (4, 6, 3)
    assert all((frame == frame[0, 0, 0]).all() for frame in frames)
    return frames[:, 0, 0, 0].tolist()


def test_frames_of_an_entry_go_by_their_numbers(folder: Path) -> None:
    asked: list[tuple[int, float]] = []

    def choose(length: int, fps: float) -> Sequence[int]:
        asked.append((length, fps))
        return [3, 5, 4, 4]

    assert grey_of(read_entry(entry_at(folder, start=3, frames=3), FRAMES, choose)) == [30, 50, 40, 40]
    assert asked[0][0] == 6
    assert np.isnan(asked[0][1]), "a folder has no frame rate"


@pytest.mark.parametrize(
    ("start", "indices", "grey"), [(0, (0, 5), [10, 60]), (1, (1, 6), [10, 60]), (4, (4, 6), [40, 60])]
)
def test_a_whole_folder_counts_what_is_there(
    folder: Path, start: int, indices: tuple[int, int], grey: list[int]
) -> None:
    """Numbered from 1, whether the list says so, says nothing, or starts later."""
    assert grey_of(read_entry(entry_at(folder, start), FRAMES, picks(*indices))) == grey
    with pytest.raises(VideoError, match=f"frame {indices[1] + 1} asked for; the video has {indices[1] + 1} frames"):
        read_entry(entry_at(folder, start), FRAMES, picks(indices[1] + 1))


def test_a_hole_in_a_whole_folder_is_closed_and_in_a_counted_one_told(folder: Path) -> None:
    (folder / "img_00003.png").unlink()
    assert grey_of(read_entry(entry_at(folder), FRAMES, picks(1, 2))) == [20, 40]
    with pytest.raises(VideoError, match=r"its frame img_00003\.png cannot be read: No such file"):
        read_entry(entry_at(folder, 1, 6), FRAMES, picks(2, 3))


def test_frames_are_in_the_order_of_numbers_not_of_names(folder: Path) -> None:
    (folder / "img_100000.png").write_bytes((folder / "img_00001.png").read_bytes())
    (folder / "img_000001.png").write_bytes((folder / "img_00001.png").read_bytes())
    assert len(frame_names(str(folder), FRAMES.template)) == 7, "a number counts once"
    assert frame_names(str(folder), FRAMES.template)[-1] == "img_100000.png"
    assert frame_names(str(folder), FRAMES.template, 7) == ["img_100000.png"]


def test_bad_frames_are_told(folder: Path) -> None:
    (folder / "img_00002.png").write_text("no picture")
    with pytest.raises(VideoError, match=r"its frame img_00002\.png is no picture"):
        read_entry(entry_at(folder), FRAMES, picks(0, 1))
    Image.fromarray(np.zeros((5, 6, 3), np.uint8)).save(folder / "img_00002.png")
    with pytest.raises(VideoError, match="its frames have several sizes"):
        read_entry(entry_at(folder), FRAMES, picks(0, 1))
    cut = (folder / "img_00001.png").read_bytes()[:50]
    (folder / "img_00001.png").write_bytes(cut)
    with pytest.raises(VideoError, match=r"its frame img_00001\.png"):
        read_entry(entry_at(folder), FRAMES, picks(0))
    with pytest.raises(VideoError, match=r"holds no frame named like img_\{:05\}\.png from number 7 on"):
        read_entry(entry_at(folder, start=7), FRAMES, picks(7))
    with pytest.raises(VideoError, match="its folder cannot be read: No such file"):
        read_entry(entry_at(folder / "none"), FRAMES, picks(0))


def test_grey_and_transparent_pictures_become_rgb(tmp_path: Path) -> None:
    Image.new("L", (6, 4), 7).save(tmp_path / "img_00000.png")
    Image.new("RGBA", (6, 4), (7, 7, 7, 0)).save(tmp_path / "img_00001.png")
    assert grey_of(read_entry(entry_at(tmp_path), FRAMES, picks(0, 1))) == [7, 7]


@pytest.fixture
def shard(synthetic_set: SyntheticSet, tmp_path: Path) -> Path:
    """A tar of two videos, and the list that tells where they lie."""
    with tarfile.open(tmp_path / "s.tar", "w") as tar:
        for number in range(2):
            tar.add(read_manifest(synthetic_set.train)[number].path, f"{number}.mp4")
    index_shards(IndexShardsArguments(shards=str(tmp_path / "s.tar"), out=tmp_path / "list.csv"))
    return tmp_path / "s.tar"


def member(shard: Path, url: str | None = None) -> VideoEntry:
    entry = read_manifest(shard.parent / "list.csv")[1]
    return entry if url is None else entry._replace(shard=url)


def test_a_member_is_the_same_on_disk_and_behind_urls(shard: Path, synthetic_set: SyntheticSet) -> None:
    video = Path(read_manifest(synthetic_set.train)[1].path)
    memory = fsspec.filesystem("memory")
    memory.pipe("/bucket/s.tar", shard.read_bytes())
    memory.pipe("/bucket/1.mp4", video.read_bytes())
    frames = read_entry(entry_at(video), ReadAs(), picks(0, 7))
    for entry in (
        member(shard),
        member(shard, f"file://{shard}"),
        member(shard, "memory://bucket/s.tar"),
        entry_at("memory://bucket/1.mp4"),
    ):
        assert fetch(entry) == video.read_bytes()
        assert np.array_equal(read_entry(entry, ReadAs(), picks(0, 7)), frames)
    memory.rm("/bucket", recursive=True)


@pytest.mark.parametrize("url", [False, True])
def test_a_short_or_missing_shard_is_told(shard: Path, url: bool) -> None:
    entry = member(shard, f"file://{shard}" if url else None)
    shard.write_bytes(shard.read_bytes()[: entry.offset + 10])
    with pytest.raises(VideoError, match=f"ends early: 10 of {entry.size} bytes from byte {entry.offset}"):
        fetch(entry)
    shard.unlink()
    with pytest.raises(VideoError, match=r"cannot be (opened|fetched)"):
        fetch(entry)


@pytest.mark.parametrize("url", ["nosuch://bucket/a.mp4", "memory://bucket/none.mp4", "file:///none/none.mp4"])
def test_what_cannot_be_fetched_is_told_in_one_line(url: str) -> None:
    with pytest.raises(VideoError, match=r"^cannot be fetched: [A-Z]") as told:
        fetch(entry_at(url))
    assert "\n" not in str(told.value)


def test_a_frames_source_gives_clips(folder: Path) -> None:
    (folder.parent / "list.csv").write_text("path,start,frames\nclip,1,6\n")
    (folder.parent / "mix.toml").write_text(
        '[[source]]\nname = "a"\nmanifest = "list.csv"\nkind = "frames"\ntemplate = "img_{:05}.png"\n'
    )
    mixture = open_mixture(PretrainDataConfig(mixture=str(folder.parent / "mix.toml")))
    source = mixture.sources[0]
    assert (source.how.kind, source.how.template) == ("frames", FRAMES.template)
    assert grey_of(read_entry(source.manifest[0], source.how, picks(1, 6))) == [10, 60]


@pytest.mark.parametrize(("error", "raised"), [(RuntimeError, VideoError), (Preempted, Preempted)])
def test_what_a_storage_raises_of_its_own_costs_its_video_and_a_signal_stops(
    error: type[Exception], raised: type[Exception], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those of S3 and of HTTP are neither OSError nor ValueError."""

    def fail(*_: object, **__: object) -> None:
        raise error("the server hung up")

    memory = type(fsspec.filesystem("memory"))
    for asked in ("cat_file", "size"):
        monkeypatch.setattr(memory, asked, fail)
    with pytest.raises(raised, match="the server hung up"):
        fetch(entry_at("memory://bucket/1.mp4"))
    with pytest.raises(Preempted) if error is Preempted else nullcontext():
        assert url_size("memory://bucket/1.mp4") is None
