"""What the grid learns from and is tested on: groups on one side of a split, whole frames, clips that are kept."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from benchmarks.cases.science.sets import Sizes, held_groups, prepare, read_array
from vmae2_ds.data.tools.encode import write_video
from vmae2_ds.errors import ConfigError

SIZES = Sizes(6, 6, 6)


def write_clip(path: Path, shade: int, frames: int = 9) -> None:
    clip = np.full((frames, 32, 48, 3), shade, np.uint8)
    clip[:, :, 24:] = 255 - shade
    write_video(path, clip, 8, kind="mp4")


@pytest.fixture
def listed(tmp_path: Path) -> Path:
    """Nine labelled videos of three people and one without a label."""
    lines = ["path,label,source"]
    for number in range(10):
        write_clip(tmp_path / f"p{number % 3}_{number}.mp4", 20 * number)
        lines.append(f"p{number % 3}_{number}.mp4,{'' if number == 9 else number % 2},person {number % 3}")
    (tmp_path / "list.csv").write_text("\n".join([*lines, ""]))
    return tmp_path / "list.csv"


def test_groups_are_on_one_side(tmp_path: Path, listed: Path) -> None:
    sets = prepare(tmp_path / "sets", SIZES, listed, None, main_listed=True)
    probed = sets.probed[""]
    assert probed.is_test_V is not None
    assert not set(probed.source_V[probed.is_test_V]) & set(probed.source_V[~probed.is_test_V])
    assert len(probed.label_V) == 9
    trained = {line.split(",")[2] for line in sets.lists["real"].read_text().splitlines()[1:]}
    assert not trained & set(probed.source_V[probed.is_test_V]), "nor are held-back groups trained on"
    assert sets.probed["real_"].is_test_V is None
    assert (sets.main, sets.classes, sets.videos["real"]) == (
        "real",
        2,
        len(sets.lists["real"].read_text().splitlines()) - 1,
    )


def test_frames_are_whole_and_evenly_spread(tmp_path: Path, listed: Path) -> None:
    clip = prepare(tmp_path / "sets", SIZES, listed, None, main_listed=True).probed[""].clip_VTHWC[1]
    assert clip.shape == (8, 48, 48, 3)
    assert abs(float(clip[:, :, 2].mean()) - 20) < 6, "the left edge is there"
    assert abs(float(clip[:, :, -3].mean()) - 235) < 6, "and the right one"


def test_a_rule_finds_groups_in_paths(tmp_path: Path, listed: Path) -> None:
    by_path = prepare(tmp_path / "one", SIZES, listed, r"/(p\d)_", main_listed=False).probed["real_"]
    assert set(by_path.source_V) == {"p0", "p1", "p2"}
    with pytest.raises(ConfigError, match="--group-by 'nobody' finds nothing in the path"):
        prepare(tmp_path / "two", SIZES, listed, "nobody", main_listed=False)


def test_lists_that_are_of_no_use(tmp_path: Path, listed: Path) -> None:
    with pytest.raises(ConfigError, match="name their list with --videos"):
        prepare(tmp_path / "sets", SIZES, None, None, main_listed=True)
    listed.write_text(listed.read_text().replace("person 1", "person 0").replace("person 2", "person 0"))
    with pytest.raises(ConfigError, match="the list has one source"):
        prepare(tmp_path / "sets", SIZES, listed, None, main_listed=False)


def test_another_list_has_clips_of_its_own(tmp_path: Path, listed: Path) -> None:
    first = prepare(tmp_path / "sets", SIZES, listed, None, main_listed=True).probed[""]
    head, *rows = listed.read_text().splitlines()
    other = listed.with_name("turned.csv")
    other.write_text("\n".join([head, *rows[::-1]]) + "\n")
    turned = prepare(tmp_path / "sets", SIZES, other, None, main_listed=True).probed[""]
    assert turned.label_V.tolist() == first.label_V.tolist()[::-1]
    assert np.array_equal(turned.clip_VTHWC, first.clip_VTHWC[::-1])


def test_which_groups_are_held_back() -> None:
    groups = [name for name in "abcdefghij" for _ in range(10)]
    held = held_groups(groups)
    assert len(held) == 3, "thirty of a hundred videos"
    assert held == held_groups(groups[::-1]), "by their names, not by the list's order"
    assert len(held_groups(["a"] * 99 + ["b"])) == 1, "one is left to train on"


def test_drawn_videos_are_kept_and_differ_between_parts(tmp_path: Path) -> None:
    sets = prepare(tmp_path, SIZES, None, None, main_listed=False)
    probed = sets.probed[""]
    assert probed.is_test_V is not None
    assert probed.is_test_V.tolist() == [False] * 6 + [True] * 6
    assert len(np.unique(probed.clip_VTHWC.reshape(12, -1), axis=0)) == 12
    file = tmp_path / "synthetic/train/00000.npy"
    before = file.stat().st_mtime_ns
    assert prepare(tmp_path, SIZES, None, None, main_listed=False).digest == sets.digest
    assert file.stat().st_mtime_ns == before
    frames = read_array(str(file), lambda length, fps: np.array([length - 1, 0]))
    assert (frames == np.load(file)[[-1, 0]]).all()
