"""`vmae2 data prepare` and the choice of a reader: every frame stays what it was, and what is measured is told."""

from __future__ import annotations

import csv
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.data.frames import read_frames
from tests.data.odd_videos import ODD_VIDEOS, number_of
from tests.data.readers import bad_readers
from vmae2_ds.data.entry import ReadAs, VideoEntry
from vmae2_ds.data.readers import table as decode
from vmae2_ds.data.readers.choice import choose_reader
from vmae2_ds.data.sources.manifest import read_manifest
from vmae2_ds.data.tools import prepare
from vmae2_ds.data.tools.pack import PackArguments, pack_manifest
from vmae2_ds.data.tools.prepare import PrepareArguments, Prepared, prepare_manifest
from vmae2_ds.data.tools.synthetic import SyntheticSet, write_video
from vmae2_ds.data.tools.video_facts import probe_entry
from vmae2_ds.errors import ConfigError, DataError

SMALL = {"short_side": 48, "gop": 4, "workers": 1, "sample": 0}
"""Nothing is measured unless it is asked for."""


@pytest.fixture
def films(synthetic_set: SyntheticSet, tmp_path: Path) -> Path:
    """Two films of 64x64 in a tree, one of them as two parts, one wide one elsewhere, and a text."""
    sound = sorted((synthetic_set.train.parent / "train").glob("*.mp4"))
    (tmp_path / "set/a").mkdir(parents=True)
    (tmp_path / "elsewhere").mkdir()
    shutil.copy(sound[0], tmp_path / "set/a/x.mp4")
    shutil.copy(sound[1], tmp_path / "set/a/x.avi")  # the name lies; it must not collide either
    wide = (np.full((20, 90, 3), (10 * k) % 256, np.uint8) for k in range(12))
    write_video(tmp_path / "elsewhere/wide.mkv", wide, fps=12)
    (tmp_path / "set/text.mp4").write_text("no video\n")
    rows = [["a/x.mp4", 1, "s", 4, 8], ["a/x.mp4", 2, "s", "", ""], ["a/x.avi", 3, "", "", ""]]
    rows += [[tmp_path / "elsewhere/wide.mkv", 4, "", "", ""], ["text.mp4", 5, "", "", ""]]
    with (tmp_path / "set/list.csv").open("w", newline="") as file:
        csv.writer(file).writerows([["path", "label", "source", "start", "frames"], *rows])
    return tmp_path / "set/list.csv"


