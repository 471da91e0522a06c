"""`vmae2 data check`: a verdict a row, lists that divide the manifest, and a scan that goes on where it was stopped."""

from __future__ import annotations

import csv
import json
import math
import random
import shutil
from pathlib import Path

import av
import numpy as np
import pytest

from tests.data.odd_videos import encoded, pieces_of, rewritten
from tests.data.readers import bad_readers
from vmae2_ds.data.entry import ReadAs, VideoEntry
from vmae2_ds.data.readers.watchdog import Watchdog
from vmae2_ds.data.sources.manifest import read_manifest
from vmae2_ds.data.tools import scan
from vmae2_ds.data.tools.check import CheckArguments, check_manifest
from vmae2_ds.data.tools.pack import PackArguments, pack_manifest
from vmae2_ds.data.tools.prepare import PrepareArguments, prepare_manifest
from vmae2_ds.data.tools.synthetic import SyntheticSet, write_video
from vmae2_ds.data.tools.video_facts import is_variable, probe_entry
from vmae2_ds.errors import ConfigError, DataError, VideoError

QUIET = {"pictures": 0, "workers": 1, "num_frames": 4, "stride": 1}


@pytest.fixture(scope="module")
def videos(synthetic_set: SyntheticSet, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Files of every kind: 0.mp4 to 3.mp4 are sound and different, copy.mp4 is 0.mp4."""
    folder = tmp_path_factory.mktemp("videos")
    sound = sorted((synthetic_set.train.parent / "train").glob("*.mp4"))[:4]
    for number, path in enumerate(sound):
        shutil.copy(path, folder / f"{number}.mp4")
    shutil.copy(sound[0], folder / "copy.mp4")
    (folder / "text.mp4").write_text("no video\n")
    (folder / "cut.mp4").write_bytes(sound[1].read_bytes()[:900])
    (folder / "bad.mp4").write_bytes(b"anything")
    write_video(folder / "one.mp4", [np.zeros((32, 32, 3), np.uint8)], fps=16)
    with av.open(str(folder / "vfr.mp4"), "w") as container:
        stream = container.add_stream("libx264", rate=30)
        stream.height = stream.width = 32  # type: ignore[union-attr]
        for at in (0, 1, 2, 6, 7, 8, 20, 21):
            frame = av.VideoFrame.from_ndarray(np.full((32, 32, 3), 10 * at, np.uint8), format="rgb24")
            frame.pts = at
            container.mux(stream.encode(frame))  # type: ignore[union-attr]
        container.mux(stream.encode())  # type: ignore[union-attr]
    return folder


def write_list(folder: Path, header: str, *rows: str, name: str = "list.csv") -> Path:
    (folder / name).write_text("\n".join([header, *rows]) + "\n")
    return folder / name


def read_csv(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_every_verdict(videos: Path, tmp_path: Path) -> None:
    rows = {
        "0.mp4,1,,": None,
        "1.mp4,2,,": None,
        "1.mp4,2,4,8": None,  # a part of a file is not the file again
        "1.mp4,2,23,": "too short",
        "copy.mp4,1,,": "duplicate",
        "2.mp4,1,,": "two labels",
        "2.mp4,2,,": "two labels",
        "3.mp4,9,,": "wrong label",
        "3.mp4,0,,": None,  # the wrong label of the row before does not count against it
        "text.mp4,1,,": "unreadable",
        "cut.mp4,1,,": "unreadable",
        "one.mp4,1,,": "too short",
        "none.mp4,1,,": "missing",
        "vfr.mp4,1,,": None,
    }
    listed = write_list(tmp_path, "path,label,start,frames", *rows)
    two = {**QUIET, "workers": 2}
    result = check_manifest(CheckArguments(manifest=listed, out=tmp_path / "out", root=videos, classes=9, **two))
    bad = read_csv(tmp_path / "out/bad.csv")
    assert {int(row["row"]): row["verdict"] for row in bad} == {
        number: verdict for number, verdict in enumerate(rows.values()) if verdict is not None
    }
    reasons = {row["path"]: row["reason"] for row in bad}
    assert reasons["text.mp4"] == "text, not a video"
    assert reasons["3.mp4"] == "label 9 of 9 classes, which are 0 to 8"
    assert reasons["copy.mp4"] == "the same content as row 0, 0.mp4"
    assert reasons["1.mp4"] == "1 frame from frame 23 of 24; at least 2 are wanted"
    assert any("1 file of a variable frame rate" in warning for warning in result.warnings)
    assert result.bad == 9
    clean = read_csv(tmp_path / "out/clean.csv")
    assert [",".join(row.values()) for row in clean] == [row for row, verdict in rows.items() if verdict is None]
    told = json.loads((tmp_path / "out/report.json").read_text())
    assert told["verdicts"] == result.verdicts
    assert told["by_source"]["default"]["fps"]["median"] == 16
    again = check_manifest(
        CheckArguments(manifest=tmp_path / "out/clean.csv", out=tmp_path / "again", root=videos, classes=9, **QUIET)
    )
    assert again.bad == 0
    with pytest.raises(DataError, match=r"9 of 14 rows of .* are bad"):
        check_manifest(
            CheckArguments(manifest=listed, out=tmp_path / "out", root=videos, classes=9, strict=True, **QUIET)
        )


@pytest.mark.parametrize("rows", [2, 60])
def test_clean_and_bad_rows_divide_the_manifest(videos: Path, tmp_path: Path, rows: int) -> None:
    draw = random.Random(rows)
    picked = [(draw.choice(["0", "1", "copy", "text", "none", "one"]), draw.randrange(3)) for _ in range(rows)]
    listed = write_list(tmp_path, "path,label", "1.mp4,0", *(f"{name}.mp4,{label}" for name, label in picked))
    check_manifest(CheckArguments(manifest=listed, out=tmp_path / "out", root=videos, **QUIET))
    bad, clean = read_csv(tmp_path / "out/bad.csv"), read_csv(tmp_path / "out/clean.csv")
    left = [row for number, row in enumerate(read_csv(listed)) if number not in {int(line["row"]) for line in bad}]
    assert clean == left
    assert len(bad) + len(clean) == len(picked) + 1
    assert len({row["path"] for row in clean} - {"copy.mp4"}) <= 2


def test_a_rerun_looks_only_at_what_it_has_not_seen(
    videos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("0", "1", "2", "3"):
        shutil.copy(videos / f"{name}.mp4", tmp_path / f"{name}.mp4")
    listed = write_list(tmp_path, "path", *(f"{name}.mp4" for name in "0123"))
    seen: list[str] = []
    inner = scan.look_at

    def look(entry: VideoEntry, *rest: object) -> scan.Scanned:
        if len(seen) == 2:
            raise KeyboardInterrupt
        seen.append(Path(entry.path).name)
        return inner(entry, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(scan, "look_at", look)
    with pytest.raises(KeyboardInterrupt):
        check_manifest(CheckArguments(manifest=listed, out=tmp_path / "out", **QUIET))
    assert seen == ["0.mp4", "1.mp4"]
    with (tmp_path / "out/checked.jsonl").open("a") as file:
        file.write('["torn')
    seen.clear()
    check_manifest(CheckArguments(manifest=listed, out=tmp_path / "out", **QUIET))
    assert seen == ["2.mp4", "3.mp4"]
    shutil.copy(videos / "text.mp4", tmp_path / "1.mp4")
    seen.clear()
    assert check_manifest(CheckArguments(manifest=listed, out=tmp_path / "out", **QUIET)).verdicts == {"unreadable": 1}
    assert seen == ["1.mp4"]
    seen.clear()
    monkeypatch.setattr(scan, "look_at", lambda entry, *rest: (seen.append("x"), inner(entry, *rest))[1])
    check_manifest(
        CheckArguments(manifest=listed, out=tmp_path / "out", decode="all", **QUIET)
    )  # another way of looking: all again
    assert len(seen) == 4


@pytest.mark.parametrize(("misdeed", "reason"), [("sleeps", "no answer within 1 s"), ("crashes", "signal 11")])
def test_a_reader_that_hangs_or_dies_costs_its_file_alone(
    videos: Path, tmp_path: Path, misdeed: str, reason: str
) -> None:
    listed = write_list(tmp_path, "path", "0.mp4", "vfr.mp4", "bad.mp4", "1.mp4")
    # probing is libav's; the reader meets the file where a clip is read, so bad.mp4 has to pass for a video
    shutil.copy(videos / "3.mp4", tmp_path / "bad.mp4")
    for name in ("0.mp4", "vfr.mp4", "1.mp4"):
        shutil.copy(videos / name, tmp_path / name)
    check_manifest(
        CheckArguments(
            manifest=listed,
            out=tmp_path / "out",
            reader=f"tests.data.readers.bad_readers:{misdeed}",
            timeout_s=1,
            **QUIET,
        )
    )
    (bad,) = read_csv(tmp_path / "out/bad.csv")
    assert bad["path"] == "bad.mp4"
    assert reason in bad["reason"]


def test_packed_videos_and_folders_of_frames(videos: Path, tmp_path: Path) -> None:
    listed = write_list(tmp_path, "path,label", "0.mp4,0", "1.mp4,1", "copy.mp4,0")
    pack_manifest(PackArguments(manifest=listed, out=tmp_path / "packed", root=videos))
    result = check_manifest(CheckArguments(manifest=tmp_path / "packed/manifest.csv", out=tmp_path / "out", **QUIET))
    assert result.verdicts == {"duplicate": 1}
    assert len(read_manifest(tmp_path / "out/clean.csv", tmp_path / "packed")) == 2
    from PIL import Image

    (tmp_path / "frames").mkdir()
    for number in range(1, 6):
        Image.new("RGB", (40, 30), (number, 0, 0)).save(tmp_path / f"frames/{number:05}.png")
    write_list(tmp_path, "frames 1 5", "frames 4 2", "frames 4 9", name="frames.txt")
    result = check_manifest(
        CheckArguments(
            manifest=tmp_path / "frames.txt", out=tmp_path / "out2", kind="frames", template="{:05}.png", **QUIET
        )
    )
    assert result.verdicts == {"unreadable": 1}
    (bad,) = read_csv(tmp_path / "out2/bad.csv")
    assert "00006.png" in bad["reason"]


def test_the_page_shows_clips_and_names_what_is_bad(videos: Path, tmp_path: Path) -> None:
    listed = write_list(tmp_path, "path", "0.mp4", "1.mp4", "2.mp4", "text.mp4", "none.mp4")
    check_manifest(CheckArguments(manifest=listed, out=tmp_path / "out", root=videos, **{**QUIET, "pictures": 2}))
    page = (tmp_path / "out/report.html").read_text()
    assert page.count("data:image/jpeg;base64,") == 2
    assert "text.mp4" in page
    assert "no such file" in page
    assert page.count("<svg") == 4


def test_what_is_asked_for_wrongly(videos: Path, tmp_path: Path) -> None:
    listed = write_list(tmp_path, "path", "0.mp4")
    (tmp_path / "labels.txt").write_text("\n\n")
    with pytest.raises(ConfigError, match="names no class"):
        check_manifest(
            CheckArguments(manifest=listed, out=tmp_path / "out", root=videos, labels=tmp_path / "labels.txt", **QUIET)
        )
    with pytest.raises(ConfigError, match="say the same thing twice"):
        check_manifest(
            CheckArguments(
                manifest=listed, out=tmp_path / "out", root=videos, labels=tmp_path / "labels.txt", classes=3, **QUIET
            )
        )


# --- facts -----------------------------------------------------------------------------------------------------------


def test_facts_are_what_was_encoded(tmp_path: Path) -> None:
    write_video(tmp_path / "a.mp4", (np.zeros((32, 48, 3), np.uint8) for _ in range(20)), fps=10, gop=5)
    facts = probe_entry(VideoEntry(str(tmp_path / "a.mp4"), None, "", 0, None), ReadAs())
    assert facts[:7] == (20, 48, 32, 10.0, 2.0, "h264", "yuv420p")
    assert (facts.gop, facts.longest_gop, facts.is_vfr, facts.rotation, facts.has_audio) == (5, 5, False, 0, False)
    assert facts.size == (tmp_path / "a.mp4").stat().st_size


def test_rounded_times_are_not_variable_and_a_gap_is() -> None:
    assert not is_variable([round(1000 * number / 30) for number in range(200)])
    assert not is_variable([round(1000 * number / 23.976) for number in range(200)])
    assert not is_variable([0])
    steady = [512 * number for number in range(100)]
    assert not is_variable(steady)
    assert is_variable(steady[:50] + steady[51:])


def test_real_clips_have_the_facts_that_their_list_states(shared: Path) -> None:
    checked = 0
    for row in read_csv(shared / "data/clips/manifest.csv"):
        path = shared / "data/clips" / Path(row["path"]).name
        facts = probe_entry(VideoEntry(str(path), None, "", 0, None), ReadAs())
        if path.suffix == ".avi" or not row["frames"] or path.name in {"odd_editlist_start.mp4", "odd_mpeg2.ts"}:
            continue  # decord counted these, and counts them otherwise (docs/DATA.md)
        assert facts.frames == int(row["frames"]), path.name
        if row["fps"]:
            assert math.isclose(facts.fps, float(row["fps"]), rel_tol=0.02), path.name
        assert {facts.width, facts.height} == {int(row["width"]), int(row["height"])}, path.name
        checked += 1
    assert checked > 25


def test_damaged_files_are_found(shared: Path, tmp_path: Path) -> None:
    names = sorted(path.name for path in (shared / "data/broken").iterdir() if path.suffix != ".csv")
    listed = write_list(tmp_path, "path", *names)
    check_manifest(
        CheckArguments(manifest=listed, out=tmp_path / "out", root=shared / "data/broken", pictures=0, workers=2)
    )
    verdicts = {row["path"]: row["verdict"] for row in read_csv(tmp_path / "out/bad.csv")}
    short = {"frames_1.mp4", "jpeg_named.mp4"}
    sound = {"av1_not_decodable_by_decord.mkv", "frames_2.mp4", "frames_5.mp4", "mp4_named.avi", "truncated_100k.mkv"}
    sound |= {"truncated_half.avi", "vfr.mp4", "truncated_faststart_60pct.mp4"}
    assert {name for name, verdict in verdicts.items() if verdict == "too short"} == short
    assert verdicts.pop("wrong_extension.txt") == "duplicate"
    assert set(names) - set(verdicts) - {"wrong_extension.txt"} == sound


def test_decode_all_finds_what_a_clip_from_the_middle_does_not_and_is_recommended(tmp_path: Path) -> None:
    """A key frame is gone early on: the clip from the middle is sound, `data prepare` and a look at all of it refuse."""
    long = encoded(tmp_path / "long.mkv", [n % 200 for n in range(240)], bf="2")
    pieces = pieces_of(long)
    rewritten(long, tmp_path / "lost_key.mkv", pieces[:12] + pieces[13:])
    (tmp_path / "list.csv").write_text("path\nlong.mkv\nlost_key.mkv\n")
    one = check_manifest(CheckArguments(manifest=tmp_path / "list.csv", out=tmp_path / "clip", workers=1, pictures=0))
    assert one.bad == 0
    assert "--decode all" in str(one)
    assert "--decode all" in (tmp_path / "clip/report.html").read_text()
    every = check_manifest(
        CheckArguments(manifest=tmp_path / "list.csv", out=tmp_path / "all", workers=1, pictures=0, decode="all")
    )
    assert every.verdicts == {"unreadable": 1}
    assert "a decode of all gives" in (tmp_path / "all/bad.csv").read_text()
    assert "--decode all" not in str(every)
    prepared = prepare_manifest(
        PrepareArguments(manifest=tmp_path / "list.csv", out=tmp_path / "out", short_side=32, workers=1, sample=0)
    )
    assert (prepared.videos, prepared.bad) == (1, 1)


def test_long_work_is_followed_and_a_hang_in_it_is_not(tmp_path: Path) -> None:
    """The limit is for each sign of life: work that takes longer than it in all is let be, a silence of that length is not."""
    with Watchdog(1.0) as watchdog:
        assert watchdog.follow(bad_readers.count_slowly, 8, 0.25) == 7
        with pytest.raises(VideoError, match="no answer within 1 s"):
            watchdog.follow(bad_readers.count_slowly, 2, 60.0)
