"""Videos decoded once and kept: the same bits as without, whatever reads; a folder that cannot be used ends no read."""

from __future__ import annotations

import errno
import logging
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from vmae2_ds.config.pretrain import PretrainConfig
from vmae2_ds.contracts import LoadedBatch
from vmae2_ds.data.clips.sampling import SAMPLERS
from vmae2_ds.data.entry import ReadAs, VideoEntry
from vmae2_ds.data.feed.loader import make_loader
from vmae2_ds.data.feed.pretrain import PretrainDataset
from vmae2_ds.data.readers import keeping, watchdog
from vmae2_ds.data.readers.frame_store import HEADER_BYTES
from vmae2_ds.data.readers.keeping import KeepingReader, make_reader
from vmae2_ds.data.readers.storage import read_entry, stream_entry
from vmae2_ds.data.readers.table import installed_readers
from vmae2_ds.data.readers.video_key import reader_state
from vmae2_ds.data.sources.manifest import read_manifest
from vmae2_ds.data.sources.mixture import Mixture
from vmae2_ds.data.tools.synthetic import SyntheticSet
from vmae2_ds.errors import VideoError

VIDEO_BYTES = 24 * 64 * 64 * 3 + HEADER_BYTES
GIB = 2**30


@pytest.fixture(scope="module")
def videos(synthetic_set: SyntheticSet) -> list[VideoEntry]:
    return list(read_manifest(synthetic_set.train))


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the videos that are opened from here on, by reads in this process."""
    opened: list[str] = []

    def noted(entry: VideoEntry, *more: object) -> np.ndarray:
        opened.append(os.path.basename(entry.path))
        return read_entry(entry, *more)  # type: ignore[arg-type]

    monkeypatch.setattr(watchdog, "read_entry", noted)
    return opened


def keeper(folder: Path, limit: int = GIB, timeout_s: float = 0) -> KeepingReader:
    return KeepingReader(timeout_s, folder, limit)


def picks(*numbers: int) -> Callable[[int, float], np.ndarray]:
    return lambda length, fps: np.array(numbers)


def kept_in(folder: Path) -> dict[str, int]:
    return {path.name: path.stat().st_size for path in folder.glob("*.frames")}


def random_clips(count: int) -> list[Callable[[int, float], np.ndarray]]:
    """Choices of frames as runs make them, and some that no run makes: backwards, one frame, the same one twice."""
    drawn = [
        lambda length, fps, seed=seed: SAMPLERS[("stride", "spread", "dense", "segments")[seed % 4]](
            length, 8, 1 + seed % 5, np.random.default_rng(seed)
        )
        for seed in range(count)
    ]
    return [*drawn, lambda length, fps: np.array([length - 1, 0, 5, 5])]  # type: ignore[list-item]


@pytest.mark.parametrize("reader", [*installed_readers(), "vmae2_ds.data.readers.pyav:read_pyav"])
@pytest.mark.parametrize("timeout_s", [0, 30])
def test_random_clips_are_the_same_bits(
    videos: list[VideoEntry], tmp_path: Path, reader: str, timeout_s: float, decoded: list[str]
) -> None:
    how, keeps = ReadAs(reader=reader), keeper(tmp_path, timeout_s=timeout_s)
    for entry in [videos[0], videos[0]._replace(start=5, frames=12), videos[0]._replace(start=3)]:
        for choose in random_clips(12):

            def inside(length: int, fps: float, choose=choose, entry=entry) -> np.ndarray:  # type: ignore[no-untyped-def]
                part = min(entry.frames or length, length - entry.start)
                return np.array(entry.start + choose(part, fps))

            assert np.array_equal(keeps.read(entry, how, inside), read_entry(entry, how, inside))
    assert len(kept_in(tmp_path)) == 3
    if not timeout_s:
        assert decoded == ["00000.mp4"] * 3
    keeps.close()


def test_what_choose_hears_is_the_same(videos: list[VideoEntry], tmp_path: Path) -> None:
    told = []

    def choose(length: int, fps: float) -> np.ndarray:
        told.append((length, fps))
        return np.array([3])

    for _ in range(2):
        keeper(tmp_path).read(videos[0], ReadAs(), choose)
    assert told == [(24, 16.0), (24, 16.0)]


def test_a_changed_file_is_decoded_anew(videos: list[VideoEntry], tmp_path: Path, decoded: list[str]) -> None:
    path, keeps = tmp_path / "video.mp4", keeper(tmp_path / "kept")
    entry = videos[0]._replace(path=str(path))
    for source in videos[:2]:
        shutil.copy(source.path, path)
        for _ in range(2):
            assert np.array_equal(keeps.read(entry, ReadAs(), picks(7, 2)), read_entry(source, ReadAs(), picks(7, 2)))
    about = os.stat(path)
    os.utime(path, ns=(about.st_atime_ns, about.st_mtime_ns + 1))  # the same size and content, by chance
    keeps.read(entry, ReadAs(), picks(7, 2))
    assert len(decoded) == 3


def test_a_changed_picture_of_a_folder_is_decoded_anew(tmp_path: Path) -> None:
    folder, keeps = tmp_path / "film", keeper(tmp_path / "kept")
    folder.mkdir()
    how = ReadAs("frames", "{:05}.png")

    def draw(number: int, grey: int) -> None:
        Image.new("RGB", (16, 8), (grey,) * 3).save(folder / how.template.format(number))

    for number in range(1, 6):
        draw(number, 10 * number)
    listed, whole = VideoEntry(str(folder), None, "", 2, 3), VideoEntry(str(folder), None, "", 1, None)
    assert keeps.read(listed, how, picks(4, 2))[:, 0, 0, 0].tolist() == [40, 20]
    assert keeps.read(whole, how, picks(5, 1))[:, 0, 0, 0].tolist() == [50, 10]
    assert len(kept_in(tmp_path / "kept")) == 2
    draw(4, 200)
    assert keeps.read(listed, how, picks(4, 2))[:, 0, 0, 0].tolist() == [200, 20]
    assert keeps.read(whole, how, picks(4, 1))[:, 0, 0, 0].tolist() == [200, 10]
    (folder / how.template.format(3)).unlink()
    with pytest.raises(VideoError, match=r"00003\.png"):
        keeps.read(listed, how, picks(3))


def test_a_member_of_a_shard_is_kept_by_its_place(videos: list[VideoEntry], tmp_path: Path, decoded: list[str]) -> None:
    contents = [Path(entry.path).read_bytes() for entry in videos[:2]]
    (tmp_path / "shard.tar").write_bytes(b"".join(contents))
    sizes, keeps = [len(content) for content in contents], keeper(tmp_path / "kept")
    for _ in range(2):
        for number, source in enumerate(videos[:2]):
            member = source._replace(
                path="same.mp4", shard=str(tmp_path / "shard.tar"), offset=sum(sizes[:number]), size=sizes[number]
            )
            expected = read_entry(source, ReadAs(), picks(3, 4))
            assert np.array_equal(keeps.read(member, ReadAs(), picks(3, 4)), expected)
    assert len(decoded) == 2


def test_another_reader_decodes_for_itself(videos: list[VideoEntry], tmp_path: Path) -> None:
    keeps = keeper(tmp_path)
    inverted = ReadAs(reader="tests.data.readers.bad_readers:wrong_frames")
    plain = keeps.read(videos[0], ReadAs(), picks(1))
    assert np.array_equal(keeps.read(videos[0], inverted, picks(1)), 255 - plain)
    assert np.array_equal(keeps.read(videos[0], ReadAs(), picks(1)), plain)


def test_a_reader_that_depends_on_what_else_is_asked_for_is_not_kept(videos: list[VideoEntry], tmp_path: Path) -> None:
    keeps = keeper(tmp_path)
    for name in ("counts_what_is_asked", "shifts_behind_a_seek"):
        how = ReadAs(reader=f"tests.data.readers.bad_readers:{name}")
        for choose in random_clips(6):
            assert np.array_equal(keeps.read(videos[0], how, choose), read_entry(videos[0], how, choose))
    for number in (1, 20):  # it shows only in the second clip
        clip = keeps.read(videos[1], how, picks(number))
        assert np.array_equal(clip, read_entry(videos[1], how, picks(number)))
    assert not kept_in(tmp_path)


def test_a_whole_that_does_not_show_the_clip_is_not_kept(
    videos: list[VideoEntry], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    keeps = keeper(tmp_path)

    def backwards(*about: Any) -> Iterator[np.ndarray]:
        return reversed(list(stream_entry(*about)))

    monkeypatch.setattr(keeping, "stream_entry", backwards)
    for number in (2, 3):
        assert np.array_equal(
            keeps.read(videos[0], ReadAs(), picks(number)), read_entry(videos[0], ReadAs(), picks(number))
        )
    assert not kept_in(tmp_path)


@pytest.mark.parametrize("name", ["sleeps", "sleeps_decoding", "crashes", "hogs", "wrong_type", "chooses_twice"])
def test_bad_videos_are_told_as_without(videos: list[VideoEntry], tmp_path: Path, name: str) -> None:
    shutil.copy(videos[0].path, tmp_path / "bad.mp4")
    bad, how = (
        videos[0]._replace(path=str(tmp_path / "bad.mp4")),
        ReadAs(reader=f"tests.data.readers.bad_readers:{name}"),
    )
    told = []
    for reader in (keeper(tmp_path / "kept", timeout_s=1), make_reader(1)):
        with pytest.raises(VideoError) as error:
            reader.read(bad, how, picks(1))
        told.append(str(error.value))
        reader.close()
    assert told[0] == told[1]
    assert not kept_in(tmp_path / "kept")


@pytest.mark.parametrize(
    "name", ["sleeps_when_asked_for_all", "crashes_when_asked_for_all", "fails_when_asked_for_all"]
)
def test_a_video_that_cannot_be_decoded_whole_gives_its_clips(
    videos: list[VideoEntry], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    keeps, how = keeper(tmp_path, timeout_s=2), ReadAs(reader=f"tests.data.readers.bad_readers:{name}")
    tried, call = list[str](), keeps.call

    def noted(*asked: Any) -> Any:
        tried.append(asked[2].path)
        return call(*asked)

    monkeypatch.setattr(keeps, "call", noted)
    for number in range(3):
        expected = read_entry(videos[0], ReadAs(), picks(number, 9))
        assert np.array_equal(keeps.read(videos[0], how, picks(number, 9)), expected)
    assert tried == [videos[0].path]
    keeps.close()
    assert [path.name for path in tmp_path.iterdir() if not path.name.endswith((".user", ".lock"))] == []


def test_frames_outside_the_part_are_read(videos: list[VideoEntry], tmp_path: Path) -> None:
    part, keeps = videos[0]._replace(start=4, frames=6), keeper(tmp_path)
    for numbers in ((5, 6), (3, 5), (9, 10), (5, 6)):
        assert np.array_equal(keeps.read(part, ReadAs(), picks(*numbers)), read_entry(part, ReadAs(), picks(*numbers)))
    with pytest.raises(VideoError, match="frame 24 asked for; the video has 24 frames"):
        keeps.read(part, ReadAs(), picks(24))
    assert list(kept_in(tmp_path).values()) == [6 * 64 * 64 * 3 + HEADER_BYTES]


def test_what_fits_is_kept_and_the_rest_is_read(
    videos: list[VideoEntry],
    tmp_path: Path,
    decoded: list[str],
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    caplog.set_level(logging.INFO)
    monkeypatch.setattr(keeping, "ASK_AGAIN_S", 0)
    keeps = keeper(tmp_path, 3 * VIDEO_BYTES)
    for _ in range(2):
        for entry in videos[:5]:
            assert np.array_equal(keeps.read(entry, ReadAs(), picks(3)), read_entry(entry, ReadAs(), picks(3)))
    assert decoded == [f"{number:05d}.mp4" for number in (0, 1, 2, 3, 4, 3, 4)]
    assert sum(kept_in(tmp_path).values()) == 3 * VIDEO_BYTES
    assert [message for message in caplog.messages if "is full" in message] == [
        f"cache: {tmp_path} is full; videos that are not in it are decoded each time"
    ]
    assert str(keeps.describe()).startswith(f"cache: 3 videos, 0.00 of {3 * VIDEO_BYTES / GIB:g} GiB, in {tmp_path};")


def test_a_long_video_is_not_kept(videos: list[VideoEntry], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for largest, count in ((VIDEO_BYTES - 1, 0), (VIDEO_BYTES, 1)):
        monkeypatch.setattr(keeping, "LARGEST", largest)
        keeper(tmp_path).read(videos[0], ReadAs(), picks(3))
        assert len(kept_in(tmp_path)) == count


@pytest.mark.parametrize("call", ["fsync", "open", "rename"])
def test_a_full_disk_costs_one_line(
    videos: list[VideoEntry],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    call: str,
) -> None:
    keeps = keeper(tmp_path / "kept")
    keeps.read(videos[0], ReadAs(), picks(3))

    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    place = {"fsync": (keeping.os, "fsync"), "open": (keeping, "open"), "rename": (Path, "rename")}[call]
    monkeypatch.setattr(*place, full, raising=False)
    for entry in videos[:4]:
        assert np.array_equal(keeps.read(entry, ReadAs(), picks(3)), read_entry(entry, ReadAs(), picks(3)))
    assert [line for line in caplog.messages if "No space left on device" in line] == [
        f"cache: {tmp_path / 'kept'}: No space left on device: from here on no more videos are kept; --data.cache-folder "
        "names another place"
    ]
    assert len(kept_in(tmp_path / "kept")) == 1
    assert not list((tmp_path / "kept").glob("*.part"))


def test_a_folder_that_cannot_be_used_costs_one_line(
    videos: list[VideoEntry], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_text("no folder")
    keeps = keeper(tmp_path / "file")
    for _ in range(2):
        assert np.array_equal(keeps.read(videos[0], ReadAs(), picks(3)), read_entry(videos[0], ReadAs(), picks(3)))
    assert len(caplog.messages) == 1
    assert "no more videos are kept" in caplog.messages[0]
    assert keeps.describe() is None


@pytest.mark.parametrize("way", ["mine", "open", "link", "not mine"])
def test_the_default_folder_is_used_only_where_nobody_else_writes(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch, way: str
) -> None:
    monkeypatch.setattr(keeping.tempfile, "gettempdir", lambda: str(tmp_path))
    folder = keeping.default_folder()
    if way == "open":
        folder.mkdir()
        folder.chmod(0o777)
    if way == "link":
        (tmp_path / "elsewhere").mkdir(mode=0o700)
        folder.symlink_to(tmp_path / "elsewhere")
    if way == "not mine":
        folder.mkdir(mode=0o700)
        monkeypatch.setattr(keeping, "default_folder", lambda folder=folder: folder)
        monkeypatch.setattr(keeping.os, "getuid", lambda: os.geteuid() + 1)
    reader = make_reader(0, 1)
    assert (reader.describe() is not None) == (way == "mine")
    assert len(caplog.messages) == (way != "mine")
    if way == "mine":
        assert folder.stat().st_mode & 0o777 == 0o700


def test_a_reader_without_a_version_is_read_and_not_kept(
    videos: list[VideoEntry], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vmae2_ds.data.readers.video_key.PACKAGES", {"pyav": "no_such_package"})
    reader_state.cache_clear()
    try:
        assert np.array_equal(
            keeper(tmp_path).read(videos[0], ReadAs(), picks(3)), read_entry(videos[0], ReadAs(), picks(3))
        )
    finally:
        reader_state.cache_clear()
    assert not kept_in(tmp_path)


def test_what_a_folder_that_is_only_read_holds_is_used(
    videos: list[VideoEntry], tmp_path: Path, decoded: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    keeper(tmp_path).read(videos[0], ReadAs(), picks(3))

    def refused(*_: object, **__: object) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    monkeypatch.setattr("vmae2_ds.data.readers.frame_store.open_alone", refused)
    monkeypatch.setattr("vmae2_ds.data.readers.frame_store.os.utime", refused)
    keeps = keeper(tmp_path)
    for entry in videos[:2]:
        assert np.array_equal(keeps.read(entry, ReadAs(), picks(5)), read_entry(entry, ReadAs(), picks(5)))
    assert decoded == ["00000.mp4", "00001.mp4"]
    assert "cannot be written" in str(keeps.describe())


def load(config: PretrainConfig, mixture: Mixture, steps: int = 12) -> list[LoadedBatch]:
    where = {"rank": 0, "world_size": 1, "accumulation": 1, "first_step": 0, "num_steps": steps}
    return list(make_loader(config, PretrainDataset(config, mixture), **where))


@pytest.mark.parametrize("workers", [0, 1, 2])
@pytest.mark.parametrize("gib", [1, 3.5 * VIDEO_BYTES / GIB])
def test_batches_and_bad_files_are_the_same_with_any_workers(
    synthetic_set: SyntheticSet, tmp_path: Path, make_config: Callable[..., PretrainConfig], workers: int, gib: float
) -> None:
    (tmp_path / "text.mp4").write_text("no video\n")
    good = [f"{synthetic_set.train.parent}/train/{number:05d}.mp4,good" for number in range(6)]
    (tmp_path / "list.csv").write_text("\n".join(["path,source", "text.mp4,bad", *good, "none.mp4,bad"]) + "\n")
    mixture = Mixture.of_manifest(read_manifest(tmp_path / "list.csv"), "pyav")
    plain = load(make_config(workers=0), mixture)
    cached = {"cache": gib, "cache_folder": str(tmp_path / "kept"), "read_timeout_s": 30}
    kept = load(make_config(workers=workers, **cached), mixture)
    assert len(plain) == len(kept) == 12
    for one, other in zip(plain, kept, strict=True):
        assert all(np.array_equal(x, y) for x, y in zip(one.batch, other.batch, strict=True))
        assert one[1:] == other[1:]
    assert len(kept_in(tmp_path / "kept")) == min(6, int(gib * GIB) // VIDEO_BYTES)


def test_a_second_pass_and_a_second_run_decode_nothing(
    synthetic_set: SyntheticSet, tmp_path: Path, make_config: Callable[..., PretrainConfig], decoded: list[str]
) -> None:
    mixture = Mixture.of_manifest(read_manifest(synthetic_set.train), "pyav")
    config = make_config(cache=1, cache_folder=tmp_path, read_timeout_s=0)
    for _ in range(2):
        load(config, mixture, steps=18)  # three passes
        assert sorted(decoded) == [f"{number:05d}.mp4" for number in range(12)]