def test_frames_labels_and_parts_stay(films: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    prepared = prepare_manifest(PrepareArguments(manifest=films, out=out, **SMALL | {"workers": 2, "sample": 1}))
    assert (prepared.videos, prepared.rows, prepared.bad, prepared.written) == (3, 4, 1, 3)
    before, after = read_manifest(films), read_manifest(out / "manifest.csv")
    for row in range(4):
        assert after[row][1:] == before[row][1:]
        facts = probe_entry(after[row], ReadAs())
        assert facts.longest_gop <= 4
        assert min(facts.height, facts.width) == (20 if row == 3 else 48)
        length = 12 if row == 3 else 24
        assert facts.frames == length
        source = read_frames(before[row].path, np.arange(length)).astype(float)
        copy = read_frames(after[row].path, np.arange(length)).astype(float)
        # frame k is still frame k: its mean brightness is that of the source's, and of no neighbour's, in the film that fades
        means = [frames.mean(axis=(1, 2)) for frames in (source, copy)]
        assert np.abs(means[0] - means[1]).max() < 4
    assert sorted(str(path.relative_to(out)) for path in out.rglob("*.mp4"))[:2] == ["a/x.avi.mp4", "a/x.mp4"]
    assert not list(out.rglob("*.part"))
    told = json.loads((out / "report.json").read_text())
    assert told["bytes_after"] == sum(path.stat().st_size for path in out.rglob("*.mp4"))
    assert len(told["speedups"]) == 1
    assert "text, not a video" in (out / "bad_files.jsonl").read_text()


def test_a_rerun_encodes_what_is_missing_changed_or_half(films: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    prepare_manifest(PrepareArguments(manifest=films, out=out, **SMALL))
    assert prepare_manifest(PrepareArguments(manifest=films, out=out, **SMALL)).written == 0
    (out / "a/x.mp4").write_bytes(b"half")
    os.utime(films.parent / "a/x.avi", (1, 1))
    assert prepare_manifest(PrepareArguments(manifest=films, out=out, **SMALL)).written == 2
    with pytest.raises(ConfigError, match=r"other settings \(crf: was 20, now 30\)"):
        prepare_manifest(PrepareArguments(manifest=films, out=out, crf=30, **SMALL))


def test_a_kill_loses_the_video_in_work(films: Path, tmp_path: Path) -> None:
    program = f"""
import os, signal
from pathlib import Path
from vmae2_ds.data.tools import prepare
inner, done = prepare._prepare_one, []
def work(*values):
    if len(done) == 2:
        os.kill(os.getpid(), signal.SIGKILL)
    done.append(inner(*values))
    return done[-1]
prepare._prepare_one = work
asked = {{"manifest": {str(films)!r}, "out": {str(tmp_path / "out")!r}, **{SMALL!r}}}
prepare.prepare_manifest(prepare.PrepareArguments(**asked))
"""
    ended = subprocess.run([sys.executable, "-c", program], check=False)
    assert ended.returncode == -signal.SIGKILL
    again = prepare_manifest(PrepareArguments(manifest=films, out=tmp_path / "out", **SMALL))
    assert (again.videos, again.written) == (3, 1) or (again.videos, again.written) == (3, 2)


def test_packed_videos_can_be_prepared_and_nothing_readable_is_told(films: Path, tmp_path: Path) -> None:
    pack_manifest(PackArguments(manifest=films, out=tmp_path / "packed"))
    assert (
        prepare_manifest(
            PrepareArguments(manifest=tmp_path / "packed/manifest.csv", out=tmp_path / "out", **SMALL)
        ).rows
        == 5 - 1
    )
    (films.parent / "bad.csv").write_text("path\ntext.mp4\n")
    with pytest.raises(DataError, match="none of its 1 videos could be prepared"):
        prepare_manifest(PrepareArguments(manifest=films.parent / "bad.csv", out=tmp_path / "none", **SMALL))


@pytest.mark.parametrize(
    ("before", "after", "speedups", "brings_nothing"),
    [
        (2_000_000, 5_880_000, [0.8, 0.87, 0.9], True),
        (2_000_000, 5_880_000, [0.8, 1.05, 3.0], True),  # the middle one counts
        (2_000_000, 5_880_000, [1.9, 2.0, 2.1], False),  # larger, but faster
        (2_000_000, 1_000_000, [0.8, 0.87, 0.9], False),  # smaller
        (2_000_000, 5_880_000, [], False),  # nobody asked how fast
    ],
)
def test_what_is_larger_and_no_faster_is_not_recommended(
    before: int, after: int, speedups: list[float], brings_nothing: bool
) -> None:
    said = str(Prepared(Path("out"), 3, 3, 0, before, after, 0.5, speedups, 3))
    middle = f"{sorted(speedups)[len(speedups) // 2]:.2f}" if speedups else "?"
    advice = f"this brings nothing here: 2.94 times the bytes, and read {middle}x as fast; keep the originals"
    assert (advice in said) == brings_nothing
    assert ("give out/manifest.csv as the manifest" in said) != brings_nothing
    assert f"2.00 MB became {after / 1e6:.2f} MB" in said
    assert ("was not measured" in said) == (not speedups)


def test_a_file_that_cannot_be_read_again_does_not_end_a_finished_job(
    films: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is measured at the end is read under a watchdog, and a file that fails there is passed over."""
    inner = prepare._write_manifest

    def write_and_lose(*asked: Any) -> int:
        rows = inner(*asked)
        (films.parent / "a/x.mp4").unlink()
        (films.parent / "a/x.avi").write_bytes(b"no video any more")
        return rows

    monkeypatch.setattr(prepare, "_write_manifest", write_and_lose)
    prepared = prepare_manifest(PrepareArguments(manifest=films, out=tmp_path / "out", **SMALL | {"sample": 3}))
    assert (prepared.videos, len(prepared.speedups)) == (3, 1)
    assert (tmp_path / "out/report.json").is_file()
    assert "1 video sampled" in str(prepared)
    assert "was not measured" in str(prepared._replace(speedups=[]))


def test_parts_of_a_video_with_a_cut_head_stay_the_same_frames(tmp_path: Path) -> None:
    """Frames that never come are not counted, in the list's numbers and in the copy's."""
    ODD_VIDEOS["cut_head.mkv"](tmp_path)
    (tmp_path / "list.csv").write_text("path,start,frames\ncut_head.mkv,10,8\n")
    prepare_manifest(
        PrepareArguments(manifest=tmp_path / "list.csv", out=tmp_path / "out", **SMALL | {"short_side": 256})
    )
    (row,) = read_manifest(tmp_path / "out/manifest.csv")
    assert (row.start, row.frames) == (10, 8)
    for path in (tmp_path / "cut_head.mkv", Path(row.path)):
        assert [number_of(frame) for frame in read_frames(path, np.arange(10, 18))] == [*range(22, 30)]


# --- which reader ----------------------------------------------------------------------------------------------------


def entries(films: Path) -> list[VideoEntry]:
    return list(read_manifest(films))


def test_the_fastest_sound_reader_is_taken(films: Path) -> None:
    choice = choose_reader(entries(films), ReadAs())
    assert choice.files == 4
    assert [row.reader for row in choice.rows[:2]] == ["pyav", "decord"]
    assert all(row.clip_ms and not row.failures for row in choice.rows[:1])
    assert f"take --data.reader {choice.name}" in str(choice)


@pytest.mark.parametrize(("misdeed", "column"), [("wrong_frames", "wrong"), ("refuses", "failures")])
def test_a_reader_that_is_wrong_is_out_however_fast(
    films: Path, monkeypatch: pytest.MonkeyPatch, misdeed: str, column: str
) -> None:
    name = f"tests.data.readers.bad_readers:{misdeed}"
    assert hasattr(bad_readers, misdeed)
    monkeypatch.setattr("vmae2_ds.data.readers.choice.installed_readers", lambda: ["pyav", name])
    choice = choose_reader(entries(films), ReadAs())
    assert choice.name == "pyav"
    assert getattr(choice.rows[1], column) == 4


def test_installed_readers_are_known_ones() -> None:
    found = decode.installed_readers()
    assert {"pyav", "decord"} <= set(found) <= set(decode.READERS)
