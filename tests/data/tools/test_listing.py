"""A folder of films becomes a list that the other verbs read, each film whole or as parts that cover it once."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from vmae2_ds.data.sources.manifest import read_manifest
from vmae2_ds.data.tools.encode import write_video
from vmae2_ds.data.tools.listing import ListArguments, list_folder
from vmae2_ds.errors import ConfigError


def write_film(path: Path, frames: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_video(path, np.zeros((frames, 16, 16, 3), np.uint8), 5)


def test_parts_cover_each_film_once_and_a_short_rest_goes_to_the_part_before(tmp_path: Path) -> None:
    lengths = {"a, b/one.mp4": 33, "two .mp4": 27, "three.MP4": 14, "a, b/four.mkv": 5}  # a part is 10 frames
    for name, frames in lengths.items():
        write_film(tmp_path / "films" / name, frames)
    (tmp_path / "films" / "notes.txt").write_text("none")
    (tmp_path / "films" / "torn.mp4").write_text("none")
    written = list_folder(ListArguments(folder=tmp_path / "films", out=tmp_path / "films.csv", part_s=2))
    assert str(written).startswith("5 videos, 9 rows; of 1 file no length could be read: ")
    found: dict[str, list[tuple[int, int | None]]] = {}
    for video in read_manifest(tmp_path / "films.csv"):
        found.setdefault(str(Path(video.path).relative_to(tmp_path / "films")), []).append((video.start, video.frames))
    assert found == {
        "a, b/one.mp4": [(0, 10), (10, 10), (20, 13)],
        "two .mp4": [(0, 10), (10, 10), (20, 7)],
        "three.MP4": [(0, None)],
        "a, b/four.mkv": [(0, None)],
        "torn.mp4": [(0, None)],
    }


def test_a_list_that_is_there_is_not_written_over(tmp_path: Path) -> None:
    write_film(tmp_path / "one.mp4", 2)
    asked = ListArguments(folder=tmp_path, out=tmp_path / "sub" / "list.csv")
    assert str(list_folder(asked)).startswith("1 video: give")
    assert [video.path for video in read_manifest(asked.out)] == [str(tmp_path / "one.mp4")]
    asked.out.write_text("path\nmine.mp4\n")
    with pytest.raises(ConfigError, match="is there already; name another file"):
        list_folder(asked)
    assert asked.out.read_text() == "path\nmine.mp4\n"


def test_a_folder_without_a_video_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"no file in this folder is named like a video \(.mp4, "):
        list_folder(ListArguments(folder=tmp_path, out=tmp_path / "x.csv"))
    with pytest.raises(ConfigError, match="nowhere is no folder"):
        list_folder(ListArguments(folder=tmp_path / "nowhere", out=tmp_path / "x.csv"))
