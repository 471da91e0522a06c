"""`vmae2 extract`: the features of a loop over windows, each frame decoded once, and nothing lost, doubled or overwritten."""

from __future__ import annotations

import errno
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

import vmae2_ds
from tests.downstream.features.made_source import SIZE, WIDTH, WINDOW, write_encoder, write_list, write_video
from tests.golden_data import GOLDEN
from vmae2_ds.data.clips.crops import CropBox, crop_resize
from vmae2_ds.data.entry import ReadAs, VideoEntry
from vmae2_ds.data.readers.storage import read_entry
from vmae2_ds.data.readers.table import read_clip
from vmae2_ds.data.tools.pack import PackArguments, pack_manifest
from vmae2_ds.downstream.features.arguments import ExtractArguments, Extracted, describe
from vmae2_ds.downstream.features.extract import extract, info_of
from vmae2_ds.downstream.features.sidecar import FeatureFile, read_feature_info, read_features, read_missing
from vmae2_ds.downstream.features.video_windows import extract_video
from vmae2_ds.errors import ConfigError, DataError, TooManyBadFiles, Vmae2Error
from vmae2_ds.runs.export import ExportArguments, export_weights

LENGTHS = {"a": 50, "b": 31, "c": 17}
PARTS = {"0,20": "", "20,20": "frames 20 to 39", "0,30": "frames 0 to 29", "0,": "all from frame 0 on"}
"""Part of a video as a list says it -> what it is called beside frames 0 to 19."""


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_encoder(tmp_path_factory.mktemp("weights") / "encoder.safetensors")


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("videos")
    for seed, (name, frames) in enumerate(LENGTHS.items()):
        write_video(folder / f"{name}.mp4", frames, seed)
    return folder


@pytest.fixture
def manifest(videos: Path, tmp_path: Path) -> Path:
    return write_list(tmp_path / "list.csv", [f"{videos}/{name}.mp4" for name in LENGTHS])


def arguments(source: Path, manifest: Path, out: Path, **changes: Any) -> ExtractArguments:
    small = {"window": WINDOW, "size": SIZE, "precision": "fp32", "batch": 3, "workers": 0}
    return ExtractArguments(source=source, manifest=manifest, out=out, **small | changes)


