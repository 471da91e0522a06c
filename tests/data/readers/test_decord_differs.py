"""Where decord and PyAV differ on the videos of odd_videos.py: the table of docs/DATA.md, held to what decord does."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from tests.data.odd_videos import ODD_VIDEOS
from tests.data.readers.test_frame_index import REFUSED
from vmae2_ds.data.entry import ReadAs, VideoEntry
from vmae2_ds.data.readers.table import read_clip
from vmae2_ds.data.readers.watchdog import Watchdog
from vmae2_ds.errors import VideoError

DECORD_WRONG = {
    # other frames than those asked for, without an error
    *("open_gop.mkv", "open_gop.mp4", "open_gop.ts", "hevc_open.mkv", "hevc.ts", "intra_refresh.mkv"),
    *("transport.ts", "offset.ts", "gap.ts", "mpeg2.ts", "mpeg2.mpg", "mpeg1.mpg", "mpeg4_b_frames.mp4"),
    *("h264.avi", "h264_b_frames.avi", "mpeg4_b_frames.avi", "h263.avi", "gap.avi", "dropped.avi", "cut_tail.avi"),
    *(
        "palette.avi",
        "palette.mov",
        "palette.nut",
        "negative.mkv",
        "overlap.ts",
        "overlap_by_one.ts",
        "palette_changes.avi",
        "from_nought_again.ts",
        "continued.ts",
    ),
    *(
        "long_pause.ts",
        "starts_open.mkv",
        "starts_open.ts",
        "starts_open_hevc.mkv",
        "all_key_flags.mp4",
        "late_key_flag.mkv",
    ),
    *("cut_tail.ts", "cut_head_mpeg4.mkv"),
}
DECORD_COUNTS = {
    # frames that are hidden, or never come
    *("negative_edit_list.mp4", "cut_head.mkv", "cut_head.mp4", "cut_head.ts", "cut_head.flv", "cut_head_vp8.webm"),
    *("cut_head_hevc.ts", "cut_head_mpeg2.ts", "starts_open_mpeg2.ts", "starts_in_refresh.mkv", "hidden_frames.webm"),
    *("cut_head_bytes.ts", "cut_both.ts", "cut_tail.mpg"),
}
DECORD_REFUSES = {
    *("raw.h264", "raw.hevc", "mpeg4.m4v", "mpeg2.m2v", "mjpeg.mjpeg", "vp8.ivf", "moving.gif", "av1.mkv"),
    *(
        "cut_tail.h264",
        "cut_head.h264",
        "cut_tail.m2v",
        "cut_tail.mjpeg",
        "cut_tail.ivf",
        "cut_tail.gif",
        "cut_head.mpg",
    ),
    *("no_key_flags.mkv", "cut_head_mpeg4.avi"),
}
DECORD_VARIES = {"repeated.mkv"}
"""Two frames share a time: which of them comes is another one from run to run."""


def test_where_decord_differs_is_as_documented(tmp_path: Path) -> None:
    """docs/DATA.md has the table. A decord that mends one of these fails here, so that the table can follow."""
    found: dict[str, set[str]] = {"wrong": set(), "counts": set(), "refuses": set()}
    decord = ReadAs(reader="decord")
    with Watchdog(20) as watchdog:
        for name in (name for name in ODD_VIDEOS if name not in {*REFUSED, *DECORD_VARIES}):
            path = ODD_VIDEOS[name](tmp_path)
            expected = read_clip(path, lambda length, fps: np.arange(length))
            entry = VideoEntry(str(path), None, "", 0, None)
            lengths: list[int] = []

            def some(length: int, fps: float, lengths: list[int] = lengths) -> np.ndarray:
                lengths.append(length)
                return np.arange(length)

            try:
                clips = [watchdog.read(entry, decord, some).copy()]
                if lengths[0] == len(expected):
                    single = [len(expected) - 1, len(expected) // 2, len(expected) // 3, min(13, len(expected) - 1)]
                    clips += [watchdog.read(entry, decord, lambda n, f, k=k: np.array([k])).copy() for k in single]  # type: ignore[misc]
            except VideoError:
                found["refuses"].add(name)
                continue
            if lengths[0] != len(expected):
                found["counts"].add(name)
                continue
            wanted = [expected, *(expected[k : k + 1] for k in single)]
            if any(
                np.abs(one.astype(int) - two).mean((1, 2, 3)).max() > 2 for one, two in zip(clips, wanted, strict=True)
            ):
                found["wrong"].add(name)
    expected_of = {"wrong": DECORD_WRONG, "counts": DECORD_COUNTS, "refuses": DECORD_REFUSES}
    assert not {kind: names ^ expected_of[kind] for kind, names in found.items() if names ^ expected_of[kind]}
