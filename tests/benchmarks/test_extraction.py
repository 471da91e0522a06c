"""The extraction case: both ways give the same features of the same windows, and rows tell what each decoded."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks.case import Bench, Options
from benchmarks.cases import extraction
from benchmarks.published_features import Windows, extract_with_decord, extract_with_pyav
from benchmarks.scenes import draw_scene, write_scene
from vmae2_ds.data.tools.synthetic import write_video

ONCE = Bench(Options(device="cpu", rounds=1, warmup=0, quick=True))
TINY = extraction.Size(extraction.DESK, window=4, size=16)


@pytest.fixture(autouse=True)
def short_video(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(extraction, "HEIGHT", 48)
    monkeypatch.setitem(extraction.SIZES, "desk", TINY)


def test_rows_tell_what_each_way_decoded_for_the_same_features() -> None:
    rows = {row["variant"]: row for row in extraction.measure(ONCE, "desk")}
    assert [row["error"] for row in rows.values()] == [None, None]
    ours, published = rows["ours"], rows["published"]
    assert (ours["config"]["frames"], ours["config"]["windows"]) == (88, 22)  # the last of 90 make no whole window
    assert ours["values"]["frames_decoded"] in range(88, 91)
    # 22 windows of 4 frames, one key frame: window i takes all from 0 to 4 i + 3
    assert published["values"]["frames_decoded"] == sum(4 * i + 4 for i in range(22))
    assert ours["speedup"]["against"] == "published"


@pytest.mark.parametrize("extract", [extract_with_pyav, extract_with_decord])
def test_the_published_way_takes_the_frames_of_each_window_whole(extract: object, tmp_path: Path) -> None:
    """Frame k is of grey 10 k: a window of 4 from 3 i has their mean; behind frame 19 there is no whole one."""
    pytest.importorskip("decord", reason="needs decord, which has no wheels for this machine")
    images = [np.full((48, 80, 3), 10 * number, np.uint8) for number in range(20)]
    write_video(tmp_path / "a.mp4", images, fps=10, gop=7)
    found, _ = extract(tmp_path / "a.mp4", extraction.mean_colour, Windows(4, 3, 8))  # type: ignore[operator]
    expected = [(10 * np.arange(first, first + 4)).mean() / 255 for first in range(0, 17, 3)]
    np.testing.assert_allclose(found, np.repeat(expected, 3).reshape(-1, 3), atol=2 / 255)


def test_frames_are_resized_as_published(tmp_path: Path) -> None:
    """Bilinear without antialias to a third of the size: every third pixel from the second on, exactly."""
    (frame_HWC,) = draw_scene(48, 48, 1)
    seen: list[torch.Tensor] = []
    write_video(tmp_path / "a.mp4", [frame_HWC] * 4, fps=10)

    def model(clip_BWSSC: torch.Tensor) -> torch.Tensor:
        seen.append(clip_BWSSC)
        return torch.zeros(1, 1)

    extract_with_pyav(tmp_path / "a.mp4", model, Windows(4, 4, 48))
    extract_with_pyav(tmp_path / "a.mp4", model, Windows(4, 4, 16))
    whole, small = seen
    assert small.shape == (1, 4, 16, 16, 3)
    torch.testing.assert_close(small, whole[:, :, 1::3, 1::3])


def test_features_that_differ_are_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    ours = extraction.Work.ours

    def shifted(work: extraction.Work) -> list[extraction.Extracted]:
        return [each._replace(feature_RD=np.roll(each.feature_RD, 1, axis=0)) for each in ours(work)]

    monkeypatch.setattr(extraction.Work, "ours", shifted)
    errors = [row["error"] for row in extraction.measure(ONCE, "desk")]
    assert [bool(error) for error in errors] in ([True, False], [False, True])
    assert "features of both ways differ" in "".join(filter(None, errors))


def test_a_list_gives_two_of_its_videos(tmp_path: Path) -> None:
    for name in "abc":
        write_scene(tmp_path / f"{name}.mp4", 48, 10, gop=5)
    (tmp_path / "list.csv").write_text("path\na.mp4\nb.mp4\nc.mp4\n")
    bench = Bench(Options(device="cpu", videos=tmp_path / "list.csv"))
    assert [Path(entry.path).name for entry in extraction.videos_of(bench, tmp_path)] == ["a.mp4", "b.mp4"]