def windows_by_hand(grid: str, frames: int, stride: int, interval: int) -> list[list[int]]:
    """Frames of each window, spelt out."""
    found = []
    for start in range(0, frames, stride):
        begin = start - interval * (WINDOW // 2) if grid == "opentad" else start
        window = [begin + interval * step for step in range(WINDOW)]
        if grid == "opentad" or window[-1] < frames:
            found.append([min(max(frame, 0), frames - 1) for frame in window])
    return found


@pytest.mark.parametrize(
    ("grid", "stride", "interval", "aspect"),
    [("opengvlab", 4, 1, "crop"), ("opentad", 4, 1, "squash"), ("opengvlab", 3, 2, "crop"), ("opentad", 20, 1, "crop")],
)
def test_features_are_those_of_window_after_window(
    source: Path, videos: Path, manifest: Path, tmp_path: Path, grid: str, stride: int, interval: int, aspect: str
) -> None:
    """Each window read by itself, by explicit frame numbers, and given to the model alone."""
    settings = {"grid": grid, "stride": stride, "interval": interval, "aspect": aspect}
    result = extract(arguments(source, manifest, tmp_path / "out", workers=2, **settings))
    model = vmae2_ds.load_encoder(source, num_frames=WINDOW, size=SIZE)
    needed = 0
    for name, frames in LENGTHS.items():
        array, about = read_features(tmp_path / "out", name)
        windows = windows_by_hand(grid, frames, stride, interval)
        assert (about.frames, about.fps, about.rows) == (frames, 20, len(windows))
        needed += len({frame for window in windows for frame in window})
        expected = []
        for window in windows:
            clip = torch.from_numpy(read_clip(videos / f"{name}.mp4", lambda n, fps, w=window: np.array(w)))  # type: ignore[misc]
            box = CropBox(0, 0, 24, 40) if aspect == "squash" else CropBox(0, 8, 24, 24)
            expected.append(model(crop_resize(clip, box, SIZE)[None])[0].numpy())
        assert array.dtype == np.float32
        np.testing.assert_allclose(array, np.stack(expected), rtol=1e-5, atol=1e-5)
    assert np.abs(np.diff(read_features(tmp_path / "out", "a")[0], axis=0)).max() > 0.01, "windows do differ"
    assert (result.videos, result.frames) == (3, sum(LENGTHS.values()))
    if stride <= WINDOW and interval == 1:
        assert result.decoded == needed
    else:  # what lies between the frames of windows has to be decoded up to the next key frame
        assert needed <= result.decoded < sum(LENGTHS.values())
    assert f"{result.decoded} frames decoded of 98" in describe(result)


def test_published_pixels_are_the_published_ones_and_said_so(
    source: Path, videos: Path, manifest: Path, tmp_path: Path
) -> None:
    """[0, 1], whole frames, bilinear without antialias, as extract_tad_feature.py has it (docs/PAPER.md)."""
    extract(arguments(source, manifest, tmp_path / "out", published_pixels=True))
    info = read_feature_info(tmp_path / "out")
    assert (info.pixels, info.resize) == ("unit", "squash_no_antialias")
    module = vmae2_ds.load_encoder(source, num_frames=WINDOW, size=SIZE).module
    module.pixels = lambda cubes: cubes
    frames = read_clip(videos / "c.mp4", lambda length, fps: np.arange(4, 12))
    unit_CTHW = torch.from_numpy(frames).permute(3, 0, 1, 2).float() / 255
    clip_CTHW = F.interpolate(unit_CTHW, size=(SIZE, SIZE), mode="bilinear", align_corners=False)
    with torch.inference_mode():
        expected = module(clip_CTHW.permute(1, 2, 3, 0)[None].contiguous())[0]
    np.testing.assert_allclose(read_features(tmp_path / "out", "c")[0][1], expected, rtol=1e-5, atol=1e-5)
    extract(arguments(source, manifest, tmp_path / "default"))
    default = read_feature_info(tmp_path / "default")
    assert (default.pixels, default.resize) == ("imagenet", "crop")
    assert info.differing(default) == ["pixels imagenet, not unit", "resize crop, not squash_no_antialias"]


def test_one_vector_a_video_and_tokens(source: Path, manifest: Path, tmp_path: Path) -> None:
    for what in ("windows", "video", "tokens"):
        extract(arguments(source, manifest, tmp_path / what, what=what))
    model = vmae2_ds.load_encoder(source, num_frames=WINDOW, size=SIZE)
    for name in LENGTHS:
        windows, video, tokens = (read_features(tmp_path / what, name)[0] for what in ("windows", "video", "tokens"))
        assert tokens.shape == (len(windows), 4 * 2 * 2, WIDTH)
        pooled = model.module.norm(torch.from_numpy(tokens.mean(axis=1)))
        np.testing.assert_allclose(pooled.numpy(), windows, rtol=1e-5, atol=1e-5)
        np.testing.assert_allclose(video, windows.astype(np.float64).mean(axis=0, keepdims=True), rtol=1e-6, atol=1e-6)
    with pytest.raises(ConfigError, match="pooling video, not window"):
        extract(arguments(source, manifest, tmp_path / "video"))


def test_parts_of_videos_and_folders_of_frames(source: Path, videos: Path, tmp_path: Path) -> None:
    path = videos / "a.mp4"
    parts = write_list(tmp_path / "parts.csv", [f"{path},20,20", f"{path},7,"], "path,start,frames")
    extract(arguments(source, parts, tmp_path / "parts"))
    whole = write_list(tmp_path / "whole.csv", [str(path)])
    extract(arguments(source, whole, tmp_path / "whole", stride=1))
    every, _ = read_features(tmp_path / "whole", "a")
    for start, frames in ((20, 20), (7, 43)):
        array, about = read_features(tmp_path / "parts", f"a_{start}")
        assert (about.start, about.frames) == (start, frames)
        np.testing.assert_allclose(array, every[start : start + frames - WINDOW + 1 : 4], rtol=1e-5, atol=1e-5)
    pictures = tmp_path / "pictures" / "a"
    pictures.mkdir(parents=True)
    entry = VideoEntry(str(path), None, "", 0, None)
    for number, frame in enumerate(read_entry(entry, ReadAs(), lambda length, fps: np.arange(length))):
        Image.fromarray(frame).save(pictures / f"img_{number:03}.png")
    folders = write_list(tmp_path / "folders.csv", [str(pictures)])
    extract(arguments(source, folders, tmp_path / "folders", frame_folders="img_{:03}.png", stride=1))
    array, about = read_features(tmp_path / "folders", "a")
    assert (about.frames, about.fps) == (50, None)
    np.testing.assert_allclose(array, every, rtol=1e-5, atol=1e-5)


def test_a_run_its_published_file_and_its_transformers_folder_are_one_model(manifest: Path, tmp_path: Path) -> None:
    """Features of one may be completed by another: the hash of the weights is the same, and so are the features."""
    run, out = GOLDEN / "run_743b256" / "finetune", tmp_path / "out"
    sources = {"file": tmp_path / "weights.safetensors", "transformers": tmp_path / "folder"}
    for layout, place in (("published", sources["file"]), ("transformers", sources["transformers"])):
        export_weights(ExportArguments(source=run, out=place, layout=layout))
    extract(arguments(run, manifest, out, window=None, size=None))
    whole = {path.name: path.read_bytes() for path in out.glob("*.npy")}
    for source in sources.values():
        (out / "a.npy").unlink()
        clip = read_feature_info(out)
        result = extract(arguments(source, manifest, out, window=clip.window, size=clip.size))
        assert (result.videos, result.before) == (1, 2)
        assert {path.name: path.read_bytes() for path in out.glob("*.npy")} == whole


def test_members_of_shards_are_read_as_files_are(source: Path, videos: Path, manifest: Path, tmp_path: Path) -> None:
    pack_manifest(PackArguments(manifest=manifest, out=tmp_path / "shards"))
    packed = tmp_path / "shards" / "manifest.csv"
    for where, place in ((manifest, "files"), (packed, "shards_out")):
        extract(arguments(source, where, tmp_path / place))
    for name in LENGTHS:
        assert (tmp_path / "files" / f"{name}.npy").read_bytes() == (
            tmp_path / "shards_out" / f"{name}.npy"
        ).read_bytes()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ({"window": 7}, "--window 7 is not a positive multiple of the cube's 2"),
        ({"size": 20}, "--size 20 is not a positive multiple of the cube's 8"),
        ({"frame_folders": "img.jpg"}, "--frame-folders 'img.jpg' gives every frame one name"),
        ({"source": Path("nowhere")}, "nowhere: there is no such file"),
        ({"manifest": Path("nowhere.csv")}, "nowhere.csv: there is no such file"),
    ],
)
def test_what_cannot_be_is_refused_with_one_line_before_anything_is_written(
    source: Path, manifest: Path, tmp_path: Path, words: dict[str, Any], said: str
) -> None:
    with pytest.raises(Vmae2Error, match=said) as refused:
        extract(arguments(source, manifest, tmp_path / "out").model_copy(update=words))
    assert "\n" not in str(refused.value)
    assert not list((tmp_path / "out").iterdir())


def test_a_full_disk_is_told_and_leaves_no_half_file(
    source: Path, manifest: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain, written = FeatureFile.add, []

    def add(self: FeatureFile, rows: np.ndarray) -> None:
        written.append(len(rows))
        if len(written) == 3:
            raise OSError(errno.ENOSPC, "No space left on device")
        plain(self, rows)

    monkeypatch.setattr(FeatureFile, "add", add)
    with pytest.raises(OSError, match="No space left"):
        extract(arguments(source, manifest, tmp_path / "out"))
    assert {path.name for path in (tmp_path / "out").iterdir()} == {".extract.lock", "features.json"}
    monkeypatch.setattr(FeatureFile, "add", plain)
    assert extract(arguments(source, manifest, tmp_path / "out")).videos == 3


def test_an_hour_of_video_holds_no_more_frames_than_a_minute(source: Path, tmp_path: Path) -> None:
    """As many frames as an hour has at 2 a second, all of which stream by while the frames of one batch are held."""
    from vmae2_ds.runs.open import open_model
    from vmae2_ds.runs.ready import encoder_of

    write_video(tmp_path / "hour.mp4", 7200, gop=250, edges=(16, 16))
    asked = arguments(source, tmp_path, tmp_path, stride=4, batch=8)
    run, weights, _ = open_model(source)
    run = run.changed(data={"num_frames": WINDOW, "size": SIZE})
    info = info_of(asked, run, encoder_of(run, weights))
    seen: list[int] = []

    def encode(window_BTHWC: torch.Tensor) -> torch.Tensor:
        seen.append(len(window_BTHWC))
        return window_BTHWC.float().mean(dim=(1, 2, 3))

    held = {}
    for frames in (1200, 7200):
        entry = VideoEntry(str(tmp_path / "hour.mp4"), None, "", 0, frames)
        found = extract_video(encode, entry, info, batch=8)
        assert found.decoded == frames
        assert found.feature_RD.shape == ((frames - WINDOW) // 4 + 1, 3)
        held[frames] = found.most_held
    assert held[7200] == held[1200] <= 64 + 8 * 4 + WINDOW, "a piece, and what a batch needs"
    assert max(seen) == 8


def test_a_bad_video_costs_itself_alone_and_is_named(source: Path, videos: Path, tmp_path: Path) -> None:
    torn = tmp_path / "torn.mp4"
    torn.write_bytes((videos / "a.mp4").read_bytes()[:900])
    write_video(tmp_path / "short.mp4", 5)
    rows = [str(torn), f"{videos}/b.mp4", str(tmp_path / "short.mp4"), str(tmp_path / "absent.mp4")]
    manifest, out = write_list(tmp_path / "list.csv", rows), tmp_path / "out"
    with pytest.raises(
        TooManyBadFiles, match=r"3 of 4 videos could not be used, more than --max-bad-share 0.5"
    ) as ended:
        extract(arguments(source, manifest, out, max_bad_share=0.5, workers=1))
    assert ended.value.exit_code == 77
    assert "\n" not in str(ended.value)
    assert read_missing(out) == ("absent", "short", "torn")
    reasons = {Path(row["path"]).stem: row["reason"] for row in map(json.loads, (out / "bad_files.jsonl").open())}
    assert set(reasons) == {"torn", "short", "absent"}
    assert "5 frames, and a window of --grid opengvlab has 8" in reasons["short"]
    kept = (out / "b.npy").read_bytes()
    result = extract(arguments(source, manifest, out, max_bad_share=1, missing="skip"))
    assert (result.videos, result.before, result.left_out, result.failures) == (0, 1, 3, ())
    shutil.copy(videos / "a.mp4", torn)  # mended
    result = extract(arguments(source, manifest, out, max_bad_share=1))
    assert (result.videos, result.before, len(result.failures)) == (1, 1, 2)
    assert read_missing(out) == ("absent", "short")
    assert (out / "b.npy").read_bytes() == kept


def test_a_video_that_breaks_off_on_the_way_leaves_nothing(source: Path, tmp_path: Path) -> None:
    """The eightieth picture is none: the model has seen windows of the first piece when it is met."""
    pictures = tmp_path / "torn"
    pictures.mkdir()
    for number in range(90):
        Image.new("RGB", (40, 24), (number, 90, 0)).save(pictures / f"{number:03}.png")
    (pictures / "080.png").write_bytes(b"no picture")
    manifest, out = write_list(tmp_path / "list.csv", [str(pictures)]), tmp_path / "out"
    result = extract(arguments(source, manifest, out, frame_folders="{:03}.png", max_bad_share=1))
    assert "080.png is no picture" in result.failures[0]
    names = {".extract.lock", "bad_files.jsonl", "features.json", "missing_files.txt"}
    assert {path.name for path in out.iterdir()} == names


def test_a_video_that_breaks_off_costs_none_that_its_child_reads_behind_it(source: Path, tmp_path: Path) -> None:
    for name, frames in (("torn", 90), ("whole", 30), ("long", 150)):
        (tmp_path / name).mkdir()
        for number in range(frames):
            Image.new("RGB", (40, 24), (number, 90, 0)).save(tmp_path / name / f"{number:03}.png")
    (tmp_path / "torn" / "080.png").write_bytes(b"no picture")
    manifest = write_list(tmp_path / "list.csv", ["torn", "whole", "long"])
    for workers in (0, 1):
        settings = {"frame_folders": "{:03}.png", "max_bad_share": 1, "workers": workers}
        result = extract(arguments(source, manifest, tmp_path / f"by{workers}", **settings))
        assert (result.videos, len(result.failures)) == (2, 1)
    for name in ("whole", "long"):
        assert (tmp_path / "by1" / f"{name}.npy").read_bytes() == (tmp_path / "by0" / f"{name}.npy").read_bytes()


def test_reading_ahead_in_children_changes_no_bit(source: Path, tmp_path: Path) -> None:
    """Frames of the window's own size are not resized: what the model sees lay in the memory that the child writes over."""
    for seed in range(3):
        write_video(tmp_path / f"v{seed}.mp4", 150 + seed, seed, edges=(SIZE, SIZE))
    manifest = write_list(tmp_path / "list.csv", [f"v{seed}.mp4" for seed in range(3)])
    for workers in (0, 2):
        extract(arguments(source, manifest, tmp_path / f"by{workers}", workers=workers))
    for path in sorted((tmp_path / "by0").glob("v*")):
        assert path.read_bytes() == (tmp_path / "by2" / path.name).read_bytes()


def test_a_folder_of_other_features_is_refused_and_stays_as_it_is(source: Path, manifest: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    extract(arguments(source, manifest, out))
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    other = write_encoder(tmp_path / "other.safetensors", seed=1)
    refusals = {
        "weights": arguments(other, manifest, out),
        "grid opengvlab, not opentad": arguments(source, manifest, out, grid="opentad"),
        "stride 4, not 8": arguments(source, manifest, out, stride=8),
        "size 16, not 32": arguments(source, manifest, out, size=32),
        "window 8, not 4": arguments(source, manifest, out, window=4),
        "precision fp32, not bf16": arguments(source, manifest, out, precision="bf16"),
        "pixels imagenet, not unit": arguments(source, manifest, out, published_pixels=True),
    }
    for said, asked in refusals.items():
        with pytest.raises(ConfigError, match=rf"holds other features than these: .*({said})") as refused:
            extract(asked)
        assert "\n" not in str(refused.value)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("mine")
    with pytest.raises(ConfigError, match="holds files of something else"):
        extract(arguments(source, manifest, tmp_path / "mine"))
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before


def test_two_videos_of_one_name_are_refused_before_the_work(source: Path, videos: Path, tmp_path: Path) -> None:
    (tmp_path / "deep").mkdir()
    shutil.copy(videos / "a.mp4", tmp_path / "deep" / "a.mp4")
    manifest = write_list(tmp_path / "list.csv", [f"{videos}/a.mp4", f"{tmp_path}/deep/a.mp4"])
    with pytest.raises(DataError, match=r"would both be written to a\.npy"):
        extract(arguments(source, manifest, tmp_path / "out"))


def test_a_finished_part_is_not_taken_for_another_part_of_its_video(
    source: Path, videos: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def listed(path: str, part: str) -> Path:
        return write_list(tmp_path / "list.csv", [f"{path},{part}"], "path,start,frames")

    out = tmp_path / "out"
    extract(arguments(source, listed(f"{videos}/a.mp4", "0,20"), out))
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    for part, said in PARTS.items():
        if said:
            with pytest.raises(
                ConfigError, match=f"a.npy holds frames 0 to 19 of its video, and the list names {said};"
            ):
                extract(arguments(source, listed(f"{videos}/a.mp4", part), out))
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before
    shutil.copy(videos / "a.mp4", tmp_path / "a.mp4")
    with caplog.at_level("WARNING"):
        assert extract(arguments(source, listed(f"{videos}/a.mp4", "0,20"), out)).before == 1
        assert not caplog.messages
        assert extract(arguments(source, listed("a.mp4", "0,20"), out)).before == 1
    assert "1 finished video was read from another place" in caplog.text
    (out / "missing_files.txt").write_bytes(b"\xff\xfe")
    with pytest.raises(DataError, match=r"missing_files\.txt cannot be read: .* remove it"):
        extract(arguments(source, listed(f"{videos}/a.mp4", "0,20"), out))


def test_a_video_is_not_called_as_the_folder_s_own_file(source: Path, videos: Path, tmp_path: Path) -> None:
    shutil.copy(videos / "a.mp4", tmp_path / "features.mp4")
    manifest = write_list(tmp_path / "list.csv", ["features.mp4"])
    with pytest.raises(DataError, match=r"features\.mp4: its features\.json would be .*; rename the video"):
        extract(arguments(source, manifest, tmp_path / "out"))
    assert not (tmp_path / "out" / "features.json").exists()


def test_the_line_of_a_result() -> None:
    result = Extracted("out", 3, 2, 1, ("x: torn",), 40, 200, 190, 4_000_000, 2.0)
    assert describe(result) == (
        "3 videos done, 40 windows; 2 videos before; 1 left out, as in missing_files.txt; 1 could not be used; "
        "190 frames decoded of 200; 2.0 s, 1.5 videos/s, 20 windows/s, 2 MB/s; out"
    )
